//! The one thread that looks after all pools of a process.
//!
//! It starts with the first pool and knows nothing of the language on top. It has workers born and
//! learns of their deaths, has the zygote started and renewed, empties result rings while nobody
//! waits for results, and ends what does not leave in its time. It sleeps in one poll over everything
//! that can happen.
//!
//! Birth of a worker: the pool's seat is *asked*; the supervisor makes its memory and lines
//! (*prepared*: tasks can be published to it already), asks the zygote to fork, hears of the pid
//! (*born*), and watches the pidfd. Death: the pidfd becomes readable; the zygote, whose child it was,
//! says how it ended; if it is late or gone the kernel is asked; with or without an answer the pool
//! buries it. If the zygote is gone, workers whose birth was asked of it are buried unborn, since
//! their life lines end whoever there may be, and asked anew.

use crate::completions::Completions;
use crate::fail_point::fail_point;
use crate::life_line::LifeLine;
use crate::nested::caller;
use crate::oom_watch::OomWatch;
use crate::pool::{Patrol, Pool};
use crate::protocol::{LONGEST_MESSAGE, WorkerKey, ZygoteMessage};
use crate::seat::WorkerEnds;
use crate::store::{Store, Views};
use crate::task::Cause;
use manyhands_os::{
    Event, EventSignal, ExitStatus, MemoryFile, Poller, Process, Received, Socket,
    block_all_signals, monotonic_nanos, open_current_directory, parent_pid, reap_orphan,
    spawn_program, standard_stream, unreaped_status,
};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the supervisor lets a busy pool's results gather before it looks again.
const POLL_AGAIN: Duration = Duration::from_micros(300);
/// After how long memory of the store that nobody uses is given back.
const REST: Duration = Duration::from_secs(5);
/// How long lies between two looks at it, at least.
const LEAST_REST: Duration = Duration::from_millis(500);
/// How long a zygote may take to report a worker that runs already, before that is looked for.
const REPORT_WAIT: u64 = 100_000_000;
/// How long a death waits for the word of how it came, before the kernel is asked.
const STATUS_WAIT: u64 = 200_000_000;
/// How long it waits after that, where the kernel does not tell and who forked the worker lives: it may be in an
/// import, or stopped.
const LATE_STATUS_WAIT: u64 = 3_000_000_000;
/// How long workers have to leave after the last task, before they are killed.
const LEAVE_WAIT: u64 = 5_000_000_000;

/// Requests for workers that a zygote may have to answer; each carries descriptors, of which only so
/// many may be on their way.
const MOST_BIRTHS_IN_FLIGHT: usize = 16;

/// The most lines for the log that wait for the face.
const MOST_LINES: usize = 1000;

const KEY_COMMANDS: u64 = u64::MAX;
const KEY_POOL: u64 = 1 << 63;
const KEY_ZYGOTE: u64 = 1 << 62;
const KEY_ZYGOTE_END: u64 = 1 << 61;
/// Lines of workers have come to a pool.
const KEY_REQUESTS: u64 = KEY_POOL | KEY_ZYGOTE;
/// A worker's line.
const KEY_LINE: u64 = KEY_POOL | KEY_ZYGOTE_END;
/// What tells the kinds of keys apart.
const KEY_KIND: u64 = KEY_POOL | KEY_ZYGOTE | KEY_ZYGOTE_END;

/// How a program is started that speaks the zygote's part of the protocol.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// Program and arguments; the numbers of two descriptors, socket and life line, are appended.
    pub argv: Vec<OsString>,
    /// Its environment; none for that of this process.
    pub environment: Option<Vec<(OsString, OsString)>>,
}

/// What is asked of the supervisor.
#[derive(Debug)]
pub(crate) enum Command {
    /// The pool has seats that ask for workers.
    Births(u32),
    /// The pool closes.
    Closing(u32),
    /// Import these before forking.
    Preload(Vec<String>),
    /// Start the zygote now.
    Warm,
    /// The pool waits for something of which nobody will tell: the kernel, or a time.
    LookAgain(u32),
    /// Tasks of the pool may have to be ended.
    Watch(u32),
    /// Workers of the pool may have to give way, or to leave.
    Visit(u32),
    /// Tasks of the pool are pending: look now and then whether all goes on.
    Patrol(u32),
    /// End the zygote and the thread.
    Stop,
}

/// A line for the log of the face.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Whether people should see it by default.
    pub warning: bool,
    /// The sentence.
    pub text: String,
    /// The stack that belongs to it, as the worker's language wrote it.
    pub stack: Option<Vec<u8>>,
}

