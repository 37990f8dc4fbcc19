use super::*;
use crate::Reference;
use std::sync::atomic::Ordering;

const LEN: usize = 100_000;

fn store(budget: u64) -> Arc<Store> {
    Store::new(Some(budget)).unwrap()
}

/// The bytes of a block, as the file has them.
fn content(block: &StoreBlock) -> Vec<u8> {
    let views = Arc::new(Views::new(block.store.window().clone(), std::process::id()));
    let whole = Reference {
        block: block.number(),
        start: 0,
        len: block.len(),
        is_writable: false,
    };
    let view = views.open(whole).unwrap();
    // SAFETY: the view lives, and nobody writes to the block.
    unsafe { std::slice::from_raw_parts(view.ptr().as_ptr(), view.len()) }.to_vec()
}

#[test]
fn memory_is_used_again() {
    let store = store(1 << 26);
    assert_eq!(
        store.stats(),
        StoreStats {
            budget: 1 << 26,
            ..StoreStats::default()
        }
    );
    let block = store.store(&[1; LEN]).unwrap();
    assert!(block.is_cold());
    assert_eq!((block.len(), content(&block)), (LEN, vec![1; LEN]));
    let (offset, live) = (block.offset(), store.stats().live);
    assert!(live >= LEN as u64 && live < LEN as u64 * 9 / 8 + store.page);
    assert_eq!(store.stats().blocks, 1);
    drop(block);
    let free = StoreStats {
        in_flight: 0,
        live: 0,
        warm: live,
        blocks: 0,
        spilled: 0,
        budget: 1 << 26,
    };
    assert_eq!(store.stats(), free);
    let again = store.store(&[2; LEN - 1]).unwrap();
    assert!(
        again.used() == Used::Elsewhere,
        "it was written by descriptor"
    );
    assert_eq!(
        (again.offset(), content(&again)),
        (offset, vec![2; LEN - 1])
    );
}

#[test]
fn a_writer_gets_back_what_it_has_mapped_and_filled() {
    const PAGE: usize = 4096;
    let store = store(1 << 26);
    let take = |len: usize, writer| store.reserve(len, writer).unwrap();
    let used = |len: usize, writer| take(len, writer).used();
    let block = take(100 * PAGE, 7);
    assert!(block.is_cold());
    block.set_laid_open();
    block.set_filled();
    drop(block);
    assert_eq!(used(100 * PAGE, 7), Used::Here);
    assert_eq!(used(98 * PAGE, 7), Used::Here, "a part of it");
    // What stands behind what a writer filled may be anybody's, and what it did not fill as well.
    let block = take(97 * PAGE, 8);
    assert_eq!(block.used(), Used::Elsewhere);
    block.set_filled();
    drop(block);
    assert_eq!(used(97 * PAGE, 8), Used::Here);
    assert_eq!(used(97 * PAGE + 1, 8), Used::Elsewhere);
    assert_eq!(used(97 * PAGE, 9), Used::Elsewhere);
    assert_eq!(used(97 * PAGE, 9), Used::Elsewhere, "it was not filled");
    assert_eq!(used(100 * PAGE, 0), Used::Elsewhere);
    assert_eq!(
        used(100 * PAGE, 0),
        Used::Here,
        "this process fills what it takes"
    );
}

#[test]
fn what_was_written_by_descriptor_is_mapped_by_nobody() {
    let store = store(1 << 26);
    let block = store.reserve(LEN, 7).unwrap();
    block.set_filled();
    drop(block);
    assert_eq!(store.reserve(LEN, 7).unwrap().used(), Used::Elsewhere);
}

#[test]
fn past_the_budget_there_is_no_room() {
    let store = store(1 << 20);
    let half = store.store(&[1; 1 << 19]).unwrap();
    let error = store.reserve((1 << 19) + 1, 0).unwrap_err();
    assert!(matches!(error.shortage, Shortage::Budget));
    assert_eq!(
        error.to_string(),
        "the object store has no room for 524289 bytes: 524288 of its 1048576 bytes are in use"
    );
    let other = store.store(&[2; 1 << 19]).unwrap();
    assert!(store.reserve(1, 0).is_err());
    drop((half, other));
    let whole = store.store(&[3; 1 << 20]).unwrap();
    assert!(!whole.is_cold(), "the two halves were put together");
    assert_eq!(content(&whole), vec![3; 1 << 20]);
}

