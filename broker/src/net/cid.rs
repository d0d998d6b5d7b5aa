//! Connection IDs for quinn-proto.
