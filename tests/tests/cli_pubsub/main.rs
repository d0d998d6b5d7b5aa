//! `headgate pub` and `headgate sub` from outside: against mosquitto, against headgate itself, and
//! with mosquitto's own clients at the other end.

mod mosquitto;
mod quic;

use headgate_tests::{
    broker::{self, Broker},
    skip,
};
use mosquitto::Mosquitto;
use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    process::{Command, Output, Stdio},
};

/// How long a command may take before the test fails, seconds.
const WAIT_S: &str = "60";

/// The flags that lead to a server.
type Flags = Vec<String>;

fn flags(words: &[&str]) -> Flags {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn over_tcp(broker: &Broker) -> Flags {
    let address = broker.tcp();
    flags(&[
        "-h",
        &address.ip().to_string(),
        "-p",
        &address.port().to_string(),
    ])
}

fn over_quic(broker: &Broker) -> Flags {
    over_encrypted("quic", broker.quic().port(), broker)
}

fn over_tls(broker: &Broker) -> Flags {
    over_encrypted("mqtts", broker.tls().port(), broker)
}

fn over_ws(broker: &Broker) -> Flags {
    flags(&["-L", &format!("ws://localhost:{}", broker.ws().port())])
}

fn over_wss(broker: &Broker) -> Flags {
    over_encrypted("wss", broker.wss().port(), broker)
}

fn over_encrypted(scheme: &str, port: u16, broker: &Broker) -> Flags {
    let ca = broker.ca_certificate().display().to_string();
    let url = format!("{scheme}://localhost:{port}");
    flags(&["-L", &url, "--cafile", &ca])
}

/// The flags for every transport.
fn over_all(broker: &Broker) -> [Flags; 5] {
    [over_tcp, over_quic, over_tls, over_ws, over_wss].map(|over| over(broker))
}

fn at(mosquitto: &Mosquitto) -> Flags {
    flags(&["-h", "127.0.0.1", "-p", &mosquitto.port.to_string()])
}

/// `headgate pub` or `sub` with a time limit.
fn headgate(command: &str, server: &Flags, words: &[&str]) -> Command {
    let mut headgate = Command::new(broker::binary());
    headgate.arg(command).args(server).args(words);
    if !words.contains(&"-W") {
        headgate.args(["-W", WAIT_S]);
    }
    headgate.stdin(Stdio::null());
    headgate
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the command can be executed")
}

/// The standard output of a command that must succeed.
fn done(command: &mut Command) -> String {
    let output = output(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {errors}",
        output.status
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Exit code and standard error of a command that must fail.
fn failed(command: &mut Command) -> (i32, String) {
    let output = output(command);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} succeeds");
    (output.status.code().expect("an exit code"), errors)
}

/// `headgate pub` with `input` as standard input.
fn publish_input(server: &Flags, words: &[&str], input: &[u8]) {
    let mut command = headgate("pub", server, words);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("executable");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input)
        .expect("it reads");
    assert!(child.wait().expect("our child").success());
}

/// Makes a session that keeps messages of `filter` for client `id`.
fn keep(server: &Flags, id: &str, filter: &str, more: &[&str]) {
    let words = [&["-c", "-i", id, "-q", "2", "-E", "-t", filter], more].concat();
    done(&mut headgate("sub", server, &words));
}

/// What the session made by [`keep`] has got.
fn kept(server: &Flags, id: &str, filter: &str, count: &str, more: &[&str]) -> String {
    let words = [
        &["-c", "-i", id, "-q", "2", "-C", count, "-t", filter],
        more,
    ]
    .concat();
    done(&mut headgate("sub", server, &words))
}

/// All that must work against any server, under topics below `base`.
fn everyday(server: &Flags, base: &str) {
    for version in ["mqttv31", "mqttv311", "mqttv5", "5", "311"] {
        for qos in ["0", "1", "2"] {
            let topic = format!("{base}/{version}/{qos}");
            let words = ["-V", version, "-q", qos, "-t", &topic, "-r", "-m", "hello"];
            assert_eq!(done(&mut headgate("pub", server, &words)), "");
            let words = ["-V", version, "-q", qos, "-t", &topic, "-C", "1", "-v"];
            let printed = done(&mut headgate("sub", server, &words));
            assert_eq!(printed, format!("{topic} hello\n"));
        }
    }
    lines_keep_their_order(server, base);
    properties_travel(server, base);
    retained_messages_go(server, base);
    a_will_is_published(server, base);
}

fn lines_keep_their_order(server: &Flags, base: &str) {
    let topic = format!("{base}/lines");
    let lines: Vec<String> = (0..200).map(|i| format!("line {i}")).collect();
    let text = lines.join("\n");
    for (version, qos) in [("mqttv311", "1"), ("mqttv5", "1"), ("mqttv5", "2")] {
        let id = format!("{}-{version}-{qos}", base.replace('/', "-"));
        keep(server, &id, &topic, &["-V", version]);
        // The last line has no line break, and counts.
        let words = ["-V", version, "-l", "-q", qos, "-t", &topic];
        publish_input(server, &words, text.as_bytes());
        let printed = kept(server, &id, &topic, "200", &["-V", version]);
        assert_eq!(printed.trim_end(), text);
        done(&mut headgate(
            "sub",
            server,
            &["-V", version, "-i", &id, "-t", "x", "-E"],
        ));
    }
}

fn properties_travel(server: &Flags, base: &str) {
    let topic = format!("{base}/properties");
    let sent = [
        "-r",
        "-t",
        &topic,
        "-m",
        "21",
        "-D",
        "publish",
        "user-property",
        "unit",
        "celsius",
        "-D",
        "publish",
        "content-type",
        "text/plain",
        "-D",
        "publish",
        "user-property",
        "n",
        "2",
    ];
    done(&mut headgate("pub", server, &sent));
    let words = ["-t", &topic, "-C", "1", "-F", r"%t\t%C %P %p"];
    let printed = done(&mut headgate("sub", server, &words));
    assert_eq!(
        printed,
        format!("{topic}\ttext/plain unit:celsius n:2 21\n")
    );
}

fn retained_messages_go(server: &Flags, base: &str) {
    let topic = format!("{base}/retained");
    publish_input(
        server,
        &["-r", "-q", "1", "-s", "-t", &topic],
        b"two\nlines",
    );
    let one = ["-t", &topic, "-C", "1", "-N"];
    assert_eq!(done(&mut headgate("sub", server, &one)), "two\nlines");
    done(&mut headgate(
        "pub",
        server,
        &["-r", "-q", "1", "-n", "-t", &topic],
    ));
    let none = ["-t", &topic, "-C", "1", "-W", "1"];
    let (code, errors) = failed(&mut headgate("sub", server, &none));
    assert_eq!((code, errors.trim_end()), (27, "error: timed out"));
}

fn a_will_is_published(server: &Flags, base: &str) {
    let (here, will) = (format!("{base}/here"), format!("{base}/will"));
    let id = format!("{}-will", base.replace('/', "-"));
    keep(server, &id, &will, &[]);
    done(&mut headgate(
        "pub",
        server,
        &["-r", "-q", "1", "-t", &here, "-m", "up"],
    ));
    let words = [
        "-t",
        &here,
        "--will-topic",
        &will,
        "--will-payload",
        "gone",
        "--will-qos",
        "1",
        "-k",
        "5",
    ];
    let mut child = headgate("sub", server, &words)
        .stdout(Stdio::piped())
        .spawn()
        .expect("executable");
    // It is connected and subscribed once it prints.
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("readable");
    assert_eq!(line, "up\n");
    child.kill().expect("our child");
    child.wait().expect("our child");
    assert_eq!(kept(server, &id, &will, "1", &[]), "gone\n");
    done(&mut headgate("sub", server, &["-i", &id, "-t", "x", "-E"]));
}

#[test]
fn everyday_use_against_mosquitto() {
    let Some(program) = mosquitto::program() else {
        skip!("mosquitto is not installed")
    };
    let server = Mosquitto::start(program, true);
    everyday(&at(&server), "m");
}

#[test]
fn everyday_use_over_tcp() {
    let broker = Broker::start("");
    everyday(&over_tcp(&broker), "t");
}

#[test]
fn everyday_use_over_quic() {
    let broker = Broker::start("");
    everyday(&over_quic(&broker), "q");
}

#[test]
fn everyday_use_over_tls_and_websocket() {
    let broker = Broker::start("");
    everyday(&over_tls(&broker), "s");
    everyday(&over_ws(&broker), "w");
    everyday(&over_wss(&broker), "x");
}

/// As with mosquitto_pub: whoever names an authority means TLS.
#[test]
fn an_authority_asks_for_tls() {
    let broker = Broker::start("");
    let (port, ca) = (broker.tls().port().to_string(), broker.ca_certificate());
    let server = flags(&["-p", &port, "--cafile", &ca.display().to_string()]);
    done(&mut headgate(
        "pub",
        &server,
        &["-q", "1", "-t", "a", "-m", "x"],
    ));
}

#[test]
fn a_message_crosses_from_one_transport_to_the_other() {
    let broker = Broker::start("");
    let ways = over_all(&broker);
    let pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 0), (1, 1)];
    for (i, (from, to)) in pairs.into_iter().enumerate() {
        let (id, topic) = (format!("way{i}"), format!("way/{i}"));
        keep(&ways[to], &id, &topic, &[]);
        done(&mut headgate(
            "pub",
            &ways[from],
            &["-q", "2", "-t", &topic, "-m", "across"],
        ));
        assert_eq!(kept(&ways[to], &id, &topic, "1", &[]), "across\n");
    }
}