#[test]
fn free_memory_of_another_shape_makes_room() {
    let store = store(1 << 20);
    let blocks: Vec<_> = (0..4)
        .map(|_| store.store(&[1; 1 << 18]).unwrap())
        .collect();
    // Every other one is free: no two of them touch.
    let kept: Vec<_> = blocks.into_iter().step_by(2).collect();
    let block = store.store(&[2; 1 << 19]).unwrap();
    assert!(block.is_cold(), "their memory was given back");
    assert_eq!(content(&block), vec![2; 1 << 19]);
    assert!(kept.iter().all(|block| content(block) == vec![1; 1 << 18]));
    assert_eq!((store.stats().live, store.stats().warm), (1 << 20, 0));
}

#[test]
fn memory_at_rest_is_given_back() {
    let store = store(1 << 26);
    assert_eq!(store.trim(Duration::ZERO), None);
    let kept = store.store(&[1; LEN]).unwrap();
    let offset = store.store(&[2; LEN]).unwrap().offset();
    let rest = Duration::from_secs(3600);
    let wait = store.trim(rest).unwrap();
    assert!(wait > rest / 2 && wait <= rest);
    assert!(store.stats().warm > 0);
    assert_eq!(store.trim(Duration::ZERO), None);
    assert_eq!((store.stats().warm, content(&kept)), (0, vec![1; LEN]));
    let again = store.reserve(LEN, 0).unwrap();
    assert_eq!((again.offset(), again.is_cold()), (offset, true));
    assert_eq!(content(&again), vec![0; LEN]);
}

#[test]
fn a_write_stays_in_its_block() {
    let store = store(1 << 26);
    let block = store.reserve(LEN, 0).unwrap();
    block.write(LEN - 2, b"ab").unwrap();
    assert!(block.write(LEN - 1, b"ab").is_err());
    assert!(block.write(usize::MAX, b"ab").is_err());
    assert_eq!(content(&block)[LEN - 3..], *b"\0ab");
}

#[test]
fn a_block_whose_write_failed_leaves_no_memory() {
    let store = store(1 << 26);
    let block = store.reserve(LEN, 0).unwrap();
    block.write(0, b"text").unwrap();
    block.is_spoiled.store(true, Ordering::Relaxed);
    drop(block);
    assert_eq!((store.stats().live, store.stats().warm), (0, 0));
    assert!(store.reserve(LEN, 0).unwrap().is_cold());
}

#[test]
fn no_budget_is_larger_than_the_window() {
    let store = store(u64::MAX);
    assert_eq!(store.stats().budget, store.window().len() as u64);
    let half = Store::new(None).unwrap().stats().budget;
    assert!(half > 0 && half <= memory_left());
}

#[test]
fn growing_leaves_memory_to_others() {
    let store = store(1 << 26);
    let left = |pages: u64| pages * store.page;
    let spare = LEAST_SPARE / store.page;
    assert_eq!(store.allowance(left(spare + 10), 11), 10);
    assert_eq!(store.allowance(left(spare), 1), 0);
    assert_eq!(store.allowance(0, 1), 0);
    let plenty = store.allowance(left(1 << 30), 5);
    assert!(plenty > 5 && plenty < (1 << 30) / STEP_PART + 5);
}

#[test]
fn what_travels_in_band_has_to_fit() {
    assert_eq!(memory_in_band(1), Ok(()));
    let left = memory_in_band(usize::MAX).unwrap_err();
    assert!(left > 0);
    assert!(
        memory_in_band(left as usize).is_err(),
        "there would be more than one"
    );
}

#[test]
fn another_process_leaves_the_blocks_alone() {
    let mut store = store(1 << 26);
    Arc::get_mut(&mut store).unwrap().process = 0;
    let block = store.reserve(LEN, 0).unwrap();
    // As if a thread of the parent held it at the fork.
    let held = store.clone();
    let guard = held.lock();
    drop(block);
    assert_eq!(guard.blocks, 1);
    assert!(guard.allocator.live() > 0);
}

