//! The zygote and its workers.
//!
//! A task or an item is `number command:argument`. The worker appends `number pid attempt` to the case's file of
//! runs and then obeys the command:
//!
//! | command            | does                                                         | returns        |
//! |--------------------|--------------------------------------------------------------|----------------|
//! | `echo:text`        | nothing                                                      | the text       |
//! | `define:text`      | needs a definition, and checks its buffers                   | its bytes+text |
//! | `sleep:ms`         | sleeps                                                       | `slept`        |
//! | `big:count`        | makes that many bytes                                        | them           |
//! | `sum:bytes`        | adds them up                                                 | count and sum  |
//! | `mirror:bytes`     | nothing                                                      | them           |
//! | `error:text`       | fails                                                        | (error) text   |
//! | `yield:n size end` | yields n times so many bytes, then obeys the command `end`   | see `yielded`  |
//! |                    | with n = `endless` until nobody wants more                   |                |
//! | `exit:status`      | exits                                                        | never          |
//! | `kill:`, `stop:`   | sends itself SIGKILL, SIGSTOP                                | `continued`    |
//! | `fork:`            | forks a child that sleeps a second, and kills itself         | never          |
//! | `scribble:what`    | writes nonsense to its control block, see `scribble`         | never          |
//! | `until:path`       | waits for a file                                             | `seen`         |
//! | `listen:times`     | waits until it was asked to end more often than that         | (error) asked  |
//! | `touch:path`       | makes a file                                                 | `touched`      |
//! | `meet:path count`  | makes a file in a folder, waits until there are so many      | `met`          |
//! | `limit:count`      | may open no descriptor from this number on                   | `limited`      |
//! | `limit_now:`       | may open none at all                                         | `limited`      |
//! | `ask:n command`    | submits the command n times to its pool, and waits           | their values,  |
//! |                    |                                                              | or (error) one |
//! | `ask_in_turn:` ... | the same, one after the other                                | the same       |
//! | `ask_and_leave:`   | the same, but cancels them at once                           | `left`         |
//! | `ask_again:`       | submits a command that runs again                            | its value      |
//! | `ask_limited:`     | submits a command that may run for 20 ms                     | its value      |
//! | `ask_mirror:count` | submits a `mirror` of so many bytes                          | them           |
//! | `ask_define:count` | submits a `define` with so many bytes                        | their count, +1|
//! | `babble:what`      | writes nonsense into its line, see `asks`                    | never          |
//! | `haunt:path`       | a thread submits when the file is there; nothing is claimed  | `haunted`      |
//! |                    | until that has ended                                         |                |
//! | `hold:ms`          | has a thread keep the buffers that came for so long          | `held`         |
//! | `stored:n command` | checks the buffers that came, writes n bytes to a block if   | its value, and |
//! |                    | n is not 0, then obeys the command, see `stored`             | the buffers    |
//! | `put:count size`   | puts out so many notes of so many bytes, see `output`        | `put`          |
//! | `put_and_die:` ... | the same, and sends itself SIGKILL                           | never          |
//! | `initialized:`     | nothing                                                      | `yes` or `no`  |
//!
//! An initializer is a task of its own kind with the same commands.

use crate::crash_table::scribble::scribble;
use crate::crash_table::{asks, output, stored};
use manyhands_runtime::{
    Birth, Buffer, Claimed, Filled, Next, Request, ResultKind, Section, TaskKind, Unreadable,
    Unwanted, WorkerEnd, Zygote,
};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

/// Workers of this slot and higher ones are not forked.
pub(crate) const REFUSE_FROM: &str = "MANYHANDS_REFUSE_FROM";
/// Before each fork the zygote waits so many milliseconds.
pub(crate) const SLOW_FORK: &str = "MANYHANDS_SLOW_FORK";
/// After each fork the zygote waits so many milliseconds before it tells of it.
pub(crate) const SLOW_REPORT: &str = "MANYHANDS_SLOW_REPORT";
/// Preloading this starts a thread in the zygote.
pub(crate) const THREAD_MODULE: &str = "thread";
/// The tag of the end of a task that has yielded.
pub(crate) const NOTHING: u8 = 3;
/// What the zygote writes to the file of runs when it refuses.
pub(crate) const REFUSED: &str = "refused";

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn append(runs: &Path, line: &str) {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(runs)
        .unwrap();
    // One write, so that lines of several processes never mix.
    file.write_all(line.as_bytes()).unwrap();
}

