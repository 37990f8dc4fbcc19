//! A model of blocks: records of several items over one queue word.
//!
//! The rules are those of `manyhands-runtime` (`worker.rs`, `pool/publishing.rs`, `pool/results.rs`), the
//! queue word is the real one. Two records stand in an area that has room for no more:
//!
//! - (B1) The parent publishes a block of three items. It revokes from a number on, lowers the block's
//!   count to what stays, and only then publishes a record behind it.
//! - (B2) The worker claims a number and then reads the count of the block that is open: a number within
//!   it is an item of the block, any other is the first of the next record.
//! - (B3) The parent writes to a record's bytes again when the first result of a later record has come,
//!   because until then the worker may look at the count once more.

use crate::queue_word::QueueWord;
use crate::sync::{AtomicU32, Ordering};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

const ITEMS: u32 = 3;

/// A record of the area.
struct Record {
    /// How many items it has: written anew with the record, lowered by a cut.
    count: AtomicU32,
    /// Its items' bytes. Whoever reads or lowers the count reads these, too, as far as the model is
    /// concerned: a record that is written while somebody looks at any part of it is an error.
    items: UnsafeCell<[u32; ITEMS as usize]>,
}

struct Shared {
    word: QueueWord,
    records: [Record; 2],
    /// How many results the worker has published.
    results: AtomicU32,
}

