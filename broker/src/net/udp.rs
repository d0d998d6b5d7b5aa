//! UDP in batches.
