//! Fresh workers for old ones, and more or fewer of them.
//!
//! A worker *gives way* when it has been given its share of tasks and has finished them, holds more memory than
//! it should between two tasks, or is too old; and without a successor when the pool is to have fewer workers,
//! or had nothing for it for long. Its part in that (`Part`), which changes under the pool's lock alone:
//!
//! | part | its slot | what comes next |
//! |---|---|---|
//! | `Spare` | takes no tasks, and is none of the pool's width | `Serves`, in the place of one that is due or dead |
//! | `Serves` | takes tasks | `Suspect`, `Due`, `Relieved` |
//! | `Suspect` | was seen above `recycle_rss` while it ran something: takes no tasks until it was looked at between two | `Serves`, `Due` |
//! | `Due` | takes tasks, as far as its share goes | `Relieved`, once a spare is warm |
//! | `Relieved` | takes no tasks, and is none of the pool's width; what waited there goes elsewhere | it leaves, when it holds nothing |
//!
//! A spare is *warm* when it is born, its initializer has ended, and its memory was looked at, if there is a
//! limit. One above the limit then breaks the pool: its successors would be no smaller. RELIEVE makes a warm
//! spare serve and relieves who was due in one step, so that as many take tasks after it as before.
//! To LEAVE it gets an exit record, as at the end of the pool; who has not left in `LEAVE_WAIT` is killed.
//!
//! Nothing is lost and nothing runs twice, since nothing is new between processes: what waits is taken back as
//! for an idle worker, the exit record goes to a worker that holds nothing, and whoever dies is buried
//! as ever: a spare costs nothing, and a spare takes the place of one that died before it was relieved.
//!
//! As many spares are wanted as workers have finished their share, and can do nothing else; and one, if
//! anyone else is due or has half of its share behind it. So one at a time is replaced, if not all are due.
//!
//! All of that is done by `keep_fresh`, where slots are settled (`lending.rs`). The supervisor comes every
//! `VISIT` while tasks are pending, and else when somebody's time is up, for what no result tells of: memory,
//! ages, workers that idle or do not leave, and births of spares that failed.

use super::{Phase, Pool, Seat, State, share_of};
use crate::events::Why;
use crate::fail_point::fail_point;
use crate::protocol::{TaskKind, WorkerKey};
use crate::scheduler::Slot;
use crate::seat::Worker;
use crate::supervisor::Command;
use crate::task::{Breakage, Bytes, Entry};
use manyhands_os::{MemoryGauge, monotonic_nanos};
use std::sync::Arc;

/// How often the supervisor looks while tasks are pending, in nanoseconds.
const VISIT: u64 = 100_000_000;
/// The shortest time between two visits, in nanoseconds.
const SHORTEST_VISIT: u64 = 1_000_000;
/// How long a worker that gives way has to leave, before it is killed, in nanoseconds.
const LEAVE_WAIT: u64 = 5_000_000_000;
/// In how many parts the time is looked at after which an idle worker leaves.
const IDLE_LOOKS: u64 = 4;

/// When workers give way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recycling {
    /// After so many tasks and items.
    pub after_tasks: Option<usize>,
    /// With more private memory than that between two tasks, in bytes.
    pub above: Option<u64>,
    /// At this age, in nanoseconds.
    pub older_than: Option<u64>,
    /// After so long with nothing to do, in nanoseconds; without a successor.
    pub idle_for: Option<u64>,
}

/// What a worker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Spare,
    Serves,
    Suspect,
    Due(Why),
    /// Why it was replaced, if it was.
    Relieved(Option<Why>),
}

/// What is kept of a worker for this.
#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) part: Part,
    /// Its memory was looked at between two tasks, and is as it should be.
    is_weighed: bool,
    /// At how many finished tasks and which next number it was seen idle, and since when.
    idle: Option<(u64, u32, u64)>,
    /// When it is killed if it has not left.
    leave_by: Option<u64>,
}

