//! Transports: each moves bytes, in order and without loss [MQTT-4.2-1], and knows nothing of sessions.

pub mod cid;
pub mod framing;
pub mod quic;
pub mod tcp;
pub mod timer;
pub mod tls;
pub mod token;
pub mod udp;
pub mod ws;
