//! Whether the values fit together, and whether what they point to is there.

use std::{fs, path::Path};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{
    auth::users::{Users, UsersError},
    kernel::Prefix,
    net::tls::TlsIdentity,
};

use super::{Config, ConfigError, KernelMode, Loaded, Problem, Steering};

/// What no single key can say.
pub(super) fn fit_together(loaded: &Loaded) -> Vec<Problem> {
    let mut findings = Findings {
        loaded,
        problems: Vec::new(),
    };
    listeners(&mut findings);
    clients(&mut findings);
    kernel(&mut findings);
    quotas(&mut findings);
    identifiers(&mut findings);
    findings.problems
}

struct Findings<'a> {
    loaded: &'a Loaded,
    problems: Vec<Problem>,
}

impl Findings<'_> {
    /// Adds a problem at `section.key` if something is `wrong`.
    fn add(&mut self, wrong: bool, (section, key): (&str, &str), message: &str, help: &str) {
        if wrong {
            self.problems.push(Problem::new(
                message,
                self.loaded.origin(section, key),
                help,
            ));
        }
    }
}

fn listeners(findings: &mut Findings<'_>) {
    let config = &findings.loaded.config;
    let (certificate, key) = (&config.tls.certificate, &config.tls.key);
    findings.add(
        !config.listen.is_any(),
        ("listen", "quic"),
        "all listeners are off: nobody could connect",
        "set listen.quic or listen.tcp to an address, such as \"[::]:1883\"",
    );
    findings.add(
        config.listen.quic.is_some() && certificate.as_os_str().is_empty(),
        ("tls", "certificate"),
        "QUIC needs a certificate, and tls.certificate is not set",
        "set tls.certificate and tls.key to PEM files, or switch QUIC off with listen.quic = \"\", \
         or try it with `headgate run --dev`, which makes a certificate",
    );
    let over_tls = [config.listen.tls, config.listen.wss];
    findings.add(
        over_tls.iter().any(Option::is_some) && certificate.as_os_str().is_empty(),
        ("tls", "certificate"),
        "listen.tls and listen.wss need a certificate, and tls.certificate is not set",
        "set tls.certificate and tls.key to PEM files, or switch them off with \"\"",
    );
    findings.add(
        config.tls.require_client_certificate && config.tls.client_ca.as_os_str().is_empty(),
        ("tls", "require_client_certificate"),
        "tls.require_client_certificate needs to know whose certificates are good",
        "set tls.client_ca to a PEM file with the authorities of the clients' certificates",
    );
    let unknown = |name: &String| !["tcp", "tls", "ws", "wss"].contains(&name.as_str());
    findings.add(
        config.listen.proxy_protocol.iter().any(unknown),
        ("listen", "proxy_protocol"),
        "listen.proxy_protocol names a listener that there is not",
        "it is a list of some of \"tcp\", \"tls\", \"ws\" and \"wss\"",
    );
    findings.add(
        !certificate.as_os_str().is_empty() && key.as_os_str().is_empty(),
        ("tls", "certificate"),
        "tls.certificate is set, but tls.key is not",
        "set tls.key to the PEM file of the certificate's private key",
    );
}

fn clients(findings: &mut Findings<'_>) {
    let config = &findings.loaded.config;
    let auth = &config.auth;
    findings.add(
        !config.mqtt.allow_anonymous && auth.password_file.as_os_str().is_empty() && !auth.certificate,
        ("mqtt", "allow_anonymous"),
        "nobody could connect: anonymous clients are not allowed, and no authentication is configured",
        "make a password file with `headgate passwd -c FILE USER` and set auth.password_file, or \
         set mqtt.allow_anonymous = true if everybody who can reach the listeners is trusted, \
         or try it with `headgate run --dev`",
    );
    findings.add(
        auth.certificate && config.tls.client_ca.as_os_str().is_empty(),
        ("auth", "certificate"),
        "auth.certificate goes by clients' certificates, and none is asked for",
        "set tls.client_ca to a PEM file with the authorities of the clients' certificates",
    );
    findings.add(
        config.quic.receive_window_bytes > config.quic.receive_window_bytes_max,
        ("quic", "receive_window_bytes"),
        "quic.receive_window_bytes is more than quic.receive_window_bytes_max",
        "lower quic.receive_window_bytes or raise quic.receive_window_bytes_max",
    );
    findings.add(
        config.limits.packet_bytes_max > config.limits.memory_per_connection_bytes,
        ("limits", "packet_bytes_max"),
        "limits.packet_bytes_max is more than limits.memory_per_connection_bytes: the largest \
         packet could not be delivered",
        "lower limits.packet_bytes_max or raise limits.memory_per_connection_bytes",
    );
}

