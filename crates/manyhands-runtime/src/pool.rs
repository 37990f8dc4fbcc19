//! A pool: its tasks, its workers' memory, and how results come home.
//!
//! One lock guards everything that changes. Whoever holds it never waits for anything else: not for a
//! process, not for a reader, not for the language on top. Three kinds of threads come here: those
//! that submit, those that wait (`drain_role`), and the supervisor.

mod admission;
mod again;
mod births;
mod dumping;
mod ending;
mod lending;
mod memory;
mod patrol;
mod publishing;
mod recycling;
mod results;
mod stopping;
mod telling;
mod waiting;

pub(crate) use lending::Calls;
pub(crate) use patrol::Patrol;
pub(crate) use recycling::{Part, Term};
pub(crate) use stopping::Stop;

pub use recycling::Recycling;
pub use waiting::Awaited;

use crate::definition::Definition;
use crate::drain_role::DrainRole;
use crate::events::Events;
use crate::output::Output;
use crate::protocol::{TaskKind, WorkerKey};
use crate::scheduler::{Scheduler, Slot, Work};
use crate::seat::Worker;
use crate::supervisor::{Command, Supervisor};
use crate::task::{Breakage, Entry, Limits, Task};
use crate::unseen::Unseen;
use admission::{Budget, Capacity};
use manyhands_os::{Event, Socket, monotonic_nanos};
use manyhands_shm::{Parked, PoolPage, Share};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use waiting::{Follower, SPIN_NANOS};

/// Births that fail within so many nanoseconds fail for one reason.
const ONE_MOMENT: u64 = 2_000_000;
/// How often a submitting thread drains while tasks queue up.
const SUBMITS_PER_DRAIN: u64 = 64;
/// How long one worker may have items that wait, and others none, in nanoseconds.
const BALANCE_AFTER: u64 = 500_000;

/// What a pool is made of.
#[derive(Debug)]
pub struct PoolOptions {
    /// The most workers that it has.
    pub workers: usize,
    /// What every worker runs before its first task.
    pub initializer: Option<Initializer>,
    /// How many cores the pool's processes share with its parent.
    pub cores: usize,
    /// After how many nanoseconds it is logged that a task runs for too long; none for never.
    pub stuck_after: Option<u64>,
    /// For how many nanoseconds nothing has to happen, with tasks pending, until the pool breaks: see
    /// `pool/patrol.rs`.
    pub stalled_after: u64,
    /// Where it tells what happens, if somebody listens.
    pub events: Option<Arc<Events>>,
    /// Where what its workers put out for people goes, if somebody takes that.
    pub output: Option<Arc<Output>>,
    /// How many bytes of memory its tasks may add together; none for any number.
    pub memory: Option<u64>,
    /// When workers give way to fresh ones, or leave.
    pub recycling: Recycling,
    /// How many of the cores each worker is to use; none for an equal share of them.
    pub share: Option<u32>,
}

/// What `PoolOptions::stalled_after` should be.
pub const STALLED_AFTER: u64 = 30_000_000_000;

/// How many of the cores are a worker's: as many as were asked for, else what is left to each, at least 1.
fn share_of(given: Option<u32>, cores: usize, workers: usize) -> Share {
    let equal = (cores / workers.max(1)).max(1);
    Share {
        count: given.unwrap_or(u32::try_from(equal).unwrap_or(u32::MAX)),
        is_given: given.is_some(),
    }
}

/// What every worker runs before its first task.
#[derive(Debug)]
pub struct Initializer {
    /// What to run.
    pub definition: Option<Arc<Definition>>,
    /// What else has to be known.
    pub needs: Vec<Arc<Definition>>,
    /// How the payload is encoded.
    pub tag: u8,
    /// The arguments.
    pub payload: Vec<u8>,
}

/// Why a task was not taken.
#[derive(Debug)]
pub enum Refused {
    /// The pool is closed.
    Closed,
    /// The pool can run nothing any more.
    Broken(Arc<Breakage>),
}

/// Whether a pool still takes work.
#[derive(Debug, Clone)]
enum Phase {
    Open,
    /// Takes no more; ends when all is done. With `true` it kills instead of waiting.
    Closing(bool),
    Broken(Arc<Breakage>),
}