impl LogLine {
    pub(crate) fn warning(text: String) -> Self {
        Self {
            warning: true,
            text,
            stack: None,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    commands: Vec<Command>,
    pools: HashMap<u32, Arc<Pool>>,
    launcher: Option<Launcher>,
    birth: Option<Arc<MemoryFile>>,
    logs: Vec<LogLine>,
    /// How many came while there was no room for them.
    lost_lines: u64,
    running: bool,
    zygote_pid: i32,
}

/// The supervisor of a process, as everybody but its thread sees it.
#[derive(Debug)]
pub struct Supervisor {
    shared: Mutex<Shared>,
    event: Event,
    poller: Poller,
    completions: Completions,
    has_logs: AtomicBool,
    store: Arc<Store>,
    views: Arc<Views>,
}

impl Supervisor {
    /// Makes a supervisor; its thread starts with the first pool.
    pub fn new() -> io::Result<Arc<Self>> {
        let store = Store::new(None)?;
        let supervisor = Self {
            shared: Mutex::default(),
            event: Event::new()?,
            poller: Poller::new()?,
            completions: Completions::default(),
            has_logs: AtomicBool::new(false),
            views: Arc::new(Views::new(store.window().clone(), std::process::id())),
            store,
        };
        supervisor.poller.add(&supervisor.event, KEY_COMMANDS)?;
        Ok(Arc::new(supervisor))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how zygotes are started from now on.
    pub fn set_launcher(&self, launcher: Launcher) {
        self.shared().launcher = Some(launcher);
    }

    /// Says what workers find at their birth: bytes that only the face understands.
    pub fn set_birth(&self, content: &[u8]) -> io::Result<()> {
        let file = MemoryFile::with_content(c"manyhands-birth", content)?;
        self.shared().birth = Some(Arc::new(file));
        Ok(())
    }

    /// Has modules imported before the next worker is forked.
    pub fn preload(&self, modules: Vec<String>) {
        self.command(Command::Preload(modules));
    }

    /// Has the zygote started, if there is none.
    pub fn warm(self: &Arc<Self>) -> io::Result<()> {
        self.start_thread()?;
        self.command(Command::Warm);
        Ok(())
    }

    /// Where large buffers are.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Has memory that the store has taken looked after.
    pub fn look_after_store(&self) {
        self.event.signal();
    }

    /// How this process looks at them.
    pub fn views(&self) -> &Arc<Views> {
        &self.views
    }

    /// Where the tokens of ended tasks come.
    pub fn completions(&self) -> &Completions {
        &self.completions
    }

    /// Takes the lines that were logged.
    pub fn take_logs(&self) -> Vec<LogLine> {
        let mut shared = self.shared();
        // Relaxed: a hint, written under the lock.
        self.has_logs.store(false, Ordering::Relaxed);
        let mut logs = std::mem::take(&mut shared.logs);
        let lost = std::mem::take(&mut shared.lost_lines);
        if lost > 0 {
            let text = format!("{lost} more lines were not kept, because nobody took them in time");
            logs.push(LogLine {
                warning: false,
                ..LogLine::warning(text)
            });
        }
        logs
    }

    /// Whether there are any.
    pub fn has_logs(&self) -> bool {
        self.has_logs.load(Ordering::Relaxed)
    }

    /// The pid of the zygote, 0 without one.
    pub fn zygote_pid(&self) -> i32 {
        self.shared().zygote_pid
    }

    /// All pools that are not gone.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.shared().pools.values().cloned().collect()
    }

    /// Ends the zygote and the thread; for the end of the program.
    pub fn stop(&self) {
        self.command(Command::Stop);
    }

    pub(crate) fn command(&self, command: Command) {
        self.shared().commands.push(command);
        self.event.signal();
    }

    pub(crate) fn add_pool(self: &Arc<Self>, pool: &Arc<Pool>) -> io::Result<()> {
        self.poller
            .add(&pool.event, KEY_POOL | u64::from(pool.id))?;
        self.poller
            .add(pool.requests(), KEY_REQUESTS | u64::from(pool.id))?;
        self.shared().pools.insert(pool.id, pool.clone());
        self.start_thread()
    }

    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let mut shared = self.shared();
        if !shared.running {
            let supervisor = self.clone();
            std::thread::Builder::new()
                .name("manyhands".into())
                .stack_size(256 * 1024)
                .spawn(move || Thread::new(supervisor).run())?;
            shared.running = true;
        }
        Ok(())
    }

    pub(crate) fn log(&self, warning: bool, text: String) {
        self.log_line(LogLine {
            warning,
            ..LogLine::warning(text)
        });
    }

    fn log_line(&self, line: LogLine) {
        let mut shared = self.shared();
        if shared.logs.len() < MOST_LINES {
            shared.logs.push(line);
        } else {
            shared.lost_lines += 1;
        }
        self.has_logs.store(true, Ordering::Relaxed);
        drop(shared);
        self.completions.ring();
    }
}

/// A process that forks workers, or becomes one.
#[derive(Debug)]
struct Zygote {
    socket: Socket,
    process: Process,
    #[expect(dead_code, reason = "held for its closing")]
    life_line: LifeLine,
    /// Requests for workers that it has not answered.
    asked: usize,
    /// It was asked to become this worker and forks none.
    became: Option<WorkerKey>,
}

/// A worker whose end is awaited.
#[derive(Debug)]
struct Watched {
    key: WorkerKey,
    pid: i32,
    /// The number of the zygote that forked it, or that it was: who can tell how it ended.
    zygote: u64,
    /// Its pidfd.
    watch: OwnedFd,
}

/// A worker that has ended, and nobody has said how yet.
#[derive(Debug)]
struct Dying {
    worker: Watched,
    until: u64,
    is_late: bool,
}

/// The thread's own state.
struct Thread {
    supervisor: Arc<Supervisor>,
    /// By number; the current one forks, others became workers.
    zygotes: HashMap<u64, Zygote>,
    current: Option<u64>,
    next_zygote: u64,
    preloaded: Vec<String>,
    preloaded_set: HashSet<String>,
    /// The zygote has threads: workers are started afresh instead of forked.
    spawn_only: bool,
    /// By packed key.
    watched: HashMap<u64, Watched>,
    pids: HashMap<i32, WorkerKey>,
    dying: Vec<Dying>,
    leaving: HashMap<u32, u64>,
    /// Pools whose seats wait for the zygote's answers.
    waiting_births: HashSet<u32>,
    hot: HashMap<u32, u64>,
    /// When to look whether tasks of a pool have to be ended.
    watches: HashMap<u32, u64>,
    /// When to look whether workers of a pool give way.
    visits: HashMap<u32, u64>,
    /// Lines by which workers ask, by packed key.
    lines: HashMap<u64, (WorkerKey, Arc<Socket>)>,
    patrols: HashMap<u32, Patrol>,
    oom: OomWatch,
    /// When to look whether workers run that were not reported.
    report_at: Option<u64>,
    /// When to look whether memory of the store rests.
    trim_at: Option<u64>,
    stopping: bool,
}

/// Comes to each pool whose time it is; `look` says when to come again.
fn come_round(
    supervisor: &Supervisor,
    times: &mut HashMap<u32, u64>,
    look: impl Fn(&Pool) -> Option<u64>,
) {
    if times.is_empty() {
        return;
    }
    let now = monotonic_nanos();
    times.retain(|&id, at| {
        if *at > now {
            return true;
        }
        let pool = supervisor.shared().pools.get(&id).cloned();
        match pool.and_then(|pool| look(&pool)) {
            Some(next) => {
                *at = next;
                true
            }
            None => false,
        }
    });
}

impl Thread {
    fn new(supervisor: Arc<Supervisor>) -> Self {
        Self {
            supervisor,
            zygotes: HashMap::new(),
            current: None,
            next_zygote: 1,
            preloaded: Vec::new(),
            preloaded_set: HashSet::new(),
            spawn_only: false,
            watched: HashMap::new(),
            pids: HashMap::new(),
            dying: Vec::new(),
            leaving: HashMap::new(),
            waiting_births: HashSet::new(),
            hot: HashMap::new(),
            watches: HashMap::new(),
            visits: HashMap::new(),
            lines: HashMap::new(),
            patrols: HashMap::new(),
            oom: OomWatch::new(),
            report_at: None,
            trim_at: None,
            stopping: false,
        }
    }