impl Term {
    pub(crate) fn new(is_spare: bool) -> Self {
        Self {
            part: if is_spare { Part::Spare } else { Part::Serves },
            is_weighed: false,
            idle: None,
            leave_by: None,
        }
    }

    /// Whether it may be given tasks, as far as this goes.
    pub(crate) fn takes(&self) -> bool {
        matches!(self.part, Part::Serves | Part::Due(_))
    }

    /// Whether the next result of its worker may change what it is for.
    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.part != Part::Serves
    }
}

impl Recycling {
    fn is_any(&self) -> bool {
        let Self {
            after_tasks,
            above,
            older_than,
            idle_for,
        } = self;
        after_tasks.is_some() || above.is_some() || older_than.is_some() || idle_for.is_some()
    }
}

/// What a worker was found to hold.
struct Weight {
    key: WorkerKey,
    /// Its state at the time: what it had finished, its next number, and whether it idled.
    seen: (u64, u32, bool),
    bytes: u64,
}

impl Seat {
    /// Whether it is of a worker that is one of the pool's width: not lent, spare, or relieved.
    pub(super) fn counts(&self) -> bool {
        matches!(self, Self::Taken(worker) if worker.counts())
    }

    /// Whether one of the pool's places is taken by it: by such a worker, or for one that was asked for.
    pub(super) fn occupies(&self) -> bool {
        self.counts() || matches!(self, Self::Asked { spare: false })
    }
}

impl Worker {
    fn counts(&self) -> bool {
        !self.lends() && !matches!(self.term.part, Part::Spare | Part::Relieved(_))
    }

    /// Whether something of its own may be done to it now.
    fn is_sound(&self) -> bool {
        self.stop.is_none() && !self.leaving && !self.dismissed && !self.violation && !self.lends()
    }
}

impl State {
    /// How many workers of the width are there, or asked for.
    pub(super) fn occupied(&self) -> usize {
        self.seats.iter().filter(|seat| seat.occupies()).count()
    }

    /// Whether the worker has half of its share behind it.
    #[inline]
    pub(super) fn is_near(&self, slot: Slot) -> bool {
        self.scheduler.left(slot) <= self.near
    }

    fn workers(&self) -> impl Iterator<Item = (Slot, &Worker)> {
        let seats = self.seats.iter().enumerate();
        seats.filter_map(|(index, seat)| match seat {
            Seat::Taken(worker) => Some((Slot(index as u32), &**worker)),
            _ => None,
        })
    }

    /// Whether the worker has finished its share.
    fn is_spent(&self, slot: Slot) -> bool {
        self.scheduler.left(slot) == 0 && self.scheduler.held_count(slot) == 0
    }

    /// By which it is seen that a worker has idled all the time: what it has finished, its next number, and
    /// whether it idles.
    fn seen(&self, key: WorkerKey) -> Option<(u64, u32, bool)> {
        let slot = Slot(key.slot);
        let (_, worker) = self
            .workers()
            .find(|(other, worker)| (*other, worker.generation) == (slot, key.generation))?;
        let is_idle = self.scheduler.held_count(slot) == 0;
        Some((worker.finished, worker.next, is_idle))
    }

    fn set_part(&mut self, slot: Slot, part: Part) {
        if let Seat::Taken(worker) = &mut self.seats[slot.0 as usize] {
            worker.term.part = part;
        }
    }

    /// Has a spare serve in the place of a worker that is gone; whether there was one.
    pub(super) fn promote_spare(&mut self) -> bool {
        let is_spare =
            |(_, worker): &(Slot, &Worker)| worker.term.part == Part::Spare && worker.is_sound();
        let Some(slot) = self.workers().find(is_spare).map(|(slot, _)| slot) else {
            return false;
        };
        self.set_part(slot, Part::Serves);
        self.is_unsettled = true;
        true
    }
}

