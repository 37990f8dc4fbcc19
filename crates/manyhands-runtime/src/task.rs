//! A task as the parent keeps it.

use crate::block::{Block, Form};
use crate::definition::Definition;
use crate::dump::PoolDump;
use crate::lease::Buffer;
use crate::protocol::TaskKind;
use crate::ranked::Rank;
use crate::scheduler::Work;
use crate::store::InFlight;
use crate::unseen::Fate;
use manyhands_os::{ExitStatus, MessageFile, View};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Bytes that were encoded once and are sent as often as needed.
#[derive(Debug)]
pub enum Bytes {
    /// A few, in place.
    Short(u8, [u8; 22]),
    /// Some.
    Heap(Box<[u8]>),
    /// Many, in a file that can be sent without a copy.
    File(MessageFile),
    /// Bytes of one of the other kinds, and the large buffers that they speak of.
    Stored(Box<Stored>),
}

/// Bytes, and in their order the large buffers that they speak of.
#[derive(Debug)]
pub struct Stored {
    /// The bytes.
    pub bytes: Bytes,
    /// The buffers.
    pub buffers: Vec<Buffer>,
    in_flight: Vec<InFlight>,
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Short(0, [0; 22])
    }
}

impl Bytes {
    /// Copies the bytes; long ones stay in private memory.
    #[inline]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut short = [0; 22];
        match short.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Self::Short(bytes.len() as u8, short)
            }
            None => Self::Heap(Box::from(bytes)),
        }
    }

    /// The same; none if there is no memory for them.
    pub fn try_copy_of(bytes: &[u8]) -> Option<Self> {
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes.len()).ok()?;
        copy.extend_from_slice(bytes);
        Some(Self::Heap(copy.into_boxed_slice()))
    }

    /// These bytes, which speak of those buffers.
    pub fn with_buffers(self, buffers: Vec<Buffer>) -> Self {
        self.with_arguments(buffers, Vec::new())
    }

    /// As `with_buffers`, some of which are in flight as long as these bytes are there.
    pub fn with_arguments(self, buffers: Vec<Buffer>, in_flight: Vec<InFlight>) -> Self {
        if buffers.is_empty() {
            return self;
        }
        Self::Stored(Box::new(Stored {
            bytes: self,
            buffers,
            in_flight,
        }))
    }

    /// The buffers that they speak of.
    #[inline]
    pub fn buffers(&self) -> &[Buffer] {
        match self {
            Self::Stored(stored) => &stored.buffers,
            _ => &[],
        }
    }

    /// The file that they are in, if they are.
    pub(crate) fn file(&self) -> Option<&MessageFile> {
        match self {
            Self::File(file) => Some(file),
            Self::Stored(stored) => stored.bytes.file(),
            Self::Short(..) | Self::Heap(_) => None,
        }
    }

    /// How many there are, without the buffers.
    pub fn len(&self) -> usize {
        match self {
            Self::Short(len, _) => usize::from(*len),
            Self::Heap(bytes) => bytes.len(),
            Self::File(file) => file.len(),
            Self::Stored(stored) => stored.bytes.len(),
        }
    }

    /// How many there are, with the buffers.
    pub fn weight(&self) -> u64 {
        let buffers = self.buffers().iter().map(|buffer| buffer.len as u64);
        self.len() as u64 + buffers.sum::<u64>()
    }

    /// How many there are, with those buffers that were copied for them.
    pub fn copied(&self) -> u64 {
        let in_flight = match self {
            Self::Stored(stored) => stored.in_flight.iter().map(InFlight::len).sum(),
            _ => 0,
        };
        self.len() as u64 + in_flight
    }

    /// The bytes alone.
    pub(crate) fn without_buffers(self) -> Self {
        match self {
            Self::Stored(stored) => stored.bytes,
            bytes => bytes,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the bytes to a reader, mapping a file for the time.
    pub fn with<R>(&self, read: impl FnOnce(&[u8]) -> R) -> io::Result<R> {
        Ok(match self {
            Self::Short(len, bytes) => read(&bytes[..usize::from(*len)]),
            Self::Heap(bytes) => read(bytes),
            Self::File(file) => {
                let view: View = file.view()?;
                read(view.as_slice())
            }
            Self::Stored(stored) => return stored.bytes.with(read),
        })
    }
}

/// Why a worker died, from a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A signal killed it.
    Signal(i32),
    /// The kernel killed it for want of memory.
    Oom,
    /// It exited by itself.
    Exit(i32),
    /// Nobody could tell: the process that would know was killed too.
    Unknown,
    /// It broke the protocol, and was killed for it.
    Protocol,
    /// It could not be started.
    Start,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Oom => f.write_str("was killed by the kernel's OOM killer"),
            Self::Exit(code) => write!(f, "exited with status {code}"),
            Self::Unknown => f.write_str("died, and nobody is left who could tell how"),
            Self::Protocol => f.write_str("broke the protocol and was killed"),
            Self::Start => f.write_str("could not be started"),
        }
    }
}

