//! Who owns which session: the directory.

mod directory;

pub use directory::{Directory, LocalDirectory};
