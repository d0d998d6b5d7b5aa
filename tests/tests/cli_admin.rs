//! Who may ask a running broker over its Unix socket.

use headgate::{
    admin::{Admin, AdminSettings, AdminSource, ClientError, own_uid, request},
    metrics::Metrics,
};
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// A folder of its own; gone when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const SOCKET: &str = "HEADGATE_TEST_ADMIN_SOCKET";

/// The credentials are checked even where the file's mode was opened up: this program runs itself
/// as user 65534 and asks, through the client that `headgate status` uses.
#[test]
fn the_peers_credentials_are_checked() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        let refusal = request(Path::new(&socket), "status").expect_err("a stranger is refused");
        assert!(matches!(refusal, ClientError::Refused { .. }), "{refusal}");
        assert!(
            refusal.to_string().contains("user 65534 may not ask"),
            "{refusal}"
        );
        return;
    }
    if !headgate_tests::skip::is_root() {
        headgate_tests::skip!("needs root, to ask as another user");
    }
    let path = std::env::temp_dir().join(format!("headgate-credentials-{}", std::process::id()));
    fs::create_dir(&path).expect("the temporary folder is writable");
    let folder = Folder(path);
    let socket = folder.0.join("admin.sock");
    let source = AdminSource {
        metrics: Metrics::new(),
        server: Arc::new(|| serde_json::json!({})),
        control: Arc::new(|_| Err("nothing here".to_owned())),
        drain: Arc::new(|_| {}),
        reload: Arc::new(|| Err("nothing here".to_owned())),
    };
    let admin = Admin::bind(&AdminSettings {
        socket: socket.clone(),
        http: None,
    })
    .and_then(|admin| admin.serve(source))
    .expect("the socket is free");
    for path in [&folder.0, &socket] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("root may");
    }
    // The test binary may lie where a stranger can't go.
    let stranger = folder.0.join("stranger");
    fs::copy(std::env::current_exe().expect("it runs"), &stranger).expect("there is room");
    fs::set_permissions(&stranger, fs::Permissions::from_mode(0o755)).expect("root may");
    let output = Command::new(&stranger)
        .args([
            "--exact",
            "the_peers_credentials_are_checked",
            "--nocapture",
        ])
        .env(SOCKET, &socket)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    assert_eq!(own_uid(), 0);
    assert!(request(&socket, "status").is_ok(), "root is answered");
    drop(admin);
}