    fn run(mut self) {
        block_all_signals();
        let mut ready = Vec::new();
        loop {
            let time = self.time_to_sleep();
            if let Err(error) = self.supervisor.poller.wait(time, &mut ready) {
                crate::bug(&format!("the supervisor cannot poll: {error}"));
            }
            for &signal in &ready {
                self.handle(signal);
            }
            self.poll_hot();
            self.find_unreported();
            self.end_overdue();
            self.visit();
            self.patrol();
            self.end_waits();
            self.trim();
            if self.stopping && self.supervisor.shared().pools.is_empty() {
                let supervisor = self.supervisor.clone();
                // Under the lock: a pool that comes now starts a thread of its own.
                let mut shared = supervisor.shared();
                if shared.pools.is_empty() {
                    shared.running = false;
                    shared.zygote_pid = 0;
                    drop(shared);
                    for zygote in self.zygotes.values() {
                        zygote.process.kill();
                        zygote.process.reap();
                    }
                    return;
                }
            }
        }
    }

    /// Gives memory of the store back that rests, and has idle workers let go of what is gone. As long as the
    /// store has any memory it is looked at now and then; who has it take some wakes this thread.
    fn trim(&mut self) {
        let now = monotonic_nanos();
        if self.trim_at.is_some_and(|at| at > now) {
            return;
        }
        let store = &self.supervisor.store;
        let next = store.trim(REST).map(|next| next.max(LEAST_REST));
        let is_used = store.stats().live > 0;
        let next = next.or_else(|| is_used.then_some(REST));
        self.trim_at = next.map(|next| now + next.as_nanos() as u64);
        if is_used {
            for pool in self.supervisor.pools() {
                pool.let_go();
            }
        }
    }

