//! Authentication (MQTT 5.0 §3.1.4, §4.12): what is asked, and what becomes of the answers.
//!
//! Nothing is decided here. A CONNECT that shows credentials, and each AUTH, becomes an
//! [`Output::Authenticate`]; the session is neither claimed nor taken from another connection
//! before the answer has granted it.

use bytes::Bytes;
use headgate_codec::{Auth, Connect, Packet, ReasonCode, Text, Version};
use std::sync::Arc;

use crate::{
    ClientCertificate, ConnId, Frame, OpId, Output, Time,
    close::End,
    conns::{PAUSED_CONNECTING, State},
    counters::add,
    hub::Hub,
};

/// What a client shows in CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Client Identifier; empty = the server will assign one.
    pub client_id: Text,
    /// User Name.
    pub user_name: Option<Text>,
    /// Password.
    pub password: Option<Bytes>,
    /// Authentication Method (5.0).
    pub method: Option<Text>,
    /// Authentication Data (5.0).
    pub data: Option<Bytes>,
    /// The certificate that the client has shown, and the transport verified.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// Secrets aren't shown.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("client_id", &self.client_id)
            .field("user_name", &self.user_name)
            .field("password", &self.password.is_some())
            .field("method", &self.method)
            .field("data", &self.data.is_some())
            .field("certificate", &self.certificate)
            .finish()
    }
}

/// A step of an authentication. The steps of one connection don't overlap.
#[derive(Clone, PartialEq, Eq)]
pub enum AuthStep {
    /// CONNECT has come.
    Connect(Box<Credentials>),
    /// AUTH with 0x18 has come, the answer to [`AuthResult::Continue`].
    Continue {
        /// Authentication Data.
        data: Option<Bytes>,
    },
    /// AUTH with 0x19 has come: re-authentication (§4.12.1).
    Again {
        /// Authentication Method, that of CONNECT.
        method: Text,
        /// Authentication Data.
        data: Option<Bytes>,
    },
}

/// Secrets aren't shown.
impl std::fmt::Debug for AuthStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(credentials) => f.debug_tuple("Connect").field(credentials).finish(),
            Self::Continue { .. } => f.write_str("Continue"),
            Self::Again { method, .. } => f.debug_tuple("Again").field(method).finish(),
        }
    }
}

/// The answer to an [`AuthStep`].
#[derive(Debug)]
pub enum AuthResult {
    /// The client is who it says.
    Granted(Granted),
    /// The client has to say more: AUTH 0x18. Only where CONNECT named a method.
    Continue {
        /// Authentication Data.
        data: Bytes,
    },
    /// The client is refused: CONNACK with this Reason Code, or DISCONNECT if it was connected.
    Refused(ReasonCode),
}

/// Who a client is.
#[derive(Debug, Default)]
pub struct Granted {
    /// The name that was proved; `None` = anonymous.
    pub user_name: Option<Arc<str>>,
    /// Quota class; `None` = that of the listener.
    pub quota_class: Option<u8>,
    /// Authentication Data for CONNACK, or for AUTH 0x00.
    pub data: Option<Bytes>,
}

/// Who the client of a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name that was proved; `None` = anonymous.
    pub user_name: Option<Arc<str>>,
    /// Quota class; 0 = the default one.
    pub quota_class: u8,
}

/// What a connection has to do with authentication. Connections of anonymous clients have none.
#[derive(Debug, Default)]
pub(crate) struct AuthState {
    /// Authentication Method of CONNECT.
    pub(crate) method: Option<Box<str>>,
    /// The name that was proved.
    pub(crate) user_name: Option<Arc<str>>,
    pub(crate) pending: Option<Box<Pending>>,
}

/// An authentication that is under way, or that may begin with CONNECT.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
    /// The step whose answer hasn't come.
    asked: Option<OpId>,
    /// The CONNECT that waits, and when it came.
    connect: Option<(Box<Connect>, Time)>,
    /// Authentication Data for CONNACK.
    data: Option<Bytes>,
}

impl AuthState {
    /// Of a client that has shown a certificate.
    pub(crate) fn certified(certificate: Arc<ClientCertificate>) -> Box<Self> {
        let pending = Pending {
            certificate: Some(certificate),
            ..Pending::default()
        };
        Box::new(Self {
            pending: Some(Box::new(pending)),
            ..Self::default()
        })
    }

    /// Authentication Method and Authentication Data of CONNACK \[MQTT-4.12.0-5\]. What was needed
    /// for CONNECT alone is forgotten.
    pub(crate) fn for_connack(&mut self) -> (Option<Text>, Option<Bytes>) {
        let data = self.pending.take().and_then(|pending| pending.data);
        (self.method.as_deref().map(Text::from), data)
    }
}

impl Hub {
    /// Who the client of a connection is; `None` before that is known.
    pub(crate) fn identity(&mut self, conn: ConnId) -> Option<Identity> {
        let c = self.conns.get(conn)?;
        let is_known = matches!(c.state, State::Connecting(_) | State::Up(_));
        is_known.then(|| Identity {
            user_name: c.auth.as_ref().and_then(|auth| auth.user_name.clone()),
            quota_class: c.quota_class,
        })
    }