impl From<ExitStatus> for Cause {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Exited(code) => Self::Exit(code),
            ExitStatus::Killed(signal) => Self::Signal(signal),
            ExitStatus::Unknown => Self::Unknown,
        }
    }
}

/// A worker's death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// The worker's process id, 0 if it never had one.
    pub pid: i32,
    /// Why it died.
    pub cause: Cause,
}

/// The deaths of the workers that ran one task.
#[derive(Debug, PartialEq, Eq)]
pub struct Deaths {
    /// Those before, the first of them first. Of more than 254 only the first are kept.
    pub earlier: Vec<Death>,
    /// The one that came last.
    pub last: Death,
}

/// The most deaths of one task of which more is known than that they were.
const MOST_DEATHS: usize = 255;

impl Deaths {
    /// One more after those, if there were any.
    pub(crate) fn after(earlier: Option<Box<Self>>, last: Death) -> Box<Self> {
        let Some(mut deaths) = earlier else {
            let earlier = Vec::new();
            return Box::new(Self { earlier, last });
        };
        let before = std::mem::replace(&mut deaths.last, last);
        if deaths.earlier.len() < MOST_DEATHS - 1 {
            deaths.earlier.push(before);
        }
        deaths
    }

    /// All that are known, in their order.
    pub fn all(&self) -> impl Iterator<Item = Death> {
        self.earlier.iter().copied().chain([self.last])
    }
}

/// What a task may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most nanoseconds from its start.
    pub time: Option<u64>,
    /// The most bytes of private memory that it may add to its worker.
    pub memory: Option<u64>,
    /// How many nanoseconds a task has to end by itself when it was asked to, before its worker is
    /// killed.
    pub grace: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: None,
            memory: None,
            grace: 500_000_000,
        }
    }
}

impl Limits {
    /// Whether anything has to be watched.
    pub(crate) fn are_any(&self) -> bool {
        self.time.is_some() || self.memory.is_some()
    }
}

/// How often, and after how long, a task runs again that has failed.
#[derive(Debug)]
pub struct Retry {
    /// The most times after it has failed, or taken too long, or too much memory.
    pub failures: u32,
    /// The most times after its worker has died.
    pub deaths: u32,
    /// Whether that its time was up counts as a failure.
    pub timeouts: bool,
    /// Whether that it took too much memory counts as a failure.
    pub memory: bool,
    /// The nanoseconds before the second run; before each later one it is twice as long.
    pub backoff: u64,
    /// The most of these.
    pub longest: u64,
    /// By which part of itself a pause is shortened at most, at random; 0 to 1.
    pub jitter: f64,
    /// What the worker asks whether a failure is one after which to run again; without it each is.
    pub policy: Option<Arc<Definition>>,
}

impl Retry {
    /// How long to wait before the next run after so many, with a random number from 0 to 1.
    pub fn pause(&self, runs: u32, random: f64) -> u64 {
        let doubled = self
            .backoff
            .saturating_mul(1 << runs.saturating_sub(1).min(40));
        let pause = doubled.min(self.longest);
        pause.saturating_sub((pause as f64 * self.jitter * random) as u64)
    }
}

/// How a task ended.
#[derive(Debug)]
pub enum Outcome {
    /// It returned this.
    Value(u8, Bytes),
    /// It failed with this.
    Error(u8, Bytes),
    /// Its worker died while it ran. The payload is there for messages.
    Died {
        /// Whose death it was, and which others it had been before.
        deaths: Box<Deaths>,
        /// How the payload is encoded.
        tag: u8,
        /// The task's payload.
        payload: Bytes,
        /// How often it was tried.
        attempts: u8,
    },
    /// Its time was up.
    TimedOut {
        /// The nanoseconds that it had.
        limit: u64,
        /// The worker's process id.
        pid: i32,
        /// How often it was tried.
        attempts: u8,
    },
    /// It took more memory than it may.
    OverMemory {
        /// The bytes that it could add.
        limit: u64,
        /// The most that it was seen to have added.
        peak: u64,
        /// The worker's process id.
        pid: i32,
        /// How often it was tried.
        attempts: u8,
    },
    /// Somebody cancelled it: it never started, or was ended.
    Cancelled,
    /// It never started, because the pool cannot run anything any more.
    Broken(Arc<Breakage>),
    /// It never started, or its result was lost: what happened, as a sentence.
    Failed(String),
}

