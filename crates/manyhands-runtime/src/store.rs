//! The object store: large buffers in shared memory. `docs/design/store.md` says what blocks are and who may
//! write to them when; `allocator.rs` which pages are used again; `spill.rs` what goes to disk past the budget;
//! `view.rs` how a process looks at blocks.
//!
//! A block that is dropped takes the state's mutex and nothing else, so blocks may be dropped anywhere but
//! under that mutex. Nobody makes a system call while holding it. Who takes room on disk holds `spill`
//! meanwhile, which nobody else waits for.
//!
//! In a process that forked, the mutex may be held for ever by a thread that is not there. The blocks that
//! it knows are still the parent's, so dropping them there does nothing.

mod allocator;
mod block;
mod spill;
mod view;

use allocator::{Allocator, Range, class_above};
use manyhands_os::{Window, coarse_nanos, memory_left, page_size};
use manyhands_shm::Used;
use spill::Spill;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use block::StoreBlock;
pub(crate) use block::write_pages;
pub use spill::NoDisk;
pub use view::{View, Views};

/// The addresses of a window, unless the budget is larger. They cost nothing.
const WINDOW: u64 = 64 << 30;
/// The most addresses of a window, whatever the budget: a process has 128 TiB.
const LARGEST_WINDOW: u64 = 16 << 40;
/// So much of the memory that is left is never taken: what is about to start, a Python for example, and the
/// kernel's page tables need some, and to leave none is to get somebody killed.
const LEAST_SPARE: u64 = 32 << 20;
/// The same, as a part of what is left: the figures are rough, and others use memory meanwhile.
const SPARE_PART: u64 = 20;
/// What travels in band is there so many times at once: a pickle and a message on each side.
const COPIES: u64 = 4;
/// So much is left to others then: to refuse is to fail, so it is less than where there is another way.
const SPARE_IN_BAND: u64 = LEAST_SPARE / 4;
/// Arguments of one size that are in flight before the next one waits for their memory: a pair for each of
/// two workers.
const FEW: u64 = 4;
/// So many bytes in flight make nobody wait.
const LEAST_IN_FLIGHT: u64 = 64 << 20;
/// The part of what could be taken that is taken before the system is asked again.
const STEP_PART: u64 = 64;

/// The parent's store.
#[derive(Debug)]
pub struct Store {
    window: Arc<Window>,
    page: u64,
    /// The process whose blocks they are.
    process: u32,
    state: Mutex<State>,
    spill: Mutex<Spill>,
    /// Told whenever something is in flight no more, if somebody waits for that.
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    allocator: Allocator,
    /// How many blocks there are.
    blocks: usize,
    /// The pages of blocks on disk.
    spilled: u64,
    /// So many pages may be populated before the system is asked again.
    allowance: u64,
    /// The bytes of arguments whose tasks have not ended.
    in_flight: u64,
    /// The part of them that who needs room may wait for: their tasks end by themselves.
    awaited: u64,
    /// How many of those have ended.
    awaited_ends: u64,
    /// Threads that wait for some of them.
    waiting: usize,
    /// Whether the last wait for recycled memory was worth while, or something was freed since.
    is_worth_waiting: bool,
}

/// How much of the store is in use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StoreStats {
    /// The memory of blocks.
    pub live: u64,
    /// Memory that is kept to be used again.
    pub warm: u64,
    /// The most that both may be.
    pub budget: u64,
    /// The space of blocks on disk.
    pub spilled: u64,
    /// The bytes of arguments whose tasks have not ended.
    pub in_flight: u64,
    /// How many blocks there are.
    pub blocks: usize,
}

/// An argument whose task has not ended.
#[derive(Debug)]
pub struct InFlight {
    store: Arc<Store>,
    len: u64,
    is_awaited: bool,
}

impl InFlight {
    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if std::process::id() != self.store.process {
            return;
        }
        let mut state = self.store.lock();
        state.in_flight -= self.len;
        if self.is_awaited {
            state.awaited -= self.len;
            state.awaited_ends += 1;
        }
        state.is_worth_waiting = true;
        if state.waiting > 0 {
            self.store.freed.notify_all();
        }
    }
}

/// What became of waiting for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// There is more than before.
    More,
    /// There is not, but something is in flight that makes some.
    NotYet,
    /// Nothing makes any.
    Never,
}

/// Why there is no block.
#[derive(Debug)]
pub struct NoRoom {
    /// The bytes that were asked for.
    pub wanted: u64,
    /// The bytes of all blocks.
    pub live: u64,
    /// The most that these may be.
    pub budget: u64,
    /// What there is too little of.
    pub shortage: Shortage,
}

/// What a store has too little of.
#[derive(Debug)]
pub enum Shortage {
    /// The budget is used up.
    Budget,
    /// The machine, or a control group, has only so many bytes left.
    Memory(u64),
    /// The system refused.
    System(io::Error),
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            wanted,
            live,
            budget,
            shortage,
        } = self;
        write!(
            formatter,
            "the object store has no room for {wanted} bytes: {live} of its {budget} bytes are in use"
        )?;
        match shortage {
            Shortage::Budget => Ok(()),
            Shortage::Memory(left) => write!(
                formatter,
                ", and the machine or the control group has only {left} bytes left"
            ),
            Shortage::System(error) => write!(formatter, ", and the system says: {error}"),
        }
    }
}

