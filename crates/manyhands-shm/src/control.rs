//! The control block of one worker: its queue word, its park word, and two rings.
//!
//! | offset            | size        | what                                  | writer          |
//! |-------------------|-------------|---------------------------------------|-----------------|
//! | 0                 | 8           | magic, version                        | parent, once    |
//! | 8                 | 4           | pid                                   | worker, once    |
//! | 64                | 64          | queue word (`queue_word`)             | both, by CAS    |
//! | 128               | 64          | park word of the worker (`park`)      | both            |
//! | 192               | 128         | positions of the result ring (`ring`) | each its own    |
//! | 320               | 64          | the running task, or that it waits    | worker          |
//! | 384               | 64          | the item that nobody wants            | parent          |
//! | 448               | 64          | who asks for its stack (`dump_words`) | both            |
//! | 512               | 64          | room for a result (`grant_word`)      | both            |
//! | 4096              | `TASK_AREA` | task records                          | parent          |
//! | after that        | `RESULT_AREA` | result records                      | worker          |
//! | after that        | `DUMP_AREA` | text of its stack, not mapped         | worker          |
//!
//! The task area has no positions of its own: the queue word numbers the records, which follow one
//! another, and the parent reuses a record's bytes when its result has come or it was revoked.

use crate::dump_words::DumpWords;
use crate::grant_word::GrantWord;
use crate::park::ParkWord;
use crate::queue_word::QueueWord;
use crate::ring::{RingPositions, RingReader, RingWriter};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use manyhands_os::{MemoryFile, Segment};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// Bytes for task records.
pub const TASK_AREA: usize = 256 * 1024;
/// Bytes for result records.
pub const RESULT_AREA: usize = 512 * 1024;

/// The most bytes of a stack's text. They take memory only once there was one, and what it needed.
pub const DUMP_AREA: usize = 256 * 1024;

const HEADER: usize = 4096;
const MAPPED: usize = HEADER + TASK_AREA + RESULT_AREA;
const MAGIC: u32 = 0x6d68_6332;
const VERSION: u32 = 6;

#[repr(C)]
struct Layout {
    magic: AtomicU32,
    version: AtomicU32,
    pid: AtomicU32,
    _reserved: [u32; 13],
    queue: QueueLine,
    worker: ParkLine,
    results: RingPositions,
    running: RunningLine,
    unwanted: UnwantedLine,
    dump: DumpLine,
    grant: GrantLine,
}

#[repr(C, align(64))]
struct QueueLine(QueueWord);

#[repr(C, align(64))]
struct ParkLine(ParkWord);

#[repr(C, align(64))]
struct RunningLine {
    start: AtomicU64,
    number: AtomicU64,
    waits: AtomicU32,
    memory: AtomicU64,
    memory_number: AtomicU64,
    transfer: AtomicU64,
}

#[repr(C, align(64))]
struct UnwantedLine(AtomicU64);

#[repr(C, align(64))]
struct DumpLine(DumpWords);

#[repr(C, align(64))]
struct GrantLine(GrantWord);

/// In the words of the running and of the unwanted item: whether there is one.
const IS_THERE: u64 = 1 << 32;
/// In that of the unwanted: why.
const NO_ROOM: u64 = 1 << 33;
const STOPPED: u64 = 1 << 34;

/// Why nobody wants what an item yields, or what it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    /// Its consumer wants no more.
    Dropped,
    /// Its consumer may come back, and there is no room for so much until then.
    NoRoom,
    /// It is to end: its time is up, or it was cancelled.
    Stopped,
}

/// The mapped block.
#[derive(Debug)]
pub struct ControlBlock {
    file: MemoryFile,
    segment: Segment,
}

impl ControlBlock {
    /// Makes the block; the parent's side.
    pub fn create() -> io::Result<Self> {
        let file = MemoryFile::with_room(c"manyhands-control", MAPPED, DUMP_AREA)?;
        let block = Self::map(file)?;
        // Relaxed: the block travels to the worker by a system call.
        block.layout().magic.store(MAGIC, Ordering::Relaxed);
        block.layout().version.store(VERSION, Ordering::Relaxed);
        Ok(block)
    }