/// Why a pool can run nothing any more.
#[derive(Debug)]
pub enum Breakage {
    /// The initializer raised this.
    Initializer(u8, Bytes),
    /// The initializer's worker died, again and again.
    InitializerDied(i32, Cause),
    /// No worker could be started; why.
    Start(String),
    /// A limit of the pool cannot be kept; why.
    Limit(String),
    /// Nothing happened for so many seconds, though nothing kept it: what the workers did.
    Stalled(u64, Box<PoolDump>),
}

/// The part of a task that outlives its run: what a future holds.
#[derive(Debug)]
pub struct Task {
    outcome: OnceLock<Outcome>,
    /// Where it was published last: slot in the upper half, number in the lower; all ones before.
    /// Written and acted on under the pool's lock, read without it as a hint.
    place: AtomicU64,
    /// A token that the face wants to see when the task has ended; 0 for none. Under the lock.
    observer: AtomicU64,
    pub(crate) fate: Fate,
    /// For messages: which item, which call.
    pub index: u64,
    /// What it runs, which messages name.
    pub definition: Option<Arc<Definition>>,
    /// The task of a worker that submitted it, if it was one.
    pub(crate) asker: Option<Asker>,
}

/// Whom the end of a task is told that a task of a worker has submitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    /// The number that the worker gave the call.
    pub(crate) call: u64,
}

const NOWHERE: u64 = u64::MAX;

impl Task {
    /// A task that has not ended.
    pub fn new(index: u64, definition: Option<Arc<Definition>>) -> Arc<Self> {
        Self::asked(index, definition, None)
    }

    /// A task whose end is told to a worker.
    pub(crate) fn asked(
        index: u64,
        definition: Option<Arc<Definition>>,
        asker: Option<Asker>,
    ) -> Arc<Self> {
        Arc::new(Self {
            outcome: OnceLock::new(),
            place: AtomicU64::new(NOWHERE),
            observer: AtomicU64::new(0),
            fate: Fate::default(),
            index,
            definition,
            asker,
        })
    }

    /// How it ended, once it has.
    #[inline]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Whether it has ended.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Ends the task; the first end counts. Gives the token of whoever observes it.
    pub(crate) fn complete(&self, outcome: Outcome) -> Option<u64> {
        if self.outcome.set(outcome).is_err() {
            return None;
        }
        // Relaxed: under the pool's lock.
        let observer = self.observer.load(Ordering::Relaxed);
        (observer != 0).then_some(observer)
    }