/// Packet Identifiers that messages of one session may have at a time: each that waits has one, and the 535 left are
/// for retained messages and those that are held back while a session moves.
const IDENTIFIERS_MAX: u32 = 65_000;

/// Every message that waits for a session or is on its way to it has a Packet Identifier of its own (MQTT 5.0 §2.2.1).
fn identifiers(findings: &mut Findings<'_>) {
    let config = &findings.loaded.config;
    let inflight = u32::from(config.limits.inflight_messages_per_session);
    let is_too_much = |queued: u32| queued.saturating_add(inflight) > IDENTIFIERS_MAX;
    findings.add(
        is_too_much(config.limits.queued_messages_per_session),
        ("limits", "queued_messages_per_session"),
        "limits.queued_messages_per_session and limits.inflight_messages_per_session come to more than 65000: there \
         are not enough Packet Identifiers",
        "lower one of them",
    );
    for (name, class) in config.quota.classes() {
        if is_too_much(class.queued_messages) {
            findings.problems.push(Problem::new(
                format!(
                    "quota.{name}.queued_messages and limits.inflight_messages_per_session come to more than 65000: \
                     there are not enough Packet Identifiers"
                ),
                findings
                    .loaded
                    .origin("limits", "inflight_messages_per_session"),
                "lower one of them",
            ));
        }
    }
}

fn quotas(findings: &mut Findings<'_>) {
    let config = &findings.loaded.config;
    let origin = findings.loaded.origin("listen", "quota_classes");
    let Some(classes) = config.listen.quota_classes() else {
        findings.problems.push(Problem::new(
            "listen.quota_classes holds something that is not LISTENER=CLASS",
            origin,
            "it is a list such as [\"quic=sensors\"]; listeners: quic, tcp, tls, ws, wss",
        ));
        return;
    };
    for (_, class) in classes {
        if config.quota.number(class).is_none() {
            findings.problems.push(Problem::new(
                format!("listen.quota_classes names the quota class `{class}`, which there is not"),
                origin.clone(),
                format!(
                    "add [quota.{class}], or name another: {}",
                    class_names(config)
                ),
            ));
        }
    }
    for (key, prefixes) in [("deny", &config.lists.deny), ("allow", &config.lists.allow)] {
        for text in prefixes {
            if let Err(error) = text.parse::<Prefix>() {
                findings.problems.push(Problem::new(
                    format!("lists.{key} holds `{text}`: {error}"),
                    findings.loaded.origin("lists", key),
                    "a prefix is an address and a length, such as 203.0.113.0/24 or 2001:db8::/32",
                ));
            }
        }
    }
}

/// The names of all quota classes.
fn class_names(config: &Config) -> String {
    let names: Vec<_> = config.quota.classes().map(|(name, _)| name).collect();
    names.join(", ")
}

fn kernel(findings: &mut Findings<'_>) {
    let kernel = &findings.loaded.config.kernel;
    findings.add(
        kernel.steering == Steering::Cpumap
            && matches!(kernel.mode, KernelMode::Generic | KernelMode::Off),
        ("kernel", "steering"),
        "kernel.steering \"cpumap\" needs XDP in native mode",
        "set kernel.mode to \"native\" or \"auto\", or kernel.steering to \"auto\"",
    );
    findings.add(
        kernel.mode == KernelMode::Native && kernel.interfaces.is_empty(),
        ("kernel", "mode"),
        "kernel.mode \"native\" asks for XDP, but kernel.interfaces names no interface",
        "name the interfaces, such as interfaces = [\"eth0\"] (`ip link` lists them), or set \
         kernel.mode to \"auto\"",
    );
    let name_wrong = |name: &String| {
        name.is_empty() || name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace())
    };
    findings.add(
        kernel.interfaces.iter().any(name_wrong),
        ("kernel", "interfaces"),
        "kernel.interfaces holds something that is not the name of an interface",
        "a name has 1 to 15 characters without / and spaces; `ip link` lists them",
    );
}