#[test]
fn a_certificate_that_is_not_trusted_is_named() {
    let broker = Broker::start("");
    let other = Broker::start("");
    let ca = other.ca_certificate().display().to_string();
    for (scheme, address) in [
        ("quic", broker.quic()),
        ("mqtts", broker.tls()),
        ("wss", broker.wss()),
    ] {
        let url = format!("{scheme}://localhost:{}", address.port());
        let server = flags(&["-L", &url, "--cafile", &ca]);
        let (code, errors) = failed(&mut headgate("pub", &server, &["-t", "a", "-m", "x"]));
        assert_eq!(code, 1);
        assert!(
            errors.contains("is not trusted") && errors.contains("--cafile"),
            "{errors}"
        );
        let server = flags(&["-L", &url, "--insecure"]);
        let output = output(&mut headgate("pub", &server, &["-t", "a", "-m", "x"]));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(errors.contains("not verified"), "{errors}");
    }
}

#[test]
fn a_broker_that_stops_says_so() {
    let mut broker = Broker::start("");
    for server in over_all(&broker) {
        done(&mut headgate(
            "pub",
            &server,
            &["-r", "-q", "1", "-t", "up", "-m", "up"],
        ));
    }
    let children = over_all(&broker).map(|server| {
        let mut child = headgate("sub", &server, &["-t", "up"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("executable");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("readable");
        assert_eq!(line, "up\n");
        child
    });
    broker.terminate();
    for child in children {
        let output = child.wait_with_output().expect("our child");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("server shutting down (0x8b)"), "{errors}");
    }
}

#[test]
fn mosquittos_clients_at_the_other_end() {
    let Some(program) = mosquitto::program() else {
        skip!("mosquitto is not installed")
    };
    if output(Command::new("sh").args(["-c", "command -v mosquitto_sub"]))
        .stdout
        .is_empty()
    {
        skip!("mosquitto-clients is not installed");
    }
    let server = Mosquitto::start(program, true);
    let at = at(&server);
    done(&mut headgate(
        "pub",
        &at,
        &["-r", "-q", "2", "-t", "a/b", "-m", "from headgate"],
    ));
    let mut theirs = Command::new("mosquitto_sub");
    theirs
        .args(&at)
        .args(["-t", "a/#", "-C", "1", "-W", WAIT_S, "-v"]);
    assert_eq!(done(&mut theirs), "a/b from headgate\n");
    let mut theirs = Command::new("mosquitto_pub");
    theirs
        .args(&at)
        .args(["-r", "-q", "2", "-t", "c/d", "-m", "from mosquitto"]);
    done(&mut theirs);
    let ours = ["-t", "c/+", "-C", "1", "-v", "-q", "2"];
    assert_eq!(
        done(&mut headgate("sub", &at, &ours)),
        "c/d from mosquitto\n"
    );
}

#[test]
fn a_refusal_is_named() {
    let Some(program) = mosquitto::program() else {
        skip!("mosquitto is not installed")
    };
    let server = Mosquitto::start(program, false);
    for version in ["mqttv5", "mqttv311"] {
        let words = ["-V", version, "-t", "a", "-m", "x"];
        let (code, errors) = failed(&mut headgate("pub", &at(&server), &words));
        assert_eq!(code, 3);
        assert_eq!(
            errors.trim_end(),
            "error: the server refuses the connection: not authorized (0x87)"
        );
    }
}

#[test]
fn nobody_there_is_said() {
    // A port that was free a moment ago.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = free.local_addr().expect("bound").port().to_string();
    drop(free);
    let server = flags(&["-h", "127.0.0.1", "-p", &port]);
    let (code, errors) = failed(&mut headgate("pub", &server, &["-t", "a", "-m", "x"]));
    assert_eq!(code, 1);
    assert!(
        errors.contains(&format!("can't reach mqtt://127.0.0.1:{port}")),
        "{errors}"
    );
    let server = flags(&["-L", "mqtt://no-such-host.invalid/a"]);
    let (code, errors) = failed(&mut headgate("pub", &server, &["-m", "x"]));
    assert_eq!(code, 1);
    assert!(errors.contains("no-such-host.invalid"), "{errors}");
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = silent.local_addr().expect("bound").port().to_string();
    let server = flags(&["-h", "127.0.0.1", "-p", &port]);
    for command in ["pub", "sub"] {
        let message: &[&str] = if command == "pub" { &["-m", "x"] } else { &[] };
        let words = [&["-t", "a", "-W", "1"], message].concat();
        let (code, errors) = failed(&mut headgate(command, &server, &words));
        assert_eq!((code, errors.trim_end()), (27, "error: timed out"));
    }
}

#[test]
fn a_wrong_command_line_is_explained() {
    for (command, words, says) in [
        ("pub", &["-t", "a"][..], "--message"),
        ("pub", &["-m", "x"], "a topic is needed"),
        ("pub", &["-t", "a/#", "-m", "x"], "a/#"),
        ("pub", &["-t", "a", "-m", "x", "-n"], "cannot be used with"),
        ("pub", &["-t", "a", "-m", "x", "-q", "3"], "0, 1 or 2"),
        ("pub", &["-L", "http://h/t", "-m", "x"], "mqtt://host"),
        (
            "pub",
            &["-L", "mqtt://h/t", "-m", "x", "-p", "1"],
            "cannot be used with",
        ),
        (
            "pub",
            &["-L", "ws://h/a", "-m", "x", "--insecure"],
            "go with mqtts://",
        ),
        ("pub", &["-t", "a", "-m", "x", "-c"], "--id"),
        (
            "pub",
            &["-t", "a", "-m", "x", "-V", "311", "-x", "5"],
            "only -V mqttv5",
        ),
        (
            "pub",
            &["-t", "a", "-m", "x", "-D", "publish", "colour", "red"],
            "content-type",
        ),
        ("sub", &[], "a topic filter is needed"),
        ("sub", &["-t", "a/#/b"], "a/#/b"),
        ("sub", &["-t", "a", "-F", "%z"], "%z"),
        ("sub", &["-t", "a", "-C", "0"], "0"),
    ] {
        let (code, errors) = failed(&mut headgate(command, &flags(&[]), words));
        assert_eq!(code, 2, "{words:?}: {errors}");
        assert!(errors.contains(says), "{words:?}: {errors}");
    }
}
