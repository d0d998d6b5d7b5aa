//! A run: connect, hold or publish, storm, wait for what is missing, disconnect.

use super::{
    connects::Connects,
    draw::Random,
    engine::Engine,
    layout::{Layout, Role},
    options::{Load, Options, OptionsError},
    pinger::Pinger,
    publishers::Publishers,
    record::{Kind, Recorder},
    report::{Report, Storm},
    session::{Listener, Session},
    tally::{Begun, State, Tally},
};
use std::{io, ops::Range, time::Duration};

/// The longest wait of a turn: samples and the progress go on.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// The shortest: what is due within it goes out together.
const WAIT_MIN: Duration = Duration::from_micros(100);
/// While a connection holds somebody up.
const WAIT_HELD_UP: Duration = Duration::from_millis(1);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_millis(100);
/// When nobody has come through for so long, nobody is waited for any more.
const HOPELESS: Duration = Duration::from_secs(60);
/// Clients that begin to connect between two turns: those that are on their way are served meanwhile.
const BEGUN_PER_TURN: u32 = 32;
/// Clients that leave between two turns.
const LEAVE_AT_ONCE: u32 = 64;

/// Why a run ends without a report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The options don't fit together.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The system refuses.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Of the system.
        source: io::Error,
    },
}

/// Shows how far a run is.
pub trait Progress {
    /// A phase begins, of so many steps.
    fn begin(&mut self, phase: &str, steps: u64);
    /// So many steps are done.
    fn at(&mut self, step: u64, what: &str);
    /// The phase is over.
    fn end(&mut self, what: &str);
}

/// Runs it.
///
/// # Errors
/// The options don't fit together, or the system refuses sockets. What the broker does wrong is in the report.
pub fn run(
    options: &Options,
    engine: Engine,
    progress: &mut dyn Progress,
) -> Result<Report, BenchError> {
    options.check()?;
    let mut random = Random::new(options.seed);
    let tag = random.bits() as u32;
    let layout = Layout::new(options.shape, tag, &mut random);
    let recorder = Recorder::new(options.broker, options.interval);
    let clients = layout.clients();
    let publishers = Publishers::new(options, &layout, (tag, random.clone()));
    let mut run = Run {
        options,
        engine,
        tally: Tally::new(
            recorder,
            tag,
            (clients, options.shape.publishers),
            matches!(options.load, Load::Window(_)),
        ),
        publishers,
        pinger: Pinger::new(options.keep_alive_s, clients),
        layout,
        random,
        progress,
        shown: Duration::ZERO,
        storms: Vec::new(),
        never_came: 0,
    };
    run.all()?;
    Ok(Report::of(
        options,
        &run.tally,
        (&run.publishers, run.never_came),
        run.storms,
    ))
}

