//! The zygote and its workers.
//!
//! A task is `number command:argument`. The worker appends `number pid` to the case's file of runs and
//! then obeys the command:
//!
//! | command            | does                                                         | returns        |
//! |--------------------|--------------------------------------------------------------|----------------|
//! | `echo:text`        | nothing                                                      | the text       |
//! | `define:text`      | needs a definition                                           | its bytes+text |
//! | `sleep:ms`         | sleeps                                                       | `slept`        |
//! | `big:count`        | makes that many bytes                                        | them           |
//! | `sum:bytes`        | adds them up                                                 | count and sum  |
//! | `mirror:bytes`     | nothing                                                      | them           |
//! | `error:text`       | fails                                                        | (error) text   |
//! | `exit:status`      | exits                                                        | never          |
//! | `kill:`, `stop:`   | sends itself SIGKILL, SIGSTOP                                | `continued`    |
//! | `fork:`            | forks a child that sleeps a second, and kills itself         | never          |
//! | `scribble:word`    | writes nonsense to the `tail` or `queue` word, kills itself  | never          |
//! | `until:path`       | waits for a file                                             | `seen`         |
//! | `touch:path`       | makes a file                                                 | `touched`      |
//! | `meet:path count`  | makes a file in a folder, waits until there are so many      | `met`          |
//! | `initialized:`     | nothing                                                      | `yes` or `no`  |
//!
//! An initializer is a task of its own kind with the same commands.

use manyhands_runtime::{
    Birth, Claimed, Request, ResultKind, Section, TaskKind, Unreadable, WorkerEnd, Zygote,
};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Workers of this slot and higher ones are not forked.
pub(crate) const REFUSE_FROM: &str = "MANYHANDS_REFUSE_FROM";
/// Before each fork the zygote waits so many milliseconds.
pub(crate) const SLOW_FORK: &str = "MANYHANDS_SLOW_FORK";
/// Preloading this starts a thread in the zygote.
pub(crate) const THREAD_MODULE: &str = "thread";
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

struct Worker {
    runs: File,
    known: HashMap<u32, Vec<u8>>,
    initialized: bool,
}

fn serve(birth: Birth) -> ! {
    let runs = OpenOptions::new()
        .append(true)
        .open(runs_path(&birth))
        .unwrap();
    let (known, initialized) = (HashMap::new(), false);
    let mut worker = Worker {
        runs,
        known,
        initialized,
    };
    let mut end = WorkerEnd::new(birth, manyhands_os::cpu_count()).unwrap();
    loop {
        let claimed = match end.claim() {
            None => {
                end.wait();
                continue;
            }
            Some(Next::Item) => {
                worker.serve_item(&mut end);
                continue;
            }
            Some(Next::Record(Ok(claimed))) if claimed.kind == TaskKind::Block => {
                end.open_block(claimed, |_| {}).unwrap();
                worker.serve_item(&mut end);
                continue;
            }
            Some(Next::Record(claimed)) => claimed,
        };
        let kind = claimed
            .as_ref()
            .map_or(TaskKind::Run, |claimed| claimed.kind);
        if kind == TaskKind::Exit {
            std::process::exit(0);
        }
        if let (TaskKind::Discard, Ok(claimed)) = (kind, &claimed) {
            end.discard(claimed).unwrap();
            continue;
        }
        let answer = match &claimed {
            Ok(claimed) => worker.execute(&end, claimed),
            Err(Unreadable(why)) => Err(why.clone()),
        };
        let failed = answer.is_err();
        let sent = match &answer {
            Ok(value) => end.finish(ResultKind::Value, 1, value),
            Err(why) => end.finish(ResultKind::Error, 1, why.as_bytes()),
        };
        if let Err(error) = sent {
            let why = format!("the result could not be sent: {error}");
            end.finish(ResultKind::Error, 1, why.as_bytes()).unwrap();
        }
        if kind == TaskKind::Initialize {
            if failed {
                std::process::exit(1);
            }
            worker.initialized = true;
        }
    }
}

fn send_self(signal: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(libc::getpid(), signal) };
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Worker {
    fn execute(&mut self, end: &WorkerEnd, claimed: &Claimed) -> Result<Vec<u8>, String> {
        let mut needed = Vec::new();
        let known = &mut self.known;
        let payload = end
            .payload(claimed, |section| match section {
                Section::Define(id, needs, bytes) => {
                    let all_there = needs.iter().all(|need| known.contains_key(need));
                    if all_there {
                        known.insert(id, bytes.to_vec());
                    }
                }
                Section::Forget(ids) => ids.iter().for_each(|id| drop(known.remove(id))),
                Section::Needs(ids) => needed = ids,
            })
            .map_err(|Unreadable(why)| why)?;
        if let Some(lacking) = needed.iter().find(|id| !self.known.contains_key(id)) {
            return Err(format!("definition {lacking} never came"));
        }
        let space = payload.iter().position(|&byte| byte == b' ').unwrap();
        let (number, command) = (&payload[..space], &payload[space + 1..]);
        let number = std::str::from_utf8(number).unwrap();
        let line = format!("{number} {}\n", std::process::id());
        self.runs.write_all(line.as_bytes()).unwrap();
        let colon = command.iter().position(|&byte| byte == b':').unwrap();
        let (name, argument) = (&command[..colon], &command[colon + 1..]);
        if name == b"mirror" {
            return Ok(argument.to_vec());
        }
        if name == b"sum" {
            return Ok(sum(argument).into_bytes());
        }
        let text = std::str::from_utf8(argument).unwrap();
        Ok(match name {
            b"echo" => argument.to_vec(),
            b"define" => {
                let definition = self.known.get(&claimed.definition);
                let definition =
                    definition.ok_or(format!("definition {} never came", claimed.definition))?;
                [definition, argument].concat()
            }
            b"sleep" => {
                std::thread::sleep(Duration::from_millis(text.parse().unwrap()));
                b"slept".to_vec()
            }
            b"big" => big(text.parse().unwrap()),
            b"error" => return Err(text.to_owned()),
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
                send_self(libc::SIGKILL);
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
            b"initialized" => if self.initialized { "yes" } else { "no" }.into(),
            _ => {
                return Err(format!(
                    "no such command: {}",
                    String::from_utf8_lossy(name)
                ));
            }
        })
    }
}

/// Overwrites a word of the control block, as a stray pointer in a user's library may.
fn scribble(word: &str) {
    let (offset, value) = match word {
        "queue" => (64, 0x0000_0500_0000_0600_u64),
        "tail" => (192, u64::MAX),
        "record" => (192, 4096),
        _ => panic!("no word {word}"),
    };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps
        .lines()
        .find(|line| line.contains("manyhands-control"))
        .unwrap();
    let start = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let place = std::ptr::with_exposed_provenance_mut::<u64>(start + offset);
    // SAFETY: inside the mapping, which starts with the block's first page.
    unsafe { place.write_volatile(value) };
}

/// What `big` returns.
pub(crate) fn big(count: usize) -> Vec<u8> {
    pattern(0, count)
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
