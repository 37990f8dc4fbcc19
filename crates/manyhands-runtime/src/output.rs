//! What workers put out for people: log records and text, which are of no task.
//!
//! A *note* is a tag and bytes, the face's business. It travels as a record of its own in the worker's
//! result ring, fire and forget: nobody answers, and nobody waits for it.
//!
//! In the worker, an `Outlet` owns the ring's writing side. It has no lock, since each result of an item goes
//! through it and a lock would be a tenth of that item's time: the caller has one, under which it uses all of
//! the worker's end but for `wait`, and in Python that is the GIL. Any thread that holds it may give a note:
//! - *published*: there is room in the ring, and nothing waits;
//! - *waiting*: there is none; it waits here, up to `MOST_WAITING` bytes of notes;
//! - *dropped*: there is no room here either; the worker counts it, and says so before what comes next.
//!
//! What waits goes out first: with the next note, before the next record of the worker's own thread, which
//! waits for room as it does for its own, and when it is idle: who gives a note that has to wait wakes it. So
//! what a task put out before it ended is in front of its result, and a thread that gives a note never waits.
//!
//! In the parent, whoever drains the ring puts the note into the pool's `Output`, under the pool's lock, and
//! never handles it: that does one reader, a thread of the face that holds none of our locks. It is behind
//! by `MOST_UNREAD` bytes at most; past that notes are dropped and counted. `settle` waits until the
//! reader has handled what came before: who takes a result calls it, so that all that the task put out
//! was handled by then. It does not wait for a reader that hangs, but for `PATIENCE` once.
//!
//! A worker that dies leaves what it had published, which is taken at its burial, and loses what waited. A
//! parent that is gone takes its workers with it.

use crate::fail_point::fail_point;
use crate::protocol::{LONGEST_RECORD, RESULT_HEAD, ResultHead, ResultKind, padded};
use manyhands_os::Event;
use manyhands_shm::{ControlBlock, Parked, PoolPage, RingWriter};
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// The most bytes of a note.
pub const LONGEST_NOTE: usize = LONGEST_RECORD - RESULT_HEAD;
/// How many bytes of notes wait in a worker for room in its ring.
const MOST_WAITING: usize = 1 << 20;
/// How many bytes of notes wait in the parent for their reader.
const MOST_UNREAD: usize = 16 << 20;
/// What a note takes besides its bytes, about.
const BESIDES: usize = 64;
/// How long a reader that hangs is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

// ---- The worker's side ----------------------------------------------------------------------

/// The writing side of a worker's result ring, for its own thread and for all that put out something.
#[derive(Debug)]
pub struct Outlet {
    ring: UnsafeCell<Ring>,
    /// Whether something waits, for who is about to sleep.
    any_waiting: AtomicBool,
    page: Arc<PoolPage>,
    event: Event,
    /// The ring lies in it.
    control: Arc<ControlBlock>,
}

// SAFETY: `ring` is reached by `Outlet::ring` alone, one at a time, as its callers promise.
unsafe impl Sync for Outlet {}

#[derive(Debug)]
struct Ring {
    writer: RingWriter,
    waiting: VecDeque<(u8, Box<[u8]>)>,
    /// Bytes of what waits.
    bytes: usize,
    /// How many notes were dropped since the last that is published.
    dropped: u64,
}

impl Outlet {
    pub(crate) fn new(
        writer: RingWriter,
        control: Arc<ControlBlock>,
        page: Arc<PoolPage>,
        event: Event,
    ) -> Self {
        Self {
            ring: UnsafeCell::new(Ring {
                writer,
                waiting: VecDeque::new(),
                bytes: 0,
                dropped: 0,
            }),
            any_waiting: AtomicBool::new(false),
            page,
            event,
            control,
        }
    }

    /// The ring.
    ///
    /// # Safety
    ///
    /// The caller holds the lock that `put` speaks of, or is the thread of the worker's end in one of its methods
    /// but `wait`; and it is done with the ring when it calls the next function of this.
    #[expect(clippy::mut_from_ref, reason = "what the callers promise is a lock")]
    #[inline]
    unsafe fn ring(&self) -> &mut Ring {
        // SAFETY: nobody else has it, see above.
        unsafe { &mut *self.ring.get() }
    }