    pub(crate) fn is_observed(&self) -> bool {
        self.observer.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn set_observer(&self, token: u64) {
        self.observer.store(token, Ordering::Relaxed);
    }

    pub(crate) fn set_place(&self, place: Option<(u32, u32)>) {
        let word = place.map_or(NOWHERE, |(slot, number)| {
            (u64::from(slot) << 32) | u64::from(number)
        });
        // Relaxed: under the pool's lock.
        self.place.store(word, Ordering::Relaxed);
    }

    pub(crate) fn place(&self) -> Option<(u32, u32)> {
        let word = self.place.load(Ordering::Relaxed);
        (word != NOWHERE).then_some(((word >> 32) as u32, word as u32))
    }
}

/// What the scheduler moves about: the part of a task that its run needs, or a block.
#[derive(Debug)]
pub struct Entry {
    /// Its other part; none for blocks, start-up and exit.
    pub task: Option<Arc<Task>>,
    /// The block that it is; none for tasks.
    pub(crate) block: Option<Arc<Block>>,
    /// What is asked for.
    pub kind: TaskKind,
    /// What to run.
    pub definition: Option<Arc<Definition>>,
    /// What else has to be known to the worker; a block has its own.
    pub needs: Vec<Arc<Definition>>,
    /// The context that it runs in, if not in an empty one; the face's business.
    pub context: Option<Arc<Definition>>,
    /// How the payload is encoded.
    pub tag: u8,
    /// The arguments; a block has its own.
    pub payload: Bytes,
    /// What it may take; a block has its stream's.
    pub limits: Limits,
    /// Whether it runs again; it is one item then.
    pub retry: Option<Arc<Retry>>,
    /// What its random streams are made from; the face's business.
    pub seed: Option<Arc<[u8]>>,
    /// How many tasks wait for it, one for the other.
    pub(crate) depth: u8,
    /// Which goes first of what is equally deep: the higher. Without one it is 0, or that of the task that has
    /// submitted it.
    pub priority: Option<i32>,
    /// Whether what it yields, if it is a generator, comes as one list.
    pub gathers: bool,
    /// How often it has failed, and how often its worker has died.
    pub(crate) failures: u32,
    pub(crate) deaths: u32,
    /// What is known of these deaths; none as long as there were none.
    pub(crate) died: Option<Box<Deaths>>,
    /// Items that have not ended.
    pub(crate) left: u32,
    /// Items that have ended.
    pub(crate) ended: u32,
    /// Position of its record in the worker's task area, while published.
    pub(crate) position: u64,
    /// Length of that record.
    pub(crate) length: u32,
    /// Number of the message file that carries its body, 0 without one.
    pub(crate) file: u64,
    /// The definitions that the record carries.
    pub(crate) carried: Vec<Arc<Definition>>,
    /// Ids that the record tells the worker to forget.
    pub(crate) forgets: Vec<u32>,
    /// Whether the worker has leases for the buffers of the record that was written last.
    pub(crate) leases: bool,
}

impl Entry {
    /// A task to run.
    pub fn new(
        task: Option<Arc<Task>>,
        kind: TaskKind,
        definition: Option<Arc<Definition>>,
        needs: Vec<Arc<Definition>>,
        tag: u8,
        payload: Bytes,
    ) -> Self {
        let (position, length, file) = (0, 0, 0);
        Self {
            task,
            block: None,
            kind,
            definition,
            needs,
            context: None,
            tag,
            payload,
            limits: Limits::default(),
            retry: None,
            seed: None,
            depth: 0,
            priority: None,
            gathers: false,
            failures: 0,
            deaths: 0,
            died: None,
            left: 1,
            ended: 0,
            position,
            length,
            file,
            carried: Vec::new(),
            forgets: Vec::new(),
            leases: false,
        }
    }

    /// A block to run.
    pub fn block(block: Arc<Block>) -> Self {
        let (kind, tag) = match block.form {
            Form::Items => (TaskKind::Block, 0),
            Form::Single(tag) => (TaskKind::Run, tag),
        };
        let options = &block.stream.options;
        let (definition, tag) = (options.definition.clone(), tag | options.tag);
        Self {
            left: block.count(),
            context: options.context.clone(),
            limits: options.limits,
            retry: options.retry.clone(),
            seed: options.seed.clone(),
            block: Some(block),
            ..Self::new(None, kind, definition, Vec::new(), tag, Bytes::default())
        }
    }

    /// Whether it goes before or after what has no priority.
    #[inline]
    pub(crate) fn has_priority(&self) -> bool {
        self.priority.unwrap_or_default() != 0
    }

    /// Which run it is, from 1.
    pub(crate) fn attempt(&self) -> u8 {
        (1 + self.failures + self.deaths).min(255) as u8
    }

    /// What has to be known to the worker besides the definition to run.
    pub(crate) fn needs(&self) -> &[Arc<Definition>] {
        match &self.block {
            Some(block) => &block.needs,
            None => &self.needs,
        }
    }

    /// The encoded arguments, or items.
    pub(crate) fn bytes(&self) -> &Bytes {
        match &self.block {
            Some(block) => &block.bytes,
            None => &self.payload,
        }
    }

    /// Whether somebody wants it to run: it is a task or a block, and was not cancelled.
    pub(crate) fn is_wanted(&self) -> bool {
        match (&self.task, &self.block) {
            (Some(task), _) => !task.is_done(),
            (_, Some(block)) => !block.is_over(),
            _ => self.kind == TaskKind::Run,
        }
    }

    /// Index of its first item that has not ended, for messages.
    pub(crate) fn index(&self) -> u64 {
        match (&self.task, &self.block) {
            (Some(task), _) => task.index,
            (_, Some(block)) => block.first + u64::from(self.ended),
            _ => self.file,
        }
    }