/// What a person may want to know of a worker.
#[derive(Debug, Clone)]
pub struct WorkerStats {
    /// Its slot.
    pub slot: u32,
    /// Its process id, once it is born.
    pub pid: Option<i32>,
    /// How many workers the slot had before.
    pub restarts: u32,
    /// Tasks and items finished.
    pub done: u64,
    /// Time spent in tasks, in nanoseconds, what follows among it.
    pub busy_nanos: u64,
    /// Time spent with what was long of their arguments and results, in nanoseconds.
    pub transfer_nanos: u64,
    /// Age of the running task, in nanoseconds, if one runs.
    pub task_age: Option<u64>,
    /// Index of the running task.
    pub task_index: Option<u64>,
    /// What it runs.
    pub definition: Option<Arc<Definition>>,
    /// Tasks that it holds besides the running one.
    pub waiting: usize,
    /// Its age in nanoseconds.
    pub age: u64,
    /// How many blocks of the store it has leases of.
    pub leases: usize,
}

/// What a person may want to know of a pool.
#[derive(Debug, Clone)]
pub struct PoolStats {
    /// Its workers.
    pub workers: Vec<WorkerStats>,
    /// Tasks that no worker has.
    pub queued: usize,
    /// Tasks that have not ended.
    pub pending: usize,
    /// Tasks that ended.
    pub done: u64,
    /// Workers that died.
    pub deaths: u64,
    /// Workers that gave way to fresh ones.
    pub recycled: u64,
    /// Workers whose tasks wait for tasks that they have submitted: their slots are lent.
    pub lent: usize,
    /// Sleeps that ended by time although work was there: always 0 but for killed wakers.
    pub late_wakes: u64,
}

#[derive(Debug)]
enum Seat {
    Vacant,
    /// The supervisor was asked for a worker; see `recycling` for what a spare is.
    Asked {
        spare: bool,
    },
    Taken(Box<Worker>),
}

impl Seat {
    /// Whether its worker's slot is lent.
    fn lends(&self) -> bool {
        matches!(self, Self::Taken(worker) if worker.lends())
    }
}

#[derive(Debug)]
pub(crate) struct State {
    scheduler: Scheduler<Entry>,
    seats: Vec<Seat>,
    generations: Vec<u32>,
    phase: Phase,
    role: DrainRole<Arc<Follower>>,
    /// Threads that wait for something of this pool.
    waiting: u32,
    /// Tasks that have not ended and whose end somebody wants to be told of.
    observed: u64,
    pending: usize,
    done: u64,
    deaths: u64,
    recycled: u64,
    submits: u64,
    /// Grows with every drain that found something.
    drains: u64,
    failed_births: u32,
    last_failed_birth: u64,
    /// Births in a row that were killed before they finished a task.
    killed_births: u32,
    /// Tokens of observers whose tasks ended, not yet handed to the face.
    ended: Vec<u64>,
    late_wakes: u64,
    /// When results were found last by a thread that waits, in nanoseconds.
    found_at: u64,
    /// A task waits for nothing but the kernel: the supervisor tries again soon.
    try_again: bool,
    /// When it is to be looked whether idle workers can take what waits elsewhere, if that is planned.
    balance_at: Option<u64>,
    /// When to look again for workers that stand still.
    relieve_at: u64,
    /// When the supervisor looks whether running tasks have to be ended, at the latest; 0 if it does not.
    looks_at: u64,
    /// Whether it comes now and then to look whether all goes on.
    is_patrolled: bool,
    /// The longest time between two looks that is short enough for all limits of tasks that came since there
    /// were none.
    shortest_limit: Option<u64>,
    /// Whether what has failed is not to run again, whatever was asked: all that waited was ended.
    ends_early: bool,
    /// Tasks that run again at these times.
    delayed: Vec<(u64, Entry)>,
    /// For the length of pauses.
    seed: u64,
    /// Slots of workers that wait for what their tasks have submitted.
    lent: usize,
    /// Whether anything ever had a priority other than 0: without that no worker holds what is to give way.
    has_priorities: bool,
    /// Whether slots have to be opened or closed, since `lent` or what workers are for has changed.
    is_unsettled: bool,
    capacity: Capacity,
    /// Whether a task waits that a worker could take if there were more memory.
    is_held_back: bool,
    /// Whether it waits since memory is short, and whether that was told.
    is_short: bool,
    told_short: bool,
    /// How many workers it has, but for spares.
    width: usize,
    /// How many tasks a worker has left of its share when a spare is asked for.
    near: usize,
    /// When a spare may be asked for, after one that could not be started.
    spares_after: u64,
    /// Whether the supervisor comes soon to look at memory and ages.
    is_kept: bool,
    /// What `done` was when it came last.
    kept_done: u64,
}