    /// Puts out a note of at most `LONGEST_NOTE` bytes. It never waits for the parent.
    ///
    /// # Safety
    ///
    /// The caller holds the lock under which the worker's end is used, but for its `wait`; or it is the thread of
    /// that end.
    pub unsafe fn put(&self, tag: u8, bytes: &[u8]) {
        debug_assert!(bytes.len() <= LONGEST_NOTE);
        fail_point("worker.output_given");
        // SAFETY: promised by the caller.
        let ring = unsafe { self.ring() };
        if !ring.flush() || !ring.publish_note(tag, bytes) {
            let size = bytes.len() + BESIDES;
            if ring.bytes + size > MOST_WAITING {
                ring.dropped += 1;
            } else {
                ring.bytes += size;
                ring.waiting.push_back((tag, Box::from(bytes)));
            }
        }
        self.note_waiting(!ring.is_clear());
        self.announce();
    }

    /// Says whether something waits. Who is asleep then wakes up, to look for room from time to time.
    fn note_waiting(&self, any: bool) {
        // Relaxed: who sets it looks for a sleeper after it, and who sleeps looks here after its mark.
        let before = self.any_waiting.swap(any, Ordering::Relaxed);
        let word = self.control.worker();
        if any && !before && word.take_sleeper().is_some() {
            word.wake();
        }
    }

    /// Whether something waits for room.
    pub(crate) fn any_waiting(&self) -> bool {
        // Relaxed: see `note_waiting`.
        self.any_waiting.load(Ordering::Relaxed)
    }

    /// Publishes what waits, as far as there is room.
    ///
    /// # Safety
    ///
    /// See `ring`.
    pub(crate) unsafe fn flush(&self) {
        // SAFETY: promised by the caller.
        let ring = unsafe { self.ring() };
        if ring.is_clear() {
            return;
        }
        let all = ring.flush();
        self.note_waiting(!all);
        self.announce();
    }

    /// Publishes a record of so many bytes behind all that waits, if there is room for both.
    ///
    /// # Safety
    ///
    /// See `ring`; `fill` does not call this.
    #[inline(always)]
    pub(crate) unsafe fn publish(&self, length: usize, fill: impl Fn(&mut [u8])) -> bool {
        // SAFETY: promised by the caller.
        let ring = unsafe { self.ring() };
        if !ring.is_clear() && !self.flush_first(ring) {
            return false;
        }
        let Some(record) = ring.writer.reserve(length) else {
            return false;
        };
        fill(record);
        ring.writer.publish(length);
        true
    }

    /// What waits comes before what is published next; false if there is no room for it.
    #[cold]
    fn flush_first(&self, ring: &mut Ring) -> bool {
        let all = ring.flush();
        if all {
            self.note_waiting(false);
        }
        all
    }

    /// Whether something can be published now, be it what waits or a record of that length.
    ///
    /// # Safety
    ///
    /// See `ring`.
    pub(crate) unsafe fn has_room(&self, length: usize) -> bool {
        // SAFETY: promised by the caller.
        let ring = unsafe { self.ring() };
        let first = ring.waiting.front();
        let length = match first {
            Some((_, bytes)) => padded(RESULT_HEAD + bytes.len()),
            None if ring.dropped > 0 => RESULT_HEAD,
            None => length,
        };
        ring.writer.reserve(length).is_some()
    }

    /// Wakes the reader of the ring, if it sleeps.
    #[inline]
    pub(crate) fn announce(&self) {
        match self.page.parent().take_sleeper() {
            Some(Parked::Futex) => self.page.parent().wake(),
            Some(Parked::Event) => self.event.signal(),
            None => {}
        }
    }
}

impl Ring {
    /// Whether nothing has to go out before other records.
    #[inline]
    fn is_clear(&self) -> bool {
        self.waiting.is_empty() && self.dropped == 0
    }

    /// Publishes what waits, and then how many were dropped; whether there was room for all.
    fn flush(&mut self) -> bool {
        while let Some((tag, bytes)) = self.waiting.pop_front() {
            // What was dropped came later than what waits.
            let dropped = std::mem::take(&mut self.dropped);
            let is_published = self.publish_note(tag, &bytes);
            self.dropped = dropped;
            if !is_published {
                self.waiting.push_front((tag, bytes));
                return false;
            }
            self.bytes -= bytes.len() + BESIDES;
        }
        self.dropped == 0 || self.publish_note(0, &[])
    }