impl Pool {
    /// How many workers the pool is to have, from now on. Those that are too many finish what they run, and
    /// leave; more come with work. False if the pool is closed.
    pub fn resize(&self, workers: usize) -> bool {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Open) {
            return false;
        }
        state.width = workers;
        self.page.set_width(workers as u32);
        self.page
            .set_share(share_of(self.share, self.cores, workers));
        let mut places = workers;
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            match &mut state.seats[index] {
                seat @ Seat::Asked { .. } if places == 0 => *seat = Seat::Vacant,
                Seat::Asked { spare: false } => places -= 1,
                seat if seat.counts() => {
                    if places == 0 {
                        state.set_part(slot, Part::Relieved(None));
                    }
                    places = places.saturating_sub(1);
                }
                _ => {}
            }
        }
        for seat in &mut state.seats {
            if let Seat::Taken(worker) = seat
                && worker.term.part == Part::Relieved(None)
                && !worker.leaving
                && places > 0
            {
                worker.term.part = Part::Serves; // it has not left yet
                places -= 1;
            }
        }
        self.settle(&mut state);
        self.ask_for_workers(&mut state);
        self.balance(&mut state);
        self.tell_all(&mut state);
        true
    }

    /// Relieves who is due and lets go who is relieved; asks for spares. At the end of `settle`.
    pub(super) fn keep_fresh(&self, state: &mut State) {
        let is_open = match state.phase {
            Phase::Open => true,
            Phase::Closing(false) => state.pending > 0,
            _ => false,
        };
        if !is_open {
            return;
        }
        if self.recycling.after_tasks.is_some() {
            for index in 0..state.seats.len() {
                let slot = Slot(index as u32);
                if state.is_spent(slot)
                    && let Seat::Taken(worker) = &mut state.seats[index]
                    && worker.term.part == Part::Serves
                {
                    worker.term.part = Part::Due(Why::Tasks);
                }
            }
        }
        while let Some((due, why, spare)) = self.due_and_spare(state) {
            // RELIEVE
            state.set_part(spare, Part::Serves);
            state.set_part(due, Part::Relieved(Some(why)));
            state.scheduler.reopen(spare);
            fail_point("parent.relieved");
        }
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            let Seat::Taken(worker) = &mut state.seats[index] else {
                continue;
            };
            if !matches!(worker.term.part, Part::Relieved(_)) || worker.leaving {
                continue;
            }
            if state.scheduler.is_open(slot) {
                state.scheduler.close(slot);
            }
            self.take_back_waiting(state, slot);
            self.leave_if_relieved(state, slot);
        }
        self.ask_for_spares(state);
        if self.recycling.is_any() && !state.is_kept {
            self.visit(state);
        }
    }

    /// Who is due, before others one that can do nothing else, and a spare that can take its place.
    fn due_and_spare(&self, state: &State) -> Option<(Slot, Why, Slot)> {
        let due: Vec<_> = state
            .workers()
            .filter_map(|(slot, worker)| match worker.term.part {
                Part::Due(why) if worker.is_sound() => Some((slot, why)),
                _ => None,
            })
            .collect();
        let spent = due.iter().find(|&&(slot, _)| state.is_spent(slot));
        let &(due, why) = spent.or(due.first())?;
        let is_warm = |(slot, worker): &(Slot, &Worker)| {
            worker.term.part == Part::Spare
                && worker.is_sound()
                && worker.process.is_some()
                && state.scheduler.held_count(*slot) == 0
                && (self.recycling.above.is_none() || worker.term.is_weighed)
        };
        let (spare, _) = state.workers().find(is_warm)?;
        Some((due, why, spare))
    }

    /// LEAVE, if it holds nothing any more.
    fn leave_if_relieved(&self, state: &mut State, slot: Slot) {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return;
        };
        if !worker.is_sound() || state.scheduler.held_count(slot) > 0 {
            return;
        }
        worker.leaving = true;
        worker.term.leave_by = Some(monotonic_nanos() + LEAVE_WAIT);
        state.recycled += u64::from(matches!(worker.term.part, Part::Relieved(Some(_))));
        state.scheduler.leaves(slot);
        let exit = Entry::new(None, TaskKind::Exit, None, Vec::new(), 0, Bytes::default());
        if self.write(state, slot, exit).is_none() {
            self.publish(state, slot);
        }
        fail_point("parent.told_to_leave");
        self.visit(state);
    }

    fn ask_for_spares(&self, state: &mut State) {
        let (mut spent, mut near, mut there) = (0, 0, 0);
        for (slot, worker) in state.workers() {
            match worker.term.part {
                Part::Due(_) if !worker.lends() && state.is_spent(slot) => spent += 1,
                Part::Due(_) => near += 1,
                Part::Spare => there += 1,
                // Nobody gives way while there is nothing to do.
                Part::Serves if state.pending > 0 && state.is_near(slot) => near += 1,
                _ => {}
            }
        }
        let wanted = spent + near.min(1);
        let asked = |seat: &&Seat| matches!(seat, Seat::Asked { spare: true });
        there += state.seats.iter().filter(asked).count();
        if wanted <= there || monotonic_nanos() < state.spares_after {
            return;
        }
        for _ in there..wanted {
            let vacant = |seat: &Seat| matches!(seat, Seat::Vacant);
            let index = state.seats.iter().position(vacant);
            let index = index.unwrap_or_else(|| state.add_seat());
            state.seats[index] = Seat::Asked { spare: true };
        }
        self.supervisor.command(Command::Births(self.id));
    }

    /// A spare could not be started: the next is asked for in a while, or at once if nobody else can work.
    pub(super) fn spare_failed(&self, state: &mut State, is_urgent: bool) {
        let pause = if is_urgent { 0 } else { VISIT };
        state.spares_after = monotonic_nanos() + pause;
        state.is_unsettled = true;
    }

    /// Whether the worker can do nothing more than leave.
    pub(super) fn is_spent(&self, state: &State, index: usize) -> bool {
        state.is_spent(Slot(index as u32))
    }

    /// Has the supervisor come at once.
    pub(super) fn visit(&self, state: &mut State) {
        state.is_kept = true;
        self.supervisor.command(Command::Visit(self.id));
    }

    /// Has the supervisor come while there is something to look at.
    #[inline]
    pub(super) fn look_after(&self, state: &mut State) {
        if !state.is_kept && self.recycling.is_any() {
            self.visit(state);
        }
    }

    /// A worker has ended something, or was born: what it is for may change with that.
    #[inline]
    pub(super) fn came_on(&self, state: &mut State, slot: Slot) {
        let Seat::Taken(worker) = &state.seats[slot.0 as usize] else {
            return;
        };
        if worker.term.is_watched() || state.is_near(slot) {
            state.is_unsettled = true;
            let weighs = matches!(worker.term.part, Part::Suspect | Part::Spare);
            if weighs && self.recycling.above.is_some() && state.scheduler.held_count(slot) == 0 {
                self.visit(state);
            }
        }
    }

    /// For the supervisor: looks at memory, ages and who idles; when to come again, if that is needed.
    pub(crate) fn keep(&self) -> Option<u64> {
        if let Some(limit) = self.recycling.above {
            self.weigh(limit);
        }
        let mut state = self.lock();
        let now = monotonic_nanos();
        // Once more after the last task, for who idles then.
        let has_worked = state.kept_done != state.done;
        state.kept_done = state.done;
        let is_used = state.pending > 0 || has_worked;
        let mut next = (self.recycling.is_any() && is_used).then_some(now + VISIT);
        for index in 0..state.seats.len() {
            let at = self.keep_one(&mut state, Slot(index as u32), now);
            next = next.into_iter().chain(at).min();
        }
        self.settle(&mut state);
        self.balance(&mut state);
        self.tell_all(&mut state);
        // One that is far away is none for whoever has something to be looked at.
        state.is_kept = next.is_some_and(|at| at <= now + VISIT);
        next.map(|at| at.max(now + SHORTEST_VISIT))
    }

    /// When to look at this worker again.
    fn keep_one(&self, state: &mut State, slot: Slot, now: u64) -> Option<u64> {
        // Who can take nothing of what waits has a successor to wait for.
        let is_idle = state.scheduler.held_count(slot) == 0 && state.scheduler.queued() == 0;
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return None;
        };
        if let Some(by) = worker.term.leave_by {
            if by > now {
                return Some(by);
            }
            worker.term.leave_by = None;
            if let Some(process) = &worker.process {
                process.kill();
            }
            return None;
        }
        if worker.leaving {
            return None;
        }
        let mut next = None;
        if let Some(age) = self.recycling.older_than
            && worker.term.part == Part::Serves
        {
            let at = worker.born_at.saturating_add(age);
            if at <= now {
                worker.term.part = Part::Due(Why::Age);
            } else {
                next = Some(at);
            }
        }
        if let Some(after) = self.recycling.idle_for
            && worker.process.is_some()
            && (worker.counts() || worker.term.part == Part::Spare)
        {
            let every = (after / IDLE_LOOKS).max(SHORTEST_VISIT);
            next = next.into_iter().chain([now + every]).min();
            let seen = (worker.finished, worker.next);
            match worker.term.idle.filter(|_| is_idle) {
                Some((done, number, since)) if (done, number) == seen => {
                    if now.saturating_sub(since) >= after {
                        worker.term.part = Part::Relieved(None);
                    }
                }
                _ => worker.term.idle = is_idle.then_some((seen.0, seen.1, now)),
            }
        }
        next
    }

    /// Looks at the memory of workers; without the lock, since it asks the kernel.
    fn weigh(&self, limit: u64) {
        let state = self.lock();
        let found: Vec<_> = state
            .workers()
            .filter(|(_, worker)| {
                matches!(worker.term.part, Part::Spare | Part::Serves | Part::Suspect)
                    && worker.process.is_some()
                    && worker.is_sound()
            })
            .filter_map(|(slot, worker)| {
                let key = WorkerKey {
                    pool: self.id,
                    slot: slot.0,
                    generation: worker.generation,
                };
                Some((key, worker.pid(), state.seen(key)?))
            })
            .collect();
        drop(state);
        let weights: Vec<_> = found
            .into_iter()
            .filter_map(|(key, pid, seen)| {
                let bytes = MemoryGauge::of(pid).ok()?.read()?;
                Some(Weight { key, seen, bytes })
            })
            .collect();
        let mut state = self.lock();
        for weight in weights {
            self.weighed(&mut state, &weight, limit);
        }
    }

    fn weighed(&self, state: &mut State, weight: &Weight, limit: u64) {
        let bytes = weight.bytes;
        // Idle before and after, and with nothing between: it was looked at between two tasks.
        let idles = weight.seen.2 && state.seen(weight.key) == Some(weight.seen);
        let initializers = u64::from(self.initializer.is_some());
        let Some(worker) = state.worker(weight.key) else {
            return;
        };
        let (pid, is_fresh) = (worker.pid(), worker.finished <= initializers);
        match (bytes > limit, idles) {
            (true, true) if is_fresh => {
                let why = format!(
                    "worker {pid} has {bytes} bytes of memory of its own before its first task, above \
                     recycle_rss={limit}: it would be replaced at once, and so would its successor, without \
                     end; raise recycle_rss above what the imports and the initializer take, or have them \
                     take less"
                );
                self.break_down(state, Arc::new(Breakage::Limit(why)));
            }
            (true, true) => worker.term.part = Part::Due(Why::Memory),
            (true, false) if worker.term.part == Part::Serves && !is_fresh => {
                worker.term.part = Part::Suspect;
                let slot = Slot(weight.key.slot);
                state.scheduler.close(slot);
                self.take_back_waiting(state, slot);
            }
            (false, true) => {
                worker.term.is_weighed = true;
                if worker.term.part == Part::Suspect {
                    worker.term.part = Part::Serves;
                }
            }
            _ => {}
        }
    }
}
