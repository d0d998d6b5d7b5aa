//! What `headgate ctl session` asks about.

use super::Server;
use crate::worker::account::{AccountOrder, ClientAccount, ConnectionAccount};
use headgate_codec::{Text, Version};
use headgate_core::Owner;
use serde_json::{Value, json};
use std::{sync::mpsc, time::Duration};

/// How long a worker may take to answer; a turn of its loop is a matter of milliseconds.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// How often a session that has moved meanwhile is looked for.
const ATTEMPTS: usize = 3;

impl Server {
    /// What one client's session and connection hold.
    pub(super) fn session_show(&self, question: &Value) -> Result<Value, String> {
        let id = question["client_id"].as_str().unwrap_or_default();
        let client_id = Text::from(id);
        for _ in 0..ATTEMPTS {
            let Some(owner) = self.workshop.owner(&client_id) else {
                return Err(format!("there is no session of a client `{id}`"));
            };
            if let Some(account) = self.ask(owner, &client_id)? {
                let classes = self.workshop.quotas.status();
                let number = usize::from(account.session.quota_class);
                let class = classes.iter().find(|class| class.number == number);
                let class = class.map(|class| class.name.as_str());
                return Ok(shown(id, owner, class, &account));
            }
        }
        Err(format!(
            "the session of `{id}` is moving or ending; ask again"
        ))
    }

    /// `None`: the worker hasn't got it any more.
    fn ask(&self, owner: Owner, client_id: &Text) -> Result<Option<ClientAccount>, String> {
        let worker = owner.worker;
        let (answer, answered) = mpsc::sync_channel(1);
        let order = AccountOrder {
            client_id: client_id.clone(),
            owner,
            answer,
        };
        let stuck = || {
            let seconds = ANSWER_TIME_MAX.as_secs();
            format!("worker {} has not answered within {seconds} s", worker.0)
        };
        if !self.workshop.control(worker).ask(order) {
            return Err(stuck());
        }
        self.workshop.ring_doorbell(worker);
        answered
            .recv_timeout(ANSWER_TIME_MAX)
            .map_err(|error| match error {
                mpsc::RecvTimeoutError::Timeout => stuck(),
                mpsc::RecvTimeoutError::Disconnected => {
                    format!("worker {} was restarted; ask again", worker.0)
                }
            })
    }
}

fn shown(id: &str, owner: Owner, class: Option<&str>, account: &ClientAccount) -> Value {
    let session = &account.session;
    let subscriptions: Value = session
        .subscriptions
        .iter()
        .map(|s| json!({ "filter": s.filter, "qos": s.qos as u8 }))
        .collect();
    let connection = account.connection.as_ref();
    json!({
        "client_id": id,
        "worker": owner.worker.0,
        "connected": session.conn.is_some(),
        "protocol": protocol(session.version),
        "quota_class": class,
        "session_expiry_s": (session.expiry_s != u32::MAX).then_some(session.expiry_s),
        "ends_in_s": account.ends_in_s,
        "recorded": session.is_recorded,
        "subscriptions": subscriptions,
        "queue": {
            "qos0": session.queued_qos0,
            "qos1_2": session.queued,
            "in_store": session.spilled,
            "in_store_bytes": session.spilled_bytes,
            "unacknowledged": session.inflight,
            "unreleased": session.unreleased,
            "bytes": session.queue_bytes,
            "unsent_bytes": session.unsent_bytes,
        },
        "memory": {
            "session_bytes": session.memory_bytes,
            "connection_bytes": connection.map(|c| c.memory_bytes),
        },
        "connection": connection.map(shown_connection),
    })
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::V31 => "3.1",
        Version::V311 => "3.1.1",
        Version::V5 => "5.0",
    }
}

fn shown_connection(connection: &ConnectionAccount) -> Value {
    let traffic = &connection.traffic;
    let path = connection.path.map(|path| {
        json!({
            "rtt_us": path.rtt.as_micros() as u64,
            "mtu": path.mtu,
            "congestion_window_bytes": path.congestion_window,
            "packets_sent": path.packets_sent,
            "packets_lost": path.packets_lost,
            "datagrams_received": path.datagrams_received,
            "datagrams_sent": path.datagrams_sent,
            "data_streams": path.data_streams,
        })
    });
    json!({
        "peer": connection.peer.to_string(),
        "transport": connection.transport,
        "packets_received": traffic.packets_received,
        "packets_sent": traffic.packets_sent,
        "bytes_received": traffic.bytes_received,
        "bytes_sent": traffic.bytes_sent,
        "quic": path,
    })
}
