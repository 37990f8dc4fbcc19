//! Where a pool's events are made: see `events`. All of it happens under the pool's lock.
//!
//! A worker tells of no start. The parent hears of it with the end, or sees it when it looks, which the
//! supervisor does now and then while there are tasks: so what runs for long is told of while it runs.

use super::again::Reason;
use super::births::SIGKILL;
use super::memory::own_memory;
use super::{Part, Pool, Seat, State};
use crate::block::{Block, Over};
use crate::events::{Event, EventKind, How, Label, Memory, Tasks, Who};
use crate::protocol::{ResultHead, ResultKind};
use crate::scheduler::Slot;
use crate::seat::Worker;
use crate::task::{Cause, Entry, Task};
use manyhands_os::monotonic_nanos;
use manyhands_shm::QueueWord;

/// How often it is looked for starts, in nanoseconds.
const LOOK_FOR_STARTS: u64 = 100_000_000;
/// From which change on of a worker's memory it is told of, in bytes.
const MUCH: u64 = 64 << 20;

/// What is to be said of tasks that have ended, once it is known how; none where nobody listens.
pub(super) type About = Option<Box<Event>>;

impl Pool {
    #[inline]
    pub(super) fn say(&self, about: About, kind: EventKind) {
        if about.is_some() {
            self.say_now(about, kind);
        }
    }

    #[cold]
    fn say_now(&self, about: About, kind: EventKind) {
        if let (Some(events), Some(about)) = (&self.events, about) {
            events.push(Event { kind, ..*about });
        }
    }

    /// Tasks are taken.
    #[inline]
    pub(super) fn say_queued(&self, state: &mut State, entry: &Entry) {
        if self.events.is_some() {
            self.say_queued_now(state, entry);
        }
    }

    #[cold]
    fn say_queued_now(&self, state: &mut State, entry: &Entry) {
        self.say_tasks(EventKind::Queued, tasks_of(entry, entry.left, 0));
        self.watch(state, monotonic_nanos().saturating_add(LOOK_FOR_STARTS));
    }

    /// A block that cannot be sent ends as it begins.
    pub fn say_unsent(&self, block: &Block) {
        self.say_open(block, EventKind::Queued);
        self.say_open(block, EventKind::Ended(How::NotRun));
    }

    /// A task that no worker has started has come to this.
    #[inline]
    pub(super) fn say_unstarted(&self, task: &Task, kind: EventKind) {
        if self.events.is_some() && !task.is_done() {
            self.say_tasks(kind, tasks_of_task(task, 0));
        }
    }

    /// The items of a block that have not ended, and no worker has started, have come to this.
    #[inline]
    pub(super) fn say_open(&self, block: &Block, kind: EventKind) {
        if self.events.is_some() {
            let (first, count) = block.open_items();
            if count > 0 {
                self.say_tasks(kind, tasks_of_block(block, first, count, 0));
            }
        }
    }

    #[cold]
    fn say_tasks(&self, kind: EventKind, tasks: Tasks) {
        if let Some(events) = &self.events {
            events.push(Event::now(kind, None, Some(tasks)));
        }
    }

    /// What is to be said of the oldest items of a worker, which have ended after so many nanoseconds, all
    /// together; 0 if nobody knows. Says that they had started.
    #[inline]
    pub(super) fn about(&self, state: &mut State, slot: Slot, count: usize, nanos: u64) -> About {
        self.events.as_ref()?;
        self.about_oldest(state, slot, count, nanos)
    }