/// A pool of workers.
#[derive(Debug)]
pub struct Pool {
    pub(crate) id: u32,
    cores: usize,
    stuck_after: Option<u64>,
    stalled_after: u64,
    initializer: Option<Initializer>,
    recycling: Recycling,
    /// What was asked for as the share of a worker.
    share: Option<u32>,
    /// By which workers send their lines, and their end of it.
    requests: Socket,
    workers_requests: Socket,
    events: Option<Arc<Events>>,
    output: Option<Arc<Output>>,
    budget: Option<Budget>,
    page: PoolPage,
    pub(crate) event: Event,
    state: Mutex<State>,
    /// Something ended: for those who wait for the pool as a whole.
    quiet: Condvar,
    /// Failures that nobody asked for. Its lock is a leaf.
    unseen: Unseen<Arc<Task>>,
    supervisor: Arc<Supervisor>,
    /// Nanoseconds of spinning that waiting threads allow themselves now.
    spin: AtomicU64,
}

impl Pool {
    /// Makes a pool without workers; they come with the first tasks.
    pub fn new(supervisor: Arc<Supervisor>, options: PoolOptions) -> io::Result<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let PoolOptions {
            workers,
            initializer,
            cores,
            stuck_after,
            stalled_after,
            events,
            output,
            memory,
            recycling,
            share,
        } = options;
        let mut scheduler = Scheduler::new(workers);
        if let Some(most) = recycling.after_tasks {
            scheduler.limit(most);
        }
        // Without a share all have more than that left.
        let near = recycling.after_tasks.map_or(0, |most| (most / 2).max(1));
        let (requests, workers_requests) = Socket::pair()?;
        let pool = Arc::new(Self {
            requests,
            workers_requests,
            // Relaxed: only distinct numbers are wanted.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            cores,
            stuck_after,
            stalled_after,
            initializer,
            recycling,
            share,
            events,
            output,
            budget: memory.map(|limit| Budget::new(limit, workers)),
            page: PoolPage::create(workers as u32, share_of(share, cores, workers))?,
            event: Event::new()?,
            state: Mutex::new(State {
                scheduler,
                seats: (0..workers).map(|_| Seat::Vacant).collect(),
                generations: vec![0; workers],
                phase: Phase::Open,
                role: DrainRole::default(),
                waiting: 0,
                observed: 0,
                pending: 0,
                done: 0,
                deaths: 0,
                recycled: 0,
                submits: 0,
                drains: 0,
                failed_births: 0,
                last_failed_birth: 0,
                killed_births: 0,
                ended: Vec::new(),
                late_wakes: 0,
                found_at: 0,
                try_again: false,
                balance_at: None,
                relieve_at: 0,
                looks_at: 0,
                is_patrolled: false,
                shortest_limit: None,
                ends_early: false,
                delayed: Vec::new(),
                seed: monotonic_nanos() | 1,
                lent: 0,
                has_priorities: false,
                is_unsettled: false,
                capacity: Capacity::default(),
                is_held_back: false,
                is_short: false,
                told_short: false,
                width: workers,
                near,
                spares_after: 0,
                is_kept: false,
                kept_done: 0,
            }),
            quiet: Condvar::new(),
            unseen: Unseen::default(),
            supervisor,
            spin: AtomicU64::new(SPIN_NANOS),
        });
        pool.page.parent().announce(Parked::Event);
        pool.supervisor.add_pool(&pool)?;
        Ok(pool)
    }

    /// The lock. A panic under it is a bug of ours that leaves nothing to trust: it aborts.
    fn lock(&self) -> MutexGuard<'_, State> {
        match self.state.lock() {
            Ok(state) => state,
            Err(_) => crate::bug("a thread panicked while it held a pool"),
        }
    }

    /// A number that no other pool of this process has.
    pub fn number(&self) -> u32 {
        self.id
    }

    /// Whether it takes tasks; if not, why.
    pub fn check_open(&self) -> Result<(), Refused> {
        match &self.lock().phase {
            Phase::Open => Ok(()),
            Phase::Closing(_) => Err(Refused::Closed),
            Phase::Broken(why) => Err(Refused::Broken(why.clone())),
        }
    }

    /// Takes a task. The arguments are encoded already; from here on the task needs no thread of
    /// the caller's.
    pub fn submit(&self, entry: Entry) -> Result<(), Refused> {
        let mut state = self.lock();
        match &state.phase {
            Phase::Open => {}
            Phase::Closing(_) => return Err(Refused::Closed),
            Phase::Broken(why) => return Err(Refused::Broken(why.clone())),
        }
        state.pending += entry.left as usize;
        state.submits += 1;
        self.say_queued(&mut state, &entry);
        self.limit(&mut state, entry.limits);
        if !state.is_patrolled {
            self.start_patrol(&mut state);
        }
        self.look_after(&mut state);
        state.has_priorities |= entry.has_priority();
        // A block is worth many tasks.
        let is_block = entry.kind == TaskKind::Block;
        if state.scheduler.queued() == 0
            && let Some(slot) = state.scheduler.choose(entry.rank())
            && self.admits(&mut state, slot, &entry)
        {
            let behind_another = is_block || state.scheduler.held_count(slot) > 0;
            match self.write(&mut state, slot, entry) {
                None => self.publish(&mut state, slot),
                Some(entry) => state.scheduler.add(entry),
            }
            if behind_another || state.scheduler.queued() > 0 {
                self.ask_for_workers(&mut state);
            }
            if state.scheduler.queued() > 0 && is_block {
                self.balance(&mut state); // it was cut: more than its worker may still have
            } else if is_block {
                self.balance_later(&mut state);
            }
        } else {
            state.scheduler.add(entry);
            self.ask_for_workers(&mut state);
            if self.give_way(&mut state) {
                self.balance(&mut state);
            }
            let often = is_block || state.submits.is_multiple_of(SUBMITS_PER_DRAIN);
            if often && !state.role.is_held() {
                self.drain(&mut state);
            }
        }
        Ok(())
    }

    /// Has it looked whether what came with these limits keeps to them.
    fn limit(&self, state: &mut State, limits: Limits) {
        let memory = limits.memory.map(memory::look_after);
        let Some(shortest) = limits.time.into_iter().chain(memory).min() else {
            return;
        };
        if state.shortest_limit.is_none_or(|known| shortest < known) {
            // The look that is planned may be as far away as the limits that were known.
            state.shortest_limit = Some(shortest);
            self.watch(state, monotonic_nanos().saturating_add(shortest));
        } else if state.looks_at == 0 {
            self.watch(state, 1);
        }
    }

    /// Asks for as many workers as tasks wait for one, here or behind another task.
    fn ask_for_workers(&self, state: &mut State) {
        if state.pending == 0 {
            return; // what stands behind a task that is being stopped is an exit record
        }
        let behind: usize = (0..state.seats.len())
            .map(|index| {
                state
                    .scheduler
                    .held_count(Slot(index as u32))
                    .saturating_sub(1)
            })
            .sum();
        let queued = state.scheduler.queued() + behind;
        let coming = state
            .seats
            .iter()
            .filter(|seat| matches!(seat, Seat::Asked { spare: false }))
            .count();
        let mut wanted = queued.saturating_sub(coming);
        let mut asked = false;
        let mut places = state.width.saturating_sub(state.occupied());
        for seat in &mut state.seats {
            if wanted == 0 || places == 0 {
                break;
            }
            if matches!(seat, Seat::Vacant) {
                *seat = Seat::Asked { spare: false };
                (wanted, places) = (wanted - 1, places - 1);
                asked = true;
            }
        }
        if asked {
            self.supervisor.command(Command::Births(self.id));
        }
    }

    /// One worker has got several items, and others idle: if its items are as short as they should be,
    /// it has done them before the others are awake. If not, they are shared out in a moment.
    fn balance_later(&self, state: &mut State) {
        if state.balance_at.is_none() && state.scheduler.steal().is_some() {
            state.balance_at = Some(monotonic_nanos() + BALANCE_AFTER);
            self.supervisor.command(Command::LookAgain(self.id));
        }
    }

    /// Where what its workers put out goes.
    pub fn output(&self) -> Option<&Arc<Output>> {
        self.output.as_ref()
    }

    /// Workers that are born from now on are to send this of their output, as bits.
    pub fn want_output(&self, wanted: u32) {
        self.page.set_wanted(wanted);
    }

    /// Whether the supervisor has logged anything that nobody has taken.
    pub fn has_logs(&self) -> bool {
        self.supervisor.has_logs()
    }

    /// Asks for all workers at once.
    pub fn start_all(&self) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Open) {
            return;
        }
        let missing = state.width.saturating_sub(state.occupied());
        let vacant = |seat: &&mut Seat| matches!(seat, Seat::Vacant);
        for seat in state.seats.iter_mut().filter(vacant).take(missing) {
            *seat = Seat::Asked { spare: false };
        }
        self.supervisor.command(Command::Births(self.id));
    }
}

