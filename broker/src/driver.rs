//! Executes the outputs of the core.
