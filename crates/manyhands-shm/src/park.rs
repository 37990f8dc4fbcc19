//! Sleeping without missing what the other side publishes.
//!
//! A word with one sleeper and any number of wakers:
//!
//! | value | state  | meaning                                                        |
//! |-------|--------|----------------------------------------------------------------|
//! | 0     | awake  | the sleeper looks at everything published before it sleeps     |
//! | 1     | futex  | it sleeps, or is about to, on this very word                   |
//! | 2     | event  | it sleeps on an event descriptor                               |
//!
//! *Sleeper*: (S1) writes 1 or 2, (S2) fence, (S3) looks once more at what others publish; finding
//! something it writes 0 and goes on; else (S4) waits until the word changes or the event fires,
//! (S5) writes 0.
//! *Waker*: (W1) publishes, (W2) fence, (W3) reads the word; unless it is 0, (W4) swaps 0 in, and
//! whoever swapped out 1 or 2 wakes, so that one sleep costs one wake however many publish.
//!
//! Nothing is lost: the two fences are totally ordered. If W2 is before S2, the look at S3 sees what
//! was published at W1. If S2 is before W2, the read at W3 sees the sleeper's mark. A waker killed
//! between W4 and the wake itself loses a wake, so sleepers wait for a bounded time, and the death
//! of a worker wakes its parent by other means.

use crate::sync::{AtomicU32, Ordering, fence};

const AWAKE: u32 = 0;
const FUTEX: u32 = 1;
const EVENT: u32 = 2;

/// How a sleeper wants to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parked {
    /// By a futex wake of the word.
    Futex,
    /// By its event descriptor.
    Event,
}

/// The shared word; zero is awake.
#[derive(Debug)]
#[repr(transparent)]
pub struct ParkWord(AtomicU32);

impl ParkWord {
    /// A word whose owner is awake.
    #[cfg(test)]
    #[expect(
        clippy::new_without_default,
        reason = "loom's atomics have no const default"
    )]
    pub fn new() -> Self {
        Self(AtomicU32::new(AWAKE))
    }

    /// Sleeper, S1 and S2: announces that it is about to sleep. Look again before sleeping.
    #[inline]
    pub fn announce(&self, how: Parked) {
        let state = match how {
            Parked::Futex => FUTEX,
            Parked::Event => EVENT,
        };
        // Relaxed: the fence orders it against the look that follows.
        self.0.store(state, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeper, S3 and S5: is awake.
    #[inline]
    pub fn awake(&self) {
        // Relaxed: it takes back the sleeper's own mark; wakers that still see the mark wake once
        // too often, which is harmless.
        self.0.store(AWAKE, Ordering::Relaxed);
    }

    /// Waker, W2 to W4, after publishing: who has to be woken, if anybody.
    #[inline]
    #[must_use]
    pub fn take_sleeper(&self) -> Option<Parked> {
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        if self.0.load(Ordering::Relaxed) == AWAKE {
            return None;
        }
        // Relaxed: only one swap gets the mark; what was published travels by its own Release.
        match self.0.swap(AWAKE, Ordering::Relaxed) {
            FUTEX => Some(Parked::Futex),
            EVENT => Some(Parked::Event),
            _ => None,
        }
    }

    /// Whether the sleeper's mark is set.
    #[inline]
    pub fn is_parked(&self) -> bool {
        // Relaxed: a hint; whoever acts on it goes through `take_sleeper`.
        self.0.load(Ordering::Relaxed) != AWAKE
    }

    /// Sleeper, S4: waits while its mark of a futex sleep stands.
    #[cfg(not(manyhands_loom))]
    pub fn sleep(&self, limit: Option<std::time::Duration>) -> manyhands_os::Waited {
        manyhands_os::futex_wait(&self.0, FUTEX, limit)
    }

    /// Sleeper, without a mark: lets time pass; wakers leave it alone.
    #[cfg(not(manyhands_loom))]
    pub fn nap(&self, time: std::time::Duration) -> manyhands_os::Waited {
        manyhands_os::futex_wait(&self.0, AWAKE, Some(time))
    }

    /// Waker: ends the sleep of `Parked::Futex`.
    #[cfg(not(manyhands_loom))]
    pub fn wake(&self) {
        manyhands_os::futex_wake(&self.0, 1);
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_sleep_costs_one_wake() {
        let word = ParkWord::new();
        assert_eq!(word.take_sleeper(), None);
        word.announce(Parked::Event);
        assert_eq!(word.take_sleeper(), Some(Parked::Event));
        assert_eq!(word.take_sleeper(), None);
    }

    #[test]
    fn a_sleep_ends_with_its_mark() {
        let word = ParkWord::new();
        word.announce(Parked::Futex);
        assert_eq!(
            word.sleep(Some(Duration::from_millis(1))),
            manyhands_os::Waited::TimedOut
        );
        assert_eq!(word.take_sleeper(), Some(Parked::Futex));
        assert_eq!(
            word.sleep(None),
            manyhands_os::Waited::Woken,
            "the mark is gone"
        );
    }
}

#[cfg(all(test, manyhands_loom))]
pub(crate) mod loom_tests {
    use super::*;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// A futex as a lock and a condition: the comparison and the sleep are one step.
    pub(crate) struct Futex {
        pub(crate) word: ParkWord,
        lock: Mutex<()>,
        changed: Condvar,
    }

    impl Futex {
        pub(crate) fn new() -> Self {
            Self {
                word: ParkWord::new(),
                lock: Mutex::new(()),
                changed: Condvar::new(),
            }
        }

        pub(crate) fn sleep(&self) {
            let mut guard = self.lock.lock().unwrap();
            while self.word.0.load(Ordering::Relaxed) == FUTEX {
                guard = self.changed.wait(guard).unwrap();
            }
        }

        /// As who has published does: wakes who sleeps.
        pub(crate) fn tell(&self) {
            if self.word.take_sleeper().is_some() {
                self.wake();
            }
        }

        fn wake(&self) {
            let _guard = self.lock.lock().unwrap();
            self.changed.notify_all();
        }
    }

    /// A sleeper that announces itself never sleeps through a publish: with a lost wake-up the
    /// model would deadlock, which loom reports.
    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            let futex = Arc::new(Futex::new());
            let published = Arc::new(AtomicU32::new(0));
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let (futex, published) = (futex.clone(), published.clone());
                    thread::spawn(move || {
                        published.fetch_add(1, Ordering::Release);
                        futex.tell();
                    })
                })
                .collect();
            while published.load(Ordering::Acquire) < 2 {
                futex.word.announce(Parked::Futex);
                if published.load(Ordering::Acquire) == 2 {
                    futex.word.awake();
                    break;
                }
                futex.sleep();
                futex.word.awake();
            }
            for waker in wakers {
                waker.join().unwrap();
            }
        });
    }
}