impl std::error::Error for NoRoom {}

/// So many bytes of memory can be taken and leave enough for others.
pub fn memory_to_take() -> u64 {
    beyond_spare(memory_left())
}

/// Whether there is memory for so many bytes that travel in band, as pickles and messages; else what is left.
pub fn memory_in_band(len: usize) -> Result<(), u64> {
    let left = memory_left();
    if len as u64 <= left.saturating_sub(SPARE_IN_BAND) / COPIES {
        Ok(())
    } else {
        Err(left)
    }
}

/// What of the memory that is left is not spared.
fn beyond_spare(left: u64) -> u64 {
    left.saturating_sub(LEAST_SPARE.max(left / SPARE_PART))
}

impl Store {
    /// A store that takes at most `budget` bytes of memory, by default half of what is left.
    pub fn new(budget: Option<u64>) -> io::Result<Arc<Self>> {
        let budget = budget.unwrap_or_else(|| memory_left() / 2);
        let most = usize::try_from(budget.clamp(WINDOW, LARGEST_WINDOW)).unwrap_or(usize::MAX);
        let window = Window::create(most)?;
        let page = page_size() as u64;
        let pages = window.len() as u64 / page;
        Ok(Arc::new(Self {
            window: Arc::new(window),
            page,
            process: std::process::id(),
            state: Mutex::new(State {
                allocator: Allocator::new(pages, pages.min(budget / page)),
                blocks: 0,
                spilled: 0,
                allowance: 0,
                in_flight: 0,
                awaited: 0,
                awaited_ends: 0,
                waiting: 0,
                is_worth_waiting: true,
            }),
            spill: Mutex::default(),
            freed: Condvar::new(),
        }))
    }

    /// The memory that the blocks are in.
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// Room for a buffer of `len` bytes, which its writer fills. Memory that was used is used again first,
    /// that which `writer` wrote last before others': 0 is this process, what others are is up to the
    /// caller.
    pub fn reserve(self: &Arc<Self>, len: usize, writer: u64) -> Result<Arc<StoreBlock>, NoRoom> {
        debug_assert!(len > 0, "what has no bytes needs no room");
        // Where the system gives no addresses, large data travels as it would without a store.
        if let Err(error) = self.window.map() {
            return Err(self.no_room(&self.lock(), len, Shortage::System(error)));
        }
        let pages = class_above((len as u64).div_ceil(self.page));
        let mut left = None;
        loop {
            let mut state = self.lock();
            if let Some((range, written)) = state.allocator.reuse(pages, writer) {
                // This process fills what it takes.
                let is_its_own =
                    written.is_some_and(|written| writer == 0 || written >= len as u64);
                let used = if is_its_own {
                    Used::Here
                } else {
                    Used::Elsewhere
                };
                let written = written.unwrap_or(0);
                return Ok(self.block(&mut state, range, len, writer, (used, written)));
            }
            if state.allocator.can_grow(pages) {
                let allowed = left.map_or(state.allowance, |left| self.allowance(left, pages));
                if allowed >= pages
                    && let Some(range) = state.allocator.grow(pages)
                {
                    state.allowance = allowed - pages;
                    return Ok(self.block(&mut state, range, len, writer, (Used::Never, 0)));
                }
                if left.is_none() {
                    // Files are read for it: not with the mutex.
                    drop(state);
                    left = Some(memory_left());
                    continue;
                }
            }
            if let Some(range) = state.allocator.split(pages) {
                return Ok(self.block(&mut state, range, len, writer, (Used::Elsewhere, 0)));
            }
            let leaving = state.allocator.evict(pages);
            if leaving.is_empty() {
                let shortage = match left {
                    Some(left) if state.allocator.can_grow(pages) => Shortage::Memory(left),
                    _ => Shortage::Budget,
                };
                return Err(self.no_room(&state, len, shortage));
            }
            drop(state);
            self.give_back(&leaving);
            left = None;
        }
    }

    /// A block that holds a copy of these bytes.
    pub fn store(self: &Arc<Self>, bytes: &[u8]) -> Result<Arc<StoreBlock>, NoRoom> {
        let block = self.reserve(bytes.len(), 0)?;
        match block.write(0, bytes) {
            Ok(()) => Ok(block),
            Err(error) => {
                drop(block);
                Err(self.no_room(&self.lock(), bytes.len(), Shortage::System(error)))
            }
        }
    }

    /// As `store`, in a file on the disk that the directory is on.
    pub fn spill(
        self: &Arc<Self>,
        bytes: &[u8],
        directory: &Path,
    ) -> Result<Arc<StoreBlock>, NoDisk> {
        let pages = (bytes.len() as u64).div_ceil(self.page);
        let mut spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = spill.take(directory, pages, self.page);
        drop(spill);
        let written = taken.and_then(|(file, range)| {
            let mut state = self.lock();
            state.blocks += 1;
            state.spilled += pages;
            drop(state);
            let block = StoreBlock::on_disk(self.clone(), file, range, bytes.len());
            block.write(0, bytes)?;
            Ok(Arc::new(block))
        });
        written.map_err(|error| spill::no_disk(directory, bytes.len(), self.stats().spilled, error))
    }

