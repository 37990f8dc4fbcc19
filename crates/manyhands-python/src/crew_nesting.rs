//! Tasks on threads that submit tasks to the crew that runs them.
//!
//! A thread whose task waits for others of its crew *lends* its place: one more thread may work meanwhile. It is lent
//! while tasks are open that its task has submitted, whether it waits for them or not, since they may be waited
//! for in ways that nobody sees; and while it takes results of a map and there are none. What tasks wait for goes
//! before what they were submitted with, as in processes (`pool/lending.rs` of the runtime). When a place is given
//! back, one thread more works than there are places, and the next that looks for work leaves.

use crate::crew::Crew;
use manyhands_runtime::Rank;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How deep tasks may be nested.
pub(crate) const DEEPEST: u8 = 10;

/// The task has ended: what is open of it lends no place any more.
const OVER: u32 = 1 << 31;

thread_local! {
    /// How deep what this thread runs is nested, from 1; 0 if it runs nothing.
    static DEPTH: Cell<u8> = const { Cell::new(0) };
    /// The priority of what this thread runs.
    static PRIORITY: Cell<i32> = const { Cell::new(0) };
    /// What the task that this thread runs has submitted.
    static CHILDREN: RefCell<Option<Arc<Children>>> = const { RefCell::new(None) };
}

/// The tasks that a task has submitted to its crew and that have not ended: how many, and whether that one has.
#[derive(Default)]
pub(crate) struct Children(AtomicU32);

impl Children {
    /// One more is submitted; who made the number 1 lends the place.
    fn add(&self, crew: &Crew) {
        // AcqRel here and below: one of the two ends of a number counts in the crew, never both.
        if self.0.fetch_add(1, Ordering::AcqRel) == 0 {
            crew.lend();
        }
    }

    /// One has ended.
    pub(crate) fn ended(&self, crew: &Crew) {
        if self.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            crew.give_back();
        }
    }

    /// The task itself has ended.
    fn end(&self, crew: &Crew) {
        if self.0.fetch_or(OVER, Ordering::AcqRel) > 0 {
            crew.give_back();
        }
    }
}

/// A thread runs something of its crew.
pub(crate) struct Runs<'crew> {
    crew: &'crew Arc<Crew>,
}

impl<'crew> Runs<'crew> {
    /// From now on, something of this rank.
    #[inline]
    pub(crate) fn new(crew: &'crew Arc<Crew>, rank: Rank) -> Self {
        DEPTH.set(rank.depth() + 1);
        PRIORITY.set(rank.priority());
        Self { crew }
    }
}

impl Drop for Runs<'_> {
    #[inline]
    fn drop(&mut self) {
        DEPTH.set(0);
        let children = CHILDREN.with(|children| children.take());
        // A child that the task forked, and that came back from it, leaves the crew alone.
        if let Some(children) = children
            && !self.crew.is_of_other_process()
        {
            children.end(self.crew);
        }
    }
}

/// How deep what this thread submits to the crew is nested.
#[inline]
pub(crate) fn depth_below(crew: &Arc<Crew>) -> u8 {
    if crew.is_mine() { DEPTH.get() } else { 0 }
}

/// The rank of what this thread submits to the crew with this priority, or without one: with that of what it
/// runs, or else of the crew.
#[inline]
pub(crate) fn rank_below(crew: &Arc<Crew>, asked: Option<i32>) -> Rank {
    let depth = depth_below(crew);
    let priority = asked.unwrap_or_else(|| {
        if depth > 0 {
            PRIORITY.get()
        } else {
            crew.priority()
        }
    });
    Rank::new(depth, priority)
}

/// Counts a task that this thread submits to the crew, if it runs one of it; who tells of its end gets it.
#[inline]
pub(crate) fn submitted(crew: &Arc<Crew>) -> Option<Arc<Children>> {
    if DEPTH.get() == 0 || !crew.is_mine() {
        return None;
    }
    Some(CHILDREN.with(|children| {
        let mut children = children.borrow_mut();
        let children = children.get_or_insert_default();
        children.add(crew);
        children.clone()
    }))
}

/// While it lives the place of this thread is lent, if it works for the crew.
pub(crate) struct Lent<'crew>(Option<&'crew Arc<Crew>>);

impl<'crew> Lent<'crew> {
    pub(crate) fn new(crew: &'crew Arc<Crew>) -> Self {
        let crew = crew.is_mine().then_some(crew);
        if let Some(crew) = crew {
            crew.lend();
        }
        Self(crew)
    }

    /// Whether it is lent.
    pub(crate) fn is_lent(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(crew) = self.0 {
            crew.give_back();
        }
    }
}
