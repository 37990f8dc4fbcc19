//! The worker's side: claims tasks, one after another, and publishes their results.
//!
//! The loop around it is the caller's:
//!
//! ```text
//! loop:
//!     claim       -> a task: run it, finish it
//!                 -> the next item of a block: run it, finish it
//!                 -> nothing: wait, which spins a little and then sleeps
//! ```
//!
//! The record of a block stays open until a claim gives a number behind its last item. How many it has
//! is read anew for each, since the parent may have taken back the last of them; what it reads is
//! right for the number that was claimed, see `docs/design/map.md`.
//!
//! Looking at the clock costs as much as a short item, so items are timed in laps of about 50 µs.
//!
//! Each result is visible when it is published, and its reader is woken at once if it sleeps. It is
//! the reader that keeps wake-ups few: while results come in a stream it naps without a mark (see
//! `Pool::drain_until` and `Pool::supervise`), and a worker that finds no mark makes no system call.
//! A worker that deferred wake-ups itself could not keep a promise once a long task runs.

use crate::block::{ITEM_WORD, LONGEST_ITEM, item_word, next_item};
use crate::fail_point::fail_point;
use crate::lease::{Buffer, Lease, any_released, set_worker, take_released};
use crate::nested::caller::Caller;
use crate::output::Outlet;
use crate::protocol::{
    ASKED_TO_LAY_OPEN, BLOCK_PREFIX, FLAG_AGAIN, FLAG_FILE, FLAG_GATHER, FLAG_MORE, FLAG_RETRY,
    FLAG_SECTIONS, FLAG_STREAM, FLAG_UNREAD, FLAG_WATCHED, ITEM_MORE, LONGEST_RECORD, RESULT_HEAD,
    Reference, ResultHead, ResultKind, Section, TASK_HEAD, TaskHead, TaskKind, padded, put_buffers,
    split_body,
};
use crate::store::{Views, write_pages};
use crate::zygote::Birth;
use manyhands_os::{
    Event, MemoryGauge, MessageFile, Received, Socket, View, Waited, Window, arm_life_line,
    become_group_leader, enter_directory, give_memory_back, monotonic_nanos, process_cpu_nanos,
    replace_standard_streams,
};
pub use manyhands_shm::Unwanted;
use manyhands_shm::{ControlBlock, Grant, Parked, PoolPage, Share, TASK_AREA, Used};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a lap of items takes, as far as whole items allow, in nanoseconds.
const LAP_NANOS: u64 = 50_000;
/// How often processor time is looked at, in nanoseconds: that is a system call.
const CPU_NANOS: u64 = 1_000_000;
/// How often it looks how much memory it has, in nanoseconds: that is a system call.
const LOOK_AT_MEMORY: u64 = 200_000;
/// Length of the record of a lap.
const LAP_RECORD: usize = RESULT_HEAD + 8;
/// The most items of a lap.
const LAP_ITEMS: u32 = 64;
/// The most blocks that one record releases.
const MOST_RELEASED: usize = 1024;
/// How long an idle worker sleeps that has put out more than there is room for.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(20);
/// How long an idle worker spins before it sleeps, where it may, in nanoseconds.
const SPIN_NANOS: u64 = 50_000;

/// How long a worker idles until it gives free memory back: as long as the store keeps what rests.
const REST: Duration = Duration::from_secs(5);

/// The worker's end of its control block.
#[derive(Debug)]
pub struct WorkerEnd {
    control: Arc<ControlBlock>,
    page: Arc<PoolPage>,
    outlet: Arc<Outlet>,
    socket: Socket,
    caller: Arc<Caller>,
    #[expect(dead_code, reason = "held: the kernel watches it")]
    life_line: OwnedFd,
    slot: u32,
    cores: usize,
    views: Arc<Views>,
    window: Arc<Window>,
    position: u64,
    running: Option<Running>,
    /// The block that was started last, until a later record is.
    block: Option<OpenBlock>,
    lap: Lap,
    /// When the last task ended, while the queue was not empty.
    last_end: Option<u64>,
    transfer: Transfer,
    memory: Memory,
    spin: u64,
    /// What would have been the next task when free memory was given back.
    trimmed: Option<u32>,
}

