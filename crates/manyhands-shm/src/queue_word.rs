//! The word that says which queued tasks a worker may start.
//!
//! The tasks at a worker form a sequence numbered modulo 2^31. One 64-bit word holds both ends:
//!
//! | bits  | field  | meaning                                                    | who moves it |
//! |-------|--------|------------------------------------------------------------|--------------|
//! | 0-30  | end    | number after the last task that may be started             | parent       |
//! | 31    | -      | zero                                                       |              |
//! | 32-62 | next   | number of the next task to start; `next - 1` runs or ran   | worker       |
//! | 63    | frozen | nothing may be started, whatever the ends say              | parent       |
//!
//! Steps:
//! - *publish*: the parent writes records, then moves `end` forward (Release);
//! - *claim*: the worker moves `next` forward by one (Acquire); from then on the task has started;
//! - *revoke*: the parent moves `end` back, not beyond `next`; the tasks cut off never start, and the
//!   bytes of their records are the parent's again;
//! - *freeze*, *thaw*: the parent sets and clears the bit.
//!
//! All are read-modify-writes of the one word, so that a task is claimed or revoked and never both,
//! without the worker's help, even while it is inside a task or stopped. After a worker's death,
//! `next` says for ever how far it came. A claim with an outdated view of the word fails, or
//! succeeds on the same bits: then its Acquire reads the Release of the latest publish, so a record
//! that was rewritten between is seen as rewritten.

use crate::sync::{AtomicU64, Ordering};

const NUMBER_BITS: u64 = (1 << 31) - 1;
const NEXT_SHIFT: u32 = 32;
const FROZEN: u64 = 1 << 63;

/// A snapshot of the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Number of the next task to start.
    pub next: u32,
    /// Number after the last task that may start.
    pub end: u32,
    /// Whether starting is forbidden.
    pub frozen: bool,
}

impl QueueState {
    fn unpack(word: u64) -> Self {
        Self {
            next: ((word >> NEXT_SHIFT) & NUMBER_BITS) as u32,
            end: (word & NUMBER_BITS) as u32,
            frozen: word & FROZEN != 0,
        }
    }

    fn pack(self) -> u64 {
        let frozen = if self.frozen { FROZEN } else { 0 };
        frozen | (u64::from(self.next) << NEXT_SHIFT) | u64::from(self.end)
    }

    /// How many tasks are published and not started.
    pub fn waiting(self) -> u32 {
        QueueWord::distance(self.next, self.end)
    }
}

/// The shared word; all zero is the empty queue.
#[derive(Debug)]
#[repr(transparent)]
pub struct QueueWord(AtomicU64);

