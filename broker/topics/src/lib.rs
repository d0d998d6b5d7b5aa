//! The topic table.