    #[cold]
    fn about_oldest(&self, state: &mut State, slot: Slot, count: usize, nanos: u64) -> About {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return None;
        };
        let entry = state.scheduler.oldest(slot)?;
        let number = worker.oldest;
        // Of items the worker notes the starts of some.
        let since = if count == 1 && (entry.block.is_none() || entry.limits.are_any()) {
            worker.control.running_since(number)
        } else {
            None
        };
        let items = (number, count as u32);
        let about = self.has_run(entry, worker, slot, items, (nanos, since));
        worker.told_start = worker
            .told_start
            .filter(|&(told, _)| QueueWord::distance(number, told) >= count as u32);
        about
    }

    /// As `about`, of what a worker had started when it died.
    #[inline]
    pub(super) fn about_lost(&self, entry: &Entry, worker: &Worker, slot: Slot) -> About {
        self.events.as_ref()?;
        let since = start_of(worker, worker.oldest, entry.ended == 0);
        self.has_run(entry, worker, slot, (worker.oldest, 1), (0, since))
    }

    /// As `about`, of a task that runs, and is ended for its caller before its worker is through with it.
    #[inline]
    pub(super) fn about_running(&self, state: &State, task: &Task) -> About {
        self.events.as_ref()?;
        let (slot, number) = task.place()?;
        let Seat::Taken(worker) = &state.seats[slot as usize] else {
            return None;
        };
        let is_it = |entry: &&Entry| {
            let found = entry.task.as_ref();
            found.is_some_and(|found| std::ptr::eq(&raw const **found, task))
        };
        let slot = Slot(slot);
        let entry = state.scheduler.held(slot).find(is_it)?;
        let since = start_of(worker, number, true);
        self.has_run(entry, worker, slot, (number, 1), (0, since))
    }

    /// What is to be said of so many items from that number on, which took so long or run since then.
    #[cold]
    fn has_run(
        &self,
        entry: &Entry,
        worker: &Worker,
        slot: Slot,
        (number, count): (u32, u32),
        (nanos, since): (u64, Option<u64>),
    ) -> About {
        let events = self.events.as_ref()?;
        let is_over = entry.task.as_ref().is_some_and(|task| task.is_done());
        if is_over || (entry.task.is_none() && entry.block.is_none()) {
            return None;
        }
        let told = worker
            .told_start
            .map(|(told, since)| (QueueWord::distance(number, told), since))
            .filter(|&(distance, _)| distance < count);
        let since = match told {
            Some((_, since)) if count == 1 => Some(since),
            _ => since,
        };
        let mut event = Event::now(
            EventKind::Started,
            Some(who(worker, slot)),
            Some(tasks_of(entry, count, entry.attempt())),
        );
        event.nanos = match nanos {
            0 => since.map(|since| event.at.saturating_sub(since)),
            nanos => Some(nanos),
        };
        // All but the one that was told of.
        let (before, after) = match told {
            Some((at, _)) => (at, count - at - 1),
            None => (count, 0),
        };
        for (skip, count) in [(0, before), (before + 1, after)] {
            if count > 0 {
                let mut started = event.clone();
                if let Some(tasks) = &mut started.tasks {
                    (tasks.index, tasks.count) = (tasks.index + u64::from(skip), count.into());
                }
                let at = started.at - started.nanos.take().unwrap_or(0).min(started.at);
                events.push(started.since(at));
            }
        }
        Some(Box::new(event))
    }

    /// How long the items took, all together, whose results were just taken: the worker says so behind the
    /// last one. 0 if it does not, or nobody listens.
    #[inline]
    pub(super) fn nanos_of(&self, worker: &Worker, count: usize) -> u64 {
        if self.events.is_none() {
            return 0;
        }
        let lap = worker.reader.unread().map(ResultHead::decode);
        match lap {
            Some(Ok((head, _)))
                if head.kind == ResultKind::Lap && head.number as usize == count =>
            {
                head.duration
            }
            _ => 0,
        }
    }

    /// Tells of what has started since the last look, and runs; when to look again, if that is needed.
    pub(super) fn look_for_starts(&self, state: &mut State, now: u64) -> Option<u64> {
        let events = self.events.as_ref()?;
        let State {
            seats, scheduler, ..
        } = state;
        for (index, seat) in seats.iter_mut().enumerate() {
            let Seat::Taken(worker) = seat else { continue };
            let slot = Slot(index as u32);
            let next = worker.control.queue().state().next;
            // One that was told of and has ended meanwhile is read first.
            if next == worker.oldest || worker.told_start.is_some() {
                continue;
            }
            let number = QueueWord::distance(1, next);
            let mut before = QueueWord::distance(worker.oldest, number);
            let entry = scheduler.held(slot).find(|entry| {
                let is_in = before < entry.left;
                before = before.wrapping_sub(if is_in { 0 } else { entry.left });
                is_in
            });
            let Some(entry) = entry else { continue };
            let is_wanted = entry.task.as_ref().is_some_and(|task| !task.is_done());
            if !is_wanted && entry.block.is_none() {
                continue;
            }
            let is_first = before == 0 && entry.ended == 0;
            let Some(since) = start_of(worker, number, is_first) else {
                continue; // claimed just now
            };
            worker.told_start = Some((number, since));
            let mut tasks = tasks_of(entry, 1, entry.attempt());
            tasks.index += u64::from(before);
            let who = Some(who(worker, slot));
            events.push(Event::now(EventKind::Started, who, Some(tasks)).since(since));
        }
        (state.pending > 0).then_some(now + LOOK_FOR_STARTS)
    }

    /// Tells of the memory of workers that run something, where it is quite another than when that was told
    /// last, and whether tasks wait for memory.
    pub(super) fn say_memory(&self, state: &mut State) {
        let Some(events) = &self.events else { return };
        for (index, seat) in state.seats.iter_mut().enumerate() {
            let Seat::Taken(worker) = seat else { continue };
            if worker.control.queue().state().next == worker.oldest {
                continue;
            }
            let Some(bytes) = own_memory(worker) else {
                continue;
            };
            if bytes.abs_diff(worker.told_memory) >= MUCH {
                worker.told_memory = bytes;
                let who = Some(who(worker, Slot(index as u32)));
                events.push(Event::now(EventKind::Memory(Memory::Has(bytes)), who, None));
            }
        }
        if state.is_short != state.told_short {
            state.told_short = state.is_short;
            let what = if state.is_short {
                Memory::Short
            } else {
                Memory::Enough
            };
            events.push(Event::now(EventKind::Memory(what), None, None));
        }
    }

    /// A worker runs.
    pub(super) fn say_born(&self, worker: &Worker, slot: u32) {
        self.say_worker(worker, slot, EventKind::Born);
    }

    /// A worker is gone. `unwanted` if it was to be killed, `leaving` if it was told to leave, `amid` if a task of
    /// its was lost with it, from which nobody leaves in good order.
    pub(super) fn say_gone(
        &self,
        worker: &Worker,
        slot: u32,
        cause: Cause,
        (unwanted, leaving, amid): (bool, bool, bool),
    ) {
        if self.events.is_none() {
            return;
        }
        if worker.process.is_none() {
            if worker.pid() == 0 {
                return; // it never ran
            }
            self.say_worker(worker, slot, EventKind::Born); // nobody had told of it
        }
        let kind = match cause {
            Cause::Signal(SIGKILL) if unwanted || leaving => EventKind::Stopped,
            // Nobody is left who could tell that it was this pool's signal.
            Cause::Unknown if unwanted && amid => EventKind::Stopped,
            Cause::Exit(_) | Cause::Unknown if leaving && !amid => match worker.term.part {
                Part::Relieved(Some(why)) => EventKind::Recycled(why),
                _ => EventKind::Left,
            },
            _ => EventKind::Died(cause),
        };
        self.say_worker(worker, slot, kind);
    }

    fn say_worker(&self, worker: &Worker, slot: u32, kind: EventKind) {
        if let Some(events) = &self.events {
            events.push(Event::now(kind, Some(who(worker, Slot(slot))), None));
        }
    }

    /// For the log: a worker died, which is not the end that was meant for it.
    pub(super) fn log_death(&self, pid: i32, slot: u32, cause: Cause) {
        let text = format!("worker {pid} (slot {slot}) {cause}");
        self.supervisor.log(false, text);
    }

    /// For the log: a task runs again.
    pub(super) fn log_retry(&self, entry: &Entry, reason: Reason, pause: u64) {
        let label = entry.definition.as_ref().map_or("", |known| known.label());
        let (label, index) = (
            if label.is_empty() { "a task" } else { label },
            entry.index(),
        );
        let what = match reason {
            Reason::Failure => "failed",
            Reason::Timeout => "took too long",
            Reason::Memory => "took too much memory",
            Reason::Death(_) => "lost its worker",
        };
        let run = entry.attempt() - 1;
        let when = match pause {
            0 => String::new(),
            pause => format!(" in {:.3} s", pause as f64 / 1e9),
        };
        let text = format!("{label} (task {index}) {what} in run {run} and runs again{when}");
        self.supervisor.log(false, text);
    }

    /// A worker is stuck in the last of so many items that it has started, for so long.
    #[cold]
    pub(super) fn say_stuck(&self, state: &mut State, slot: Slot, started: u32, age: u64) {
        let Some(events) = &self.events else { return };
        self.look_for_starts(state, monotonic_nanos()); // of its start it is told first
        let Seat::Taken(worker) = &state.seats[slot.0 as usize] else {
            return;
        };
        let Some((entry, at)) = state.started_entry(slot, started) else {
            return;
        };
        let mut tasks = tasks_of(entry, 1, entry.attempt());
        tasks.index += at;
        let who = Some(who(worker, slot));
        let mut event = Event::now(EventKind::Stuck, who, Some(tasks));
        event.nanos = Some(age);
        events.push(event);
    }

    /// Nothing happens any more, and the pool breaks.
    #[cold]
    pub(super) fn say_stalled(&self, time: u64) {
        if let Some(events) = &self.events {
            let mut event = Event::now(EventKind::Stalled, None, None);
            event.nanos = Some(time);
            events.push(event);
        }
    }

    /// The pool is gone: nothing more happens, and nothing more is put out.
    pub(crate) fn end_events(&self) {
        if let Some(events) = &self.events {
            events.finish();
        }
        if let Some(output) = &self.output {
            output.finish();
        }
    }
}

