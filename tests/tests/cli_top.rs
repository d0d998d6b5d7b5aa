//! `headgate top` in a terminal, which tmux is: what it shows, a new size, and its end.

use headgate_tests::{
    broker::{Broker, binary},
    tcp_client::TcpClient,
};
use std::{
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A tmux of its own, which ends with this.
struct Terminal(String);

impl Terminal {
    fn tmux(&self, args: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.0, "-f", "/dev/null"]).args(args);
        command
            .stdin(Stdio::null())
            .output()
            .expect("tmux is there")
    }

    fn screen(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p", "-t", "top"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn wait_for(&self, what: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let screen = self.screen();
            if screen.contains(what) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{what} is not in\n{screen}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn it_shows_the_broker_in_any_size_until_q() {
    if Command::new("tmux").arg("-V").output().is_err() {
        headgate_tests::skip!("needs tmux");
    }
    let mut broker = Broker::start("");
    let _clients = ["a", "b", "c"].map(|id| TcpClient::connect(broker.tcp(), id));
    let terminal = Terminal(format!("headgate-top-{}", std::process::id()));
    let command = format!(
        "{} top -n 0.2 --config {}; echo ended with $?; sleep 600",
        binary().display(),
        broker.config_file().display()
    );
    let started = terminal.tmux(&[
        "new-session",
        "-d",
        "-s",
        "top",
        "-x",
        "100",
        "-y",
        "30",
        &command,
    ]);
    assert!(started.status.success(), "{started:?}");
    let screen = terminal.wait_for("connections 3");
    for expected in [
        "headgate ",
        "workers",
        "top prefixes",
        "127.0.0.0/24",
        "packets dropped",
        "q quits",
    ] {
        assert!(screen.contains(expected), "{expected} is not in\n{screen}");
    }
    // CPU shares are there after the second answer.
    terminal.wait_for(" %");
    let resized = terminal.tmux(&["resize-window", "-t", "top", "-x", "60", "-y", "12"]);
    assert!(resized.status.success(), "{resized:?}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while terminal.screen().lines().nth(11).map(str::trim_end) != Some("q quits") {
        assert!(
            Instant::now() < deadline,
            "the last line moves up:\n{}",
            terminal.screen()
        );
        thread::sleep(Duration::from_millis(50));
    }
    assert!(broker.terminate().success());
    terminal.wait_for("the broker doesn't answer");
    terminal.tmux(&["send-keys", "-t", "top", "q"]);
    let after = terminal.wait_for("ended with 0");
    assert!(
        !after.contains("q quits"),
        "the screen is as it was before: {after}"
    );
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let output = Command::new(binary())
        .args(["top", "--socket", "/nowhere"])
        .stdin(Stdio::null())
        .output()
        .expect("headgate starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("headgate status --json"), "{error}");
}