/// Serves the parent until it is gone.
pub(crate) fn zygote(arguments: &[String]) -> ! {
    let descriptor = |index: usize| {
        let number = arguments[index].parse().unwrap();
        // SAFETY: the launcher handed these two down to this process, and nobody else uses them.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    let (socket, life_line) = (descriptor(0), descriptor(1));
    let mut zygote = Zygote::new(socket, life_line, 0).unwrap();
    let refuse_from = number_in(REFUSE_FROM);
    let slow = number_in(SLOW_FORK);
    let slow_report = number_in(SLOW_REPORT);
    loop {
        match zygote.next_request().unwrap() {
            Request::Preload(names, _) => {
                if names.iter().any(|name| name == THREAD_MODULE) {
                    std::thread::spawn(|| {
                        loop {
                            std::thread::park();
                        }
                    });
                }
                zygote.preloaded("").unwrap();
            }
            Request::Fork(birth) => {
                if let Some(pause) = slow {
                    std::thread::sleep(Duration::from_millis(pause));
                }
                if refuse_from.is_some_and(|first| u64::from(birth.key.slot) >= first) {
                    append(runs_path(&birth), &format!("{REFUSED} 0\n"));
                    zygote.not_forked(birth.key, "the test says so").unwrap();
                    continue;
                }
                let key = birth.key;
                // SAFETY: this process has one thread.
                match unsafe { libc::fork() } {
                    -1 => zygote.not_forked(key, "fork failed").unwrap(),
                    0 => {
                        drop(zygote);
                        serve(birth)
                    }
                    pid => {
                        drop(birth);
                        if let Some(pause) = slow_report {
                            std::thread::sleep(Duration::from_millis(pause));
                        }
                        zygote.forked(key, pid).unwrap();
                    }
                }
            }
            Request::Become(birth) => {
                // Open until the process ends: that is how the parent hears of it.
                std::mem::forget(zygote.become_worker(birth.key).unwrap());
                serve(birth)
            }
            Request::End => std::process::exit(0),
        }
    }
}

fn runs_path(birth: &Birth) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(&birth.content))
}

/// Whether the signal came by which a worker is asked to end what it runs.
static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_asked(_: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
}

/// Where the worker's stack is to be written.
static DUMP: AtomicI32 = AtomicI32::new(-1);

/// What stands for its stack.
pub(crate) const STACK: &[u8] = b"here it is";

extern "C" fn write_stack(_: libc::c_int) {
    let number = DUMP.load(Ordering::Relaxed);
    // SAFETY: the descriptor of the control block, which stays open.
    unsafe { libc::write(number, STACK.as_ptr().cast(), STACK.len()) };
}

/// What it was taught: bytes, and the buffers that they speak of.
type Definition = (Vec<u8>, Vec<Buffer>);

struct Worker {
    runs: File,
    end: WorkerEnd,
    known: HashMap<u32, Definition>,
    /// What the items of the open block run, or why they cannot.
    block: Result<u32, String>,
    initialized: bool,
    /// Which run of the task it is.
    attempt: u8,
    /// A thread that submits something; until then nothing is claimed.
    haunting: Option<std::thread::JoinHandle<()>>,
    /// Whether it is to be noted that it leaves.
    haunted: bool,
    /// What came with the task, and what goes with its result.
    buffers: Vec<Buffer>,
    filled: Vec<Filled>,
}

/// What a worker that was haunted writes to the file of runs when it leaves.
pub(crate) const LEFT: &str = "left";

/// What errors begin with after which a task runs again.
pub(crate) const AGAIN: &str = "again";

fn serve(birth: Birth) -> ! {
    let handler: extern "C" fn(libc::c_int) = note_asked;
    // SAFETY: the handler stores to an atomic, and nothing else.
    unsafe { libc::signal(libc::SIGURG, handler as libc::sighandler_t) };
    let runs = OpenOptions::new()
        .append(true)
        .open(runs_path(&birth))
        .unwrap();
    let mut worker = Worker {
        runs,
        end: WorkerEnd::new(birth, manyhands_os::cpu_count()).unwrap(),
        known: HashMap::new(),
        block: Err("no block is open".into()),
        initialized: false,
        attempt: 1,
        haunting: None,
        haunted: false,
        buffers: Vec::new(),
        filled: Vec::new(),
    };
    DUMP.store(worker.end.dump_descriptor().as_raw_fd(), Ordering::Relaxed);
    let handler: extern "C" fn(libc::c_int) = write_stack;
    // SAFETY: the handler writes to a descriptor, and nothing else.
    unsafe { libc::signal(manyhands_os::dump_signal(), handler as libc::sighandler_t) };
    // It may be written wherever the signal comes.
    assert!(worker.end.answer_dumps(|| false).unwrap());
    let mut in_use = output::IN_USE.lock().unwrap();
    loop {
        if let Some(haunting) = worker.haunting.take() {
            haunting.join().unwrap();
        }
        match worker.end.claim() {
            None => {
                worker.end.tell_all();
                drop(in_use);
                worker.end.wait();
                in_use = output::IN_USE.lock().unwrap();
            }
            Some(Next::Item) => worker.serve_item(),
            Some(Next::Record(Ok(claimed))) if claimed.kind == TaskKind::Block => {
                worker.open_block(claimed);
                worker.serve_item();
            }
            Some(Next::Record(claimed)) => worker.serve_task(claimed),
        }
    }
}