impl State {
    /// Whether the supervisor has to come again soon, whatever else happens.
    fn is_to_be_looked_at(&self) -> bool {
        self.try_again || self.balance_at.is_some()
    }

    /// The first task of the queue that was not cancelled while it was there. Other records than
    /// tasks are their worker's, and of no use when they were taken back.
    fn next_entry(&mut self) -> Option<Entry> {
        loop {
            let entry = self.scheduler.take_first()?;
            if entry.is_wanted() {
                return Some(entry);
            }
        }
    }

    fn has_unread(&self) -> bool {
        self.seats.iter().any(|seat| match seat {
            Seat::Taken(worker) => {
                worker.reader.has_unread() && !worker.violation && !worker.paused
            }
            _ => false,
        })
    }

    /// Counts a birth that failed. Those of one moment have one cause, and count once, but for those that
    /// somebody killed.
    fn count_failed_birth(&mut self, was_killed: bool) {
        if was_killed {
            self.killed_births += 1;
            return;
        }
        let now = monotonic_nanos();
        if now - self.last_failed_birth > ONE_MOMENT {
            self.failed_births += 1;
            self.last_failed_birth = now;
        }
    }

    /// What a worker runs that has started so many items which have not ended, the running one with them:
    /// its entry, and how many of that come before the item.
    fn started_entry(&self, slot: Slot, started: u32) -> Option<(&Entry, u64)> {
        let mut before = started.checked_sub(1)?;
        self.scheduler.held(slot).find_map(|entry| {
            if before < entry.left {
                return Some((entry, before.into()));
            }
            before -= entry.left;
            None
        })
    }

    /// Whether the worker was told to leave: what it holds is the word to do so.
    fn is_leaving(&self, slot: Slot) -> bool {
        matches!(&self.seats[slot.0 as usize], Seat::Taken(worker) if worker.leaving)
    }

    /// Makes one more seat, closed; gives its number.
    fn add_seat(&mut self) -> usize {
        self.seats.push(Seat::Vacant);
        self.generations.push(0);
        self.scheduler.add_place();
        self.seats.len() - 1
    }

    fn has_workers(&self) -> bool {
        self.seats.iter().any(|seat| matches!(seat, Seat::Taken(_)))
    }

    fn worker(&mut self, key: WorkerKey) -> Option<&mut Worker> {
        match self.seats.get_mut(key.slot as usize) {
            Some(Seat::Taken(worker)) if worker.generation == key.generation => Some(worker),
            _ => None,
        }
    }
}