/// A block whose items are claimed one by one.
#[derive(Debug)]
struct OpenBlock {
    /// Number of its first item.
    first: u32,
    /// Where the word with its count of items stands.
    count_at: u64,
    /// Where the next record starts.
    end: u64,
    /// Index of its first item, for messages.
    index: u64,
    /// Whether the start of each item has to be known, and what there was.
    is_watched: bool,
    /// Its items; none if they could not be had.
    items: Option<Items>,
}

impl Claimed {
    /// Whether what the task yields is wanted one by one.
    pub fn is_streamed(&self) -> bool {
        self.flags & FLAG_STREAM != 0
    }

    /// Whether what the task yields, if it is a generator, comes as one list.
    pub fn is_gathered(&self) -> bool {
        self.flags & FLAG_GATHER != 0
    }

    /// Whether it is watched how long it takes, or how much memory.
    fn is_watched(&self) -> bool {
        self.flags & FLAG_WATCHED != 0
    }

    /// Whether it is to be said of a failure if it is one after which the task runs again.
    pub fn may_run_again(&self) -> bool {
        self.flags & FLAG_RETRY != 0
    }
}

/// Where the items of a block stand; what lies before `at` was claimed.
#[derive(Debug)]
struct Items {
    body: Body,
    at: usize,
    end: usize,
    /// The item that runs.
    item: (u8, usize, usize),
}

/// Items that ended since the clock was looked at.
#[derive(Debug, Default)]
struct Lap {
    start: u64,
    items: u32,
    /// After how many items to look again.
    stride: u32,
    /// The processor time from which on it is the items', while they or a task of a map run.
    cpu: Option<u64>,
    /// When that was looked at.
    cpu_at: u64,
}

/// How long what runs has moved arguments and results, in nanoseconds.
#[derive(Debug, Default)]
struct Transfer {
    /// Since when it writes its result; 0 while it does not.
    since: u64,
    /// For how long it has read its arguments.
    sum: u64,
}

/// How much private memory this process had when it was looked at last.
#[derive(Debug, Default)]
struct Memory {
    gauge: Option<MemoryGauge>,
    at: u64,
    bytes: u64,
}

/// Says whether what a worker runs is to end.
#[derive(Debug, Clone)]
pub struct StopWord(Arc<ControlBlock>);

impl StopWord {
    /// Whether what has this number is to end.
    pub fn names(&self, number: u32) -> bool {
        self.0.unwanted(number) == Some(Unwanted::Stopped)
    }
}

#[derive(Debug)]
struct Running {
    number: u32,
    /// Whether its body could be read.
    is_read: bool,
    /// When it started; 0 for an item.
    start: u64,
}

/// What a worker has to do next.
#[derive(Debug)]
pub enum Next {
    /// A task, or the beginning of a block, which an item follows at once.
    Record(Result<Claimed, Unreadable>),
    /// The next item of the block.
    Item,
}

/// A claimed task, as it stands in shared memory or in a message file.
#[derive(Debug)]
pub struct Claimed {
    /// What is asked for.
    pub kind: TaskKind,
    /// What to run.
    pub definition: u32,
    /// The definition of the context that it runs in, or 0.
    pub context: u32,
    /// How the payload is encoded.
    pub tag: u8,
    /// Which run this is, from 1.
    pub attempt: u8,
    /// For messages.
    pub index: u64,
    /// Whether the body has sections, and whether what the task yields is wanted one by one.
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

/// The bytes of a body.
fn body<'worker>(control: &'worker ControlBlock, body: &'worker Body) -> &'worker [u8] {
    match body {
        // SAFETY: a part of the record that is claimed, or of the block that is open.
        Body::Area(position, len) => unsafe { &control.task_bytes(*position)[..*len] },
        Body::File(view) => view.as_slice(),
    }
}

/// A block that is this worker's to write, for a result.
#[derive(Debug)]
pub struct Room {
    lease: Lease,
    /// Where it starts in the window.
    pub offset: u64,
    /// How many bytes were asked for.
    pub len: usize,
    used: Used,
}

impl Room {
    /// Writes the buffer.
    pub fn write(&self, window: &Window, bytes: &[u8]) -> io::Result<()> {
        debug_assert_eq!(bytes.len(), self.len);
        // A process that has limited its addresses may have none for the window.
        let is_mapped = window.map().is_ok();
        let used = if is_mapped { self.used } else { Used::Never };
        write_pages(window, used, self.offset, bytes)
    }