    fn pool(&self, id: u32) -> Option<Arc<Pool>> {
        self.supervisor.shared().pools.get(&id).cloned()
    }

    fn time_to_sleep(&self) -> Option<Duration> {
        let now = monotonic_nanos();
        let hot = (!self.hot.is_empty()).then_some(POLL_AGAIN);
        let until = self
            .dying
            .iter()
            .map(|dying| dying.until)
            .chain(self.leaving.values().copied())
            .chain(self.watches.values().copied())
            .chain(self.visits.values().copied())
            .chain(self.patrols.values().map(|patrol| patrol.next))
            .chain(self.report_at)
            .chain(self.trim_at);
        let wait = until
            .min()
            .map(|until| Duration::from_nanos(until.saturating_sub(now)));
        match (hot, wait) {
            (Some(hot), Some(wait)) => Some(hot.min(wait)),
            (hot, wait) => hot.or(wait),
        }
    }

    fn handle(&mut self, signal: EventSignal) {
        match signal.key {
            KEY_COMMANDS => {
                self.supervisor.event.clear();
                let commands = std::mem::take(&mut self.supervisor.shared().commands);
                for command in commands {
                    self.obey(command);
                }
            }
            key if key & KEY_KIND == KEY_REQUESTS => self.hear_hello((key & !KEY_KIND) as u32),
            key if key & KEY_KIND == KEY_LINE => self.hear_calls(key & !KEY_KIND),
            key if key & KEY_POOL != 0 => {
                let id = (key & !KEY_POOL) as u32;
                if let Some(pool) = self.pool(id) {
                    pool.event.clear();
                    self.hot.entry(id).or_insert(0);
                }
            }
            key if key & KEY_ZYGOTE != 0 => self.listen(key & !KEY_ZYGOTE),
            key if key & KEY_ZYGOTE_END != 0 => {
                let number = key & !KEY_ZYGOTE_END;
                self.listen(number); // what it said before it ended
                self.zygote_gone(number);
            }
            key => self.ended(key),
        }
    }

    fn poll_hot(&mut self) {
        let supervisor = self.supervisor.clone();
        self.hot.retain(|&id, last| {
            let pool = supervisor.shared().pools.get(&id).cloned();
            pool.is_some_and(|pool| pool.supervise(last))
        });
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Births(id) => self.births(id),
            Command::Closing(id) => self.closing(id),
            Command::Preload(modules) => self.preload(modules),
            Command::Warm => {
                self.stopping = false;
                if let Err(error) = self.zygote() {
                    self.supervisor
                        .log(true, format!("the zygote could not be started: {error}"));
                }
            }
            Command::LookAgain(id) => {
                self.hot.entry(id).or_insert(0);
            }
            Command::Watch(id) => {
                self.watches.insert(id, 0);
            }
            Command::Visit(id) => {
                self.visits.insert(id, 0);
            }
            Command::Patrol(id) => {
                if let Some(pool) = self.pool(id) {
                    self.patrols.insert(id, Patrol::of(&pool));
                }
            }
            Command::Stop => self.stopping = true,
        }
    }

    /// Ends tasks that run for too long, or do not end by themselves.
    fn end_overdue(&mut self) {
        come_round(&self.supervisor, &mut self.watches, Pool::look);
    }

    /// Has workers give way to fresh ones, or leave.
    fn visit(&mut self) {
        come_round(&self.supervisor, &mut self.visits, Pool::keep);
    }

    /// Looks whether all goes on.
    fn patrol(&mut self) {
        if self.patrols.is_empty() {
            return;
        }
        let now = monotonic_nanos();
        let supervisor = self.supervisor.clone();
        self.patrols.retain(|&id, patrol| {
            if patrol.next > now {
                return true;
            }
            let pool = supervisor.shared().pools.get(&id).cloned();
            let Some(pool) = pool else { return false };
            let (again, lines) = pool.patrol(patrol);
            for line in lines {
                supervisor.log_line(line);
            }
            again
        });
    }

    // ---- Calls: see `nested` ---------------------------------------------------------------

