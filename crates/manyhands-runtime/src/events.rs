//! What happens to tasks and workers, for whoever wants to be told.
//!
//! A pool that nobody listens to has no `Events`, and each place that would tell asks for no more than that.
//! Else events are added where they happen, under the lock that orders them (a pool's, or that of the
//! engine above), and one reader takes them. Nobody waits for the reader: a buffer that is full drops what
//! comes, counts it, and says so to the reader at that place.
//!
//! Items of a map come in runs: an event tells of `count` neighbours. What has not been read yet grows by its
//! neighbours, too, as far as they come at nearly the same time, so that a million short items are some
//! thousand events on any engine.
//!
//! A new kind is a variant of `EventKind`, said where it happens, with its name in the face.

use crate::definition::Definition;
use crate::task::{Cause, Outcome};
use manyhands_os::{monotonic_nanos, wall_nanos};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Events of neighbours are one if they come within so many nanoseconds.
const ONE_MOMENT: u64 = 1_000_000;
/// Among so many of the last events a neighbour is looked for: those of one item may lie between.
const LOOK_BACK: usize = 6;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The pool has taken tasks.
    Queued,
    /// A worker has started tasks.
    Started,
    /// Tasks have ended.
    Ended(How),
    /// A run of a task has come to this, and another is to follow.
    Retried(How),
    /// Somebody cancelled tasks: they never start, or were ended.
    Cancelled,
    /// A worker runs.
    Born,
    /// A worker died.
    Died(Cause),
    /// A worker was killed to end what it ran, or, being a thread, left behind with that.
    Stopped,
    /// A worker left, because its pool ends, or has no use for it.
    Left,
    /// A worker left, because it has given way to a fresh one.
    Recycled(Why),
    /// A task runs for much longer than others like it, and goes on.
    Stuck,
    /// The memory of a worker, or what there is for tasks, has changed.
    Memory(Memory),
    /// Nothing happens any more in a pool, though nothing keeps it: it breaks.
    Stalled,
    /// So many events were dropped here, because nobody read them in time.
    Dropped(u64),
}

/// Why a worker gives way to a fresh one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// It has finished its share of tasks.
    Tasks,
    /// It holds too much memory.
    Memory,
    /// It is too old.
    Age,
}

/// What is said of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Memory {
    /// A worker that runs something has so many bytes to itself.
    Has(u64),
    /// Tasks wait, since there is too little for them.
    Short,
    /// They wait for it no more.
    Enough,
}

/// What a run of a task has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// It returned.
    Value,
    /// It failed.
    Error,
    /// Its time was up.
    TimedOut,
    /// It took too much memory: so many bytes, at most, that were seen.
    OverMemory(u64),
    /// Its worker died.
    Died(Cause),
    /// It never ran: it could not be sent, or the pool is broken.
    NotRun,
}

impl EventKind {
    /// What it is called that tasks have come to this.
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Value(..) => Self::Ended(How::Value),
            Outcome::Error(..) | Outcome::Failed(_) => Self::Ended(How::Error),
            Outcome::Died { deaths, .. } => Self::Ended(How::Died(deaths.last.cause)),
            Outcome::TimedOut { .. } => Self::Ended(How::TimedOut),
            Outcome::OverMemory { peak, .. } => Self::Ended(How::OverMemory(*peak)),
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Broken(_) => Self::Ended(How::NotRun),
        }
    }

    /// The same, of a run that another is to follow.
    pub(crate) fn again(self) -> Self {
        match self {
            Self::Ended(how) => Self::Retried(how),
            other => other,
        }
    }

    /// Whether neighbours of which it is true may be one event.
    fn is_of_many(self) -> bool {
        matches!(
            self,
            Self::Queued | Self::Started | Self::Ended(How::Value | How::NotRun) | Self::Cancelled
        )
    }
}

/// A worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Who {
    /// Its slot; none where there are no workers.
    pub slot: Option<u32>,
    /// Its process id.
    pub pid: i32,
    /// Which worker of the slot it is, from 1.
    pub generation: u32,
}