    /// The memory itself, for somebody who writes there piece by piece; none if it cannot be mapped. Nothing is
    /// there that another process wrote.
    fn lay_open(&self, window: &Window) -> Option<NonNull<u8>> {
        let start = window.lay_open(self.offset, self.len).ok().flatten()?;
        if self.used != Used::Here || window.has_replaced() {
            window.populate(self.offset, self.len).ok()?;
        }
        if self.used == Used::Elsewhere {
            // SAFETY: so many bytes of the mapping, which were granted to this worker alone.
            unsafe { start.write_bytes(0, self.len) };
        }
        Some(start)
    }

    /// A buffer of a result that lies in it.
    pub fn filled(self, start: usize, len: usize, is_writable: bool) -> Filled {
        debug_assert!(start + len <= self.len);
        Filled::Room(self, start, len, is_writable)
    }
}

/// A buffer of a result.
#[derive(Debug)]
pub enum Filled {
    /// Which was written for it: where in it the buffer is, how long, and whether who gets it may write to it.
    Room(Room, usize, usize, bool),
    /// Which came with a task, and has not been changed.
    Came(Buffer),
}

impl Filled {
    fn reference(&self) -> Reference {
        match self {
            Self::Room(room, start, len, is_writable) => Reference {
                block: room.offset,
                start: *start,
                len: *len,
                is_writable: *is_writable,
            },
            Self::Came(buffer) => buffer.reference(),
        }
    }
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
        let page = Arc::new(PoolPage::open(birth.page)?);
        let window = Arc::new(Window::open(birth.window)?);
        let socket = Socket::from_descriptor(birth.socket);
        let caller = Caller::new(birth.requests, birth.key, page.width() as usize);
        let control = Arc::new(control);
        set_worker(&control);
        let event = Event::from_descriptor(birth.event);
        let outlet = Outlet::new(results, control.clone(), page.clone(), event);
        Ok(Self {
            caller: Arc::new(caller),
            control,
            page,
            outlet: Arc::new(outlet),
            life_line: birth.life_line,
            slot: birth.key.slot,
            cores,
            views: Arc::new(Views::new(window.clone(), socket.maker()?)),
            window,
            socket,
            position: 0,
            running: None,
            block: None,
            lap: Lap {
                stride: 1,
                ..Lap::default()
            },
            last_end: None,
            transfer: Transfer::default(),
            memory: Memory::default(),
            spin: SPIN_NANOS,
            trimmed: None,
        })
    }

    /// Starts the next task or item, if there is one. For a block the record comes first, and then the
    /// first item without another claim.
    #[inline]
    pub fn claim(&mut self) -> Option<Next> {
        debug_assert!(self.running.is_none());
        let Some(number) = self.control.queue().claim() else {
            self.end_lap(true);
            self.lap.cpu = None;
            return None;
        };
        fail_point("worker.claimed");
        if let Some(block) = &self.block {
            // SAFETY: the record stays as it is until a later one has a result. Relaxed: the claim
            // acquired the publish that came after the last change that matters.
            let count = unsafe { self.control.task_word(block.count_at) }.load(Ordering::Relaxed);
            let is_in = number.wrapping_sub(block.first) & (u32::MAX >> 1);
            if is_in < count {
                self.start_item(number);
                return Some(Next::Item);
            }
            self.position = block.end;
            self.block = None;
        }
        Some(Next::Record(self.start_record(number)))
    }

