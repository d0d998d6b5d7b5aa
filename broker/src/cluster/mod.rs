//! Who owns which session: the directory.