    /// A CONNECT that is right in itself: lets it in, or asks who it is.
    pub(crate) fn authenticate(
        &mut self,
        conn: ConnId,
        mut connect: Box<Connect>,
        out: &mut Vec<Output>,
    ) {
        let now = self.env.now;
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let method = connect.properties.authentication_method.take();
        let is_bare = method.is_none() && connect.user_name.is_none() && connect.password.is_none();
        if is_bare && c.auth.is_none() && self.config.allow_anonymous {
            return self.admit(conn, connect, out);
        }
        let op = self.env.op();
        let auth = c.auth.get_or_insert_default();
        auth.method = method.as_deref().map(Box::from);
        let pending = auth.pending.get_or_insert_default();
        let credentials = Credentials {
            client_id: connect.client_id.clone(),
            user_name: connect.user_name.take(),
            password: connect.password.take(),
            method,
            data: connect.properties.authentication_data.take(),
            certificate: pending.certificate.take(),
        };
        pending.connect = Some((connect, now));
        pending.asked = Some(op);
        c.state = State::Authenticating;
        out.push(Output::Authenticate {
            op,
            conn,
            step: AuthStep::Connect(Box::new(credentials)),
        });
        self.pause(conn, PAUSED_CONNECTING, true, out);
    }

    /// A packet while a CONNECT is being authenticated.
    pub(crate) fn on_packet_early(&mut self, conn: ConnId, packet: Packet, out: &mut Vec<Output>) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let Some(auth) = c.auth.as_deref() else {
            return;
        };
        // Whoever answers slowly has no more time for all of it.
        if let Some((_, since)) = auth.pending.as_deref().and_then(|p| p.connect.as_ref()) {
            c.last_seen = *since;
        }
        match (packet, auth.method.is_some()) {
            (Packet::Auth(packet), true) => self.on_auth(conn, &packet, out),
            (Packet::Disconnect(packet), true) => self.close(conn, End::Client(packet.reason), out),
            // [MQTT-3.1.2-30] [MQTT-4.12.0-7]
            (Packet::Auth(_), false) | (_, true) => {
                self.auth_failed(conn, ReasonCode::PROTOCOL_ERROR, out);
            }
            (packet, false) => self.hold(conn, packet, out),
        }
    }

    /// AUTH (§3.15): the next step of an exchange, or the first of a re-authentication (§4.12.1).
    pub(crate) fn on_auth(&mut self, conn: ConnId, packet: &Auth, out: &mut Vec<Output>) {
        let auth = self.conns.get(conn).and_then(|c| c.auth.as_deref_mut());
        let Some((method, auth)) = auth.and_then(|auth| Some((auth.method.clone()?, auth))) else {
            // [MQTT-4.12.0-7]
            return self.auth_failed(conn, ReasonCode::PROTOCOL_ERROR, out);
        };
        // [MQTT-4.12.0-5] [MQTT-4.12.1-1]
        if packet.authentication_method.as_deref() != Some(&*method) {
            return self.auth_failed(conn, ReasonCode::BAD_AUTHENTICATION_METHOD, out);
        }
        // [MQTT-4.12.0-3]
        let due = match auth.pending {
            Some(_) => ReasonCode::CONTINUE_AUTHENTICATION,
            None => ReasonCode::RE_AUTHENTICATE,
        };
        let asked = &mut auth.pending.get_or_insert_default().asked;
        if packet.reason != due || asked.is_some() {
            return self.auth_failed(conn, ReasonCode::PROTOCOL_ERROR, out);
        }
        let op = self.env.op();
        *asked = Some(op);
        let data = packet.authentication_data.clone();
        let step = if due == ReasonCode::RE_AUTHENTICATE {
            let method = Text::from(&*method);
            AuthStep::Again { method, data }
        } else {
            AuthStep::Continue { data }
        };
        out.push(Output::Authenticate { op, conn, step });
        if self.is_authenticating(conn) {
            self.pause(conn, PAUSED_CONNECTING, true, out);
        }
    }

    /// The answer to an [`Output::Authenticate`].
    pub(crate) fn on_authenticated(
        &mut self,
        (op, conn): (OpId, ConnId),
        result: AuthResult,
        out: &mut Vec<Output>,
    ) {
        let auth = self.conns.get(conn).and_then(|c| c.auth.as_deref_mut());
        let Some(pending) = auth.and_then(|auth| auth.pending.as_deref_mut()) else {
            return;
        };
        // The connection is gone, or its place has another one.
        if pending.asked != Some(op) {
            return;
        }
        pending.asked = None;
        match result {
            AuthResult::Refused(reason) => {
                add(&mut self.env.counters.authentications_failed, 1);
                self.auth_failed(conn, reason, out);
            }
            // [MQTT-4.12.0-2]
            AuthResult::Continue { data } => {
                self.send_auth(conn, ReasonCode::CONTINUE_AUTHENTICATION, Some(data), out);
                if self.is_authenticating(conn) {
                    self.pause(conn, PAUSED_CONNECTING, false, out);
                }
            }
            AuthResult::Granted(granted) => self.granted(conn, granted, out),
        }
    }

    fn granted(&mut self, conn: ConnId, granted: Granted, out: &mut Vec<Output>) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let Some(auth) = c.auth.as_deref_mut() else {
            return;
        };
        if let Some(pending) = auth.pending.as_deref_mut()
            && let Some((connect, _)) = pending.connect.take()
        {
            c.quota_class = granted.quota_class.unwrap_or(c.quota_class);
            auth.user_name = granted.user_name;
            pending.data = granted.data;
            return self.admit(conn, connect, out);
        }
        // A re-authentication: the session stays that of the same user.
        auth.pending = None;
        if auth.user_name != granted.user_name {
            add(&mut self.env.counters.authentications_failed, 1);
            return self.auth_failed(conn, ReasonCode::NOT_AUTHORIZED, out);
        }
        if let Some(class) = granted.quota_class {
            self.change_class(conn, class);
        }
        self.send_auth(conn, ReasonCode::SUCCESS, granted.data, out);
    }

    /// AUTH, on a connection whose CONNECT named a method \[MQTT-4.12.0-5\] \[MQTT-4.12.0-6\].
    fn send_auth(
        &mut self,
        conn: ConnId,
        reason: ReasonCode,
        data: Option<Bytes>,
        out: &mut Vec<Output>,
    ) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let (state, auth) = (c.state, c.auth.as_deref());
        let Some((method, auth)) = auth.and_then(|auth| Some((auth.method.as_deref()?, auth)))
        else {
            debug_assert!(false, "an exchange needs an Authentication Method");
            return self.auth_failed(conn, ReasonCode::IMPLEMENTATION_SPECIFIC, out);
        };
        let waiting = auth.pending.as_deref().and_then(|p| p.connect.as_ref());
        let early_max = waiting.and_then(|(connect, _)| connect.properties.maximum_packet_size);
        let packet = Packet::Auth(Box::new(Auth {
            reason,
            authentication_method: Some(Text::from(method)),
            authentication_data: data,
            ..Auth::default()
        }));
        let bytes = self.env.encode(&packet, Version::V5);
        let session = match state {
            State::Up(slot) => self.slots.session(slot),
            _ => None,
        };
        let size_max = session
            .as_ref()
            .map_or(early_max, |s| Some(s.packet_bytes_max));
        // [MQTT-3.1.2-24]: a client that can't take it can't be authenticated.
        if bytes.len() > size_max.unwrap_or(u32::MAX) as usize {
            return self.close(conn, End::Silent(ReasonCode::PACKET_TOO_LARGE), out);
        }
        match session {
            Some(session) => session.send_bytes(bytes, out),
            None => out.push(Output::Send {
                conn,
                frame: Frame::Bytes(bytes),
            }),
        }
    }

    /// Ends a connection that could not be authenticated, or did not keep to the exchange:
    /// CONNACK \[MQTT-4.12.0-4\], or DISCONNECT once it is connected \[MQTT-4.12.1-2\].
    fn auth_failed(&mut self, conn: ConnId, reason: ReasonCode, out: &mut Vec<Output>) {
        if reason == ReasonCode::PROTOCOL_ERROR {
            add(&mut self.env.counters.protocol_errors, 1);
        }
        match self.early_version(conn) {
            Some(version) => self.refuse(conn, version, reason, out),
            // 0x86 is for CONNACK only (table 2-6).
            None if reason == ReasonCode::BAD_USER_NAME_OR_PASSWORD => {
                self.close(conn, End::Server(ReasonCode::NOT_AUTHORIZED), out);
            }
            None => self.close(conn, End::Server(reason), out),
        }
    }

    /// The version of a CONNECT that is being authenticated or completed.
    pub(crate) fn early_version(&mut self, conn: ConnId) -> Option<Version> {
        let c = self.conns.get(conn)?;
        match c.state {
            State::Authenticating => {
                let pending = c.auth.as_deref()?.pending.as_deref()?;
                pending.connect.as_ref().map(|(connect, _)| connect.version)
            }
            State::Connecting(slot) => self.connecting_version(slot),
            _ => None,
        }
    }

    /// A CONNECT was refused.
    pub(crate) fn count_refused(&mut self, reason: ReasonCode) {
        let counters = &mut self.env.counters;
        add(&mut counters.connects_refused, 1);
        let why = match reason {
            ReasonCode::BAD_USER_NAME_OR_PASSWORD => &mut counters.connects_refused_password,
            ReasonCode::NOT_AUTHORIZED => &mut counters.connects_refused_not_authorized,
            ReasonCode::BAD_AUTHENTICATION_METHOD => &mut counters.connects_refused_method,
            ReasonCode::SERVER_BUSY | ReasonCode::QUOTA_EXCEEDED => {
                &mut counters.connects_refused_busy
            }
            _ => &mut counters.connects_refused_otherwise,
        };
        add(why, 1);
    }

    fn is_authenticating(&mut self, conn: ConnId) -> bool {
        self.conns
            .get(conn)
            .is_some_and(|c| c.state == State::Authenticating)
    }
}