    #[cold]
    fn start_record(&mut self, number: u32) -> Result<Claimed, Unreadable> {
        self.end_lap(true);
        // The end of one task is the start of the next.
        let start = self.last_end.take().unwrap_or_else(monotonic_nanos);
        self.control.set_running(number, start);
        let record = self.read_record();
        if record.as_ref().is_ok_and(Claimed::is_watched) {
            self.note_memory(number, start);
        }
        if self.block.is_some() || record.as_ref().is_ok_and(Claimed::is_streamed) {
            if self.lap.cpu.is_none() {
                (self.lap.cpu, self.lap.cpu_at) = (Some(process_cpu_nanos()), start);
            }
        } else {
            self.lap.cpu = None;
        }
        if let Some(block) = &mut self.block {
            block.first = number;
            self.lap.start = start;
            self.running = Some(Running {
                number,
                is_read: false,
                start: 0,
            });
        } else {
            self.running = Some(Running {
                number,
                is_read: record.is_ok(),
                start,
            });
        }
        record
    }

    /// Says how much memory there is before the item of this number. It looks so often that this costs less
    /// than a hundredth of its time: what began right after another began where that did.
    fn note_memory(&mut self, number: u32, now: u64) {
        if self.memory.gauge.is_none() {
            // Without /proc nobody can watch, neither here nor there.
            self.memory.gauge = MemoryGauge::of_this_process().ok();
        }
        if now.saturating_sub(self.memory.at) >= LOOK_AT_MEMORY
            && let Some(gauge) = &self.memory.gauge
        {
            let Some(bytes) = gauge.read() else { return };
            self.memory.at = now;
            self.memory.bytes = bytes;
        }
        self.control.set_memory_before(number, self.memory.bytes);
    }

    /// The claimed item runs from now on.
    #[inline]
    fn start_item(&mut self, number: u32) {
        if self.lap.items == 0 && self.lap.start == 0 {
            self.lap.start = self.last_end.take().unwrap_or_else(monotonic_nanos);
            self.control.set_started_at(self.lap.start);
        }
        if self.block.as_ref().is_some_and(|block| block.is_watched) {
            let now = monotonic_nanos();
            self.control.set_running(number, now);
            self.note_memory(number, now);
        }
        let is_read = self.next_item();
        self.running = Some(Running {
            number,
            is_read,
            start: 0,
        });
    }

    /// The number of what runs.
    #[inline]
    pub fn number(&self) -> Option<u32> {
        Some(self.running.as_ref()?.number)
    }

    /// By which tasks of this worker submit tasks.
    pub fn caller(&self) -> Arc<Caller> {
        self.caller.clone()
    }

    /// What its threads put output for people into.
    pub fn outlet(&self) -> Arc<Outlet> {
        self.outlet.clone()
    }

    /// What of its output the parent wants.
    pub fn wanted_output(&self) -> u32 {
        self.page.wanted()
    }

    /// By which a signal handler learns whether what runs is to end.
    pub fn stop_word(&self) -> StopWord {
        StopWord(self.control.clone())
    }

    /// Answers from here on when its parent asks for its stack, by the handler which the signal of
    /// `manyhands_os::dump_signal` has now and which writes to `dump_descriptor`; false if it has none. `defer`
    /// is called between any two instructions, and has `resume_dump` called soon; false if that need not be.
    pub fn answer_dumps(&self, defer: fn() -> bool) -> io::Result<bool> {
        crate::dump::answer_dumps(&self.control, defer)
    }

