//! TLS for QUIC with little memory per idle connection.
