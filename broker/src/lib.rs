//! headgate: an MQTT broker for the edge, over QUIC and TCP.