    /// Opens the block that the parent made; the worker's side.
    pub fn open(descriptor: OwnedFd) -> io::Result<Self> {
        let block = Self::map(MemoryFile::from_descriptor(descriptor)?)?;
        let layout = block.layout();
        let seen = (
            layout.magic.load(Ordering::Relaxed),
            layout.version.load(Ordering::Relaxed),
        );
        if seen != (MAGIC, VERSION) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the parent speaks another version of the protocol",
            ));
        }
        Ok(block)
    }

    fn map(file: MemoryFile) -> io::Result<Self> {
        let segment = Segment::new(&file, HEADER, &[TASK_AREA, RESULT_AREA])?;
        Ok(Self { file, segment })
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is page-aligned, larger than the layout, and holds atomics alone.
        unsafe { self.segment.start().cast::<Layout>().as_ref() }
    }

    /// Which tasks the worker may start.
    #[inline]
    pub fn queue(&self) -> &QueueWord {
        &self.layout().queue.0
    }

    /// The word on which the worker sleeps.
    #[inline]
    pub fn worker(&self) -> &ParkWord {
        &self.layout().worker.0
    }

    /// The worker's process id, 0 before it has started; a hint for people.
    pub fn pid(&self) -> u32 {
        // Relaxed: shown, never acted on.
        self.layout().pid.load(Ordering::Relaxed)
    }

    /// Worker: notes its process id.
    pub fn set_pid(&self, pid: u32) {
        self.layout().pid.store(pid, Ordering::Relaxed);
    }

    /// When the running task started, in nanoseconds of the monotonic clock; a hint for people.
    #[inline]
    pub fn started_at(&self) -> u64 {
        // Relaxed: shown, never acted on.
        self.layout().running.start.load(Ordering::Relaxed)
    }

    /// Worker: notes when a task started.
    #[inline]
    pub fn set_started_at(&self, nanos: u64) {
        self.layout().running.start.store(nanos, Ordering::Relaxed);
    }

    /// Worker: notes which item runs, and since when.
    #[inline]
    pub fn set_running(&self, number: u32, nanos: u64) {
        let running = &self.layout().running;
        running.start.store(nanos, Ordering::Relaxed);
        // Release: who sees the number sees a start that is not earlier.
        let word = IS_THERE | u64::from(number);
        running.number.store(word, Ordering::Release);
    }

    /// Parent: since when the item of this number runs, if the worker has noted it. If it has noted a later
    /// one meanwhile, the time is later too: nobody seems to run for longer than he does.
    pub fn running_since(&self, number: u32) -> Option<u64> {
        let running = &self.layout().running;
        let word = running.number.load(Ordering::Acquire);
        (word == IS_THERE | u64::from(number)).then(|| running.start.load(Ordering::Relaxed))
    }

    /// Worker: notes how much private memory it had when the item of this number began.
    pub fn set_memory_before(&self, number: u32, bytes: u64) {
        let running = &self.layout().running;
        running.memory.store(bytes, Ordering::Relaxed);
        // Release: with `memory_before`, as `set_running`.
        let word = IS_THERE | u64::from(number);
        running.memory_number.store(word, Ordering::Release);
    }

    /// Parent: how much private memory the worker had when the item of this number began, if it has noted
    /// that. If a later one has begun meanwhile, it may be that one's: who acts on it looks afterwards whether
    /// the item still runs.
    pub fn memory_before(&self, number: u32) -> Option<u64> {
        let running = &self.layout().running;
        let word = running.memory_number.load(Ordering::Acquire);
        (word == IS_THERE | u64::from(number)).then(|| running.memory.load(Ordering::Relaxed))
    }

    /// Worker: adds to the time, in nanoseconds, in which it moved arguments and results.
    pub fn add_transfer(&self, nanos: u64) {
        let transfer = &self.layout().running.transfer;
        // Relaxed, here and below: shown, never acted on, and written by this worker alone.
        let sum = transfer.load(Ordering::Relaxed).saturating_add(nanos);
        transfer.store(sum, Ordering::Relaxed);
    }

    /// For how long, in nanoseconds, the worker has moved arguments and results; a hint for people.
    pub fn transfer(&self) -> u64 {
        self.layout().running.transfer.load(Ordering::Relaxed)
    }

    /// Worker: says whether it waits for a task, asleep or about to be.
    pub fn set_waiting(&self, waits: bool) {
        // Relaxed: nothing else is read behind it.
        let waits = u32::from(waits);
        self.layout().running.waits.store(waits, Ordering::Relaxed);
    }

    /// Parent: whether it said so.
    pub fn is_waiting(&self) -> bool {
        self.layout().running.waits.load(Ordering::Relaxed) != 0
    }

    /// Parent: says that nobody wants what the item of this number yields, or takes that back. The worker
    /// looks after each value; a hint that comes late costs a few values more.
    pub fn set_unwanted(&self, what: Option<(u32, Unwanted)>) {
        let word = match what {
            None => 0,
            Some((number, Unwanted::Dropped)) => IS_THERE | u64::from(number),
            Some((number, Unwanted::NoRoom)) => IS_THERE | NO_ROOM | u64::from(number),
            Some((number, Unwanted::Stopped)) => IS_THERE | STOPPED | u64::from(number),
        };
        // Relaxed: nothing else is read behind it.
        self.layout().unwanted.0.store(word, Ordering::Relaxed);
    }

    /// Worker: whether nobody wants what the item of this number yields, and why.
    #[inline]
    pub fn unwanted(&self, number: u32) -> Option<Unwanted> {
        let word = self.layout().unwanted.0.load(Ordering::Relaxed);
        if word & IS_THERE == 0 || word as u32 != number {
            None
        } else if word & STOPPED != 0 {
            Some(Unwanted::Stopped)
        } else if word & NO_ROOM != 0 {
            Some(Unwanted::NoRoom)
        } else {
            Some(Unwanted::Dropped)
        }
    }

    /// Who asks for its stack, and whether it was written.
    pub fn dump(&self) -> &DumpWords {
        &self.layout().dump.0
    }

    /// What the worker was answered that asked for room.
    pub fn grant(&self) -> &GrantWord {
        &self.layout().grant.0
    }

    /// Which file its descriptor names.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.identity()
    }

    /// Worker, in a signal's handler: has its stack written by `write`, which writes to the descriptor,
    /// if somebody asks for it.
    pub fn write_dump(&self, write: &dyn Fn()) {
        let Some(number) = self.dump().begin() else {
            return;
        };
        if self.file.set_position(MAPPED as u64).is_ok() {
            write();
        }
        let end = self.file.position().unwrap_or(0) as usize;
        let length = end.saturating_sub(MAPPED).min(DUMP_AREA);
        self.dump().end(number, length);
    }

    /// Parent: the text that answers the question of this number, if it is there.
    pub fn read_dump(&self, number: u32) -> Option<Vec<u8>> {
        let (ended, length) = self.dump().answer(number)?;
        // A worker that says nonsense is shown with nothing.
        let length = length.min(DUMP_AREA);
        let text = self.file.read_at(MAPPED, length).unwrap_or_default();
        self.dump().is_whole(ended).then_some(text)
    }

    fn area(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.segment.len());
        // SAFETY: the offset is inside the mapping.
        unsafe { self.segment.start().add(offset) }
    }

    /// Copies a task record to `position` of the task area.
    ///
    /// # Safety
    /// The bytes there belong to no record that is published, running, or without its result.
    #[inline]
    pub unsafe fn write_task(&self, position: u64, head: &[u8], body: &[u8]) {
        let offset = HEADER + (position as usize & (TASK_AREA - 1));
        debug_assert!(head.len() + body.len() <= TASK_AREA);
        // SAFETY: inside the area, which is mapped twice in a row; the caller owns the bytes.
        unsafe {
            let to = self.area(offset).as_ptr();
            std::ptr::copy_nonoverlapping(head.as_ptr(), to, head.len());
            std::ptr::copy_nonoverlapping(body.as_ptr(), to.add(head.len()), body.len());
        }
    }

    /// The bytes of the task area from `position` on, a full round long.
    ///
    /// # Safety
    /// Only a record that the caller claimed may be read.
    #[inline]
    pub unsafe fn task_bytes(&self, position: u64) -> &[u8] {
        let offset = HEADER + (position as usize & (TASK_AREA - 1));
        // SAFETY: inside the area, which is mapped twice in a row.
        unsafe { std::slice::from_raw_parts(self.area(offset).as_ptr(), TASK_AREA) }
    }

    /// The word at `position` of the task area, a multiple of 4.
    ///
    /// # Safety
    /// It belongs to a record that its writer and its reader use as a shared word.
    #[inline]
    pub unsafe fn task_word(&self, position: u64) -> &AtomicU32 {
        debug_assert!(position.is_multiple_of(4));
        let offset = HEADER + (position as usize & (TASK_AREA - 1));
        // SAFETY: inside the area, and aligned, as the area is to a page.
        unsafe { self.area(offset).cast::<AtomicU32>().as_ref() }
    }

    /// The worker's end of the result ring.
    ///
    /// # Safety
    /// Called once per worker process; the block outlives the writer.
    pub unsafe fn result_writer(&self) -> RingWriter {
        let start = self.area(HEADER + 2 * TASK_AREA);
        // SAFETY: the area is mapped twice; the caller vouches for the rest.
        unsafe { RingWriter::new(start, RESULT_AREA, NonNull::from(&self.layout().results)) }
    }

    /// The parent's end of the result ring.
    ///
    /// # Safety
    /// Called once per block by the parent; the block outlives the reader.
    pub unsafe fn result_reader(&self) -> RingReader {
        let start = self.area(HEADER + 2 * TASK_AREA);
        // SAFETY: the area is mapped twice; the caller vouches for the rest.
        unsafe { RingReader::new(start, RESULT_AREA, NonNull::from(&self.layout().results)) }
    }
}