impl QueueWord {
    /// An empty queue.
    #[cfg(test)]
    #[expect(
        clippy::new_without_default,
        reason = "loom's atomics have no const default"
    )]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The number `count` places after `number`.
    pub fn advance(number: u32, count: u32) -> u32 {
        number.wrapping_add(count) & NUMBER_BITS as u32
    }

    /// How far `to` is after `from`.
    pub fn distance(from: u32, to: u32) -> u32 {
        to.wrapping_sub(from) & NUMBER_BITS as u32
    }

    /// Whether `number` comes before `other`, of numbers that are not half of all numbers apart.
    pub fn is_before(number: u32, other: u32) -> bool {
        (1..=NUMBER_BITS as u32 / 2).contains(&Self::distance(number, other))
    }

    /// What the word says now. Acquire pairs with the claim's Release, so that what a worker wrote
    /// before a claim is seen with it.
    #[inline]
    pub fn state(&self) -> QueueState {
        QueueState::unpack(self.0.load(Ordering::Acquire))
    }

    fn update(
        &self,
        change: impl Fn(QueueState) -> Option<QueueState>,
    ) -> Result<QueueState, QueueState> {
        let mut word = self.0.load(Ordering::Relaxed); // the exchange below orders
        loop {
            let state = QueueState::unpack(word);
            let Some(changed) = change(state) else {
                return Err(state);
            };
            // AcqRel: publish releases the records to the claim; claim acquires them.
            match self.0.compare_exchange_weak(
                word,
                changed.pack(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(changed),
                Err(current) => word = current,
            }
        }
    }

    /// Worker: starts the next task, whose number it gives, if there is one.
    #[inline]
    #[must_use]
    pub fn claim(&self) -> Option<u32> {
        self.update(|state| {
            (!state.frozen && state.next != state.end).then(|| QueueState {
                next: Self::advance(state.next, 1),
                ..state
            })
        })
        .ok()
        .map(|state| Self::distance(1, state.next))
    }

    /// Parent: lets the worker start `count` more tasks, whose records are written.
    #[inline]
    pub fn publish(&self, count: u32) {
        let published = self.update(|state| {
            Some(QueueState {
                end: Self::advance(state.end, count),
                ..state
            })
        });
        debug_assert!(published.is_ok());
    }

    /// Parent: takes back the tasks numbered `from` and later, as far as none has started; gives
    /// the number of the first task that was taken back, which is `end` if there was none.
    #[must_use]
    pub fn revoke(&self, from: u32) -> u32 {
        let revoked = self.update(|state| {
            let wanted = Self::distance(state.next, from);
            let keep = if wanted <= state.waiting() { wanted } else { 0 };
            Some(QueueState {
                end: Self::advance(state.next, keep),
                ..state
            })
        });
        match revoked {
            Ok(state) | Err(state) => state.end,
        }
    }

    /// Parent: forbids the start of any task; gives the state at that moment.
    pub fn freeze(&self) -> QueueState {
        match self.update(|state| {
            Some(QueueState {
                frozen: true,
                ..state
            })
        }) {
            Ok(state) | Err(state) => state,
        }
    }

    /// Parent: allows starting again.
    pub fn thaw(&self) {
        let thawed = self.update(|state| {
            Some(QueueState {
                frozen: false,
                ..state
            })
        });
        debug_assert!(thawed.is_ok());
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;

    #[test]
    fn claims_in_order_until_the_end() {
        let word = QueueWord::new();
        assert_eq!(word.claim(), None);
        word.publish(2);
        assert_eq!(word.claim(), Some(0));
        assert_eq!(word.claim(), Some(1));
        assert_eq!(word.claim(), None);
    }

    #[test]
    fn revoked_tasks_never_start() {
        let word = QueueWord::new();
        word.publish(5);
        assert_eq!(word.claim(), Some(0));
        assert_eq!(word.revoke(3), 3);
        assert_eq!(word.state().waiting(), 2);
        assert_eq!(word.claim(), Some(1));
        assert_eq!(word.revoke(0), 2, "a started task stays started");
        assert_eq!(word.claim(), None);
    }

    #[test]
    fn frozen_queues_start_nothing() {
        let word = QueueWord::new();
        word.publish(1);
        assert!(word.freeze().frozen);
        assert_eq!(word.claim(), None);
        word.thaw();
        assert_eq!(word.claim(), Some(0));
    }

    #[test]
    fn numbers_wrap() {
        let word = QueueWord::new();
        let last = NUMBER_BITS as u32;
        word.0.store(
            QueueState {
                next: last,
                end: last,
                frozen: false,
            }
            .pack(),
            Ordering::Relaxed,
        );
        word.publish(2);
        assert_eq!(word.claim(), Some(last));
        assert_eq!(word.claim(), Some(0));
        assert_eq!(word.claim(), None);
        assert_eq!(QueueWord::distance(last, 1), 2);
    }
}

#[cfg(all(test, manyhands_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32;
    use loom::thread;

    /// Every published task is claimed or revoked, exactly once, and a claim sees its record even
    /// when the place was revoked and written anew.
    #[test]
    fn each_task_is_claimed_or_revoked() {
        loom::model(|| {
            let word = Arc::new(QueueWord::new());
            let records = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
            for record in records.iter() {
                record.store(1, Ordering::Relaxed);
            }
            word.publish(2);
            let worker = {
                let (word, records) = (word.clone(), records.clone());
                thread::spawn(move || {
                    let mut seen = [0, 0];
                    while let Some(number) = word.claim() {
                        seen[number as usize] = records[number as usize].load(Ordering::Relaxed);
                    }
                    seen
                })
            };
            let first = word.revoke(1);
            let taken_back = word.state().end == 1 && first == 1;
            if taken_back {
                // The place of task 1 is the parent's again: another task goes there.
                records[1].store(2, Ordering::Relaxed);
                word.publish(1);
            }
            let seen = worker.join().unwrap();
            let rest = word.claim();
            match (taken_back, seen[1]) {
                (true, 0) => assert!(rest.is_some()),
                (true, value) => assert_eq!(value, 2),
                (false, value) => assert_eq!(value, 1),
            }
        });
    }
}
