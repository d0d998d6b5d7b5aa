//! `headgate run --dev` as the README shows it: an ordinary user, no configuration, and the
//! commands that it prints.

use headgate_tests::{broker::binary, skip::is_root};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// Nobody.
const USER: u32 = 65534;

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that everybody may use, with the binary in it: where the workspace is, another user
/// may not be able to go.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is this test's own");
    };
    mode(folder.path(), 0o777);
    let copy = folder.path().join("headgate");
    fs::copy(binary(), &copy).expect("there is room");
    mode(&copy, 0o755);
    folder
}

/// A command that an ordinary user gives in `folder`.
fn as_ordinary_user(folder: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if is_root() {
        command.uid(USER).gid(USER);
    }
    command
}

#[test]
fn an_ordinary_user_gets_a_broker_and_the_printed_commands_work() {
    let folder = folder();
    let arguments = [
        "run",
        "--dev",
        "--listen-quic=127.0.0.1:0",
        "--listen-tcp=127.0.0.1:0",
        "--listen-tls=127.0.0.1:0",
        "--listen-ws=127.0.0.1:0",
        "--listen-wss=127.0.0.1:0",
        "--admin-http=",
    ];
    let child = as_ordinary_user(folder.path(), "./headgate", &arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut broker = Process(child);
    let printed = BufReader::new(broker.0.stdout.take().expect("it is piped"));
    let mut lines = printed.lines().map(|line| line.expect("it is UTF-8"));
    let banner: Vec<String> = lines
        .by_ref()
        .take_while(|line| !line.starts_with("Try it"))
        .collect();
    let banner = banner.join("\n");
    assert!(
        banner.contains("shield      off: "),
        "it says that nothing is shielded:\n{banner}"
    );
    assert!(banner.contains("anybody may connect"), "{banner}");

    let state = folder.path().join(".headgate");
    for secret in ["dev-key.pem", "master-secret"] {
        let mode = fs::metadata(state.join(secret))
            .expect("it was made")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }

    let [subscribe, publish] = [(); 2].map(|()| lines.next().expect("a command to try"));
    assert!(
        subscribe.contains("quic://") && publish.contains("mqtt://"),
        "{subscribe}{publish}"
    );
    // -C 1 ends it with the first message; retained, so that it does not matter who is first.
    let publish =
        as_ordinary_user(folder.path(), "sh", &["-c", &format!("{publish} --retain")]).status();
    assert!(publish.is_ok_and(|status| status.success()));
    let heard = as_ordinary_user(
        folder.path(),
        "sh",
        &["-c", &format!("{subscribe} -C 1 -W 60")],
    )
    .output();
    let heard = heard.expect("it runs");
    assert_eq!(String::from_utf8_lossy(&heard.stdout), "try/it hello\n");

    let status = as_ordinary_user(folder.path(), "./headgate", &["status"]).output();
    let status = String::from_utf8_lossy(&status.expect("it runs").stdout).into_owned();
    assert!(
        status.contains(&format!("pid {}", broker.0.id())),
        "{status}"
    );

    let pid = Pid::from_raw(i32::try_from(broker.0.id()).expect("process ids are small"));
    kill(pid, Signal::SIGTERM).expect("it runs");
    assert_eq!(broker.0.wait().expect("it ends").code(), Some(0));
}