/// What becomes of tasks that end for this reason without having started.
pub(super) fn kind_of(over: &Over) -> EventKind {
    match over {
        Over::Cancelled => EventKind::Cancelled,
        Over::Broken(_) | Over::Failed(_) => EventKind::Ended(How::NotRun),
    }
}

/// Since when the item runs, which is the first of its record or not. The worker notes the start of a record
/// with its number, and of later items that of some which go together.
fn start_of(worker: &Worker, number: u32, is_first: bool) -> Option<u64> {
    let noted = worker.control.running_since(number);
    noted.or_else(|| (!is_first).then(|| worker.control.started_at()))
}

fn who(worker: &Worker, slot: Slot) -> Who {
    Who {
        slot: Some(slot.0),
        pid: worker.pid(),
        generation: worker.generation,
    }
}

/// So many items of an entry, from the first that has not ended on.
fn tasks_of(entry: &Entry, count: u32, attempt: u8) -> Tasks {
    match (&entry.block, &entry.task) {
        (Some(block), _) => tasks_of_block(block, entry.index(), count, attempt),
        (_, Some(task)) => tasks_of_task(task, attempt),
        _ => crate::bug("something is told of what is no task"),
    }
}

fn tasks_of_task(task: &Task, attempt: u8) -> Tasks {
    Tasks {
        map: 0,
        index: task.index,
        count: 1,
        label: task.definition.clone().map(Label::Of),
        attempt,
    }
}

fn tasks_of_block(block: &Block, first: u64, count: u32, attempt: u8) -> Tasks {
    Tasks {
        map: block.stream.number,
        index: first,
        count: count.into(),
        label: block.stream.options.definition.clone().map(Label::Of),
        attempt,
    }
}
