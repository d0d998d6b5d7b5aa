use super::*;
use crate::metrics::{Qos, Transport};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

/// A folder of its own for each test; gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("headgate-admin-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("the temporary folder is writable");
        Self(path)
    }

    fn settings(&self) -> AdminSettings {
        AdminSettings {
            socket: self.0.join("run/admin.sock"),
            http: Some(([127, 0, 0, 1], 0).into()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn source() -> AdminSource {
    let metrics = Metrics::new();
    metrics.worker(1).messages_received[Qos::Qos2].add(5);
    metrics.worker(2).connections[Transport::Tcp].add(3);
    AdminSource {
        metrics,
        server: Arc::new(|| json!({ "version": "1.2.3" })),
        control: Arc::new(|question| match question["name"].as_str() {
            Some(name) => Ok(name.into()),
            None => Err("no name".to_owned()),
        }),
        drain: Arc::new(|_| {}),
        reload: Arc::new(|| Err("the key is not there".to_owned())),
    }
}

fn start(folder: &Folder) -> AdminThread {
    Admin::bind(&folder.settings())
        .and_then(|admin| admin.serve(source()))
        .expect("the paths are free")
}

fn talk(path: &Path, question: &[u8]) -> Value {
    let mut stream = UnixStream::connect(path).expect("somebody listens");
    stream.write_all(question).expect("it takes questions");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("it is connected");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("it answers in UTF-8");
    assert!(answer.ends_with('\n'), "{answer:?}");
    serde_json::from_str(&answer).expect("it answers in JSON")
}

fn get(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream
        .write_all(request.as_bytes())
        .expect("it takes requests");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("it answers in UTF-8");
    answer
}

#[test]
fn status_is_answered() {
    let folder = Folder::new("status");
    let _admin = start(&folder);
    let status = request(&folder.settings().socket, "status").expect("the test's user may ask");
    assert_eq!(status["version"], "1.2.3");
    assert_eq!(status["messages"]["received"], 5);
    assert_eq!(
        status["open"],
        json!({ "quic": 0, "tcp": 3, "tls": 0, "ws": 0, "wss": 0 })
    );
    assert_eq!(status["pid"], std::process::id());
    let metrics = request(&folder.settings().socket, "metrics").expect("it may ask again");
    assert!(
        metrics
            .as_str()
            .is_some_and(|text| text.contains("# TYPE headgate_connections gauge"))
    );
}

#[test]
fn wrong_questions_are_explained() {
    let folder = Folder::new("wrong");
    let _admin = start(&folder);
    let socket = folder.settings().socket;
    for (question, expected) in [
        (
            &b"{\"command\":\"reboot\"}\n"[..],
            "unknown command \"reboot\"; commands: status",
        ),
        (b"{}\n", "no command"),
        (b"status\n", "not JSON"),
        (&[b'x'; 5000], "at most 4096 bytes"),
    ] {
        let answer = talk(&socket, question);
        let error = answer["error"].as_str().expect("an error");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn only_its_own_user_may_open_the_socket() {
    let folder = Folder::new("mode");
    let _admin = start(&folder);
    let mode = fs::metadata(folder.settings().socket)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_broker_is_told_and_a_crashed_one_is_followed() {
    let folder = Folder::new("second");
    let settings = folder.settings();
    let first = start(&folder);
    let second = Admin::bind(&settings).expect_err("the socket is taken");
    assert!(matches!(second, AdminError::Running { .. }), "{second}");
    drop(first);
    assert!(!settings.socket.exists(), "a clean stop removes the socket");

    drop(std::os::unix::net::UnixListener::bind(&settings.socket).expect("the path is free"));
    assert!(settings.socket.exists(), "a crash leaves the socket");
    let _next = start(&folder);
    assert!(request(&settings.socket, "status").is_ok());
}

#[test]
fn a_file_of_another_kind_is_left_alone() {
    let folder = Folder::new("file");
    let settings = folder.settings();
    fs::create_dir(folder.0.join("run")).expect("it is missing");
    fs::write(&settings.socket, "precious").expect("it is writable");
    let error = Admin::bind(&settings).expect_err("it is not a socket");
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(
        fs::read_to_string(&settings.socket).expect("still there"),
        "precious"
    );
}

#[test]
fn a_taken_http_address_is_explained() {
    let folder = Folder::new("taken");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let address = taken.local_addr().expect("it is bound");
    let settings = AdminSettings {
        http: Some(address),
        ..folder.settings()
    };
    let error = Admin::bind(&settings)
        .expect_err("the port is taken")
        .to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("admin.http"),
        "{error}"
    );
    assert!(!settings.socket.exists(), "nothing is left behind");
}

#[test]
fn nobody_there_says_what_to_do() {
    let folder = Folder::new("nobody");
    let error = request(&folder.settings().socket, "status").expect_err("nobody listens");
    assert!(matches!(error, ClientError::Absent { .. }));
    assert!(error.to_string().contains("headgate run --dev"), "{error}");
}

#[test]
fn metrics_are_served_over_http() {
    let folder = Folder::new("http");
    let admin = start(&folder);
    let address = admin.http().expect("it is on");
    let ask = |line: &str| {
        get(
            address,
            &format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        )
    };
    let metrics = ask("GET /metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(
        metrics.contains("content-type: text/plain; version=0.0.4"),
        "{metrics}"
    );
    assert!(
        metrics.contains("\nheadgate_messages_received_total{worker=\"1\",qos=\"2\"} 5\n"),
        "{metrics}"
    );
    assert!(ask("GET /").starts_with("HTTP/1.1 404 "));
    let post = ask("POST /metrics");
    assert!(
        post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD"),
        "{post}"
    );
    let head = ask("HEAD /metrics");
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let garbage = get(address, "\0\0\0\r\n\r\n");
    assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
}