    /// Publishes a note, and how many were dropped before it, if there is room.
    fn publish_note(&mut self, tag: u8, bytes: &[u8]) -> bool {
        let length = padded(RESULT_HEAD + bytes.len());
        let Some(record) = self.writer.reserve(length) else {
            return false;
        };
        let head = ResultHead {
            length: length as u32,
            kind: ResultKind::Output,
            tag,
            flags: 0,
            number: 0,
            payload: bytes.len() as u32,
            duration: self.dropped,
        };
        record[..RESULT_HEAD].copy_from_slice(&head.encode());
        record[RESULT_HEAD..RESULT_HEAD + bytes.len()].copy_from_slice(bytes);
        self.writer.publish(length);
        self.dropped = 0;
        fail_point("worker.output_published");
        true
    }
}

// ---- The parent's side ----------------------------------------------------------------------

/// Something that a worker has put out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is.
    pub tag: u8,
    /// The slot of the worker.
    pub slot: u32,
    /// Its process id.
    pub pid: i32,
    /// The note itself; no bytes if it only says what was lost.
    pub bytes: Box<[u8]>,
    /// How many notes were lost right before it.
    pub lost: u64,
}

#[derive(Debug, Default)]
struct State {
    unread: VecDeque<Note>,
    bytes: usize,
    /// How many were lost since the reader was told last.
    lost: u64,
    /// How many have come, and how many of them the reader has handled.
    come: u64,
    handled: u64,
    /// How many of them it has taken.
    taken: u64,
    /// The thread that takes and handles them.
    reader: Option<ThreadId>,
    /// Whether it will come.
    is_expected: bool,
    /// Whether it was waited for in vain, and has not come back since.
    is_late: bool,
    is_over: bool,
}

/// What the workers of a pool have put out and nobody has handled yet. Its lock is the last that anybody takes.
#[derive(Debug, Default)]
pub struct Output {
    state: Mutex<State>,
    has_come: Condvar,
    has_handled: Condvar,
    /// Whether something has come that was not handled: to look at without the lock.
    is_behind: AtomicBool,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a note, or drops it if its reader is too far behind.
    pub(crate) fn push(&self, note: Note) {
        let mut state = self.lock();
        state.lost += note.lost;
        let size = note.bytes.len() + BESIDES;
        if state.bytes + size > MOST_UNREAD {
            state.lost += u64::from(!note.bytes.is_empty());
        } else if !note.bytes.is_empty() {
            state.bytes += size;
            state.come += 1;
            state.unread.push_back(note);
        }
        // Relaxed: who takes a result has taken the pool's lock since, under which this is written.
        self.is_behind.store(true, Ordering::Relaxed);
        drop(state);
        self.has_come.notify_one();
    }

    /// A reader is about to come: it is waited for already.
    pub fn expect(&self) {
        self.lock().is_expected = true;
    }

    /// Nothing more will come.
    pub fn finish(&self) {
        self.lock().is_over = true;
        self.has_come.notify_all();
    }

    /// Waits for notes for at most so long, and takes up to so many; besides, once all is taken, how many were
    /// lost. None once nothing more will come. Who calls it has handled what it took before.
    pub fn take(&self, most: usize, time: Duration) -> Option<(Vec<Note>, u64)> {
        let mut state = self.lock();
        state.handled = state.taken;
        state.is_late = false;
        let is_empty = |state: &State| state.unread.is_empty() && state.lost == 0;
        if is_empty(&state) {
            self.is_behind.store(false, Ordering::Relaxed);
        }
        state.reader = Some(std::thread::current().id());
        self.has_handled.notify_all();
        let (mut state, _) = self
            .has_come
            .wait_timeout_while(state, time, |state| is_empty(state) && !state.is_over)
            .unwrap_or_else(PoisonError::into_inner);
        if is_empty(&state) && state.is_over {
            state.reader = None;
            state.is_expected = false;
            return None;
        }
        let count = state.unread.len().min(most);
        let taken: Vec<Note> = state.unread.drain(..count).collect();
        state.taken += count as u64;
        let size = |note: &Note| note.bytes.len() + BESIDES;
        state.bytes -= taken.iter().map(size).sum::<usize>();
        // Said once it has caught up, and not with each portion while it falls behind.
        let mut lost = 0;
        if state.unread.is_empty() {
            lost = std::mem::take(&mut state.lost);
        }
        Some((taken, lost))
    }

    /// Whether `settle` would have to wait.
    #[inline]
    pub fn is_behind(&self) -> bool {
        // Relaxed: see `push`.
        self.is_behind.load(Ordering::Relaxed)
    }

