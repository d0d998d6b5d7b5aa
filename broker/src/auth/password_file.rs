//! User Name and Password (MQTT 5.0 §3.1.3.5) against the password file.

use super::{Authenticator, Method, Verdict, users::Users};
use headgate_codec::ReasonCode;
use headgate_core::Credentials;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Checks passwords. Whoever shows a User Name or a Password is this one's to decide.
pub struct PasswordFile(Arc<Users>);

impl PasswordFile {
    /// With the users of a password file.
    pub fn new(users: Arc<Users>) -> Self {
        Self(users)
    }
}

impl Authenticator for PasswordFile {
    fn method(&self) -> Method {
        Method::Password
    }

    fn begin(&self, credentials: &Credentials) -> Verdict {
        let shows_nothing = credentials.user_name.is_none() && credentials.password.is_none();
        if credentials.method.is_some() || shows_nothing {
            return Verdict::Pass;
        }
        let refused = ReasonCode::BAD_USER_NAME_OR_PASSWORD;
        let (Some(name), Some(password)) = (&credentials.user_name, &credentials.password) else {
            return Verdict::Refused(refused);
        };
        let user = self.0.get(name).filter(|user| user.hash.is_some());
        let granted = user.map(|user| user.granted());
        // A name that nobody has costs as much as one that somebody has.
        let hash = user.and_then(|user| user.hash.as_ref()).or(self.0.decoy());
        let Some(hash) = hash.cloned() else {
            return Verdict::Refused(refused);
        };
        let password = Zeroizing::new(password.to_vec());
        Verdict::Work(Box::new(move || {
            let is_right = hash.verify(&password);
            granted.filter(|_| is_right).ok_or(refused)
        }))
    }
}