    /// Where its first item was published.
    pub(crate) fn set_place(&self, place: Option<(u32, u32)>) {
        if let Some(task) = &self.task {
            task.set_place(place);
        }
        if let Some(block) = &self.block {
            block.set_place(place);
        }
    }
}

impl Work for Entry {
    fn left(&self) -> usize {
        self.left as usize
    }

    fn is_begun(&self) -> bool {
        self.ended > 0
    }

    fn end(&mut self, count: usize) {
        debug_assert!(count <= self.left as usize);
        self.left -= count as u32;
        self.ended += count as u32;
    }

    fn cut(&mut self, keep: usize) -> Self {
        let Some(block) = &self.block else {
            crate::bug("a task was cut in two");
        };
        let rest = block.cut(self.ended + keep as u32);
        self.left = keep as u32;
        Self {
            priority: self.priority,
            ..Self::block(rest)
        }
    }

    #[inline]
    fn rank(&self) -> Rank {
        Rank::new(self.depth, self.priority.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn retry(backoff: u64, longest: u64, jitter: f64) -> Retry {
        Retry {
            failures: u32::MAX,
            deaths: u32::MAX,
            timeouts: true,
            memory: true,
            backoff,
            longest,
            jitter,
            policy: None,
        }
    }

    #[test]
    fn each_pause_is_twice_the_one_before_up_to_the_longest() {
        let retry = retry(SECOND, 10 * SECOND, 0.0);
        let pauses: Vec<u64> = (1..=7).map(|runs| retry.pause(runs, 0.5)).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10].map(|n| n * SECOND));
    }

    #[test]
    fn the_longest_bounds_the_first_pause_too() {
        assert_eq!(retry(5 * SECOND, 3 * SECOND, 0.0).pause(1, 0.0), 3 * SECOND);
    }

    #[test]
    fn without_a_backoff_there_is_no_pause() {
        let retry = retry(0, 10 * SECOND, 1.0);
        for runs in [0, 1, 2, 100, u32::MAX] {
            assert_eq!(retry.pause(runs, 0.5), 0);
        }
    }

    #[test]
    fn many_runs_do_not_overflow() {
        for longest in [10 * SECOND, u64::MAX] {
            let retry = retry(SECOND, longest, 0.0);
            let pauses: Vec<u64> = (1..200).map(|runs| retry.pause(runs, 0.0)).collect();
            assert!(pauses.is_sorted(), "{pauses:?}");
            assert_eq!(retry.pause(200, 0.0), longest);
            assert_eq!(retry.pause(u32::MAX, 0.0), longest);
        }
        assert_eq!(retry(u64::MAX, u64::MAX, 1.0).pause(u32::MAX, 1.0), 0);
    }

    #[test]
    fn jitter_shortens_by_at_most_its_part() {
        let plain = retry(SECOND, 10 * SECOND, 0.0);
        for jitter in [0.0, 0.25, 0.5, 1.0] {
            let shortened = retry(SECOND, 10 * SECOND, jitter);
            for runs in 1..=7 {
                let whole = plain.pause(runs, 1.0);
                assert_eq!(shortened.pause(runs, 0.0), whole, "no part of it by chance");
                // Quarters of whole seconds are exact.
                let least = (whole as f64 * (1.0 - jitter)) as u64;
                assert_eq!(shortened.pause(runs, 1.0), least, "all of it by chance");
                let pauses: Vec<u64> = (0..=10)
                    .map(|tenth| shortened.pause(runs, f64::from(tenth) / 10.0))
                    .collect();
                assert!(pauses.iter().all(|n| (least..=whole).contains(n)));
                assert!(pauses.is_sorted_by(|a, b| a >= b), "{pauses:?}");
            }
        }
    }

    #[test]
    fn jitter_comes_after_the_longest() {
        // Else all that have reached it would run again at the same instant.
        assert_eq!(retry(8 * SECOND, 4 * SECOND, 0.5).pause(9, 0.5), 3 * SECOND);
    }

    #[test]
    fn the_first_deaths_and_the_last_are_kept() {
        let death = |pid| Death {
            pid,
            cause: Cause::Exit(pid),
        };
        let mut deaths = None;
        for pid in 1..=300 {
            deaths = Some(Deaths::after(deaths, death(pid)));
            let pids: Vec<_> = deaths.iter().flat_map(|deaths| deaths.all()).collect();
            let first = 1..pid.min(MOST_DEATHS as i32);
            let kept: Vec<_> = first.chain([pid]).map(death).collect();
            assert_eq!(pids, kept);
        }
    }
}