pub(crate) fn send_self(signal: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(libc::getpid(), signal) };
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes in what comes with arguments; gives what they need.
fn learn(
    known: &mut HashMap<u32, Definition>,
    needed: &mut Vec<u32>,
    buffers: &mut Vec<Buffer>,
    section: Section<'_>,
) {
    match section {
        Section::Define(id, needs, buffers, bytes) => {
            let all_there = needs.iter().all(|need| known.contains_key(need));
            if all_there {
                let buffers = buffers.into_iter().map(Buffer::leased).collect();
                known.insert(id, (bytes.to_vec(), buffers));
            }
        }
        Section::Forget(ids) => ids.iter().for_each(|id| drop(known.remove(id))),
        Section::Needs(ids) => *needed = ids,
        // These workers decide by the command.
        Section::Retry(_) | Section::Seed(_) => {}
        Section::Buffers(found) => *buffers = found.into_iter().map(Buffer::leased).collect(),
    }
}

impl Worker {
    fn serve_task(&mut self, claimed: Result<Claimed, Unreadable>) {
        let kind = claimed
            .as_ref()
            .map_or(TaskKind::Run, |claimed| claimed.kind);
        if kind == TaskKind::Exit {
            if self.haunted {
                writeln!(self.runs, "{LEFT} {}", std::process::id()).unwrap();
            }
            std::process::exit(0);
        }
        if let (TaskKind::Discard, Ok(claimed)) = (kind, &claimed) {
            let (known, buffers) = (&mut self.known, &mut self.buffers);
            let visit = |section: Section<'_>| learn(known, &mut Vec::new(), buffers, section);
            self.end.payload(claimed, visit).unwrap();
            self.end.discard(claimed).unwrap();
            return;
        }
        let answer = match &claimed {
            Ok(claimed) => self.execute(claimed),
            Err(Unreadable(why)) => Err(why.clone()),
        };
        if let (Err(why), Ok(claimed)) = (&answer, &claimed)
            && claimed.may_run_again()
            && why.starts_with(AGAIN)
        {
            self.end.fail_for_now(1, why.as_bytes()).unwrap();
            return;
        }
        let failed = answer.is_err();
        let filled = std::mem::take(&mut self.filled);
        let sent = match &answer {
            Ok((tag, value)) if filled.is_empty() => {
                self.end.finish(ResultKind::Value, *tag, value)
            }
            Ok((tag, value)) => self.end.finish_with_buffers(*tag, value, filled, false),
            Err(why) => {
                drop(filled);
                self.end.finish(ResultKind::Error, 1, why.as_bytes())
            }
        };
        self.fail_unsent(sent);
        if kind == TaskKind::Initialize {
            if failed {
                std::process::exit(1);
            }
            self.initialized = true;
        }
    }

    fn open_block(&mut self, claimed: Claimed) {
        let mut needed = Vec::new();
        let definition = claimed.definition;
        let (known, buffers) = (&mut self.known, &mut self.buffers);
        let opened = self.end.open_block(claimed, |section| {
            learn(known, &mut needed, buffers, section);
        });
        self.block = match opened {
            Ok(()) => self.check_needs(&needed).map(|()| definition),
            Err(Unreadable(why)) => Err(why),
        };
    }

    fn serve_item(&mut self) {
        self.attempt = 1;
        let item = match self.end.item() {
            Ok((1, item)) => Ok(item.to_vec()),
            Ok((tag, _)) => Err(format!("an item with tag {tag}")),
            Err(Unreadable(why)) => Err(why),
        };
        let answer = item.and_then(|item| {
            let definition = self.block.clone()?;
            self.obey(&item, definition, |end, part| {
                end.finish_item(1, part, true).unwrap();
            })
        });
        let sent = match &answer {
            Ok((tag, value)) => self.end.finish_item(*tag, value, false),
            Err(why) => self.end.finish(ResultKind::Error, 1, why.as_bytes()),
        };
        self.fail_unsent(sent);
    }

