//! Clients on QUIC stacks that have nothing to do with the broker's: the programs of `tests/stacks`, which do what they are
//! told line by line.

use std::{
    fmt,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, SystemTime},
};

use crate::{broker::Broker, clients::target};

/// How long one command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(90);

/// A stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// Cloudflare's quiche, with BoringSSL.
    Quiche,
    /// AWS's s2n-quic, with rustls and AWS-LC. As a client it takes no tickets then, and stays on its port.
    S2n,
}

impl Stack {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Quiche, Self::S2n];

    fn program(self) -> PathBuf {
        let name = match self {
            Self::Quiche => "stack_quiche",
            Self::S2n => "stack_s2n",
        };
        target().join("stacks/debug").join(name)
    }

    /// Whether its program is built, and not older than its source.
    ///
    /// # Errors
    /// The reason for which it can't be used, for [`skip!`](crate::skip!).
    pub fn available(self) -> Result<(), String> {
        let built = changed(&self.program());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("stacks");
        let mut newest = changed(&source.join("Cargo.lock"));
        for folder in ["src", "src/bin"] {
            for entry in std::fs::read_dir(source.join(folder))
                .into_iter()
                .flatten()
                .flatten()
            {
                if entry.path().is_file() {
                    newest = newest.max(changed(&entry.path()));
                }
            }
        }
        if built.is_some() && built >= newest {
            return Ok(());
        }
        let what = if built.is_some() {
            "older than its source"
        } else {
            "not built"
        };
        Err(format!(
            "{self} is {what}: left to `cargo xtask test --full`, which compiles it for minutes"
        ))
    }

    /// Why not all of them can be used, if that is so.
    pub fn unavailable() -> Option<String> {
        Self::ALL.iter().find_map(|stack| stack.available().err())
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Quiche => "quiche",
            Self::S2n => "s2n-quic",
        })
    }
}

fn changed(file: &Path) -> Option<SystemTime> {
    file.metadata().and_then(|data| data.modified()).ok()
}

/// A running program. It is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    stack: Stack,
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Program {
    /// Starts it; it connects to `address`, and knows the broker's authority.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(stack: Stack, broker: &Broker, address: SocketAddr) -> Self {
        let mut child = Command::new(stack.program())
            .arg(address.to_string())
            .arg(broker.ca_certificate())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{stack}: {error}"));
        let input = child.stdin.take().expect("it was asked for");
        let output = child.stdout.take().expect("it was asked for");
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            stack,
            child,
            input,
            answers,
        }
    }

    /// Gives it a command.
    ///
    /// # Panics
    /// When it has ended.
    pub fn ask(&mut self, command: &str) {
        let written = writeln!(self.input, "{command}").and_then(|()| self.input.flush());
        written.unwrap_or_else(|error| panic!("{}: {command}: {error}", self.stack));
    }

    /// The answer to the last command.
    ///
    /// # Panics
    /// When none comes.
    pub fn answer(&mut self) -> String {
        let answer = self.answers.recv_timeout(COMMAND_TIMEOUT);
        answer.unwrap_or_else(|error| panic!("{}: no answer: {error}", self.stack))
    }

    /// What it says to a command.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn says(&mut self, command: &str) -> String {
        self.ask(command);
        self.answer()
    }

    /// Lets it do all of these.
    ///
    /// # Panics
    /// When one of them doesn't work.
    pub fn does(&mut self, commands: &[&str]) {
        for command in commands {
            let answer = self.says(command);
            assert_eq!(answer, "ok", "{}: {command}", self.stack);
        }
    }

    /// What the stack says of its connection.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn facts(&mut self) -> Vec<String> {
        let facts = self.says("facts");
        facts.split(' ').map(str::to_owned).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
