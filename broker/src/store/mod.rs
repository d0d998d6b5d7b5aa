//! Where Persist outputs go.