    /// Where its stack is to be written.
    pub fn dump_descriptor(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Goes to the next item of the block; false if its items could not be had.
    #[inline]
    fn next_item(&mut self) -> bool {
        let Some(OpenBlock {
            items: Some(items), ..
        }) = &mut self.block
        else {
            return false;
        };
        let bytes = body(&self.control, &items.body);
        let whole = bytes.get(items.at..items.end).unwrap_or_default();
        let mut rest = whole;
        let Some((tag, item)) = next_item(&mut rest) else {
            crate::bug("a block has fewer items than it says");
        };
        let end = items.end - rest.len();
        items.item = (tag, end - item.len(), end);
        items.at = end;
        true
    }

    /// The item that was claimed: its tag and its bytes.
    #[inline]
    pub fn item(&self) -> Result<(u8, &[u8]), Unreadable> {
        match &self.block {
            Some(OpenBlock {
                items: Some(items), ..
            }) => {
                let (tag, start, end) = items.item;
                Ok((tag, &body(&self.control, &items.body)[start..end]))
            }
            _ => Err(Unreadable("the items could not be received".into())),
        }
    }

    /// Index of the item that runs, for messages.
    pub fn item_index(&self) -> u64 {
        match (&self.block, &self.running) {
            (Some(block), Some(running)) => {
                let skip = running.number.wrapping_sub(block.first) & (u32::MAX >> 1);
                block.index + u64::from(skip)
            }
            _ => 0,
        }
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
        let after = at + u64::from(head.length);
        self.position = after;
        let is_block = head.kind == TaskKind::Block;
        let head_len = TASK_HEAD + if is_block { BLOCK_PREFIX } else { 0 };
        if is_block {
            self.block = Some(OpenBlock {
                first: 0,
                count_at: at + TASK_HEAD as u64,
                end: after,
                index: head.index,
                is_watched: head.flags & FLAG_WATCHED != 0,
                items: None,
            });
        }
        let body = if head.flags & FLAG_FILE != 0 {
            let number = bytes
                .get(head_len..head_len + 8)
                .and_then(|number| number.try_into().ok());
            let number = number.map_or(0, u64::from_ne_bytes);
            let file = self
                .receive_file(number)
                .and_then(MessageFile::from_descriptor);
            Body::File(file.and_then(|file| file.view()).map_err(|error| {
                Unreadable(format!("the arguments could not be received: {error}"))
            })?)
        } else {
            Body::Area(at + head_len as u64, head.length as usize - head_len)
        };
        let TaskHead {
            kind,
            definition,
            context,
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
            context,
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
        let body = body(&self.control, &claimed.body);
        let payload = split_body(body, claimed.flags, claimed.payload, visit)
            .map_err(|_| Unreadable("the arguments make no sense".into()));
        fail_point("worker.body_read");
        payload
    }

    /// Opens the block that was claimed, after `visit` has seen its sections: now its first item can
    /// be had.
    pub fn open_block(
        &mut self,
        claimed: Claimed,
        visit: impl FnMut(Section<'_>),
    ) -> Result<(), Unreadable> {
        let payload = self.payload(&claimed, visit)?;
        let (start, len) = {
            let body = body(&self.control, &claimed.body);
            let start = payload.as_ptr().addr() - body.as_ptr().addr();
            (start, payload.len())
        };
        if let Some(block) = &mut self.block {
            block.items = Some(Items {
                body: claimed.body,
                at: start,
                end: start + len,
                item: (0, 0, 0),
            });
        }
        if let Some(running) = &mut self.running {
            running.is_read = self.block.is_some();
        }
        self.next_item();
        fail_point("worker.block_opened");
        Ok(())
    }

    /// Where large buffers are.
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// How this worker looks at large buffers.
    pub fn views(&self) -> &Arc<Views> {
        &self.views
    }

    /// Room for a buffer of a result, which has to be written before that is published; none if there is
    /// no room.
    pub fn reserve(&mut self, len: usize) -> Option<Room> {
        self.ask_for_room(len, 0)
    }

    /// The same, as memory for somebody who writes there piece by piece; none either if it cannot be mapped.
    pub fn lay_open(&mut self, len: usize) -> Option<(Room, NonNull<u8>)> {
        let room = self.ask_for_room(len, ASKED_TO_LAY_OPEN)?;
        let start = room.lay_open(&self.window)?;
        Some((room, start))
    }

    fn ask_for_room(&mut self, len: usize, tag: u8) -> Option<Room> {
        self.tell_released();
        let head = ResultHead {
            length: RESULT_HEAD as u32,
            kind: ResultKind::Ask,
            tag,
            flags: 0,
            number: 0,
            payload: 0,
            duration: len as u64,
        };
        self.publish_record(&head, &[]);
        fail_point("worker.block_asked");
        loop {
            self.announce();
            let word = self.control.worker();
            word.announce(Parked::Futex);
            if !self.control.grant().is_answered() {
                // Whether it was woken, interrupted or late, it looks again.
                let _why = word.sleep(None);
            }
            self.control.worker().awake();
            match self.control.grant().take() {
                None => {}
                Some(Grant::Refused) => return None,
                Some(Grant::Block { offset, used }) => {
                    fail_point("worker.block_granted");
                    let lease = Lease::new(offset);
                    return Some(Room {
                        lease,
                        offset,
                        len,
                        used,
                    });
                }
            }
        }
    }

    /// Tells what was released since the last time.
    fn tell_released(&mut self) -> bool {
        let released = take_released();
        for blocks in released.chunks(MOST_RELEASED) {
            let payload: Vec<u8> = blocks
                .iter()
                .flat_map(|block| block.to_ne_bytes())
                .collect();
            let head = ResultHead {
                length: (RESULT_HEAD + payload.len()) as u32,
                kind: ResultKind::Release,
                tag: 0,
                flags: 0,
                number: 0,
                payload: payload.len() as u32,
                duration: 0,
            };
            self.publish_record(&head, &payload);
            fail_point("worker.released");
        }
        !released.is_empty()
    }

    /// Publishes a record that is no result, once there is room for it.
    fn publish_record(&mut self, head: &ResultHead, payload: &[u8]) {
        let fill = |record: &mut [u8]| {
            record[..RESULT_HEAD].copy_from_slice(&head.encode());
            record[RESULT_HEAD..RESULT_HEAD + payload.len()].copy_from_slice(payload);
        };
        self.publish(head.length as usize, fill);
    }

    /// Publishes so many bytes of the ring, once there is room for them and what was put out before them is
    /// published.
    #[inline(always)]
    fn publish(&mut self, length: usize, fill: impl Fn(&mut [u8])) {
        // SAFETY: this is the thread of the worker's end, and not in `wait`.
        while !unsafe { self.outlet.publish(length, &fill) } {
            self.wait_for_room(length);
        }
    }

    /// As `finish_part`, of a value that speaks of buffers.
    pub fn finish_with_buffers(
        &mut self,
        tag: u8,
        payload: &[u8],
        buffers: Vec<Filled>,
        more: bool,
    ) -> io::Result<()> {
        let mut sections = Vec::new();
        put_buffers(&mut sections, buffers.iter().map(Filled::reference));
        let mut body = (sections.len() as u32).to_ne_bytes().to_vec();
        body.extend_from_slice(&sections);
        body.extend_from_slice(payload);
        let flags = FLAG_SECTIONS | if more { FLAG_MORE } else { 0 };
        self.finish_with(ResultKind::Value, tag, &body, flags)?;
        for buffer in buffers {
            if let Filled::Room(room, ..) = buffer {
                room.lease.end();
            }
        }
        Ok(())
    }

    /// What runs has taken so many nanoseconds to read its arguments.
    pub fn add_transfer(&mut self, nanos: u64) {
        self.transfer.sum += nanos;
    }

    /// What runs begins to write its result, which ends as that is published. That of a short result of an item
    /// counts for nothing, since to look at the clock again would take as long.
    pub fn begin_transfer(&mut self) {
        self.transfer.since = monotonic_nanos();
    }

    /// A result is about to be published; `now`, if that is known, ends what was begun.
    #[cold]
    fn note_transfer(&mut self, now: Option<u64>) {
        let Transfer { since, sum } = std::mem::take(&mut self.transfer);
        let last = match now {
            Some(now) if since != 0 => now.saturating_sub(since),
            _ => 0,
        };
        self.control.add_transfer(sum + last);
    }

    fn has_transfer(&self) -> bool {
        self.transfer.since != 0 || self.transfer.sum != 0
    }

    /// Publishes the result of the running item; `more` if it has not ended with it.
    #[inline]
    pub fn finish_item(&mut self, tag: u8, payload: &[u8], more: bool) -> io::Result<()> {
        if payload.len() > LONGEST_ITEM {
            return self.finish_part(ResultKind::Value, tag, payload, more);
        }
        fail_point("worker.finished");
        if self.has_transfer() {
            self.note_transfer(None);
        }
        let tag = if more { tag | ITEM_MORE } else { tag };
        let length = ITEM_WORD + payload.len();
        self.publish(length, |record| {
            record[..ITEM_WORD].copy_from_slice(&item_word(tag, payload.len()));
            record[ITEM_WORD..length].copy_from_slice(payload);
            fail_point("worker.record_written");
        });
        fail_point("worker.published");
        if !more {
            self.running = None;
            self.lap.items += 1;
            if self.lap.items >= self.lap.stride {
                self.end_lap(false);
            }
        }
        self.announce();
        Ok(())
    }

    /// Whether nobody wants what the running item yields, and why.
    #[inline]
    pub fn unwanted(&self) -> Option<Unwanted> {
        let why = self.control.unwanted(self.running.as_ref()?.number)?;
        fail_point("worker.unwanted_seen");
        Some(why)
    }

    /// Says how long the items since the last lap took, and how much processor time it was if that is
    /// due, as it is with the `last` one. Of a task of a map, which tells its time itself, it says that
    /// alone.
    fn end_lap(&mut self, last: bool) {
        let Lap { start, items, .. } = self.lap;
        if items == 0 && self.lap.cpu.is_none() {
            return;
        }
        if !last {
            // After the last it is told by whoever tells the parent to look.
            self.tell_released();
        }
        let now = monotonic_nanos();
        let mut cpu = 0;
        if let Some(since) = self.lap.cpu
            && (last || now.saturating_sub(self.lap.cpu_at) >= CPU_NANOS)
        {
            let until = process_cpu_nanos();
            cpu = until.saturating_sub(since);
            (self.lap.cpu, self.lap.cpu_at) = (Some(until), now);
        }
        let mut duration = 0;
        if items > 0 {
            duration = now.saturating_sub(start).max(1);
            let each = duration / u64::from(items);
            let stride = (LAP_NANOS / each.max(1)).clamp(1, LAP_ITEMS.into()) as u32;
            // Faster only step by step: one short item says little.
            self.lap.stride = stride.min(self.lap.stride * 2);
            (self.lap.start, self.lap.items) = (now, 0);
            self.control.set_started_at(now);
        }
        let head = ResultHead {
            length: LAP_RECORD as u32,
            kind: ResultKind::Lap,
            tag: 0,
            flags: 0,
            number: items,
            payload: 8,
            duration,
        };
        self.publish_record(&head, &cpu.to_ne_bytes());
        fail_point("worker.lap_published");
    }

    /// Publishes the result of the running task; an error says why it could not be sent, and
    /// another result has to go in its place.
    pub fn finish(&mut self, kind: ResultKind, tag: u8, payload: &[u8]) -> io::Result<()> {
        self.finish_part(kind, tag, payload, false)
    }

    /// As `finish`; with `more` it has yielded this and goes on.
    pub fn finish_part(
        &mut self,
        kind: ResultKind,
        tag: u8,
        payload: &[u8],
        more: bool,
    ) -> io::Result<()> {
        self.finish_with(kind, tag, payload, if more { FLAG_MORE } else { 0 })
    }

    /// As `finish`, for a failure after which the task is to run again.
    pub fn fail_for_now(&mut self, tag: u8, payload: &[u8]) -> io::Result<()> {
        self.finish_with(ResultKind::Error, tag, payload, FLAG_AGAIN)
    }

    fn finish_with(
        &mut self,
        kind: ResultKind,
        tag: u8,
        payload: &[u8],
        flags: u8,
    ) -> io::Result<()> {
        let more = flags & FLAG_MORE != 0;
        fail_point("worker.finished");
        self.tell_released();
        let Some(running) = &self.running else {
            crate::bug("a result without a task");
        };
        let running_is_item = running.start == 0;
        let Ok(payload_len) = u32::try_from(payload.len()) else {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "larger than 4 GiB",
            ));
        };
        let by_file = RESULT_HEAD + payload.len() > LONGEST_RECORD;
        let (file, length) = if by_file {
            (Some(MessageFile::new(payload)?), RESULT_HEAD)
        } else {
            (None, padded(RESULT_HEAD + payload.len()))
        };
        let now = monotonic_nanos();
        let head = ResultHead {
            length: length as u32,
            kind,
            tag,
            flags: if by_file { FLAG_FILE } else { 0 }
                | if running.is_read { 0 } else { FLAG_UNREAD }
                | flags,
            number: running.number,
            payload: payload_len,
            duration: match running.start {
                // The time of an item is in its lap.
                0 => 0,
                _ if more => 0,
                start => now - start.min(now),
            },
        };
        if self.has_transfer() {
            self.note_transfer(Some(now));
        }
        if let Some(file) = file {
            self.socket.send(&[1], &[file.as_fd()], true)?;
            fail_point("worker.file_sent");
        }
        let inline = if by_file { &[] } else { payload };
        self.publish(length, |record| {
            record[..RESULT_HEAD].copy_from_slice(&head.encode());
            record[RESULT_HEAD..RESULT_HEAD + inline.len()].copy_from_slice(inline);
            fail_point("worker.record_written");
        });
        fail_point("worker.published");
        if more {
            self.announce();
            return Ok(());
        }
        if running_is_item {
            self.lap.items += 1;
            self.running = None;
            self.end_lap(false);
            self.announce();
            return Ok(());
        }
        self.running = None;
        let queue = self.control.queue().state();
        let more = queue.waiting() > 0 && !queue.frozen;
        self.last_end = more.then_some(now);
        self.announce();
        Ok(())
    }

    /// Wakes the reader of the results, if it sleeps.
    fn announce(&self) {
        self.outlet.announce();
        fail_point("worker.announced");
    }

    fn wait_for_room(&mut self, length: usize) {
        self.announce();
        let word = self.control.worker();
        word.announce(Parked::Futex);
        // SAFETY: this is the thread of the worker's end, and not in `wait`.
        if !unsafe { self.outlet.has_room(length) } {
            // Whether it was woken, interrupted or late, the caller looks again.
            let _why = word.sleep(None);
        }
        self.control.worker().awake();
    }

    /// Tells all that is due, before `wait`.
    pub fn tell_all(&mut self) {
        if self.tell_released() {
            self.announce();
        }
        // SAFETY: this is the thread of the worker's end, and not in `wait`.
        unsafe { self.outlet.flush() };
    }

    /// Waits until there may be a task, or something to tell. Returns early after signals, so that the caller can
    /// look after them. Other threads may put out something meanwhile.
    pub fn wait(&mut self) {
        self.last_end = None;
        self.lap.start = 0;
        // Its parent, the busy workers and the spinner itself each want a core.
        if (self.page.runnable() as usize) < self.cores && self.spin_until_task() {
            return;
        }
        fail_point("worker.before_park");
        self.control.set_waiting(true);
        let word = self.control.worker();
        word.announce(Parked::Futex);
        let next = self.control.queue().state().next;
        // Once in each idle phase, and only the first time that it idles so long: what was given back
        // does not come back by itself, and who sleeps is to cost nothing.
        let limit = (self.trimmed != Some(next)).then_some(REST);
        let mut rested = false;
        if !self.has_task() && !any_released() {
            // Nobody wakes it when there is room for what was put out.
            let has_room = !self.outlet.any_waiting();
            let limit = if has_room { limit } else { Some(LOOK_FOR_ROOM) };
            rested = word.sleep(limit) == Waited::TimedOut && has_room;
        }
        word.awake();
        fail_point("worker.woken");
        self.control.set_waiting(false);
        if rested {
            self.trimmed = Some(next);
            give_memory_back();
        }
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

    /// How many processors are this worker's.
    pub fn share(&self) -> Share {
        self.page.share()
    }

    /// The slot of this worker in its pool.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}
