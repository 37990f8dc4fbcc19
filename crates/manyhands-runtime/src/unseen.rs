//! Failures that nobody looked at: counted, with an example, so that a pool can say so at its end.
//!
//! Whoever takes the second of two steps counts: the task fails, and the last handle to it is dropped by
//! somebody who never asked. Tasks that succeed take neither.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const FAILED: u8 = 1;
const DROPPED: u8 = 2;
const SEEN: u8 = 4;

/// Whether a task has failed, and whether anybody looked.
#[derive(Debug, Default)]
pub struct Fate(AtomicU8);

/// The failures of a pool, and examples `T` of those that nobody can look at any more.
#[derive(Debug)]
pub struct Unseen<T>(Mutex<Counts<T>>);

#[derive(Debug)]
struct Counts<T> {
    failed: u64,
    seen: u64,
    /// Of those that failed and were not seen: whose handles were dropped.
    dropped: u64,
    /// What was told of.
    told: u64,
    example: Option<T>,
}

impl<T> Default for Unseen<T> {
    fn default() -> Self {
        Self(Mutex::new(Counts {
            failed: 0,
            seen: 0,
            dropped: 0,
            told: 0,
            example: None,
        }))
    }
}

impl<T> Unseen<T> {
    fn counts(&self) -> MutexGuard<'_, Counts<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task has failed.
    pub fn failed(&self, fate: &Fate, example: impl FnOnce() -> T) {
        // AcqRel: the second of the two sees what the first did.
        let before = fate.0.fetch_or(FAILED, Ordering::AcqRel);
        self.counts().failed += 1;
        if before & DROPPED != 0 {
            self.drop_one(example);
        }
    }

    /// Nobody can look at a task any more.
    pub fn dropped(&self, fate: &Fate, example: impl FnOnce() -> T) {
        let before = fate.0.fetch_or(DROPPED, Ordering::AcqRel);
        if before & FAILED != 0 && before & SEEN == 0 {
            self.drop_one(example);
        }
    }

    fn drop_one(&self, example: impl FnOnce() -> T) {
        let mut counts = self.counts();
        counts.dropped += 1;
        let is_first = counts.example.is_none();
        drop(counts);
        if is_first {
            // Without the lock: it may take its time.
            let example = example();
            self.counts().example.get_or_insert(example);
        }
    }

    /// Somebody looks at a task that has failed.
    pub fn seen(&self, fate: &Fate) {
        if fate.0.fetch_or(SEEN, Ordering::AcqRel) & SEEN == 0 {
            self.counts().seen += 1;
        }
    }

    /// How many failures nobody looked at, and an example, each told of once. With `all` those that somebody
    /// still might look at are among them.
    pub fn take(&self, all: bool) -> (u64, Option<T>) {
        let mut counts = self.counts();
        let unseen = if all {
            counts.failed.saturating_sub(counts.seen)
        } else {
            counts.dropped
        };
        let count = unseen.saturating_sub(counts.told);
        counts.told += count;
        let example = (count > 0).then(|| counts.example.take());
        (count, example.flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_second_counts() {
        let unseen = Unseen::default();
        let [early, late, kept, seen] = std::array::from_fn(|_| Fate::default());
        unseen.dropped(&early, || 1);
        assert_eq!(unseen.take(false), (0, None), "it has not failed");
        unseen.failed(&early, || 2);
        unseen.failed(&late, || 3);
        unseen.dropped(&late, || 4);
        unseen.failed(&kept, || 5);
        unseen.failed(&seen, || 6);
        unseen.seen(&seen);
        unseen.seen(&seen);
        unseen.dropped(&seen, || 7);
        assert_eq!(unseen.take(false), (2, Some(2)));
        assert_eq!(unseen.take(false), (0, None), "once");
        assert_eq!(unseen.take(true), (1, None), "the one that is kept");
        assert_eq!(unseen.take(true), (0, None));
        unseen.dropped(&kept, || 8);
        assert_eq!(unseen.take(true), (0, None), "it was told of");
        unseen.dropped(&Fate::default(), || 9);
        assert_eq!(unseen.take(true), (0, None), "it never fails");
    }
}
