//! Keep Alive (MQTT 5.0 §3.1.2.10): how long a client may be silent.

use headgate_codec::{Connect, Version};

use crate::CoreLimits;

/// What applies to a connection.
pub(crate) struct KeepAlive {
    pub(crate) silence_ms: u64,
    /// Server Keep Alive, if it isn't what the client asked for \[MQTT-3.2.2-22\].
    pub(crate) server_s: Option<u16>,
}

/// One and a half times the Keep Alive \[MQTT-3.1.2-22\], or the ceiling.
pub(crate) fn silence(connect: &Connect, limits: &CoreLimits) -> KeepAlive {
    let (ceiling_s, max_s) = (limits.idle_ceiling_s, limits.keep_alive_max_s);
    let ceiling_ms = u64::from(ceiling_s) * 1_000;
    let asked_ms = u64::from(connect.keep_alive_s) * 1_500;
    if connect.version != Version::V5 {
        let silence_ms = if asked_ms == 0 { ceiling_ms } else { asked_ms };
        return KeepAlive {
            silence_ms,
            server_s: None,
        };
    }
    if asked_ms != 0 && asked_ms <= ceiling_ms && connect.keep_alive_s <= max_s {
        return KeepAlive {
            silence_ms: asked_ms,
            server_s: None,
        };
    }
    let below_ceiling_s = u16::try_from(ceiling_s.saturating_mul(2) / 3).unwrap_or(u16::MAX);
    let server_s = below_ceiling_s.min(max_s).max(1);
    KeepAlive {
        silence_ms: u64::from(server_s) * 1_500,
        server_s: Some(server_s),
    }
}
