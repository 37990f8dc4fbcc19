//! Commands by which a task submits tasks to the pool that runs it.

use crate::crash_table::stored;
use manyhands_os::{MessageFile, Socket};
use manyhands_runtime::{
    Buffer, Bytes, Caller, Definition, Entry, Limits, Outcome, Retry, Task, TaskKind, Unwanted,
    WorkerEnd,
};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What an asker says of a call that a death has ended.
pub(crate) const CALL_DIED: &str = "a call died";
/// What an asker says that was asked to end while it waited.
pub(crate) const ASKED: &str = "asked";
/// Longer arguments of calls travel as a file of their own.
const LONGEST_COPIED: usize = 100_000;

/// Submits a command with these buffers; its number is one that no other task of the case has.
pub(crate) fn submit(
    caller: &Arc<Caller>,
    command: &[u8],
    buffers: &[Buffer],
    with: impl FnOnce(&mut Entry),
) -> Arc<Task> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let index = NEXT.fetch_add(1, Ordering::Relaxed);
    let payload = [
        format!("{}-{index} ", std::process::id()).as_bytes(),
        command,
    ]
    .concat();
    let payload = if payload.len() > LONGEST_COPIED {
        match MessageFile::new(&payload) {
            Ok(file) => Bytes::File(file),
            Err(_) => Bytes::copy_of(&payload),
        }
    } else {
        Bytes::copy_of(&payload)
    };
    let payload = payload.with_buffers(buffers.to_vec());
    let task = Task::new(index, None);
    let mut entry = Entry::new(
        Some(task.clone()),
        TaskKind::Run,
        None,
        Vec::new(),
        1,
        payload,
    );
    with(&mut entry);
    caller.submit(&entry);
    task
}

/// Submits a command so many times.
fn submit_each(caller: &Arc<Caller>, buffers: &[Buffer], text: &str) -> Vec<Arc<Task>> {
    let (count, command) = text.split_once(' ').unwrap();
    let count: usize = count.parse().unwrap();
    (0..count)
        .map(|_| submit(caller, command.as_bytes(), buffers, |_| ()))
        .collect()
}

