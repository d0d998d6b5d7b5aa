//! Transports: each moves bytes and knows nothing of sessions.

pub mod cid;
pub mod framing;
pub mod quic;
pub mod tcp;
pub mod timer;
pub mod tls;
pub mod udp;
pub mod ws;
