//! Bytes from one writer to one reader.
//!
//! Two positions that only grow: `tail`, where the writer is, and `head`, where the reader is. The
//! bytes between are the reader's, all others the writer's. *Publish*: the writer fills bytes after
//! `tail`, then moves `tail` (Release; the reader's Acquire). *Consume*: the reader is done with
//! bytes, then moves `head` (Release; the writer's Acquire). A writer that is killed before it
//! publishes leaves nothing behind; every published record is whole.
//!
//! The area is mapped twice in a row, so that a record never wraps.

use crate::sync::{AtomicU64, Ordering};
use std::ptr::NonNull;

/// The shared positions of a ring, each on its own cache line.
#[derive(Debug)]
#[repr(C)]
pub struct RingPositions {
    tail: Line,
    head: Line,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Line(AtomicU64);

impl RingPositions {
    #[cfg(test)]
    fn new() -> Self {
        Self {
            tail: Line(AtomicU64::new(0)),
            head: Line(AtomicU64::new(0)),
        }
    }

    /// Whether something is published that the reader has not consumed. Either side may ask; the
    /// caller orders the question (see `park`).
    #[inline]
    pub fn has_unread(&self, consumed: u64) -> bool {
        self.tail.0.load(Ordering::Acquire) != consumed
    }

    /// Writer: makes everything before `tail` visible.
    #[inline]
    fn publish(&self, tail: u64) {
        self.tail.0.store(tail, Ordering::Release);
    }

    #[inline]
    fn published(&self) -> u64 {
        self.tail.0.load(Ordering::Acquire)
    }

    /// Reader: gives everything before `head` back.
    #[inline]
    fn consume(&self, head: u64) {
        self.head.0.store(head, Ordering::Release);
    }

    #[inline]
    fn consumed(&self) -> u64 {
        self.head.0.load(Ordering::Acquire)
    }
}

/// An area of shared memory as one of its two users sees it.
#[derive(Debug, Clone, Copy)]
struct Area {
    start: NonNull<u8>,
    size: u64,
}

impl Area {
    fn at(&self, position: u64) -> *mut u8 {
        let offset = (position & (self.size - 1)) as usize;
        // SAFETY: the offset is below the size of the area, which is mapped twice from `start`.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

/// The writing side; there is one per ring.
#[derive(Debug)]
pub struct RingWriter {
    area: Area,
    positions: NonNull<RingPositions>,
    tail: u64,
    /// `head` as last read: the true one is never before it.
    known_head: u64,
}

// SAFETY: the pointers are to a shared mapping whose owner the holder keeps; one writer exists.
unsafe impl Send for RingWriter {}

impl RingWriter {
    /// # Safety
    /// `start` is valid for twice `size` bytes, mapped twice in a row, and `positions` for its
    /// type, as long as the writer lives; `size` is a power of two; no other writer exists.
    pub unsafe fn new(start: NonNull<u8>, size: usize, positions: NonNull<RingPositions>) -> Self {
        debug_assert!(size.is_power_of_two());
        let area = Area {
            start,
            size: size as u64,
        };
        Self {
            area,
            positions,
            tail: 0,
            known_head: 0,
        }
    }

    fn positions(&self) -> &RingPositions {
        // SAFETY: valid by the contract of `new`.
        unsafe { self.positions.as_ref() }
    }

    /// Room for one record of `len` bytes, if there is any now.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        let size = self.area.size;
        if self.tail + len as u64 - self.known_head > size {
            // A position from the other process: one that makes no sense is held to the last
            // sensible one, which leaves the ring full and not broken.
            let head = self.positions().consumed();
            if head >= self.known_head && head <= self.tail {
                self.known_head = head;
            }
            if self.tail + len as u64 - self.known_head > size {
                return None;
            }
        }
        // SAFETY: the bytes from `tail` on, up to a full ring after `head`, are the writer's.
        Some(unsafe { std::slice::from_raw_parts_mut(self.area.at(self.tail), len) })
    }

    /// Publishes `len` bytes that were reserved and filled.
    #[inline]
    pub fn publish(&mut self, len: usize) {
        self.tail += len as u64;
        self.positions().publish(self.tail);
    }

    /// Whether more than half of the ring waits for the reader.
    #[inline]
    pub fn is_half_full(&mut self) -> bool {
        if self.tail - self.known_head > self.area.size / 2 {
            let head = self.positions().consumed();
            if head >= self.known_head && head <= self.tail {
                self.known_head = head;
            }
        }
        self.tail - self.known_head > self.area.size / 2
    }

    /// Whether the reader has consumed everything.
    pub fn is_drained(&self) -> bool {
        self.positions().consumed() == self.tail
    }
}

/// The reading side; there is one per ring.
#[derive(Debug)]
pub struct RingReader {
    area: Area,
    positions: NonNull<RingPositions>,
    head: u64,
}

// SAFETY: as for the writer.
unsafe impl Send for RingReader {}

impl RingReader {
    /// # Safety
    /// As for `RingWriter::new`; no other reader exists.
    pub unsafe fn new(start: NonNull<u8>, size: usize, positions: NonNull<RingPositions>) -> Self {
        debug_assert!(size.is_power_of_two());
        Self {
            area: Area {
                start,
                size: size as u64,
            },
            positions,
            head: 0,
        }
    }