    /// As `store`, of an argument, which is in flight until the task has ended.
    ///
    /// While `FEW` arguments of its size are in flight already, it waits for one of them to be free, but no
    /// longer than to use memory for the first time would take: recycled memory costs a twentieth.
    ///
    /// What `is_awaited` others may wait for until its task has ended, however long that takes.
    pub fn store_argument(
        self: &Arc<Self>,
        bytes: &[u8],
        may_wait: bool,
        is_awaited: bool,
    ) -> Result<(Arc<StoreBlock>, InFlight), NoRoom> {
        let len = bytes.len() as u64;
        if may_wait {
            let enough = LEAST_IN_FLIGHT.max(FEW * len) - len;
            let mut state = self.lock();
            if state.is_worth_waiting && state.in_flight > enough {
                let until = Instant::now() + Duration::from_nanos(len);
                state = self.wait_freed(state, until, |state| state.in_flight <= enough);
                state.is_worth_waiting = state.in_flight <= enough;
            }
        }
        let block = self.store(bytes)?;
        let mut state = self.lock();
        state.in_flight += len;
        if is_awaited {
            state.awaited += len;
        }
        drop(state);
        let in_flight = InFlight {
            store: self.clone(),
            len,
            is_awaited,
        };
        Ok((block, in_flight))
    }

    /// Waits until something in flight that is awaited is free, or the time is up.
    pub fn wait_for_room(&self, time: Duration) -> Waited {
        let state = self.lock();
        if state.awaited == 0 {
            return Waited::Never;
        }
        let before = state.awaited_ends;
        let until = Instant::now() + time;
        let state = self.wait_freed(state, until, |state| state.awaited_ends != before);
        if state.awaited_ends == before {
            Waited::NotYet
        } else {
            Waited::More
        }
    }

    fn wait_freed<'store>(
        &'store self,
        mut state: MutexGuard<'store, State>,
        until: Instant,
        is_enough: impl Fn(&State) -> bool,
    ) -> MutexGuard<'store, State> {
        state.waiting += 1;
        while !is_enough(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = match self.freed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(_) => crate::bug("a thread panicked while it held the store"),
            };
        }
        state.waiting -= 1;
        state
    }

    /// Changes the budget; what is in use stays. It cannot be more than the window.
    pub fn set_budget(&self, bytes: u64) {
        let most = self.window.len() as u64;
        self.lock()
            .allocator
            .set_budget(bytes.min(most) / self.page);
    }

    /// How much of it is in use.
    pub fn stats(&self) -> StoreStats {
        let state = self.lock();
        StoreStats {
            live: state.allocator.live() * self.page,
            warm: state.allocator.warm() * self.page,
            budget: state.allocator.budget() * self.page,
            in_flight: state.in_flight,
            blocks: state.blocks,
            spilled: state.spilled * self.page,
        }
    }

    /// Gives free memory back that was not used for `rest`. The answer is when to look again, if there is
    /// any left.
    pub fn trim(&self, rest: Duration) -> Option<Duration> {
        let rest = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
        loop {
            let now = coarse_nanos();
            let mut state = self.lock();
            let Some(range) = state.allocator.evict_older(now.saturating_sub(rest)) else {
                let since = state.allocator.oldest_since()?;
                let until = since.saturating_add(rest).saturating_sub(now);
                return Some(Duration::from_nanos(until));
            };
            drop(state);
            self.give_back(&[range]);
        }
    }

    /// Gives the memory of ranges that are leaving back.
    fn give_back(&self, leaving: &[Range]) {
        for range in leaving {
            let (offset, len) = (range.start * self.page, range.pages * self.page);
            if let Err(error) = self.window.punch(offset, len as usize) {
                crate::bug(&format!(
                    "memory of the store cannot be given back: {error}"
                ));
            }
        }
        let mut state = self.lock();
        for &range in leaving {
            state.allocator.has_left(range);
        }
    }

    /// How many pages may be populated when so many bytes of memory are left and `pages` are wanted.
    fn allowance(&self, left: u64, pages: u64) -> u64 {
        let free = beyond_spare(left) / self.page;
        (pages + free / STEP_PART).min(free)
    }

    fn no_room(&self, state: &State, wanted: usize, shortage: Shortage) -> NoRoom {
        NoRoom {
            wanted: wanted as u64,
            live: state.allocator.live() * self.page,
            budget: state.allocator.budget() * self.page,
            shortage,
        }
    }

    fn block(
        self: &Arc<Self>,
        state: &mut State,
        range: Range,
        len: usize,
        writer: u64,
        used: (Used, u64),
    ) -> Arc<StoreBlock> {
        state.blocks += 1;
        Arc::new(StoreBlock::new(self.clone(), range, len, writer, used))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        match self.state.lock() {
            Ok(guard) => guard,
            Err(_) => crate::bug("a thread panicked while it held the store"),
        }
    }
}

#[cfg(test)]
mod tests;
