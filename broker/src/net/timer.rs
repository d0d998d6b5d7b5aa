//! One lazy timer structure for all connections of a worker.