    fn fail_unsent(&mut self, sent: std::io::Result<()>) {
        if let Err(error) = sent {
            let why = format!("the result could not be sent: {error}");
            self.end
                .finish(ResultKind::Error, 1, why.as_bytes())
                .unwrap();
        }
    }

    fn check_needs(&self, needed: &[u32]) -> Result<(), String> {
        match needed.iter().find(|id| !self.known.contains_key(id)) {
            Some(lacking) => Err(format!("definition {lacking} never came")),
            None => Ok(()),
        }
    }

    /// Runs a task; gives what it returned, with its tag.
    fn execute(&mut self, claimed: &Claimed) -> Result<(u8, Vec<u8>), String> {
        let mut needed = Vec::new();
        let (known, buffers) = (&mut self.known, &mut self.buffers);
        let payload = self
            .end
            .payload(claimed, |section| {
                learn(known, &mut needed, buffers, section);
            })
            .map_err(|Unreadable(why)| why)?
            .to_vec();
        self.check_needs(&needed)?;
        self.attempt = claimed.attempt;
        self.obey(&payload, claimed.definition, |end, part| {
            end.finish_part(ResultKind::Value, 1, part, true).unwrap();
        })
    }

    /// The buffers that came, once they were checked.
    fn came(&self) -> Vec<Buffer> {
        let came = |filled: &Filled| match filled {
            Filled::Came(buffer) => Some(buffer.clone()),
            Filled::Room(..) => None,
        };
        self.filled.iter().filter_map(came).collect()
    }