// SAFETY: the queue word and the results say whose each record is, which is what the model checks.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> Self {
        let record = || Record {
            count: AtomicU32::new(0),
            items: UnsafeCell::new([0; ITEMS as usize]),
        };
        Self {
            word: QueueWord::new(),
            records: [record(), record()],
            results: AtomicU32::new(0),
        }
    }

    /// Parent: writes a record over whatever stood there, and publishes its items.
    fn publish(&self, place: usize, items: &[u32]) {
        let record = &self.records[place];
        record.items.with_mut(|bytes| {
            // SAFETY: nobody looks at the record, or loom says so.
            let bytes = unsafe { &mut *bytes };
            bytes[..items.len()].copy_from_slice(items);
        });
        let count = items.len() as u32;
        // Relaxed: published with the queue word, as the bytes are.
        record.count.store(count, Ordering::Relaxed);
        self.word.publish(count);
    }

    /// Parent, B1: the block keeps so many items.
    fn lower(&self, place: usize, count: u32) {
        self.records[place].count.store(count, Ordering::Relaxed);
    }

    /// Worker: the item of that index.
    fn item(&self, place: usize, index: u32) -> u32 {
        // SAFETY: the record is not written meanwhile, or loom says so.
        self.records[place]
            .items
            .with(|items| unsafe { (*items)[index as usize] })
    }

    /// Worker, B2: how many items the open block has.
    fn count(&self, place: usize) -> u32 {
        let record = &self.records[place];
        record
            .items
            .with(|_bytes| record.count.load(Ordering::Relaxed))
    }

    /// Worker: claims and runs items until it meets `last`; gives which item it ran for each number.
    fn run(&self, last: u32) -> Vec<u32> {
        self.go_on(Vec::new(), None, last)
    }

    /// Worker: as `run`, when the first item has been claimed.
    fn run_claimed(&self, last: u32) -> Vec<u32> {
        let seen = vec![self.item(0, 0)];
        self.results.fetch_add(1, Ordering::Release);
        self.go_on(seen, Some((0, 0)), last)
    }

    /// Worker: the rest of `run`, with place and first number of the block that is open.
    fn go_on(&self, mut seen: Vec<u32>, mut open: Option<(usize, u32)>, last: u32) -> Vec<u32> {
        loop {
            let Some(number) = self.word.claim() else {
                thread::yield_now();
                continue;
            };
            assert_eq!(number as usize, seen.len());
            let item = match open {
                Some((place, first)) if number - first < self.count(place) => {
                    self.item(place, number - first)
                }
                _ => {
                    let place = open.map_or(0, |(place, _)| (place + 1) % 2);
                    open = Some((place, number));
                    self.item(place, 0)
                }
            };
            seen.push(item);
            // Release, as the tail of the result ring.
            self.results.fetch_add(1, Ordering::Release);
            if item == last {
                return seen;
            }
        }
    }

    /// Parent: waits until so many results have come.
    fn wait_for_results(&self, count: u32) {
        while self.results.load(Ordering::Acquire) < count {
            thread::yield_now();
        }
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// An area with a block at its front.
fn block_published() -> Arc<Shared> {
    let shared = Arc::new(Shared::new());
    shared.publish(0, &[10, 11, 12]);
    shared
}

fn start_worker(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Vec<u32> + 'static,
) -> JoinHandle<Vec<u32>> {
    let shared = shared.clone();
    thread::spawn(move || work(&shared))
}

/// What runs when so many items stay in the block, and these come behind it.
fn kept(count: u32, behind: &[u32]) -> Vec<u32> {
    (10..10 + count).chain(behind.iter().copied()).collect()
}

/// A block is cut while its worker is anywhere in it or before it, and another record goes behind: each
/// number is the item that the parent means by it.
#[test]
fn each_number_is_one_item() {
    check(|| {
        let shared = block_published();
        let worker = start_worker(&shared, |shared| shared.run(21));
        let end = shared.word.revoke(1);
        if end == 0 {
            // Nothing has started: the whole record is the parent's again.
            shared.publish(0, &[20, 21]);
        } else {
            if end < ITEMS {
                shared.lower(0, end);
            }
            shared.publish(1, &[20, 21]);
        }
        assert_eq!(worker.join().unwrap(), kept(end, &[20, 21]));
    });
}

/// A block is cut twice before anything goes behind it.
#[test]
fn a_block_is_cut_twice() {
    check(|| {
        let shared = block_published();
        // The first item has started, so that its record stays.
        assert_eq!(shared.word.claim(), Some(0));
        let worker = start_worker(&shared, |shared| {
            // As `run_claimed`, until there is nothing to claim.
            let mut seen = vec![shared.item(0, 0)];
            while let Some(number) = shared.word.claim() {
                let inside = number < shared.count(0);
                let place = usize::from(!inside);
                seen.push(shared.item(place, if inside { number } else { 0 }));
            }
            seen
        });
        let first = shared.word.revoke(2);
        shared.lower(0, first);
        let end = shared.word.revoke(1);
        shared.lower(0, end);
        shared.publish(1, &[20]);
        let mut seen = worker.join().unwrap();
        if let Some(number) = shared.word.claim() {
            assert_eq!(number, end);
            seen.push(20);
        }
        assert_eq!(seen, kept(end, &[20]));
    });
}

/// The bytes of a block are written anew once the first result of a later record has come.
#[test]
fn bytes_are_used_again_when_nobody_looks() {
    check(|| {
        let shared = Arc::new(Shared::new());
        shared.publish(0, &[10, 11]);
        shared.publish(1, &[20]);
        let worker = start_worker(&shared, |shared| shared.run(30));
        // B3: all of the first record, and one of the second.
        shared.wait_for_results(3);
        shared.publish(0, &[30]);
        assert_eq!(worker.join().unwrap(), [10, 11, 20, 30]);
    });
}

/// Both: what was cut off goes behind, and what comes behind that stands where the block stood.
#[test]
fn a_block_that_was_cut_makes_room() {
    check(|| {
        let shared = block_published();
        assert_eq!(shared.word.claim(), Some(0));
        let worker = start_worker(&shared, |shared| shared.run_claimed(30));
        let end = shared.word.revoke(1);
        if end < ITEMS {
            shared.lower(0, end);
        }
        shared.publish(1, &[20]);
        shared.wait_for_results(end + 1);
        shared.publish(0, &[30]);
        assert_eq!(worker.join().unwrap(), kept(end, &[20, 30]));
    });
}
