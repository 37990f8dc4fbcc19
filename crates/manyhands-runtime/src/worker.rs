//! The worker's side: claims tasks, one after another, and publishes their results.
//!
//! The loop around it is the caller's:
//!
//! ```text
//! loop:
//!     claim       -> a task: run it, finish it
//!                 -> nothing: wait, which spins a little and then sleeps
//! ```
//!
//! Each result is visible when it is published, and its reader is woken at once if it sleeps. It is
//! the reader that keeps wake-ups few: while results come in a stream it naps without a mark (see
//! `Pool::drain_until` and `Pool::supervise`), and a worker that finds no mark makes no system call.
//! A worker that deferred wake-ups itself could not keep a promise once a long task runs.

use crate::fail_point::fail_point;
use crate::protocol::{
    FLAG_FILE, FLAG_UNREAD, HEAD, LONGEST_RECORD, ResultHead, ResultKind, Section, TaskHead,
    TaskKind, padded, split_body,
};
use crate::zygote::Birth;
use manyhands_os::{
    Event, MessageFile, Received, Socket, View, arm_life_line, become_group_leader,
    enter_directory, monotonic_nanos, replace_standard_streams,
};
use manyhands_shm::{ControlBlock, Parked, PoolPage, RingWriter, TASK_AREA};
use std::io;
use std::os::fd::OwnedFd;

/// How long an idle worker spins before it sleeps, where it may, in nanoseconds.
const SPIN_NANOS: u64 = 50_000;

/// The worker's end of its control block.
#[derive(Debug)]
pub struct WorkerEnd {
    control: ControlBlock,
    page: PoolPage,
    results: RingWriter,
    event: Event,
    socket: Socket,
    #[expect(dead_code, reason = "held: the kernel watches it")]
    life_line: OwnedFd,
    slot: u32,
    cores: usize,
    position: u64,
    running: Option<Running>,
    /// When the last task ended, while the queue was not empty.
    last_end: Option<u64>,
    spin: u64,
}

#[derive(Debug)]
struct Running {
    number: u32,
    /// Whether its body could be read.
    is_read: bool,
    start: u64,
}

/// A claimed task, as it stands in shared memory or in a message file.
#[derive(Debug)]
pub struct Claimed {
    /// What is asked for.
    pub kind: TaskKind,
    /// What to run.
    pub definition: u32,
    /// How the payload is encoded.
    pub tag: u8,
    /// Which run this is, from 1.
    pub attempt: u8,
    /// For messages.
    pub index: u64,
    /// Whether the body has sections.
    flags: u8,
    payload: u32,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// Position and length in the task area.
    Area(u64, usize),
    File(View),
}

/// The task's body could not be had, or makes no sense; a sentence says why.
#[derive(Debug)]
pub struct Unreadable(pub String);

impl WorkerEnd {
    /// Becomes the worker that `birth` describes: standard streams, working directory, process
    /// group, life line.
    pub fn new(birth: Birth, cores: usize) -> io::Result<Self> {
        become_group_leader();
        arm_life_line(&birth.life_line, true)?;
        replace_standard_streams(&birth.output, &birth.errors)?;
        // A directory that was removed cannot be entered; the worker keeps the zygote's.
        let _entered = enter_directory(&birth.directory);
        let control = ControlBlock::open(birth.control)?;
        control.set_pid(std::process::id());
        // SAFETY: the only writer of this block, which lives in the same value.
        let results = unsafe { control.result_writer() };
        fail_point("worker.started");
        Ok(Self {
            control,
            page: PoolPage::open(birth.page)?,
            results,
            event: Event::from_descriptor(birth.event),
            socket: Socket::from_descriptor(birth.socket),
            life_line: birth.life_line,
            slot: birth.key.slot,
            cores,
            position: 0,
            running: None,
            last_end: None,
            spin: SPIN_NANOS,
        })
    }

    /// Starts the next task, if there is one.
    pub fn claim(&mut self) -> Option<Result<Claimed, Unreadable>> {
        debug_assert!(self.running.is_none());
        let number = self.control.queue().claim()?;
        // The end of one task is the start of the next.
        let start = self.last_end.take().unwrap_or_else(monotonic_nanos);
        self.control.set_started_at(start);
        fail_point("worker.claimed");
        let record = self.read_record();
        let is_read = record.is_ok();
        self.running = Some(Running {
            number,
            is_read,
            start,
        });
        Some(record)
    }

    fn read_record(&mut self) -> Result<Claimed, Unreadable> {
        // SAFETY: the record at `position` was claimed just now, and stays until its result is
        // taken.
        let bytes = unsafe { self.control.task_bytes(self.position) };
        let head = match TaskHead::decode(bytes) {
            Ok(head) if head.length as usize <= TASK_AREA => head,
            // Without a length there is no way on; the parent's other side would see nonsense too.
            _ => crate::bug("a task record makes no sense"),
        };
        let at = self.position;
        self.position += u64::from(head.length);
        let body = if head.flags & FLAG_FILE != 0 {
            let number = bytes
                .get(HEAD..HEAD + 8)
                .and_then(|number| number.try_into().ok());
            let number = number.map_or(0, u64::from_ne_bytes);
            let file = self
                .receive_file(number)
                .and_then(MessageFile::from_descriptor);
            Body::File(file.and_then(|file| file.view()).map_err(|error| {
                Unreadable(format!("the arguments could not be received: {error}"))
            })?)
        } else {
            Body::Area(at + HEAD as u64, head.length as usize - HEAD)
        };
        let TaskHead {
            kind,
            definition,
            tag,
            attempt,
            index,
            flags,
            payload,
            ..
        } = head;
        Ok(Claimed {
            kind,
            definition,
            tag,
            attempt,
            index,
            flags,
            payload,
            body,
        })
    }

