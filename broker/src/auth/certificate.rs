//! The client's certificate, which TLS has verified: its name is the user's.

use super::{Authenticator, Method, Verdict, users::Users};
use headgate_codec::ReasonCode;
use headgate_core::{Credentials, Granted};
use std::sync::Arc;

/// Takes the Common Name in the certificate for the user's name. Whoever shows a password or an
/// Authentication Method besides wants to be known by that.
pub struct Certificate {
    users: Arc<Users>,
}

impl Certificate {
    /// The quota class is that of the user of the same name in `users`, if there is one.
    pub fn new(users: Arc<Users>) -> Self {
        Self { users }
    }
}

impl Authenticator for Certificate {
    fn method(&self) -> Method {
        Method::Certificate
    }

    fn begin(&self, credentials: &Credentials) -> Verdict {
        let certificate = credentials.certificate.as_deref();
        let Some(name) = certificate.and_then(|c| c.common_name.as_deref()) else {
            return Verdict::Pass;
        };
        if credentials.method.is_some() || credentials.password.is_some() {
            return Verdict::Pass;
        }
        // A User Name may repeat what the certificate says, not contradict it.
        if credentials
            .user_name
            .as_deref()
            .is_some_and(|user| user != name)
        {
            return Verdict::Refused(ReasonCode::BAD_USER_NAME_OR_PASSWORD);
        }
        let quota_class = self.users.get(name).and_then(|user| user.quota_class);
        Verdict::Granted(Granted {
            user_name: Some(name.into()),
            quota_class,
            data: None,
        })
    }
}
