//! QUIC connections of one worker.