    /// Takes the message file of that number, passing over those of tasks that were taken back.
    fn receive_file(&self, wanted: u64) -> io::Result<OwnedFd> {
        loop {
            let mut number = [0; 8];
            let received = self.socket.receive(&mut number, true)?;
            let number = u64::from_ne_bytes(number);
            match received {
                Received::Message(..) | Received::DescriptorsLost(_) if number < wanted => {}
                Received::Message(_, mut descriptors) if number == wanted => {
                    return descriptors
                        .pop()
                        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
                }
                Received::DescriptorsLost(_) => {
                    return Err(io::Error::other("too many open files"));
                }
                Received::Message(..) => return Err(io::Error::from(io::ErrorKind::InvalidData)),
                Received::Nothing | Received::Closed => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
            }
        }
    }

    /// Passes over the message files up to the one that the record names, all of which were sent
    /// before it, and says so.
    pub fn discard(&mut self, claimed: &Claimed) -> io::Result<()> {
        loop {
            let mut number = [0; 8];
            match self.socket.receive(&mut number, false)? {
                Received::Message(..) | Received::DescriptorsLost(_)
                    if u64::from_ne_bytes(number) < claimed.index => {}
                _ => return self.finish(ResultKind::Value, 0, &[]),
            }
        }
    }

    /// The payload of the task, after `visit` has seen its sections.
    pub fn payload<'task>(
        &'task self,
        claimed: &'task Claimed,
        visit: impl FnMut(Section<'task>),
    ) -> Result<&'task [u8], Unreadable> {
        let body: &[u8] = match &claimed.body {
            // SAFETY: a part of the record that is claimed.
            Body::Area(position, len) => unsafe { &self.control.task_bytes(*position)[..*len] },
            Body::File(view) => view.as_slice(),
        };
        split_body(body, claimed.flags, claimed.payload, visit)
            .map_err(|_| Unreadable("the arguments make no sense".into()))
    }

    /// Publishes the result of the running task; an error says why it could not be sent, and
    /// another result has to go in its place.
    pub fn finish(&mut self, kind: ResultKind, tag: u8, payload: &[u8]) -> io::Result<()> {
        let Some(running) = &self.running else {
            crate::bug("a result without a task");
        };
        fail_point("worker.finished");
        let now = monotonic_nanos();
        let Ok(payload_len) = u32::try_from(payload.len()) else {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "larger than 4 GiB",
            ));
        };
        let by_file = HEAD + payload.len() > LONGEST_RECORD;
        let length = if by_file {
            HEAD
        } else {
            padded(HEAD + payload.len())
        };
        let head = ResultHead {
            length: length as u32,
            kind,
            tag,
            flags: if by_file { FLAG_FILE } else { 0 }
                | if running.is_read { 0 } else { FLAG_UNREAD },
            number: running.number,
            payload: payload_len,
            duration: now - running.start.min(now),
        };
        if by_file {
            use std::os::fd::AsFd;
            let file = MessageFile::new(payload)?;
            self.socket.send(&[1], &[file.as_fd()], true)?;
            fail_point("worker.file_sent");
        }
        let inline = if by_file { &[] } else { payload };
        loop {
            if let Some(record) = self.results.reserve(length) {
                record[..HEAD].copy_from_slice(&head.encode());
                record[HEAD..HEAD + inline.len()].copy_from_slice(inline);
                break;
            }
            self.wait_for_room(length);
        }
        fail_point("worker.record_written");
        self.results.publish(length);
        fail_point("worker.published");
        self.running = None;
        let queue = self.control.queue().state();
        let more = queue.waiting() > 0 && !queue.frozen;
        self.last_end = more.then_some(now);
        self.announce();
        Ok(())
    }

    /// Wakes the reader of the results, if it sleeps.
    fn announce(&self) {
        match self.page.parent().take_sleeper() {
            Some(Parked::Futex) => self.page.parent().wake(),
            Some(Parked::Event) => self.event.signal(),
            None => {}
        }
        fail_point("worker.announced");
    }

    fn wait_for_room(&mut self, length: usize) {
        self.announce();
        let word = self.control.worker();
        word.announce(Parked::Futex);
        if self.results.reserve(length).is_none() {
            // Whether it was woken, interrupted or late, the caller looks again.
            let _why = word.sleep(None);
        }
        self.control.worker().awake();
    }

    /// Waits until there may be a task. Returns early after signals, so that the caller can look
    /// after them.
    pub fn wait(&mut self) {
        self.last_end = None;
        // Its parent, the busy workers and the spinner itself each want a core.
        if (self.page.runnable() as usize) < self.cores && self.spin_until_task() {
            return;
        }
        fail_point("worker.before_park");
        let word = self.control.worker();
        word.announce(Parked::Futex);
        if !self.has_task() {
            let _why = word.sleep(None);
        }
        word.awake();
    }

    fn has_task(&self) -> bool {
        let queue = self.control.queue().state();
        queue.waiting() > 0 && !queue.frozen
    }

    /// Looks for a task for a while, as the only worker of the pool that does; how long follows how
    /// often it paid.
    fn spin_until_task(&mut self) -> bool {
        let Some(permit) = self.page.may_spin(self.slot) else {
            return self.has_task();
        };
        let start = monotonic_nanos();
        let found = loop {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            if self.has_task() {
                break true;
            }
            if monotonic_nanos() - start >= self.spin {
                break false;
            }
        };
        drop(permit);
        self.spin = if found {
            (self.spin + self.spin / 4 + 1_000).min(SPIN_NANOS)
        } else {
            (self.spin - self.spin / 16).max(SPIN_NANOS / 16)
        };
        found
    }

    /// The slot of this worker in its pool.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}
