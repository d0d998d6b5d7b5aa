//! `headgate run --dev`: a configuration for trying it, and a certificate for it.

use crate::{admin::own_uid, config::Config};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The state folder of `--dev`, below the current one.
pub(super) const STATE_DIR: &str = ".headgate";

const CERTIFICATE: &str = "dev-certificate.pem";
const KEY: &str = "dev-key.pem";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum DevError {
    #[error("can't write the development certificate to {}: {source} (choose another folder with --state-dir)", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("can't make the development certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// What applies in `--dev` where nothing else is set.
pub(super) fn base(state_dir: &Path) -> Config {
    let mut base = Config::default();
    base.node.state_dir = state_dir.to_owned();
    base.mqtt.allow_anonymous = true;
    base.listen.tls = Some(([0u16; 8], 8883).into());
    base.listen.ws = Some(([0u16; 8], 8083).into());
    base.listen.wss = Some(([0u16; 8], 8084).into());
    base.tls.certificate = state_dir.join(CERTIFICATE);
    base.tls.key = state_dir.join(KEY);
    if own_uid() == 0 {
        base.kernel.interfaces = vec!["lo".to_owned()];
    }
    base
}

/// Makes the certificate of [`base`], unless an earlier run has made it. Returns its path if the
/// configuration uses it.
pub(super) fn certificate(config: &Config, state_dir: &Path) -> Result<Option<PathBuf>, DevError> {
    let (certificate, key) = (state_dir.join(CERTIFICATE), state_dir.join(KEY));
    let used = config.tls.certificate == certificate && config.tls.key == key;
    if !used || !config.listen.needs_certificate() {
        return Ok(None);
    }
    if !(certificate.exists() && key.exists()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|source| DevError::Write {
                path: state_dir.to_owned(),
                source,
            })?;
        let pair = KeyPair::generate()?;
        let made = params()?.self_signed(&pair)?;
        write(&key, &pair.serialize_pem(), 0o600)?;
        write(&certificate, &made.pem(), 0o644)?;
    }
    Ok(Some(certificate))
}

/// ECDSA P-256 (rcgen's default), for this machine's names.
fn params() -> Result<CertificateParams, rcgen::Error> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    names.extend(host_name());
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "headgate development");
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2045, 1, 1);
    Ok(params)
}

fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let usable = !name.is_empty()
        && name != "localhost"
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    usable.then(|| name.to_owned())
}

/// Whole or not at all: a half-written key would be taken for a good one by the next run.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), DevError> {
    let new = path.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|source| DevError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_certificate_is_made_once_and_its_key_is_private() {
        let folder = std::env::temp_dir().join(format!("headgate-dev-{}", std::process::id()));
        let config = base(&folder);
        let path = certificate(&config, &folder)
            .expect("the folder is writable")
            .expect("it is used");
        let first = fs::read(&path).expect("it was made");
        let key = fs::read(&config.tls.key).expect("it was made");
        assert!(CertificateDer::from_pem_slice(&first).is_ok());
        assert!(PrivateKeyDer::from_pem_slice(&key).is_ok());
        let mode = fs::metadata(&config.tls.key)
            .expect("it was made")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        certificate(&config, &folder).expect("the folder is writable");
        assert_eq!(fs::read(&path).expect("it is still there"), first);
        fs::remove_dir_all(&folder).expect("it is this test's own");
    }

    #[test]
    fn another_certificate_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("headgate-dev-none-{}", std::process::id()));
        let mut config = base(&folder);
        config.tls.certificate = "/etc/ssl/mine.pem".into();
        assert_eq!(certificate(&config, &folder).expect("nothing to do"), None);
        let mut config = base(&folder);
        config.listen.quic = None;
        config.listen.tls = None;
        config.listen.wss = None;
        assert_eq!(certificate(&config, &folder).expect("nothing to do"), None);
        assert!(!folder.exists());
    }
}