#[test]
fn what_is_spilled_is_on_disk_as_long_as_it_lives() {
    let store = store(1 << 20);
    let directory = std::env::temp_dir();
    let page = store.page as usize;
    let blocks: Vec<_> = (1..5)
        .map(|byte| store.spill(&vec![byte; LEN], &directory).unwrap())
        .collect();
    let size = LEN.next_multiple_of(page) as u64;
    assert_eq!(store.stats().spilled, 4 * size);
    assert_eq!((store.stats().live, store.stats().blocks), (0, 4));
    let distinct: std::collections::HashSet<_> =
        blocks.iter().map(|block| block.number()).collect();
    assert_eq!(distinct.len(), 4);
    for (block, byte) in blocks.iter().zip(1..) {
        assert_eq!(content(block), [byte; LEN]);
    }
    let views = Arc::new(Views::new(store.window().clone(), std::process::id()));
    let last = Reference {
        block: blocks[3].number(),
        start: LEN - 1,
        len: 1,
        is_writable: true,
    };
    let tail = views.open(last).unwrap();
    // SAFETY: the last byte of the block, and the rest of its page.
    let rest = unsafe { std::slice::from_raw_parts(tail.ptr().as_ptr(), page - LEN % page + 1) };
    assert_eq!((rest[0], rest[1..].iter().max()), (4, Some(&0)));
    // A view has the file mapped: its bytes stay until the block is dropped.
    let kept = blocks[0].clone();
    drop(blocks);
    assert_eq!(store.stats().spilled, size);
    assert_eq!(content(&kept), [1; LEN]);
    assert_eq!(rest[0], 0, "its space was given back");
    drop(kept);
    assert_eq!((store.stats().spilled, store.stats().blocks), (0, 0));
}

#[test]
fn no_room_on_disk() {
    let store = store(1 << 20);
    let error = store.spill(&[1; LEN], Path::new("/nowhere")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(
            "no file in /nowhere has room for 100000 bytes, 0 bytes are in such files"
        ),
        "{text}"
    );
    assert_eq!((store.stats().spilled, store.stats().blocks), (0, 0));
}

#[test]
fn numbers_of_blocks_on_disk_are_no_offsets() {
    for (descriptor, page) in [
        (0, 0),
        (7, 5),
        (i32::MAX.cast_unsigned(), u64::from(u32::MAX)),
    ] {
        assert_eq!(
            spill::place(spill::number(descriptor, page)),
            Some((descriptor, page))
        );
    }
    assert_eq!(spill::place(LARGEST_WINDOW), None);
}

#[test]
fn threads_share_a_store() {
    let store = store(1 << 22);
    let sizes = [70_000, 100_000, 300_000, 900_000];
    std::thread::scope(|scope| {
        for writer in 0..4_u8 {
            let store = &store;
            scope.spawn(move || {
                let mut kept = Vec::new();
                let mut stored = 0;
                for round in 0..200 {
                    let byte = writer * 50 + round as u8 % 50;
                    if let Ok(block) = store.store(&vec![byte; sizes[round % 4]]) {
                        kept.push((block, byte));
                        stored += 1;
                    }
                    if kept.len() == 3 || round % 7 == 0 {
                        for (block, byte) in kept.drain(..) {
                            assert!(content(&block).iter().all(|&found| found == byte));
                        }
                    }
                }
                assert!(stored > 0);
            });
        }
    });
    let stats = store.stats();
    assert_eq!((stats.live, stats.blocks), (0, 0));
    assert!(stats.warm <= stats.budget);
}

/// `cargo test --release -p manyhands-runtime -- --ignored --nocapture cost_of_a_block`
#[test]
#[ignore = "a measurement"]
fn cost_of_a_block() {
    let store = store(1 << 28);
    let bytes = vec![1; 32_000_000];
    for round in ["cold", "second", "third", "fourth"] {
        let start = manyhands_os::monotonic_nanos();
        let block = store.store(&bytes).unwrap();
        let took = manyhands_os::monotonic_nanos() - start;
        drop(block);
        println!("32 MB, {round}: {} us", took / 1000);
    }
    const ROUNDS: u64 = 1_000_000;
    let kept: Vec<_> = (0..500)
        .map(|at| store.reserve(70_000 + at * 100, 0))
        .collect();
    let start = manyhands_os::monotonic_nanos();
    for _ in 0..ROUNDS {
        drop(store.reserve(LEN, 0).unwrap());
    }
    let took = manyhands_os::monotonic_nanos() - start;
    println!(
        "reserve and free: {} ns, {} blocks live",
        took / ROUNDS,
        kept.len()
    );
    let start = manyhands_os::monotonic_nanos();
    (0..1000).for_each(|_| assert!(memory_left() > 0));
    let took = manyhands_os::monotonic_nanos() - start;
    println!("memory_left: {} us", took / 1_000_000);
}