/// What runs, by its name for people.
#[derive(Debug, Clone)]
pub enum Label {
    /// Of a definition.
    Of(Arc<Definition>),
    /// As it is.
    Text(Arc<str>),
}

impl Label {
    /// The name.
    pub fn text(&self) -> &str {
        match self {
            Self::Of(definition) => definition.label(),
            Self::Text(text) => text,
        }
    }
}

impl PartialEq for Label {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

/// Neighbouring tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Tasks {
    /// Which map they are of, see `number_of_map`; 0 for those that were submitted.
    pub map: u64,
    /// Number of the first in its map, or in the pool.
    pub index: u64,
    /// How many there are.
    pub count: u64,
    /// What they run.
    pub label: Option<Label>,
    /// Which run it is, from 1; 0 where none has started.
    pub attempt: u8,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// When, on the monotonic clock, in nanoseconds.
    pub at: u64,
    /// When, in nanoseconds since 1970.
    pub wall: u64,
    /// The worker that it is about, or where the tasks ran.
    pub who: Option<Who>,
    /// The tasks that it is about.
    pub tasks: Option<Tasks>,
    /// How long they took, all together, in nanoseconds, where that is known.
    pub nanos: Option<u64>,
}

impl Event {
    /// Something that happens now.
    pub fn now(kind: EventKind, who: Option<Who>, tasks: Option<Tasks>) -> Self {
        Self {
            kind,
            at: monotonic_nanos(),
            wall: wall_nanos(),
            who,
            tasks,
            nanos: None,
        }
    }

    /// The same, at an earlier time of the monotonic clock.
    #[must_use]
    pub fn since(mut self, at: u64) -> Self {
        let age = self.at.saturating_sub(at);
        (self.at, self.wall) = (self.at - age, self.wall.saturating_sub(age));
        self
    }

    /// Whether it is about tasks that the other is about, too.
    fn is_of_same(&self, other: &Self) -> bool {
        match (&self.tasks, &other.tasks) {
            (Some(one), Some(other)) => {
                one.map == other.map
                    && one.index < other.index + other.count
                    && other.index < one.index + one.count
            }
            _ => false,
        }
    }

    /// Takes up what happened to the next neighbours in the same moment; false if it is not that.
    fn grow(&mut self, next: &Self) -> bool {
        let (Some(tasks), Some(more)) = (&mut self.tasks, &next.tasks) else {
            return false;
        };
        let is_next = self.kind == next.kind
            && self.kind.is_of_many()
            && tasks.map != 0
            && tasks.map == more.map
            && tasks.index + tasks.count == more.index
            && tasks.attempt == more.attempt
            && self.who == next.who
            && next.at.saturating_sub(self.at) < ONE_MOMENT;
        if is_next {
            tasks.count += more.count;
            self.nanos = self.nanos.zip(next.nanos).map(|(one, other)| one + other);
        }
        is_next
    }
}

/// A number for a map that no other map of this process has, from 1.
pub fn number_of_map() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Relaxed: only distinct numbers are wanted.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    /// How many were dropped since the last that was kept.
    dropped: u64,
    is_over: bool,
    is_awaited: bool,
}

impl State {
    /// Says how many were dropped, at their place.
    fn note_dropped(&mut self) {
        if self.dropped > 0 {
            let kind = EventKind::Dropped(std::mem::take(&mut self.dropped));
            self.events.push_back(Event::now(kind, None, None));
        }
    }
}

/// What has happened and was not read yet. Its lock is the last that anybody takes.
#[derive(Debug)]
pub struct Events {
    most: usize,
    state: Mutex<State>,
    come: Condvar,
}