    /// Notes that it runs and obeys the command. What it yields goes to `publish`.
    fn obey(
        &mut self,
        payload: &[u8],
        definition: u32,
        publish: impl Fn(&mut WorkerEnd, &[u8]),
    ) -> Result<(u8, Vec<u8>), String> {
        let space = payload.iter().position(|&byte| byte == b' ').unwrap();
        let (number, mut command) = (&payload[..space], &payload[space + 1..]);
        let number = std::str::from_utf8(number).unwrap();
        let line = format!("{number} {} {}\n", std::process::id(), self.attempt);
        self.runs.write_all(line.as_bytes()).unwrap();
        let mut tag = 1;
        if let Some(argument) = command.strip_prefix(b"yield:") {
            let text = std::str::from_utf8(argument).unwrap();
            let (count, text) = text.split_once(' ').unwrap();
            let (size, rest) = text.split_once(' ').unwrap();
            let endless = count == "endless";
            let count = if endless { "1000000000" } else { count };
            for index in 0..count.parse().unwrap() {
                publish(&mut self.end, &yielded(index, size.parse().unwrap()));
                match self.end.unwanted().filter(|_| endless) {
                    None => {}
                    Some(Unwanted::Dropped | Unwanted::Stopped) => break,
                    Some(Unwanted::NoRoom) => return Err("no room".to_owned()),
                }
            }
            (tag, command) = (NOTHING, rest.as_bytes());
        }
        if let Some(rest) = command.strip_prefix(b"stored:") {
            let space = rest.iter().position(|&byte| byte == b' ').unwrap();
            let count = std::str::from_utf8(&rest[..space]).unwrap();
            let came = std::mem::take(&mut self.buffers);
            self.filled = stored::fill(&mut self.end, came, count.parse().unwrap())?;
            command = &rest[space + 1..];
        }
        let colon = command.iter().position(|&byte| byte == b':').unwrap();
        let (name, argument) = (&command[..colon], &command[colon + 1..]);
        if name == b"mirror" {
            return Ok((tag, argument.to_vec()));
        }
        if name == b"sum" {
            return Ok((tag, sum(argument).into_bytes()));
        }
        let text = std::str::from_utf8(argument).unwrap();
        if let Some(answer) = asks::obey(&self.end, &self.came(), name, text) {
            return answer.map(|value| (tag, value));
        }
        let value = match name {
            b"echo" => argument.to_vec(),
            b"define" => {
                let known = self.known.get(&definition);
                let (known, buffers) =
                    known.ok_or(format!("definition {definition} never came"))?;
                stored::check(self.end.views(), buffers)?;
                [known, argument].concat()
            }
            b"sleep" => {
                std::thread::sleep(Duration::from_millis(text.parse().unwrap()));
                b"slept".to_vec()
            }
            b"swallow" => {
                let mut taken = Vec::new();
                loop {
                    taken.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            b"big" => big(text.parse().unwrap()),
            b"error" => return Err(text.to_owned()),
            b"listen" => {
                let mut deaf: u32 = text.parse().unwrap();
                loop {
                    std::thread::sleep(Duration::from_millis(1));
                    // Relaxed: the same thread sets it.
                    if ASKED.swap(false, Ordering::Relaxed)
                        && self.end.unwanted() == Some(Unwanted::Stopped)
                    {
                        if deaf == 0 {
                            return Err("asked".to_owned());
                        }
                        deaf -= 1;
                    }
                }
            }
            // Fails, or dies, in all runs before that one.
            b"fail_until" | b"die_until" => {
                let run: u8 = text.parse().unwrap();
                if self.attempt < run {
                    if name == b"die_until" {
                        send_self(libc::SIGKILL);
                    }
                    return Err(format!("{AGAIN}: run {}", self.attempt));
                }
                self.attempt.to_string().into_bytes()
            }
            b"exit" => std::process::exit(text.parse().unwrap()),
            b"kill" => {
                send_self(libc::SIGKILL);
                unreachable!()
            }
            b"stop" => {
                send_self(libc::SIGSTOP);
                b"continued".to_vec()
            }
            b"fork" => {
                // SAFETY: this process has one thread; the child does nothing but sleep.
                if unsafe { libc::fork() } == 0 {
                    std::thread::sleep(Duration::from_secs(1));
                    std::process::exit(0);
                }
                send_self(libc::SIGKILL);
                unreachable!()
            }
            b"scribble" => {
                scribble(text);
                unreachable!()
            }
            b"until" => {
                wait_until(|| Path::new(text).exists());
                b"seen".to_vec()
            }
            b"touch" => {
                File::create(text).unwrap();
                b"touched".to_vec()
            }
            b"meet" => {
                let (folder, count) = text.rsplit_once(' ').unwrap();
                File::create(Path::new(folder).join(number)).unwrap();
                let count: usize = count.parse().unwrap();
                wait_until(|| std::fs::read_dir(folder).unwrap().count() >= count);
                b"met".to_vec()
            }
            b"limit" => {
                // SAFETY: plain system calls with valid pointers.
                unsafe {
                    let mut limit: libc::rlimit = std::mem::zeroed();
                    libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
                    limit.rlim_cur = text.parse().unwrap();
                    assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
                }
                b"limited".to_vec()
            }
            b"limit_now" => {
                let free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
                // SAFETY: plain system calls with valid pointers.
                unsafe {
                    let mut limit: libc::rlimit = std::mem::zeroed();
                    libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
                    limit.rlim_cur = free as u64;
                    assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
                }
                b"limited".to_vec()
            }
            b"haunt" => {
                let (caller, path) = (self.end.caller(), text.to_owned());
                self.haunted = true;
                self.haunting = Some(std::thread::spawn(move || {
                    wait_until(|| Path::new(&path).exists());
                    let call = asks::submit(&caller, b"echo:boo", &[], |_| ());
                    let waited =
                        caller.wait(|| call.is_done(), None, || Ok::<_, std::io::Error>(()));
                    assert!(waited.unwrap());
                }));
                b"haunted".to_vec()
            }
            b"hold" => {
                let held = self.came();
                let time = Duration::from_millis(text.parse().unwrap());
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    drop(held);
                });
                b"held".to_vec()
            }
            b"put" => {
                output::put(&self.end.outlet(), text);
                b"put".to_vec()
            }
            b"put_when_idle" => {
                output::put_when_idle(self.end.outlet(), text.to_owned());
                b"put".to_vec()
            }
            b"put_and_die" => {
                output::put(&self.end.outlet(), text);
                send_self(libc::SIGKILL);
                unreachable!()
            }
            b"initialized" => if self.initialized { "yes" } else { "no" }.into(),
            _ => {
                return Err(format!(
                    "no such command: {}",
                    String::from_utf8_lossy(name)
                ));
            }
        };
        Ok((tag, value))
    }
}

/// What `big` returns.
pub(crate) fn big(count: usize) -> Vec<u8> {
    pattern(0, count)
}

/// What `yield` yields at that index, so many bytes.
pub(crate) fn yielded(index: usize, size: usize) -> Vec<u8> {
    pattern(index, size)
}

/// So many bytes, which differ for each `start`.
pub(crate) fn pattern(start: usize, count: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (start..start + 251)
        .map(|index| (index % 251) as u8)
        .collect();
    bytes = bytes.repeat(count.div_ceil(251));
    bytes.truncate(count);
    bytes
}

/// What `sum` returns: the length, and a sum over a part of the bytes, which is enough to tell
/// patterns apart.
pub(crate) fn sum(bytes: &[u8]) -> String {
    let sum = bytes.iter().step_by(97).fold(0_u64, |sum, &byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    format!("{} {sum:x}", bytes.len())
}