/// What came of a call.
fn value_of(task: &Task) -> Result<Vec<u8>, String> {
    match task.outcome().unwrap() {
        Outcome::Value(_, bytes) => Ok(bytes.with(<[u8]>::to_vec).unwrap()),
        Outcome::Error(_, bytes) => Err(bytes
            .with(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .unwrap()),
        Outcome::Died { deaths, .. } => Err(format!("{CALL_DIED}: {:?}", deaths.last.cause)),
        Outcome::TimedOut { .. } => Err("a call took too long".into()),
        Outcome::OverMemory { .. } => Err("a call took too much memory".into()),
        Outcome::Cancelled => Err("a call was cancelled".into()),
        Outcome::Failed(why) => Err(format!("a call failed: {why}")),
        Outcome::Broken(why) => Err(format!("a call found a broken pool: {why:?}")),
    }
}

/// Waits for calls and joins their values; who is asked to end meanwhile cancels them.
fn gather(end: &WorkerEnd, caller: &Caller, calls: &[Arc<Task>]) -> Result<Vec<u8>, String> {
    let waited = caller.wait(
        || calls.iter().all(|call| call.is_done()),
        None,
        || match end.unwanted() {
            Some(Unwanted::Stopped) => Err(ASKED.to_owned()),
            _ => Ok(()),
        },
    );
    if let Err(why) = waited {
        caller.cancel_all();
        return Err(why);
    }
    for call in calls {
        if let Outcome::Value(_, bytes) = call.outcome().unwrap() {
            stored::check(end.views(), bytes.buffers())?;
        }
    }
    let values: Result<Vec<_>, _> = calls.iter().map(|call| value_of(call)).collect();
    Ok(values?.join(&b','))
}

/// Obeys a command of this module, whose calls are handed the buffers that came; none if it is no such command.
pub(crate) fn obey(
    end: &WorkerEnd,
    came: &[Buffer],
    name: &[u8],
    text: &str,
) -> Option<Result<Vec<u8>, String>> {
    let caller = end.caller();
    Some(match name {
        b"ask" => gather(end, &caller, &submit_each(&caller, came, text)),
        b"ask_in_turn" => {
            let (count, command) = text.split_once(' ').unwrap();
            let count: usize = count.parse().unwrap();
            let each = (0..count).map(|_| {
                let call = submit(&caller, command.as_bytes(), came, |_| ());
                gather(end, &caller, &[call])
            });
            each.collect::<Result<Vec<_>, _>>()
                .map(|values| values.join(&b','))
        }
        b"ask_and_leave" => {
            submit_each(&caller, came, text);
            caller.cancel_all();
            Ok(b"left".to_vec())
        }
        b"ask_again" => {
            let retry = Retry {
                failures: 5,
                deaths: 5,
                timeouts: true,
                memory: true,
                backoff: 1_000_000,
                longest: 1_000_000_000,
                jitter: 0.5,
                policy: None,
            };
            let call = submit(&caller, text.as_bytes(), came, |entry| {
                entry.retry = Some(Arc::new(retry));
            });
            gather(end, &caller, &[call])
        }
        b"ask_limited" => {
            let call = submit(&caller, text.as_bytes(), came, |entry| {
                entry.limits = Limits {
                    time: Some(20_000_000),
                    grace: 0,
                    ..Limits::default()
                };
            });
            gather(end, &caller, &[call])
        }
        b"ask_mirror" => {
            let bytes = super::worker::big(text.parse().unwrap());
            let call = submit(&caller, &[b"mirror:", &bytes[..]].concat(), came, |_| ());
            gather(end, &caller, &[call])
        }
        b"ask_define" => {
            let definition = definition(text.parse().unwrap());
            let call = submit(&caller, b"define:!", came, |entry| {
                entry.definition = Some(definition);
            });
            gather(end, &caller, &[call]).map(|value| value.len().to_string().into_bytes())
        }
        b"babble" => babble(end, &caller, text),
        _ => return None,
    })
}

/// The definition of that length, which this process keeps.
fn definition(len: usize) -> Arc<Definition> {
    static KEPT: Mutex<BTreeMap<usize, Arc<Definition>>> = Mutex::new(BTreeMap::new());
    let make = || Definition::new("d", super::worker::big(len).into(), [].into());
    KEPT.lock().unwrap().entry(len).or_insert_with(make).clone()
}

/// The sockets of this process.
fn sockets() -> HashSet<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let is_socket = |entry: &std::fs::DirEntry| {
        let link = std::fs::read_link(entry.path()).unwrap_or_default();
        link.to_string_lossy().starts_with("socket:")
    };
    entries
        .filter(is_socket)
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

/// Makes its line with a call that is answered, has another one open, writes nonsense into the line, and
/// waits: it is killed, or its calls are ended.
///
/// | what     | is                                                     |
/// |----------|--------------------------------------------------------|
/// | `empty`  | a packet without anything, which looks like the end    |
/// | `short`  | less than a packet's head                              |
/// | `kind`   | an ask of a kind that there is not                     |
/// | `cut`    | half of an ask                                         |
/// | `file`   | says that the records are in a file that never came    |
/// | `twice`  | a call by a number that is open                        |
fn babble(end: &WorkerEnd, caller: &Arc<Caller>, what: &str) -> Result<Vec<u8>, String> {
    let before = sockets();
    let first = submit(caller, b"echo:x", &[], |_| ());
    gather(end, caller, &[first])?;
    let line = *sockets().difference(&before).next().unwrap();
    // SAFETY: the line stays open as long as the caller has it.
    let line = unsafe { BorrowedFd::borrow_raw(line) };
    let line = Socket::from_descriptor(line.try_clone_to_owned().unwrap());
    let open = submit(caller, b"ask:1 sleep:60000", &[], |_| ());
    let head = [&[0][..], &7_u64.to_ne_bytes()].concat();
    let ask = [&[1][..], &7_u64.to_ne_bytes(), &[0; 8]].concat();
    let packet = match what {
        "empty" => Vec::new(),
        "short" => vec![0; 3],
        "kind" => [&head[..], &[200; 20]].concat(),
        "cut" => [&head[..], &ask[..15]].concat(),
        "file" => [&[1][..], &head[1..]].concat(),
        // Number 2 is the one that is open; the rest is an ask that says nothing.
        "twice" => [&head[..], &[1], &2_u64.to_ne_bytes(), &[0; 52]].concat(),
        _ => unreachable!("{what}"),
    };
    line.send(&packet, &[], true).unwrap();
    gather(end, caller, &[open])
}
