//! Everybody is let in.

use super::{Authenticator, Method, Verdict};
use headgate_core::{Credentials, Granted};

/// Lets in whoever nobody else has decided about. User Name and Password are not looked at, and
/// the user has no name.
pub struct Anonymous;

impl Authenticator for Anonymous {
    fn method(&self) -> Method {
        Method::Anonymous
    }

    fn begin(&self, credentials: &Credentials) -> Verdict {
        match credentials.method {
            Some(_) => Verdict::Pass,
            None => Verdict::Granted(Granted::default()),
        }
    }
}