    /// Workers ask for the first time.
    fn hear_hello(&mut self, id: u32) {
        let Some(pool) = self.pool(id) else { return };
        let mut buffer = [0; 8];
        loop {
            let (len, line) = match pool.requests().receive(&mut buffer, false) {
                Ok(Received::Message(len, mut descriptors)) => (len, descriptors.pop()),
                // The line is closed, and the worker sees that.
                Ok(Received::DescriptorsLost(_)) => continue,
                Ok(Received::Nothing | Received::Closed) | Err(_) => return,
            };
            let (Some((slot, generation)), Some(line)) =
                (caller::read_hello(&buffer[..len.min(8)]), line)
            else {
                continue;
            };
            let key = WorkerKey {
                pool: id,
                slot,
                generation,
            };
            let line = Arc::new(Socket::from_descriptor(line));
            match self.supervisor.poller.add(&*line, KEY_LINE | key.pack()) {
                Ok(()) => {
                    if pool.hear_hello(key, line.clone()) {
                        self.lines.insert(key.pack(), (key, line));
                    }
                }
                // The line closes, and the worker sees that.
                Err(error) => self
                    .supervisor
                    .log(true, format!("a worker's calls cannot be watched: {error}")),
            }
        }
    }

    /// A worker asks.
    fn hear_calls(&mut self, packed: u64) {
        let Some((key, line)) = self.lines.get(&packed).cloned() else {
            return;
        };
        let pool = self.pool(key.pool);
        if !pool.is_some_and(|pool| pool.hear(key, &line)) {
            self.forget_line(packed);
        }
    }

    fn forget_line(&mut self, packed: u64) {
        if let Some((_, line)) = self.lines.remove(&packed) {
            // What cannot be removed was removed by the closing.
            let _removed = self.supervisor.poller.remove(&*line);
        }
    }

    // ---- Births -----------------------------------------------------------------------------

    fn births(&mut self, id: u32) {
        let Some(pool) = self.pool(id) else { return };
        self.stopping = false;
        for key in pool.seats_asked() {
            if self.births_in_flight() >= MOST_BIRTHS_IN_FLIGHT {
                // The zygote's answers come first: both ends waiting for room would wait for ever.
                self.waiting_births.insert(id);
                break;
            }
            if let Err(error) = self.birth(&pool, key) {
                self.supervisor
                    .log(true, format!("a worker could not be started: {error}"));
                pool.not_born(key, &error.to_string());
            }
        }
        self.closing(id);
    }

    fn births_in_flight(&self) -> usize {
        let current = self.current.and_then(|number| self.zygotes.get(&number));
        current.map_or(0, |zygote| zygote.asked)
    }

    /// The zygote answered: there is room for another request.
    fn birth_answered(&mut self, number: u64) {
        if let Some(zygote) = self.zygotes.get_mut(&number) {
            zygote.asked = zygote.asked.saturating_sub(1);
        }
        for id in std::mem::take(&mut self.waiting_births) {
            self.births(id);
        }
    }

    fn birth(&mut self, pool: &Arc<Pool>, key: WorkerKey) -> io::Result<()> {
        let Some(ends) = pool.prepare(key)? else {
            return Ok(());
        };
        let number = if self.spawn_only {
            self.new_zygote()?
        } else {
            self.zygote()?
        };
        let message = if self.spawn_only {
            ZygoteMessage::Become(key)
        } else {
            ZygoteMessage::Fork(key)
        };
        if let Some(zygote) = self.zygotes.get_mut(&number) {
            zygote.became = self.spawn_only.then_some(key);
        }
        self.send_birth(number, pool, &ends, &message)?;
        // Counted once it is sent: only then it is answered.
        if let Some(zygote) = self.zygotes.get_mut(&number) {
            zygote.asked += 1;
        }
        self.report_at
            .get_or_insert_with(|| monotonic_nanos() + REPORT_WAIT);
        fail_point("parent.fork_sent");
        Ok(())
    }

    fn birth_file(&self) -> io::Result<Arc<MemoryFile>> {
        let birth = self.supervisor.shared().birth.clone();
        birth.ok_or_else(|| io::Error::other("nothing says what workers find at their birth"))
    }

    fn send_birth(
        &mut self,
        number: u64,
        pool: &Pool,
        ends: &WorkerEnds,
        message: &ZygoteMessage,
    ) -> io::Result<()> {
        let birth = self.birth_file()?;
        let store = self.supervisor.store().clone();
        let directory = open_current_directory()?;
        let (output, errors) = (standard_stream(1)?, standard_stream(2)?);
        let descriptors = [
            birth.as_fd(),
            ends.control.as_fd(),
            pool.page().as_fd(),
            ends.socket.as_fd(),
            ends.life_line.as_fd(),
            pool.event.as_fd(),
            pool.workers_requests(),
            store.window().as_fd(),
            output.as_fd(),
            errors.as_fd(),
            directory.as_fd(),
        ];
        self.send(number, message, &descriptors)
    }

