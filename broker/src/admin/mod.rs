//! The local administration socket and the Prometheus endpoint.