impl Events {
    /// A buffer for so many events.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: most.max(1),
            state: Mutex::default(),
            come: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, or drops it if there is no room.
    pub fn push(&self, event: Event) {
        let mut state = self.lock();
        for last in state.events.iter_mut().rev().take(LOOK_BACK) {
            if last.grow(&event) {
                return;
            }
            if last.is_of_same(&event) {
                break; // what is said of one task stays in order
            }
        }
        if state.events.len() >= self.most {
            state.dropped += 1;
            return;
        }
        state.note_dropped();
        state.events.push_back(event);
        let wakes = std::mem::take(&mut state.is_awaited);
        drop(state);
        if wakes {
            self.come.notify_one();
        }
    }

    /// Nothing more will come that anybody has to be told.
    pub fn finish(&self) {
        self.lock().is_over = true;
        self.come.notify_all();
    }

    /// Takes up to so many of the first events, for which it waits for at most so long; none once nothing
    /// more will come.
    pub fn take(&self, most: usize, time: Duration) -> Option<Vec<Event>> {
        let nothing = |state: &mut State| {
            let nothing = state.events.is_empty() && !state.is_over;
            state.is_awaited = nothing;
            nothing
        };
        let (mut state, _) = self
            .come
            .wait_timeout_while(self.lock(), time, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        state.is_awaited = false;
        let count = state.events.len().min(most);
        let mut taken: Vec<_> = state.events.drain(..count).collect();
        if state.events.is_empty() {
            state.note_dropped();
            taken.extend(state.events.pop_front());
        }
        (!taken.is_empty() || !state.is_over).then_some(taken)
    }

    /// How many wait to be taken.
    pub fn unread(&self) -> usize {
        self.lock().events.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn item(kind: EventKind, index: u64) -> Event {
        let tasks = Tasks {
            map: 1,
            index,
            count: 1,
            label: None,
            attempt: 1,
        };
        Event {
            kind,
            at: 0,
            wall: 0,
            who: None,
            tasks: Some(tasks),
            nanos: Some(5),
        }
    }

    /// Each as its kind, first index and count.
    fn taken(events: &Events) -> Vec<(EventKind, u64, u64)> {
        let taken = events.take(usize::MAX, NOW).unwrap_or_default();
        let parts = taken.into_iter().map(|event| {
            let (index, count) = event.tasks.map_or((0, 0), |t| (t.index, t.count));
            (event.kind, index, count)
        });
        parts.collect()
    }

    #[test]
    fn neighbours_of_one_moment_are_one_event() {
        let events = Events::new(100);
        for index in 0..10 {
            events.push(item(EventKind::Started, index));
            events.push(item(EventKind::Ended(How::Value), index));
        }
        let mut late = item(EventKind::Started, 10);
        late.at = ONE_MOMENT;
        events.push(late);
        let all = events.take(usize::MAX, NOW).unwrap();
        assert_eq!(all[0].nanos, Some(50));
        assert_eq!(all[1].tasks.as_ref().unwrap().count, 10);
        assert_eq!(all[2].tasks.as_ref().unwrap().index, 10);
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn what_is_said_of_one_item_stays_in_order() {
        let events = Events::new(100);
        let kinds = [
            EventKind::Queued,
            EventKind::Started,
            EventKind::Ended(How::Value),
        ];
        for kind in kinds {
            events.push(item(kind, 0));
        }
        // The reader has come between the one kind and the others.
        assert_eq!(events.take(1, NOW).unwrap().len(), 1);
        for index in 1..3 {
            for kind in kinds {
                events.push(item(kind, index));
            }
        }
        let [queued, started, ended] = kinds;
        let all = [
            (started, 0, 1),
            (ended, 0, 1),
            (queued, 1, 2),
            (started, 1, 2),
            (ended, 1, 2),
        ];
        assert_eq!(taken(&events), all);
    }

    #[test]
    fn what_is_said_of_some_of_the_items_stays_in_order() {
        let events = Events::new(100);
        let items = |kind, index, count, at| {
            let mut event = item(kind, index);
            event.at = at;
            event.tasks.as_mut().unwrap().count = count;
            events.push(event);
        };
        let (started, ended) = (EventKind::Started, EventKind::Ended(How::Value));
        // The tenth was seen to run before the results of those before it were read.
        items(started, 10, 1, 0);
        items(started, 0, 10, ONE_MOMENT);
        items(ended, 0, 10, ONE_MOMENT);
        items(started, 11, 5, ONE_MOMENT);
        items(ended, 10, 6, ONE_MOMENT);
        let all = [
            (started, 10, 1),
            (started, 0, 10),
            (ended, 0, 10),
            (started, 11, 5),
            (ended, 10, 6),
        ];
        assert_eq!(taken(&events), all);
    }

    #[test]
    fn what_differs_stays_apart() {
        let events = Events::new(100);
        let first = item(EventKind::Started, 0);
        events.push(first.clone());
        let mut others = vec![item(EventKind::Started, 2); 4];
        for (at, other) in others.iter_mut().enumerate() {
            let tasks = other.tasks.as_mut().unwrap();
            match at {
                0 => {} // no neighbour
                1 => (tasks.index, tasks.map) = (1, 2),
                2 => (tasks.index, tasks.attempt) = (1, 2),
                _ => {
                    tasks.index = 1;
                    other.who = Some(Who {
                        slot: Some(0),
                        pid: 1,
                        generation: 1,
                    });
                }
            }
        }
        for other in &others {
            events.push(other.clone());
        }
        assert_eq!(taken(&events).len(), 5);
        // Each failure, and each task that was submitted, is an event of its own.
        for index in 0..3 {
            events.push(item(EventKind::Ended(How::Error), index));
            let mut submitted = item(EventKind::Queued, index);
            submitted.tasks.as_mut().unwrap().map = 0;
            events.push(submitted);
        }
        assert_eq!(taken(&events).len(), 6);
    }

    #[test]
    fn what_is_dropped_is_counted_at_its_place() {
        let events = Events::new(2);
        for index in 0..5 {
            events.push(item(EventKind::Ended(How::Error), index));
        }
        let kind = EventKind::Ended(How::Error);
        let [first, second] = [0, 1].map(|index| (kind, index, 1));
        let dropped = (EventKind::Dropped(3), 0, 0);
        assert_eq!(taken(&events), [first, second, dropped]);
        // The count comes before what is kept after it, too.
        for index in 0..4 {
            events.push(item(kind, index));
        }
        assert_eq!(events.take(1, NOW).unwrap().len(), 1);
        events.push(item(kind, 9));
        let dropped = (EventKind::Dropped(2), 0, 0);
        assert_eq!(taken(&events), [second, dropped, (kind, 9, 1)]);
        assert_eq!(taken(&events), []);
    }

    #[test]
    fn it_is_over_when_all_is_read() {
        let events = Events::new(1);
        events.push(item(EventKind::Retried(How::Error), 0));
        events.push(item(EventKind::Retried(How::Error), 1));
        events.finish();
        assert_eq!(events.unread(), 1);
        assert_eq!(taken(&events).len(), 2);
        assert_eq!(events.take(1, NOW), None);
    }

    #[test]
    fn a_reader_that_waits_is_woken() {
        let events = Events::new(10);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut count = 0;
                while let Some(some) = events.take(3, Duration::from_secs(600)) {
                    count += some.len();
                }
                count
            });
            for index in 0..1000 {
                while events.unread() > 5 {
                    std::thread::yield_now();
                }
                events.push(item(EventKind::Ended(How::Error), index));
            }
            events.finish();
            assert_eq!(reader.join().unwrap(), 1000);
        });
    }

    #[test]
    fn an_earlier_time_is_earlier_on_both_clocks() {
        let event = Event::now(EventKind::Started, None, None);
        let earlier = event.clone().since(event.at - 1000);
        assert_eq!(
            (event.at - earlier.at, event.wall - earlier.wall),
            (1000, 1000)
        );
        // The future is not known.
        assert_eq!(event.clone().since(event.at + 1000), event);
    }
}