    /// Sends to a zygote. While it imports, messages gather in its socket; when that is full the
    /// supervisor waits for it, which a zygote's death ends.
    fn send(
        &mut self,
        number: u64,
        message: &ZygoteMessage,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> io::Result<()> {
        let Some(zygote) = self.zygotes.get(&number) else {
            return Err(io::Error::from(io::ErrorKind::NotConnected));
        };
        match zygote.socket.send(&message.encode(), descriptors, true) {
            Ok(_) => Ok(()),
            // It is gone: its hang-up comes by the poller and has all asked for anew.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The zygote that forks, started if there is none.
    fn zygote(&mut self) -> io::Result<u64> {
        if let Some(current) = self.current {
            return Ok(current);
        }
        let number = self.new_zygote()?;
        self.current = Some(number);
        let pid = self.zygotes[&number].process.pid();
        self.supervisor.shared().zygote_pid = pid;
        if !self.preloaded.is_empty() {
            self.send_preload(number, &self.preloaded.clone())?;
        }
        Ok(number)
    }

    fn new_zygote(&mut self) -> io::Result<u64> {
        let launcher = self.supervisor.shared().launcher.clone();
        let launcher =
            launcher.ok_or_else(|| io::Error::other("nothing says how workers are started"))?;
        let (socket, zygotes_socket) = Socket::pair()?;
        let (life_line, zygotes_life_line) = LifeLine::new()?;
        let environment = launcher.environment.as_deref();
        let process = spawn_program(
            &launcher.argv,
            environment,
            &zygotes_socket,
            &zygotes_life_line,
        )
        .map_err(|error| {
            let program = launcher
                .argv
                .first()
                .map(|p| p.to_string_lossy().into_owned());
            let program = program.unwrap_or_default();
            io::Error::new(error.kind(), format!("{program} could not be run: {error}"))
        })?;
        let number = self.next_zygote;
        self.next_zygote += 1;
        self.supervisor.poller.add(&socket, KEY_ZYGOTE | number)?;
        if let Some(pidfd) = process.descriptor() {
            // A child that the program forks just now may hold a copy of the zygote's end of the
            // socket, which then never closes.
            self.supervisor.poller.add(pidfd, KEY_ZYGOTE_END | number)?;
        }
        self.zygotes.insert(
            number,
            Zygote {
                socket,
                process,
                life_line,
                asked: 0,
                became: None,
            },
        );
        Ok(number)
    }

    fn preload(&mut self, modules: Vec<String>) {
        self.stopping = false;
        let new: Vec<_> = modules
            .into_iter()
            .filter(|name| self.preloaded_set.insert(name.clone()))
            .collect();
        if new.is_empty() || self.spawn_only {
            return;
        }
        let known = self.current.is_some();
        self.preloaded.extend(new.iter().cloned());
        let sent = self.zygote().and_then(|number| {
            // A zygote that was started just now was told already.
            if known {
                self.send_preload(number, &new)
            } else {
                Ok(())
            }
        });
        if let Err(error) = sent {
            self.supervisor
                .log(true, format!("modules could not be preloaded: {error}"));
        }
    }

    fn send_preload(&mut self, number: u64, modules: &[String]) -> io::Result<()> {
        let birth = self.birth_file()?;
        let message = ZygoteMessage::Preload(modules.join("\n"));
        self.send(number, &message, &[birth.as_fd()])
    }

    // ---- What the zygotes say ---------------------------------------------------------------

    fn listen(&mut self, number: u64) {
        let mut buffer = vec![0; LONGEST_MESSAGE];
        loop {
            let Some(zygote) = self.zygotes.get(&number) else {
                return;
            };
            match zygote.socket.receive(&mut buffer, false) {
                Ok(Received::Message(len, descriptors)) => {
                    self.hear_bytes(number, &buffer[..len], descriptors);
                }
                Ok(Received::DescriptorsLost(len)) => {
                    self.hear_bytes(number, &buffer[..len], Vec::new());
                }
                Ok(Received::Nothing) => return,
                Ok(Received::Closed) | Err(_) => {
                    self.zygote_gone(number);
                    return;
                }
            }
        }
    }

    fn hear_bytes(&mut self, number: u64, bytes: &[u8], descriptors: Vec<OwnedFd>) {
        let Ok(message) = ZygoteMessage::decode(bytes) else {
            return;
        };
        let answers_a_birth = matches!(
            message,
            ZygoteMessage::Forked(..) | ZygoteMessage::NotForked(..)
        );
        self.hear(number, message, descriptors);
        if answers_a_birth {
            self.birth_answered(number);
        }
    }

    fn hear(&mut self, number: u64, message: ZygoteMessage, mut descriptors: Vec<OwnedFd>) {
        match message {
            ZygoteMessage::Forked(key, pid) => {
                // Without a pidfd, for want of descriptors, the zygote tells of the end.
                let process = Process::from_parts(pid, descriptors.pop());
                let pool = self.pool(key.pool);
                let (Ok(process), Some(pool)) = (process, pool) else {
                    return;
                };
                self.born(&pool, key, process, number);
            }
            ZygoteMessage::NotForked(key, why) => {
                let Some(pool) = self.pool(key.pool) else {
                    return;
                };
                if why == THREADED {
                    self.spawn_only = true;
                    pool.died(key, Cause::Start);
                } else {
                    pool.not_born(key, &why);
                }
                self.closing(key.pool);
            }
            ZygoteMessage::Exited(pid, status) => {
                let cause = Cause::from(manyhands_os::ExitStatus::from_wait_status(status));
                // A late word of one that was buried already finds nobody.
                if let Some(&key) = self.pids.get(&pid) {
                    self.bury(key, cause);
                }
            }
            ZygoteMessage::Preloaded(threads, failures) => {
                if !failures.is_empty() {
                    self.supervisor.log(
                        false,
                        format!("modules that could not be preloaded: {failures}"),
                    );
                }
                if threads > 1 && !self.spawn_only {
                    self.spawn_only = true;
                    // Modules of manyhands start none.
                    let mut modules = self.preloaded.clone();
                    modules.retain(|name| !name.starts_with("manyhands."));
                    self.supervisor.log(
                        true,
                        format!(
                            "preloaded modules started {} threads ({}), so workers are \
                             started one by one instead of forked, which is slower",
                            threads - 1,
                            modules.join(", "),
                        ),
                    );
                }
            }
            ZygoteMessage::Hello(_)
            | ZygoteMessage::Preload(_)
            | ZygoteMessage::Fork(_)
            | ZygoteMessage::Become(_) => {}
        }
    }

    /// Watches workers that run already though their zygote has not said so: it may have been stopped in between.
    /// What such a worker says of its process is true if that is a child of the zygote, which reaps none that it
    /// has not reported.
    fn find_unreported(&mut self) {
        let now = monotonic_nanos();
        if self.report_at.is_none_or(|at| at > now) {
            return;
        }
        self.report_at = None;
        let Some(number) = self.current.filter(|_| self.births_in_flight() > 0) else {
            return;
        };
        let forks = self.zygotes[&number].process.pid();
        let mut found = Vec::new();
        for pool in self.supervisor.pools() {
            for key in pool.unborn() {
                let pid = pool.said_pid(key);
                if pid != 0
                    && !self.pids.contains_key(&pid)
                    && let Ok(process) = Process::open(pid)
                    && process.descriptor().is_some()
                    && parent_pid(pid) == Some(forks)
                {
                    found.push((pool.clone(), key, process));
                }
            }
        }
        // What it has said by now was said before they were opened, or of others.
        self.listen(number);
        for (pool, key, process) in found {
            if pool.unborn().contains(&key) {
                self.born(&pool, key, process, number);
            }
        }
        if self.births_in_flight() > 0 {
            self.report_at = Some(now + REPORT_WAIT);
        }
    }

    /// A worker runs: it is watched from now on.
    fn born(&mut self, pool: &Arc<Pool>, key: WorkerKey, process: Process, zygote: u64) {
        let pid = process.pid();
        self.pids.insert(pid, key);
        let watched = pool.born(key, process).and_then(|watch| {
            if let Some(watch) = watch {
                self.supervisor.poller.add(&watch, key.pack())?;
                let worker = Watched {
                    key,
                    pid,
                    zygote,
                    watch,
                };
                self.watched.insert(key.pack(), worker);
            }
            Ok(())
        });
        if let Err(error) = watched {
            self.supervisor
                .log(true, format!("worker {pid} cannot be watched: {error}"));
        }
    }

    fn zygote_gone(&mut self, number: u64) {
        let Some(zygote) = self.zygotes.remove(&number) else {
            return;
        };
        // Already closed on its side; what cannot be removed was removed by the closing.
        let _removed = self.supervisor.poller.remove(&zygote.socket);
        if let Some(pidfd) = zygote.process.descriptor() {
            let _removed = self.supervisor.poller.remove(pidfd);
        }
        // It alone: a worker that it has just forked may still be in its process group.
        zygote.process.kill_alone();
        let status = zygote.process.reap();
        for dying in &mut self.dying {
            if dying.worker.zygote == number {
                dying.until = 0; // nobody will tell any more
            }
        }
        if self.current == Some(number) {
            self.current = None;
            self.supervisor.shared().zygote_pid = 0;
            self.supervisor.log(
                false,
                format!("the zygote ended ({status:?}); the next worker starts another"),
            );
            let asked_of_others: HashSet<_> = self
                .zygotes
                .values()
                .filter_map(|zygote| zygote.became)
                .collect();
            for pool in self.supervisor.pools() {
                let mut unborn = pool.unborn();
                unborn.retain(|key| !asked_of_others.contains(key));
                // What it forked and had no time to report may run a task already.
                unborn.retain(|&key| match pool.unreported(key) {
                    Some(process) => {
                        self.born(&pool, key, process, number);
                        false
                    }
                    None => true,
                });
                if !unborn.is_empty() {
                    let why = format!("the zygote ended while it was starting ({status:?})");
                    pool.birth_failed(Cause::from(status), &why);
                }
                for key in unborn {
                    pool.died(key, Cause::Start);
                }
                self.closing(pool.id);
            }
            for id in std::mem::take(&mut self.waiting_births) {
                self.births(id);
            }
        } else if let Some(key) = zygote.became {
            if let Some(pool) = self.pool(key.pool)
                && pool.unborn().contains(&key)
            {
                let why = format!("the interpreter ended at its start ({status:?})");
                pool.birth_failed(Cause::from(status), &why);
            }
            self.bury(key, Cause::from(status));
        }
    }

    // ---- Deaths -----------------------------------------------------------------------------

    /// A pidfd is readable: the process has ended.
    fn ended(&mut self, packed: u64) {
        let Some(worker) = self.watched.remove(&packed) else {
            return;
        };
        let _removed = self.supervisor.poller.remove(&worker.watch);
        let now = monotonic_nanos();
        let is_told = self.zygotes.contains_key(&worker.zygote);
        self.dying.push(Dying {
            worker,
            until: if is_told { now + STATUS_WAIT } else { now },
            is_late: false,
        });
    }

    fn bury(&mut self, key: WorkerKey, cause: Cause) {
        if let Some(index) = self.dying.iter().position(|dying| dying.worker.key == key) {
            // By now it has been reaped by the zygote, or the zygote has died, too, or it will reap it.
            reap_orphan(self.dying.swap_remove(index).worker.watch.as_fd());
        }
        self.pids.retain(|_, other| *other != key);
        if let Some(worker) = self.watched.remove(&key.pack()) {
            let _removed = self.supervisor.poller.remove(&worker.watch);
        }
        self.forget_line(key.pack());
        if let Some(pool) = self.pool(key.pool) {
            pool.died(key, self.oom.cause(cause));
            // It may have died between taking the sleeper's mark and waking the sleeper.
            self.hot.insert(key.pool, 0);
            self.closing(key.pool);
        }
    }

    fn end_waits(&mut self) {
        let now = monotonic_nanos();
        let mut known = Vec::new();
        for dying in self.dying.iter_mut().filter(|dying| dying.until <= now) {
            let worker = &dying.worker;
            let status = unreaped_status(worker.pid);
            if status.is_none() && !dying.is_late && self.zygotes.contains_key(&worker.zygote) {
                dying.is_late = true;
                dying.until = now + LATE_STATUS_WAIT;
            } else {
                known.push((worker.key, status.unwrap_or(ExitStatus::Unknown)));
            }
        }
        for (key, status) in known {
            self.bury(key, Cause::from(status));
        }
        let late: Vec<_> = self
            .leaving
            .iter()
            .filter(|&(_, &until)| until <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            self.leaving.insert(id, now + LEAVE_WAIT);
            if let Some(pool) = self.pool(id) {
                for key in pool.kill_leaving() {
                    pool.died(key, Cause::Start);
                }
                self.closing(id);
            }
        }
    }

    /// Lets a pool go whose last worker is gone; gives one that has nothing to do a time to leave.
    fn closing(&mut self, id: u32) {
        let Some(pool) = self.pool(id) else { return };
        if pool.is_gone() {
            let _removed = self.supervisor.poller.remove(&pool.event);
            let _removed = self.supervisor.poller.remove(pool.requests());
            self.leaving.remove(&id);
            self.hot.remove(&id);
            self.supervisor.shared().pools.remove(&id);
            pool.end_events();
        } else if pool.is_leaving() {
            self.leaving
                .entry(id)
                .or_insert_with(|| monotonic_nanos() + LEAVE_WAIT);
        }
    }
}

/// What a zygote says that will not fork because it has threads.
pub(crate) const THREADED: &str = "the zygote has more than one thread";
