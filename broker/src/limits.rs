//! Admission limits that all workers share.