    /// Waits until the reader has handled what has come so far. It does not wait for itself, nor for long if it
    /// hangs.
    pub fn settle(&self) {
        let state = self.lock();
        let target = state.come;
        let deadline = Instant::now() + PATIENCE;
        let waits = |state: &State| {
            state.handled < target
                && !state.is_late
                && match state.reader {
                    Some(reader) => reader != std::thread::current().id(),
                    None => state.is_expected,
                }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let (mut state, waited) = self
            .has_handled
            .wait_timeout_while(state, left, |state| waits(state))
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            state.is_late = true;
        }
    }

    /// How many notes were not taken.
    pub fn unread(&self) -> usize {
        self.lock().unread.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn note(number: u8) -> Note {
        Note {
            tag: 1,
            slot: 0,
            pid: 7,
            bytes: Box::from([number]),
            lost: 0,
        }
    }

    #[test]
    fn who_has_to_wait_for_room_wakes_the_worker() {
        let control = Arc::new(ControlBlock::create().unwrap());
        // SAFETY: the only writer and the only reader of this block, which outlives them.
        let (writer, mut reader) = unsafe { (control.result_writer(), control.result_reader()) };
        let share = manyhands_shm::Share {
            count: 1,
            is_given: false,
        };
        let page = Arc::new(PoolPage::create(1, share).unwrap());
        let outlet = Outlet::new(writer, control.clone(), page, Event::new().unwrap());
        let word = control.worker();
        word.announce(Parked::Futex);
        let bytes = [7; 40_000];
        let mut count = 0;
        while !outlet.any_waiting() {
            assert!(word.is_parked(), "woken by what needs no help");
            // SAFETY: one thread.
            unsafe { outlet.put(1, &bytes) };
            count += 1;
        }
        assert!(!word.is_parked());
        // Once awake it finds room by itself.
        let mut found = 0;
        while found < count {
            let len = reader.unread().unwrap().len();
            assert!(len > 0);
            found += len / padded(RESULT_HEAD + bytes.len());
            reader.consume(len);
            // SAFETY: one thread.
            unsafe { outlet.flush() };
        }
        assert!(!outlet.any_waiting());
    }

    #[test]
    fn pieces_come_in_order_and_end() {
        let output = Output::default();
        assert_eq!(output.take(9, NOW), Some((vec![], 0)));
        for number in 0..3 {
            output.push(note(number));
        }
        assert!(output.is_behind());
        output.finish();
        assert_eq!(output.take(2, NOW), Some((vec![note(0), note(1)], 0)));
        assert_eq!(output.take(2, NOW), Some((vec![note(2)], 0)));
        assert_eq!(output.take(2, NOW), None);
        assert!(!output.is_behind());
    }

    #[test]
    fn what_is_lost_is_said_once_all_is_taken() {
        let output = Output::default();
        let large = Note {
            bytes: vec![0; MOST_UNREAD / 2].into(),
            ..note(0)
        };
        for _ in 0..3 {
            output.push(large.clone());
        }
        let only_lost = Note {
            bytes: Box::default(),
            lost: 5,
            ..note(0)
        };
        output.push(only_lost);
        let (taken, lost) = output.take(9, NOW).unwrap();
        assert_eq!((taken.len(), lost), (1, 7));
        assert_eq!(output.take(9, NOW), Some((vec![], 0)));
        assert_eq!(output.unread(), 0);
    }

    #[test]
    fn a_reader_that_is_expected_is_waited_for() {
        let output = Output::default();
        output.expect();
        output.push(note(0));
        let handled = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                output.settle();
                assert!(handled.load(Ordering::SeqCst));
            });
            let (taken, _) = output.take(9, NOW).unwrap();
            assert_eq!(taken, vec![note(0)]);
            handled.store(true, Ordering::SeqCst);
            assert_eq!(output.take(9, NOW), Some((vec![], 0)));
        });
        output.finish();
        assert_eq!(output.take(9, NOW), None);
        // Nobody comes any more.
        output.push(note(1));
        output.settle();
    }

    #[test]
    fn who_settles_waits_for_what_came_before() {
        let output = Output::default();
        // Nobody reads: nobody is waited for.
        output.push(note(0));
        output.settle();
        let handled = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while let Some((taken, _)) = output.take(9, Duration::from_secs(600)) {
                    output.settle(); // it does not wait for itself
                    if taken.iter().any(|note| note.bytes[0] == 1) {
                        handled.store(true, Ordering::SeqCst);
                    }
                }
            });
            while output.is_behind() {
                std::thread::yield_now();
            }
            output.push(note(1));
            output.settle();
            assert!(handled.load(Ordering::SeqCst));
            output.finish();
        });
        output.push(note(2));
        output.settle();
    }
}