impl AsFd for ControlBlock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_one_block() {
        let parent = ControlBlock::create().unwrap();
        let descriptor = parent.as_fd().try_clone_to_owned().unwrap();
        let worker = ControlBlock::open(descriptor).unwrap();
        let position = TASK_AREA as u64 - 3;
        // SAFETY: nothing is published.
        unsafe { parent.write_task(position, b"he", b"llo") };
        parent.queue().publish(1);
        assert_eq!(worker.queue().claim(), Some(0));
        // SAFETY: claimed.
        assert_eq!(unsafe { &worker.task_bytes(position)[..5] }, b"hello");
        // SAFETY: one writer and one reader, dropped before the blocks.
        let (mut writer, reader) = unsafe { (worker.result_writer(), parent.result_reader()) };
        writer.reserve(3).unwrap().copy_from_slice(b"yes");
        writer.publish(3);
        assert_eq!(reader.unread(), Some(&b"yes"[..]));
    }

    #[test]
    fn memory_is_noted_for_one_item() {
        let parent = ControlBlock::create().unwrap();
        let descriptor = parent.as_fd().try_clone_to_owned().unwrap();
        let worker = ControlBlock::open(descriptor).unwrap();
        assert_eq!(parent.memory_before(0), None);
        worker.set_memory_before(0, 17);
        assert_eq!(parent.memory_before(0), Some(17));
        assert_eq!(parent.memory_before(1), None);
        worker.set_memory_before(1, 0);
        assert_eq!(parent.memory_before(0), None);
        assert_eq!(parent.memory_before(1), Some(0));
    }

    #[test]
    fn a_stack_is_written_behind_what_is_mapped() {
        let parent = ControlBlock::create().unwrap();
        let descriptor = parent.as_fd().try_clone_to_owned().unwrap();
        let worker = ControlBlock::open(descriptor).unwrap();
        let write = |text: &[u8]| {
            let mut file = std::fs::File::from(worker.as_fd().try_clone_to_owned().unwrap());
            std::io::Write::write_all(&mut file, text)
        };
        worker.write_dump(&|| panic!("nobody has asked"));
        for text in [&b"a longer one"[..], b"short"] {
            let number = parent.dump().ask();
            assert_eq!(parent.read_dump(number), None);
            worker.write_dump(&|| write(text).unwrap());
            assert_eq!(parent.read_dump(number).as_deref(), Some(text));
        }
        let number = parent.dump().ask();
        worker.write_dump(&|| {
            write(&vec![b'x'; DUMP_AREA]).unwrap();
            write(b"y").unwrap_err();
        });
        assert_eq!(parent.read_dump(number).unwrap(), vec![b'x'; DUMP_AREA]);
    }

    #[test]
    fn a_short_file_is_refused() {
        let file = MemoryFile::new(c"short", 4096).unwrap();
        let descriptor = file.as_fd().try_clone_to_owned().unwrap();
        assert!(ControlBlock::open(descriptor).is_err());
    }
}