struct Run<'a> {
    options: &'a Options,
    engine: Engine,
    layout: Layout,
    tally: Tally,
    publishers: Publishers,
    pinger: Pinger,
    random: Random,
    progress: &'a mut dyn Progress,
    /// When progress was last shown, after the run began.
    shown: Duration,
    storms: Vec<Storm>,
    /// Clients that didn't come through.
    never_came: u64,
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), BenchError> {
        let clients = self.layout.clients();
        self.tally.recorder.begin("connect", Kind::Connect, 0);
        let connected = self.connect("connect", 0..clients)?;
        self.never_came += u64::from(clients).saturating_sub(connected);
        self.rest("settle", self.options.settle)?;
        if self.options.load == Load::None {
            self.rest("hold", self.options.duration)?;
        } else {
            self.publish()?;
        }
        for number in 1..=self.options.storms {
            self.storm(number)?;
        }
        self.tally.recorder.end(self.tally.ready);
        self.leave()
    }

    /// Connects clients; how many came through.
    fn connect(&mut self, name: &str, clients: Range<u32>) -> Result<u64, BenchError> {
        let before = self.tally.came_through;
        let total = u64::from(clients.end - clients.start);
        self.progress.begin(name, total);
        let now_ns = self.tally.recorder.now_ns();
        let mut connects = Connects::new(self.options, clients, now_ns);
        let (mut came, mut moved_ns) = (0, now_ns);
        loop {
            let now_ns = self.tally.recorder.now_ns();
            let due = connects.offer(now_ns);
            connects.failed(&mut self.tally, (now_ns, &mut self.random));
            let mut begun = 0;
            for _ in 0..BEGUN_PER_TURN {
                if self.tally.connecting.len() >= self.options.at_once as usize {
                    break;
                }
                let Some((client, due_ns)) = connects.next(now_ns) else {
                    break;
                };
                let at_ns = now_ns;
                self.begin(client, Begun { due_ns, at_ns })?;
                begun += 1;
            }
            // Without a ramp, a client is offered when there is room for it.
            let offered = self.options.ramp.map_or(begun, |_| due);
            self.tally.recorder.offered(Kind::Connect, offered);
            for client in connects.overdue(&self.tally, now_ns) {
                self.engine.cut(client);
                let seconds = self.options.connect_timeout.as_secs_f64();
                let why = format!("not connected within {seconds} s");
                self.tally.lost(client, &why);
            }
            let has_room = self.tally.connecting.len() < self.options.at_once as usize;
            self.step(match has_room && connects.is_behind() {
                true => Duration::ZERO,
                false => connects.quiet(now_ns),
            })?;
            if self.tally.came_through - before > came {
                came = self.tally.came_through - before;
                moved_ns = self.tally.recorder.now_ns();
            }
            let is_hopeless = now_ns.saturating_sub(moved_ns) > HOPELESS.as_nanos() as u64;
            let is_over = connects.is_over() && self.tally.connecting.is_empty();
            if is_over && self.tally.failed.is_empty() || is_hopeless && !connects.is_waiting() {
                break;
            }
            let retries = connects.retries;
            self.show(came, || match retries {
                0 => String::new(),
                _ => format!("{retries} tries again"),
            });
        }
        self.give_up_connecting();
        self.progress.end(&format!("{came} of {total} connected"));
        Ok(came)
    }

    fn begin(&mut self, client: u32, begun: Begun) -> Result<(), BenchError> {
        let connect = self.options.connect(client, &self.layout.client_id(client));
        let filters = self.layout.filters(client, self.options.qos.max());
        let session = Session::new(connect, &filters, false);
        let is_idle = matches!(self.layout.role(client), Role::Idle(_));
        self.tally.begun(client, begun);
        match self.engine.connect(client, session, is_idle) {
            Ok(()) => Ok(()),
            // Nothing that waiting helps against, unlike what a server says.
            Err(source) if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                let what = "connecting";
                Err(BenchError::Io { what, source })
            }
            Err(error) => {
                let why = match error.raw_os_error() {
                    Some(libc::EADDRNOTAVAIL) => format!(
                        "{error}: the address is not this machine's, or has no free port; give more with --source"
                    ),
                    _ => error.to_string(),
                };
                self.tally.lost(client, &why);
                Ok(())
            }
        }
    }

    /// Those that are still connecting, and those that wait to try again, are not waited for.
    fn give_up_connecting(&mut self) {
        let left: Vec<u32> = self.tally.connecting.keys().copied().collect();
        for client in left {
            self.engine.cut(client);
            self.tally.lost(client, "no answer");
        }
        self.tally.failed.clear();
    }

    /// Nothing but keep-alive.
    fn rest(&mut self, name: &str, time: Duration) -> Result<(), BenchError> {
        if time.is_zero() {
            return Ok(());
        }
        self.tally
            .recorder
            .begin(name, Kind::Ping, self.tally.ready);
        self.progress.begin(name, time.as_millis() as u64);
        let start_ns = self.tally.recorder.now_ns();
        loop {
            let passed = Duration::from_nanos(self.tally.recorder.now_ns() - start_ns);
            if passed >= time {
                break;
            }
            self.step(time - passed)?;
            let ready = self.tally.ready;
            self.show(passed.as_millis() as u64, || format!("{ready} clients"));
        }
        let ready = self.tally.ready;
        self.progress.end(&format!("{ready} clients"));
        Ok(())
    }

    fn publish(&mut self) -> Result<(), BenchError> {
        let name = "publish";
        self.tally
            .recorder
            .begin(name, Kind::Delivery, self.tally.ready);
        self.progress
            .begin(name, self.options.duration.as_millis() as u64);
        let start_ns = self.tally.recorder.now_ns();
        let end_ns = start_ns + self.options.duration.as_nanos() as u64;
        self.publishers.start(start_ns);
        loop {
            let now_ns = self.tally.recorder.now_ns();
            // What is due before the end is due, however late it is now.
            self.publishers
                .offer(now_ns.min(end_ns - 1), &mut self.tally);
            if now_ns >= end_ns {
                break;
            }
            self.send();
            self.step(
                self.publish_wait(now_ns)
                    .min(Duration::from_nanos(end_ns - now_ns)),
            )?;
            let line = self.line();
            self.show((now_ns - start_ns) / 1_000_000, line);
        }
        self.publishers.stop();
        let what = (self.line())();
        self.progress.end(&what);
        self.drain()
    }

    fn send(&mut self) {
        self.publishers.send(
            &mut self.engine,
            &self.layout,
            self.options,
            &mut self.tally,
        );
    }

    fn publish_wait(&self, now_ns: u64) -> Duration {
        let wait = self.publishers.quiet(now_ns).max(WAIT_MIN);
        match self.publishers.is_held_up() {
            true => wait.min(WAIT_HELD_UP),
            false => wait,
        }
    }

    fn line(&self) -> impl Fn() -> String + use<> {
        let delivered: u64 = self.tally.came.delivered.iter().sum();
        let (sent, unsent) = (self.publishers.sent.messages, self.publishers.unsent());
        move || match unsent {
            0 => format!("{sent} published, {delivered} delivered"),
            _ => format!("{sent} published, {unsent} held up, {delivered} delivered"),
        }
    }

    /// Waits for what is missing, as long as something comes.
    fn drain(&mut self) -> Result<(), BenchError> {
        let ready = self.tally.ready;
        self.tally.recorder.begin("drain", Kind::Delivery, ready);
        self.progress.begin("drain", self.missing());
        let (all, mut moved_ns) = (self.missing(), self.tally.recorder.now_ns());
        let mut before = all;
        while self.missing() > 0 {
            let now_ns = self.tally.recorder.now_ns();
            if self.missing() != before {
                (before, moved_ns) = (self.missing(), now_ns);
            }
            if now_ns - moved_ns > self.options.drain.as_nanos() as u64 {
                break;
            }
            self.send();
            self.step(WAIT_HELD_UP)?;
            let missing = self.missing();
            self.show(all.saturating_sub(missing), || format!("{missing} to come"));
        }
        let missing = self.missing();
        self.progress.end(&format!("{missing} missing"));
        Ok(())
    }

    /// Deliveries and acknowledgements that have not come, and messages that have not left.
    fn missing(&self) -> u64 {
        let (sent, came) = (&self.publishers.sent, &self.tally.came);
        let expected: u64 = sent.expected.iter().sum();
        let delivered: u64 = came.delivered.iter().sum();
        expected.saturating_sub(delivered)
            + sent
                .acknowledged
                .saturating_sub(came.completed + came.refused)
            + self.publishers.unsent()
    }

    /// All clients that are idle lose their connection at once, and connect again.
    fn storm(&mut self, number: u32) -> Result<(), BenchError> {
        let idle = self.options.shape.idle;
        let name = format!("storm {number}");
        self.tally
            .recorder
            .begin(&name, Kind::Connect, self.tally.ready);
        let was_ready = |client: &u32| self.tally.states[*client as usize] == State::Ready;
        let before = (0..idle).filter(was_ready).count() as u64;
        for client in 0..idle {
            self.engine.cut(client);
            self.tally.cut(client);
        }
        let start_ns = self.tally.recorder.now_ns();
        let refused = self.refusals();
        let back = self.connect(&name, 0..idle)?;
        self.storms.push(Storm {
            clients: before,
            back,
            seconds: (self.tally.recorder.now_ns() - start_ns) as f64 / 1e9,
            failed_attempts: self.refusals() - refused,
        });
        self.never_came += u64::from(idle).saturating_sub(back);
        self.rest(&format!("after storm {number}"), self.options.settle)
    }

    fn refusals(&self) -> u64 {
        self.tally.reasons.values().sum()
    }

    /// Everybody disconnects.
    fn leave(&mut self) -> Result<(), BenchError> {
        let clients = self.layout.clients();
        self.progress.begin("disconnect", clients.into());
        for client in 0..clients {
            self.engine.leave(client);
            self.tally.cut(client);
            if client % LEAVE_AT_ONCE == 0 {
                self.step(Duration::ZERO)?;
            }
        }
        self.step(Duration::ZERO)?;
        self.progress.end("");
        Ok(())
    }

    /// One turn of the clients, with their PINGREQs.
    fn step(&mut self, wait: Duration) -> Result<(), BenchError> {
        let now_ns = self.tally.recorder.now_ns();
        if let Some(seconds) = self.tally.keep_alive_s.take() {
            self.pinger.shorten(seconds, now_ns);
        }
        self.pinger.ping(now_ns, &mut self.engine, &mut self.tally);
        let wait = wait
            .min(WAIT_MAX)
            .min(self.pinger.quiet(now_ns).max(WAIT_MIN));
        let turned = self.engine.turn(wait, &mut self.tally);
        self.tally.tick();
        turned.map_err(|source| BenchError::Io {
            what: "waiting for sockets",
            source,
        })
    }

    fn show(&mut self, step: u64, what: impl FnOnce() -> String) {
        let now = Duration::from_nanos(self.tally.recorder.now_ns());
        if now - self.shown >= PROGRESS {
            self.shown = now;
            self.progress.at(step, &what());
        }
    }
}