    fn positions(&self) -> &RingPositions {
        // SAFETY: valid by the contract of `new`.
        unsafe { self.positions.as_ref() }
    }

    /// Whether there is something to read.
    #[inline]
    pub fn has_unread(&self) -> bool {
        self.positions().has_unread(self.head)
    }

    /// What is published and not consumed; none if the writer's position makes no sense.
    #[inline]
    pub fn unread(&self) -> Option<&[u8]> {
        let tail = self.positions().published();
        let len = tail
            .checked_sub(self.head)
            .filter(|&len| len <= self.area.size)?;
        // SAFETY: the bytes between `head` and `tail` are the reader's.
        Some(unsafe { std::slice::from_raw_parts(self.area.at(self.head), len as usize) })
    }

    /// How many bytes were consumed so far.
    pub fn consumed(&self) -> u64 {
        self.head
    }

    /// Is done with the first `len` bytes of `unread`.
    #[inline]
    pub fn consume(&mut self, len: usize) {
        self.head += len as u64;
        self.positions().consume(self.head);
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;
    use manyhands_os::{MemoryFile, Segment};

    const PAGE: usize = 4096;

    fn with_ring(check: impl FnOnce(RingWriter, RingReader)) {
        let file = MemoryFile::new(c"ring", PAGE).unwrap();
        let segment = Segment::new(&file, 0, &[PAGE]).unwrap();
        let positions = RingPositions::new();
        let shared = NonNull::from(&positions);
        // SAFETY: one writer and one reader of memory that outlives both.
        let ends = unsafe {
            let writer = RingWriter::new(segment.start(), PAGE, shared);
            (writer, RingReader::new(segment.start(), PAGE, shared))
        };
        check(ends.0, ends.1);
    }

    #[test]
    fn bytes_arrive_across_the_wrap() {
        with_ring(|mut writer, mut reader| {
            for round in 0..100_u8 {
                let len = 1000 + usize::from(round);
                writer.reserve(len).unwrap().fill(round);
                assert_eq!(
                    reader.unread().unwrap().len(),
                    0,
                    "not before it is published"
                );
                writer.publish(len);
                assert!(reader.has_unread());
                assert!(reader.unread().unwrap().iter().all(|&byte| byte == round));
                assert_eq!(reader.unread().unwrap().len(), len);
                reader.consume(len);
            }
            assert!(writer.is_drained());
        });
    }

    #[test]
    fn a_full_ring_takes_nothing() {
        with_ring(|mut writer, mut reader| {
            assert!(writer.reserve(PAGE + 1).is_none());
            writer.reserve(PAGE).unwrap().fill(7);
            writer.publish(PAGE);
            assert!(writer.is_half_full());
            assert!(writer.reserve(1).is_none());
            reader.consume(1);
            assert!(writer.reserve(1).is_some());
        });
    }

    #[test]
    fn senseless_positions_break_nothing() {
        with_ring(|mut writer, mut reader| {
            writer.positions().publish(u64::MAX);
            assert!(reader.unread().is_none());
            writer.positions().consume(u64::MAX - 5);
            assert!(writer.reserve(PAGE).is_some());
            writer.publish(PAGE);
            assert!(writer.reserve(1).is_none());
            reader.consume(0);
        });
    }
}

#[cfg(all(test, manyhands_loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    const SLOTS: u64 = 2;

    struct Shared {
        positions: RingPositions,
        slots: [UnsafeCell<u64>; SLOTS as usize],
    }

    // SAFETY: the positions say whose each slot is, which is what the model checks.
    unsafe impl Sync for Shared {}
    // SAFETY: as above.
    unsafe impl Send for Shared {}

    /// Writer and reader never touch a slot at the same time, and all values arrive in order.
    #[test]
    fn slots_have_one_owner() {
        loom::model(|| {
            let shared = Arc::new(Shared {
                positions: RingPositions::new(),
                slots: [UnsafeCell::new(0), UnsafeCell::new(0)],
            });
            let writer = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let mut tail = 0;
                    while tail < 3 {
                        if tail - shared.positions.consumed() == SLOTS {
                            thread::yield_now();
                            continue;
                        }
                        // SAFETY: the slot is the writer's while the ring is not full.
                        shared.slots[(tail % SLOTS) as usize]
                            .with_mut(|slot| unsafe { *slot = tail + 10 });
                        tail += 1;
                        shared.positions.publish(tail);
                    }
                })
            };
            let mut head = 0;
            while head < 3 {
                if shared.positions.published() == head {
                    thread::yield_now();
                    continue;
                }
                // SAFETY: the slot is published, so it is the reader's.
                let value = shared.slots[(head % SLOTS) as usize].with(|slot| unsafe { *slot });
                assert_eq!(value, head + 10);
                head += 1;
                shared.positions.consume(head);
            }
            writer.join().unwrap();
        });
    }
}