/// Whether the files that the configuration points to can be read and are what they should be.
pub fn check_files(loaded: &Loaded) -> Result<(), ConfigError> {
    let mut problems = Vec::new();
    if loaded.config.listen.needs_certificate() {
        problems.extend(certificate(
            loaded,
            "certificate",
            &loaded.config.tls.certificate,
        ));
        problems.extend(key(loaded));
        problems.extend(more_certificates(loaded));
        let client_ca = &loaded.config.tls.client_ca;
        if !client_ca.as_os_str().is_empty() {
            problems.extend(certificate(loaded, "client_ca", client_ca));
        }
    }
    problems.extend(password_file(loaded));
    match problems.is_empty() {
        true => Ok(()),
        false => Err(ConfigError { problems }),
    }
}

fn more_certificates(loaded: &Loaded) -> Vec<Problem> {
    let files = loaded.config.tls.more_certificates.iter().map(Path::new);
    let wrong = |file| TlsIdentity::load(file, file).err();
    let origin = || loaded.origin("tls", "more_certificates");
    let help = "each file has to hold a certificate chain and its private key, in PEM";
    files
        .filter_map(wrong)
        .map(|error| Problem::new(error.to_string(), origin(), help))
        .collect()
}

fn password_file(loaded: &Loaded) -> Option<Problem> {
    let path = &loaded.config.auth.password_file;
    if path.as_os_str().is_empty() {
        return None;
    }
    let config = &loaded.config;
    let classes = |name: &str| config.quota.number(name);
    let loaded_users = Users::load(path).and_then(|mut users| users.classify(path, classes));
    let error = loaded_users.err()?;
    let origin = loaded.origin("auth", "password_file");
    let help = match error {
        UsersError::Class { .. } => format!("quota classes: {}", class_names(config)),
        _ => "`headgate passwd` writes password files and changes them".to_owned(),
    };
    Some(Problem::new(error.to_string(), origin, help))
}

/// Whether `tls.key`, whose value is `path`, holds certificates.
fn certificate(loaded: &Loaded, key: &str, path: &Path) -> Option<Problem> {
    let wrong =
        |message: String, help: &str| Some(Problem::new(message, loaded.origin("tls", key), help));
    let pem = match read(path) {
        Ok(pem) => pem,
        Err(message) => {
            return wrong(
                message,
                &format!("tls.{key} has to be a PEM file that the broker may read"),
            );
        }
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => None,
        Ok(_) => wrong(
            format!("{} holds no certificate", path.display()),
            "it has to have a part that begins with -----BEGIN CERTIFICATE-----",
        ),
        Err(error) => wrong(
            format!("{} is not a PEM file: {error}", path.display()),
            "it has to have parts that begin with -----BEGIN CERTIFICATE-----",
        ),
    }
}

fn key(loaded: &Loaded) -> Option<Problem> {
    let path = &loaded.config.tls.key;
    let wrong = |message: String, help: &str| {
        Some(Problem::new(message, loaded.origin("tls", "key"), help))
    };
    let pem = match read(path) {
        Ok(pem) => pem,
        Err(message) => {
            return wrong(
                message,
                "tls.key has to be a PEM file that the broker may read",
            );
        }
    };
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => None,
        Err(error) => wrong(
            format!("{} holds no private key: {error}", path.display()),
            "it has to have a part that begins with -----BEGIN PRIVATE KEY----- (PKCS #8)",
        ),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{} can't be read: {error}", path.display()))
}
