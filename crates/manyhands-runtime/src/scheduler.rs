//! Who runs what: a state machine without clock, processes or memory of its own.
//!
//! It keeps the queue of tasks that no worker has, and for each worker's slot the tasks that were
//! published to it and have no result yet, oldest first. Its callers tell it what happened and carry
//! out what it answers; time reaches it only as the durations they report.
//!
//! What it moves about is *work*: a task, or a block of items that can be cut between any two of them.
//! Everything is counted in items, of which a task is one.
//!
//! Rules:
//! - Work leaves the queue in the order of ranks (`ranked.rs`), and within a rank in the order in which it came.
//!   Deeper work comes first, so no more tasks are begun than have to wait.
//! - It goes to the idle worker that was busy last (its caches and its spinning are warm), else to the
//!   one that holds the fewest.
//! - A worker is given more while it holds less than `WORK_AHEAD` of estimated work, so that it never
//!   waits for its parent, and never a second waiting task where tasks are longer than that. Until a
//!   first duration is known it holds one task.
//! - What a worker holds is of one rank. What is deeper would wait for one that began later than those who
//!   wait for it, while others begin; and when what is deeper has ended, who waited for it goes on, and the
//!   worker may have to rest. What is of higher priority would wait for what is not.
//! - What waits at a worker goes back to the queue when something of a higher rank is queued (`is_outranked`),
//!   and when another has nothing and would take something of a lower rank (`higher_than_queue`).
//! - A worker with nothing to do, while the queue is empty, gets half of what waits at the worker
//!   that holds the most.
//! - A worker that is to be replaced after so many items is given no more than these. What it has been given
//!   and not started goes to others as from any worker.
//! - When a worker dies, the item that it had started is lost, and all others return to the front of
//!   the queue in their order.

use crate::ranked::{Rank, Ranked, RankedQueue};
use std::collections::VecDeque;

/// How much estimated work a worker holds, in nanoseconds.
pub(crate) const WORK_AHEAD: u64 = 1_000_000;
/// The most items that a worker is given, however short they are.
pub(crate) const MOST_AHEAD: usize = 16 * 1024;

/// What the scheduler moves about.
pub trait Work: Sized {
    /// How many items it has that have not ended; at least 1 while it is held or queued.
    fn left(&self) -> usize;

    /// Whether any of its items has ended: it cannot be sent again as a whole.
    fn is_begun(&self) -> bool;

    /// The oldest `count` items of it have ended.
    fn end(&mut self, count: usize);

    /// Keeps the first `keep` of the items that have not ended, and gives the others.
    fn cut(&mut self, keep: usize) -> Self;

    /// What goes first.
    fn rank(&self) -> Rank {
        Rank::default()
    }
}

impl<T: Work> Ranked for T {
    #[inline]
    fn rank(&self) -> Rank {
        Work::rank(self)
    }

    #[inline]
    fn weight(&self) -> usize {
        self.left()
    }
}

/// What was taken back from a worker.
#[derive(Debug)]
pub enum Revoked<'work, T> {
    /// All of a piece of work: it has not started.
    Whole(&'work mut T),
    /// The end of a piece, of which the worker keeps this one.
    Cut(&'work mut T),
}

/// The number of a worker's place in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

#[derive(Debug)]
struct Place<T> {
    /// Whether a worker is there, or on its way, that may be given tasks.
    open: bool,
    /// Published and without a result, oldest first.
    held: VecDeque<T>,
    /// The items of all that have not ended.
    items: usize,
    /// The rank of what it holds.
    rank: Rank,
    /// How many items are never taken back while it lives: the running one, its start-up message.
    keeps: usize,
    /// How many items it may still be given in its life.
    left: usize,
    /// Whether the worker is there, and not only on its way.
    born: bool,
    /// When something was last heard of it; larger is later, 0 is never.
    last_heard: u64,
}

impl<T> Place<T> {
    /// Whether its worker takes tasks.
    fn takes(&self) -> bool {
        self.open && self.left > 0
    }
}

/// What a death leaves behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Loss<T> {
    /// What the worker had started and not finished, one item each: at most one where it kept to the
    /// protocol.
    pub started: Vec<T>,
    /// How many items returned to the queue.
    pub returned: usize,
}

/// The state machine, over tasks of any kind.
#[derive(Debug)]
pub struct Scheduler<T> {
    queue: RankedQueue<T>,
    /// The items of the queue.
    queued: usize,
    places: Vec<Place<T>>,
    /// Estimated duration of an item in nanoseconds, once one is known.
    estimate: Option<u64>,
    heard: u64,
    /// How many workers hold anything.
    busy: u32,
    /// How many items a worker is given in its life.
    most: usize,
}

impl<T> Default for Scheduler<T> {
    fn default() -> Self {
        Self {
            queue: RankedQueue::default(),
            queued: 0,
            places: Vec::new(),
            estimate: None,
            heard: 0,
            busy: 0,
            most: usize::MAX,
        }
    }
}

impl<T: Work> Scheduler<T> {
    /// Makes places for `count` workers, all closed.
    pub fn new(count: usize) -> Self {
        let mut scheduler = Self::default();
        (0..count).for_each(|_| scheduler.add_place());
        scheduler
    }

    /// Makes one more place, closed.
    pub fn add_place(&mut self) {
        self.places.push(Place {
            open: false,
            held: VecDeque::new(),
            items: 0,
            rank: Rank::default(),
            keeps: 0,
            left: 0,
            born: false,
            last_heard: 0,
        });
    }

    /// From now on a worker is given so many items in its life; its first record, if it starts with one, is
    /// not among them.
    pub fn limit(&mut self, most: usize) {
        self.most = most;
    }

    /// How many items the worker may still be given in its life.
    #[inline]
    pub fn left(&self, slot: Slot) -> usize {
        self.places[slot.0 as usize].left
    }

    /// The next record of the worker is no task: it does not count.
    pub fn give_free(&mut self, slot: Slot) {
        let place = self.place(slot);
        place.left = place.left.saturating_add(1);
    }

    fn place(&mut self, slot: Slot) -> &mut Place<T> {
        &mut self.places[slot.0 as usize]
    }

    /// A worker is on its way: it may be given tasks. With `starts_with` its first record is no task
    /// and is never taken back.
    pub fn open(&mut self, slot: Slot, starts_with: bool) {
        let most = self.most.saturating_add(usize::from(starts_with));
        let place = self.place(slot);
        place.left = most;
        debug_assert!(place.held.is_empty());
        place.open = true;
        place.born = false;
        place.keeps = usize::from(starts_with);
        place.last_heard = 0;
    }

    /// The worker is there: it runs what it holds, and may be given what waits elsewhere.
    pub fn born(&mut self, slot: Slot) {
        let place = self.place(slot);
        place.born = true;
        place.keeps = place.keeps.max(1);
    }

    /// The worker takes no more tasks.
    pub fn close(&mut self, slot: Slot) {
        self.place(slot).open = false;
    }

    /// The worker takes no more tasks, and is told to leave: nobody gets that word in its place.
    pub fn leaves(&mut self, slot: Slot) {
        let place = self.place(slot);
        place.open = false;
        place.keeps = usize::MAX;
    }

    /// The worker takes tasks again.
    pub fn reopen(&mut self, slot: Slot) {
        self.place(slot).open = true;
    }

    /// Whether the slot may be given tasks.
    pub fn is_open(&self, slot: Slot) -> bool {
        self.places[slot.0 as usize].open
    }

    /// A task came; it is last in the queue among those of its rank.
    pub fn add(&mut self, task: T) {
        self.queued += task.left();
        self.queue.push_back(task);
    }

    /// The estimated duration of an item in nanoseconds, once one is known.
    pub fn estimate(&self) -> Option<u64> {
        self.estimate
    }

    /// Up to how many items a worker is given more.
    pub fn credit(&self) -> usize {
        match self.estimate {
            None => 1,
            Some(estimate) => ((WORK_AHEAD / estimate.max(1)) as usize).clamp(2, MOST_AHEAD),
        }
    }

    /// Whether something of this rank may be put behind what the worker holds.
    #[inline]
    pub fn may_follow(&self, slot: Slot, rank: Rank) -> bool {
        let place = &self.places[slot.0 as usize];
        place.items == 0 || rank == place.rank
    }

    /// Which worker the first of the queue goes to, which is of this rank, if any may take more.
    #[inline]
    pub fn choose(&self, rank: Rank) -> Option<Slot> {
        let credit = self.credit();
        // Fewest held, then there before on its way, then heard last.
        let mut best: Option<(usize, (bool, u64), u32)> = None;
        for (index, place) in self.places.iter().enumerate() {
            let held = place.items;
            if !place.takes() || held >= credit || (held > 0 && rank != place.rank) {
                continue;
            }
            let better = match best {
                None => true,
                Some((best_held, best_heard, _)) => {
                    held < best_held
                        || (held == best_held && (place.born, place.last_heard) > best_heard)
                }
            };
            if better {
                best = Some((held, (place.born, place.last_heard), index as u32));
            }
        }
        best.map(|(_, _, index)| Slot(index))
    }

    /// How many more items the worker may be given.
    pub fn room(&self, slot: Slot) -> usize {
        let place = &self.places[slot.0 as usize];
        if place.open {
            self.credit().saturating_sub(place.items).min(place.left)
        } else {
            0
        }
    }

    /// Whether it is time to give the worker more: it is down to half of its credit.
    #[inline]
    pub fn is_low(&self, slot: Slot) -> bool {
        let place = &self.places[slot.0 as usize];
        place.takes() && place.items <= self.credit() / 2
    }

    /// Takes the first task of the queue.
    #[inline]
    pub fn take_first(&mut self) -> Option<T> {
        let task = self.queue.pop()?;
        self.queued -= task.left();
        Some(task)
    }

    /// Puts a task back to where it was taken from: first among those of its rank.
    pub fn put_first(&mut self, task: T) {
        self.queued += task.left();
        self.queue.push_front(task);
    }

    /// The work was published to the worker.
    #[inline]
    pub fn published(&mut self, slot: Slot, task: T) {
        let place = self.place(slot);
        place.items += task.left();
        place.left = place.left.saturating_sub(task.left());
        place.rank = task.rank();
        place.held.push_back(task);
        self.busy += u32::from(self.places[slot.0 as usize].held.len() == 1);
    }

    /// Results of `count` items came, all of the worker's oldest work; that is given back when it
    /// was its last.
    #[inline]
    pub fn ended(&mut self, slot: Slot, count: usize) -> Option<T> {
        self.heard += 1;
        let heard = self.heard;
        let place = self.place(slot);
        place.last_heard = heard;
        place.items -= count;
        let oldest = place.held.front_mut()?;
        oldest.end(count);
        if oldest.left() > 0 {
            return None;
        }
        let task = place.held.pop_front();
        let idle = place.held.is_empty();
        self.busy -= u32::from(idle);
        task
    }

    /// `count` items together ran for `duration` nanoseconds. The estimate follows the mean with a
    /// weight of an eighth for each of them; a sample counts for at most sixteen times the estimate,
    /// so that one straggler doesn't drain the pipeline for hundreds of short tasks.
    pub fn observe(&mut self, count: usize, duration: u64) {
        let duration = (duration / count.max(1) as u64).max(1);
        self.estimate = Some(match self.estimate {
            None => duration,
            Some(mut estimate) => {
                let sample = duration.min(estimate.saturating_mul(16));
                // After sixteen steps what was is forgotten.
                for _ in 0..count.min(16) {
                    estimate = (estimate - estimate / 8 + sample / 8).max(1);
                }
                estimate
            }
        });
    }

    /// The oldest work that the worker holds.
    pub fn oldest(&self, slot: Slot) -> Option<&T> {
        self.places[slot.0 as usize].held.front()
    }

    /// The same, to be changed.
    pub fn oldest_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.places[slot.0 as usize].held.front_mut()
    }

    /// All work that the worker holds, oldest first.
    pub fn held(&self, slot: Slot) -> impl DoubleEndedIterator<Item = &T> {
        self.places[slot.0 as usize].held.iter()
    }

    /// How many items the worker holds that have not ended.
    #[inline]
    pub fn held_count(&self, slot: Slot) -> usize {
        self.places[slot.0 as usize].items
    }

    /// How many workers hold anything.
    #[inline]
    pub fn busy_count(&self) -> usize {
        self.busy as usize
    }

    /// How many items no worker has.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// How many of these come before what is of a lower rank than this.
    pub fn queued_from(&self, rank: Rank) -> usize {
        self.queue.weight_from(rank)
    }

    /// How many of these are of the first rank.
    #[inline]
    pub fn queued_first(&self) -> usize {
        self.queue.first_weight()
    }

    /// The worker stands still: others come before it until it is heard again.
    pub fn stands(&mut self, slot: Slot) {
        self.place(slot).last_heard = 0;
    }

    /// Whether a worker that is there has nothing to do.
    pub fn has_idle(&self) -> bool {
        let idles = |place: &Place<T>| place.takes() && place.born && place.held.is_empty();
        self.places.iter().any(idles)
    }

    /// From whom an idle worker should get how many, of the highest rank that waits: only while nothing is
    /// queued. A worker that is there may get all that one holds that is still on its way.
    pub fn steal(&self) -> Option<(Slot, usize)> {
        let mut idle = self
            .places
            .iter()
            .filter(|p| p.takes() && p.held.is_empty())
            .peekable();
        if !self.queue.is_empty() || idle.peek().is_none() {
            return None;
        }
        let is_there = idle.any(|place| place.born);
        let waiting = |place: &Place<T>| {
            let keeps = place.keeps.max(usize::from(!is_there));
            place.items.saturating_sub(keeps)
        };
        let (index, richest) = self.places.iter().enumerate().max_by_key(|(_, place)| {
            let waiting = waiting(place);
            ((waiting > 0).then_some(place.rank), waiting)
        })?;
        let waiting = waiting(richest);
        (waiting > 0).then(|| (Slot(index as u32), waiting.div_ceil(2)))
    }

    /// From whom a worker that has nothing should get how many, before it takes the first of the queue: they
    /// are of a higher rank than that, and wait behind others.
    pub fn higher_than_queue(&self) -> Option<(Slot, usize)> {
        let first = self.queue.first_rank()?;
        let mut places = self.places.iter().enumerate();
        places.find_map(|(index, place)| {
            let waiting = place.items.saturating_sub(place.keeps.max(1));
            (waiting > 0 && place.rank > first).then_some((Slot(index as u32), waiting))
        })
    }

    /// Whether what waits at the worker is of a lower rank than the first of the queue.
    #[inline]
    pub fn is_outranked(&self, slot: Slot) -> bool {
        let place = &self.places[slot.0 as usize];
        let first = self.queue.first_rank();
        place.open && place.items > place.keeps && first.is_some_and(|first| place.rank < first)
    }

    /// The last `count` items of the worker were taken back before they started; they return to the
    /// front of the queue. `visit` sees each piece of work that this changes, latest first.
    pub fn revoked(&mut self, slot: Slot, mut count: usize, mut visit: impl FnMut(Revoked<'_, T>)) {
        count = count.min(self.places[slot.0 as usize].items);
        while count > 0 {
            let place = &mut self.places[slot.0 as usize];
            let Some(last) = place.held.back_mut() else {
                break;
            };
            let taken = last.left().min(count);
            count -= taken;
            place.items -= taken;
            place.left = place.left.saturating_add(taken);
            let returned = if taken < last.left() || last.is_begun() {
                let rest = last.cut(last.left() - taken);
                visit(Revoked::Cut(last));
                if last.left() == 0 {
                    place.held.pop_back();
                    self.busy -= u32::from(place.held.is_empty());
                }
                rest
            } else if let Some(mut task) = place.held.pop_back() {
                self.busy -= u32::from(place.held.is_empty());
                visit(Revoked::Whole(&mut task));
                task
            } else {
                break;
            };
            self.put_first(returned);
        }
    }

    /// The worker is gone; `started` of the items it held (the oldest) it had started. `visit` sees
    /// each piece of work that returns as a whole.
    pub fn died(&mut self, slot: Slot, started: usize, mut visit: impl FnMut(&mut T)) -> Loss<T> {
        let place = self.place(slot);
        place.open = false;
        place.born = false;
        place.items = 0;
        let mut held = std::mem::take(&mut place.held);
        self.busy -= u32::from(!held.is_empty());
        let mut lost = Vec::new();
        while lost.len() < started
            && let Some(mut oldest) = held.pop_front()
        {
            if oldest.left() > 1 {
                held.push_front(oldest.cut(1));
            }
            lost.push(oldest);
        }
        if let Some(begun) = held.pop_front_if(|oldest| oldest.is_begun()) {
            let mut begun = begun;
            held.push_front(begun.cut(0));
        }
        let mut returned = 0;
        for mut task in held.into_iter().rev() {
            visit(&mut task);
            returned += task.left();
            self.put_first(task);
        }
        Loss {
            started: lost,
            returned,
        }
    }

    /// Takes everything that is queued, in order.
    pub fn take_queue(&mut self) -> VecDeque<T> {
        self.queued = 0;
        let mut queue = std::mem::take(&mut self.queue);
        std::iter::from_fn(|| queue.pop()).collect()
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;
    use std::collections::BinaryHeap;

    const ENDED: u32 = u32::MAX;

    impl Work for u32 {
        fn left(&self) -> usize {
            usize::from(*self != ENDED)
        }

        fn is_begun(&self) -> bool {
            false
        }

        fn end(&mut self, count: usize) {
            assert_eq!(count, 1);
            *self = ENDED;
        }

        fn cut(&mut self, keep: usize) -> Self {
            unreachable!("a task has one item, of which {keep} were to be kept")
        }
    }

    /// Items with neighbouring numbers.
    #[derive(Debug, PartialEq, Eq)]
    struct Run(std::ops::Range<usize>, bool);

    fn run(items: std::ops::Range<usize>) -> Run {
        Run(items, false)
    }

    impl Work for Run {
        fn left(&self) -> usize {
            self.0.len()
        }

        fn is_begun(&self) -> bool {
            self.1
        }

        fn end(&mut self, count: usize) {
            self.0.start += count;
            self.1 = true;
        }

        fn cut(&mut self, keep: usize) -> Self {
            let middle = self.0.start + keep;
            let rest = run(middle..self.0.end);
            self.0.end = middle;
            rest
        }
    }

    fn open<W: Work>(count: usize) -> Scheduler<W> {
        let mut scheduler = Scheduler::new(count);
        for slot in 0..count {
            scheduler.open(Slot(slot as u32), false);
            scheduler.born(Slot(slot as u32));
        }
        scheduler
    }

    /// Publishes whatever may be published; gives (slot, task) in order.
    fn assign(scheduler: &mut Scheduler<u32>) -> Vec<(u32, u32)> {
        let mut assigned = Vec::new();
        while let Some(slot) = scheduler.choose(Rank::default()) {
            let Some(task) = scheduler.take_first() else {
                break;
            };
            scheduler.published(slot, task);
            assigned.push((slot.0, task));
        }
        assigned
    }

    /// Its rank and its number.
    #[derive(Debug, PartialEq, Eq)]
    struct Ranked(Rank, u32);

    impl Work for Ranked {
        fn left(&self) -> usize {
            1
        }

        fn is_begun(&self) -> bool {
            false
        }

        fn end(&mut self, _count: usize) {}

        fn cut(&mut self, _keep: usize) -> Self {
            unreachable!("it has one item")
        }

        fn rank(&self) -> Rank {
            self.0
        }
    }

    #[test]
    fn what_a_worker_holds_is_of_one_depth() {
        let mut scheduler = open_ranked(1);
        scheduler.published(Slot(0), deep(1, 1));
        for (depth, may) in [(0, false), (1, true), (2, false)] {
            let rank = Rank::new(depth, 0);
            assert_eq!(scheduler.choose(rank).is_some(), may);
            assert_eq!(scheduler.may_follow(Slot(0), rank), may);
        }
        scheduler.published(Slot(0), deep(1, 2));
        scheduler.ended(Slot(0), 1);
        assert!(!scheduler.may_follow(Slot(0), Rank::default()));
        scheduler.ended(Slot(0), 1);
        assert!(
            scheduler.may_follow(Slot(0), Rank::default()),
            "it holds nothing"
        );
        assert_eq!(scheduler.choose(Rank::new(2, 0)), Some(Slot(0)));
    }

    #[test]
    fn the_word_to_leave_is_nobody_elses() {
        let mut scheduler = Scheduler::new(2);
        scheduler.open(Slot(0), false);
        scheduler.published(Slot(0), 1);
        scheduler.leaves(Slot(0));
        scheduler.published(Slot(0), 2);
        // One comes when all were told to leave, for what a task has submitted late.
        scheduler.open(Slot(1), false);
        assert_eq!(scheduler.steal(), None);
        scheduler.born(Slot(1));
        assert_eq!(scheduler.steal(), None);
        scheduler.born(Slot(0));
        assert_eq!(scheduler.steal(), None);
    }

    #[test]
    fn what_is_deeper_waits_behind_nobody() {
        let mut scheduler = open(2);
        scheduler.published(Slot(0), deep(1, 1));
        scheduler.published(Slot(0), deep(1, 2));
        scheduler.published(Slot(0), deep(1, 3));
        assert_eq!(scheduler.higher_than_queue(), None, "nothing is queued");
        scheduler.add(deep(0, 4));
        assert_eq!(scheduler.higher_than_queue(), Some((Slot(0), 2)));
        scheduler.revoked(Slot(0), 2, |_| ());
        assert_eq!(scheduler.higher_than_queue(), None);
        assert_eq!(scheduler.take_first(), Some(deep(1, 2)));
    }

    fn deep(depth: u8, number: u32) -> Ranked {
        Ranked(Rank::new(depth, 0), number)
    }

    fn urgent(priority: i32, number: u32) -> Ranked {
        Ranked(Rank::new(0, priority), number)
    }

    /// Of workers with short tasks.
    fn open_ranked(count: usize) -> Scheduler<Ranked> {
        let mut scheduler = open(count);
        scheduler.observe(1, 1000);
        scheduler
    }

    #[test]
    fn what_waits_at_a_worker_gives_way_to_a_higher_priority() {
        let mut scheduler = open_ranked(2);
        for number in 1..4 {
            scheduler.published(Slot(0), urgent(0, number));
        }
        scheduler.published(Slot(1), urgent(9, 4));
        scheduler.published(Slot(1), urgent(9, 5));
        assert!(!scheduler.is_outranked(Slot(0)), "nothing is queued");
        scheduler.add(urgent(-1, 6));
        scheduler.add(urgent(0, 7));
        assert!(!scheduler.is_outranked(Slot(0)));
        scheduler.add(urgent(5, 8));
        assert!(scheduler.is_outranked(Slot(0)));
        assert!(!scheduler.is_outranked(Slot(1)));
        assert_eq!(scheduler.choose(Rank::new(0, 5)), None);
        scheduler.revoked(Slot(0), 2, |_| ());
        assert!(!scheduler.is_outranked(Slot(0)), "it holds what it runs");
        let queued = [(9, 0), (5, 1), (0, 4), (-1, 5)];
        for (priority, count) in queued {
            assert_eq!(scheduler.queued_from(Rank::new(0, priority)), count);
        }
        assert_eq!(scheduler.queued_first(), 1);
        let order: Vec<_> = std::iter::from_fn(|| scheduler.take_first()).collect();
        let numbers: Vec<_> = order.iter().map(|task| task.1).collect();
        assert_eq!(numbers, [8, 2, 3, 7, 6]);
    }

    #[test]
    fn who_has_nothing_gets_what_is_of_the_highest_priority() {
        let mut scheduler = open_ranked(3);
        for number in 0..5 {
            scheduler.published(Slot(0), urgent(0, number));
        }
        scheduler.published(Slot(1), urgent(3, 5));
        scheduler.published(Slot(1), urgent(3, 6));
        assert_eq!(scheduler.steal(), Some((Slot(1), 1)));
        scheduler.add(urgent(1, 7));
        assert_eq!(scheduler.steal(), None);
        assert_eq!(scheduler.higher_than_queue(), Some((Slot(1), 1)));
        scheduler.ended(Slot(1), 1);
        assert_eq!(scheduler.higher_than_queue(), None);
    }

    #[test]
    fn a_death_returns_all_to_where_its_priority_is() {
        let mut scheduler = open_ranked(1);
        scheduler.add(urgent(2, 1));
        scheduler.add(urgent(-2, 2));
        for number in 3..6 {
            scheduler.published(Slot(0), urgent(0, number));
        }
        let loss = scheduler.died(Slot(0), 1, |_| {});
        assert_eq!(loss.started, [urgent(0, 3)]);
        let order: Vec<_> = scheduler.take_queue().iter().map(|task| task.1).collect();
        assert_eq!(order, [1, 4, 5, 2]);
    }

    #[test]
    fn what_tasks_wait_for_goes_first() {
        let mut scheduler = Scheduler::new(1);
        for task in [(0, 1), (1, 2), (0, 3), (2, 4), (1, 5)] {
            scheduler.add(deep(task.0, task.1));
        }
        scheduler.open(Slot(0), false);
        scheduler.born(Slot(0));
        let first = scheduler.take_first().unwrap();
        assert_eq!(first, deep(2, 4));
        let second = scheduler.take_first().unwrap();
        scheduler.published(Slot(0), second);
        scheduler.published(Slot(0), first);
        scheduler.published(Slot(0), deep(0, 0));
        scheduler.revoked(Slot(0), 3, |_| {});
        let order: Vec<_> = std::iter::from_fn(|| scheduler.take_first()).collect();
        let numbers: Vec<_> = order.iter().map(|task| task.1).collect();
        assert_eq!(numbers, [4, 2, 5, 0, 1, 3]);
        assert_eq!((scheduler.queued(), scheduler.busy_count()), (0, 0));
    }

    #[test]
    fn probes_with_one_task_per_worker() {
        let mut scheduler = open(2);
        (0..5).for_each(|task| scheduler.add(task));
        assert_eq!(assign(&mut scheduler).len(), 2);
        assert_eq!(scheduler.queued(), 3);
    }

    #[test]
    fn short_tasks_get_long_pipelines_and_long_tasks_short_ones() {
        let mut scheduler = open(1);
        scheduler.add(0);
        assign(&mut scheduler);
        scheduler.ended(Slot(0), 1);
        scheduler.observe(1, 2_000);
        assert_eq!(scheduler.credit(), 500);
        for _ in 0..64 {
            scheduler.observe(1, 50_000_000);
        }
        assert_eq!(scheduler.credit(), 2, "the running one and one that waits");
    }

    #[test]
    fn one_straggler_does_not_drain_the_pipeline() {
        let mut scheduler = open::<u32>(1);
        for _ in 0..10 {
            scheduler.observe(1, 1_000);
        }
        let before = scheduler.credit();
        scheduler.observe(1, 10_000_000_000);
        assert!(
            scheduler.credit() >= before / 4,
            "{} of {before}",
            scheduler.credit()
        );
    }

    #[test]
    fn the_worker_heard_last_is_chosen_among_idle_ones() {
        let mut scheduler = open(3);
        scheduler.add(0);
        scheduler.add(1);
        let assigned = assign(&mut scheduler);
        assert_eq!(assigned.len(), 2);
        scheduler.ended(Slot(assigned[0].0), 1);
        scheduler.observe(1, 1);
        let chosen = scheduler.choose(Rank::default());
        assert_eq!(chosen, Some(Slot(assigned[0].0)));
    }

    #[test]
    fn an_idle_worker_gets_half_of_what_waits_elsewhere() {
        let mut scheduler = open(2);
        scheduler.estimate = Some(1_000);
        scheduler.close(Slot(1));
        (0..9).for_each(|task| scheduler.add(task));
        assign(&mut scheduler);
        scheduler.open(Slot(1), false);
        scheduler.born(Slot(1));
        assert_eq!(scheduler.steal(), Some((Slot(0), 4)));
        scheduler.revoked(Slot(0), 4, |_| {});
        let assigned = assign(&mut scheduler);
        assert_eq!(assigned, [(1, 5), (1, 6), (1, 7), (1, 8)], "in their order");
        assert_eq!(scheduler.steal(), None, "nobody is idle");
    }

    #[test]
    fn what_runs_is_never_stolen() {
        let mut scheduler = open(2);
        scheduler.add(0);
        assign(&mut scheduler);
        assert_eq!(scheduler.steal(), None);
    }

    #[test]
    fn what_waits_for_a_birth_goes_to_an_idle_worker() {
        let mut scheduler = Scheduler::new(2);
        scheduler.open(Slot(1), false);
        scheduler.add(0);
        assert_eq!(assign(&mut scheduler), [(1, 0)]);
        scheduler.open(Slot(0), false);
        assert_eq!(scheduler.steal(), None, "neither is there yet");
        scheduler.born(Slot(0));
        assert_eq!(scheduler.steal(), Some((Slot(1), 1)));
        scheduler.revoked(Slot(1), 1, |_| {});
        assert_eq!(
            assign(&mut scheduler),
            [(0, 0)],
            "the one that is there is chosen"
        );
        assert_eq!(scheduler.steal(), None);
    }

    #[test]
    fn a_start_up_message_stays_with_its_worker() {
        let mut scheduler = open(1);
        scheduler.add_place();
        scheduler.open(Slot(1), true);
        scheduler.published(Slot(1), 7);
        assert_eq!(scheduler.steal(), None);
    }

    #[test]
    fn a_death_costs_what_had_started() {
        let mut scheduler = open(1);
        scheduler.estimate = Some(1_000);
        (0..4).for_each(|task| scheduler.add(task));
        assign(&mut scheduler);
        scheduler.add(9);
        scheduler.close(Slot(0));
        let loss = scheduler.died(Slot(0), 1, |_| {});
        assert_eq!(
            loss,
            Loss {
                started: vec![0],
                returned: 3
            }
        );
        scheduler.open(Slot(0), false);
        let order: Vec<_> = assign(&mut scheduler)
            .into_iter()
            .map(|(_, task)| task)
            .collect();
        assert_eq!(order, [1, 2, 3, 9]);
    }

    fn open_runs(count: usize) -> Scheduler<Run> {
        let mut scheduler = open(count);
        scheduler.observe(100, 100_000);
        scheduler
    }

    #[test]
    fn a_block_is_cut_where_what_is_taken_back_begins() {
        let mut scheduler = open_runs(2);
        scheduler.published(Slot(0), run(0..10));
        scheduler.published(Slot(0), run(10..14));
        assert_eq!(scheduler.ended(Slot(0), 3), None);
        assert_eq!(scheduler.steal(), Some((Slot(0), 5)));
        let mut revoked_runs = Vec::new();
        scheduler.revoked(Slot(0), 5, |revoked| {
            revoked_runs.push(match revoked {
                Revoked::Whole(run) => (true, run.0.clone()),
                Revoked::Cut(run) => (false, run.0.clone()),
            });
        });
        assert_eq!(revoked_runs, [(true, 10..14), (false, 3..9)]);
        assert_eq!((scheduler.held_count(Slot(0)), scheduler.queued()), (6, 5));
        assert_eq!(scheduler.take_first(), Some(run(9..10)));
        assert_eq!(scheduler.take_first(), Some(run(10..14)));
        assert_eq!(scheduler.ended(Slot(0), 6), Some(Run(9..9, true)));
        assert_eq!((scheduler.busy_count(), scheduler.queued()), (0, 0));
    }

    #[test]
    fn what_was_begun_never_returns_as_a_whole() {
        let mut scheduler = open_runs(1);
        scheduler.published(Slot(0), run(0..10));
        scheduler.ended(Slot(0), 4);
        let mut kept = None;
        scheduler.revoked(Slot(0), 6, |revoked| match revoked {
            Revoked::Whole(run) => panic!("{run:?}"),
            Revoked::Cut(run) => assert!(kept.replace(run.0.clone()).is_none()),
        });
        assert_eq!(kept, Some(4..4));
        assert_eq!((scheduler.busy_count(), scheduler.queued()), (0, 6));
        let rest = scheduler.take_first().unwrap();
        assert_eq!(rest, run(4..10));
        scheduler.published(Slot(0), rest);
        scheduler.ended(Slot(0), 1);
        assert_eq!(scheduler.died(Slot(0), 0, |_| {}).returned, 5);
        assert_eq!(scheduler.take_first(), Some(run(5..10)));
    }

    #[test]
    fn a_death_in_a_block_costs_one_item() {
        let mut scheduler = open_runs(1);
        scheduler.published(Slot(0), run(0..10));
        scheduler.published(Slot(0), run(10..12));
        scheduler.ended(Slot(0), 2);
        let loss = scheduler.died(Slot(0), 1, |_| {});
        let (started, returned) = (vec![Run(2..3, true)], 9);
        assert_eq!(loss, Loss { started, returned });
        assert_eq!(scheduler.queued(), 9);
        assert_eq!(scheduler.take_first(), Some(run(3..10)));
        assert_eq!(scheduler.take_first(), Some(run(10..12)));
    }

    /// With a clock that only this test moves: every task runs once, workers never idle while
    /// another holds waiting tasks, and the makespan is that of greedy list scheduling.
    #[test]
    fn skewed_tasks_end_within_the_greedy_makespan() {
        let durations: Vec<u64> = (0..400)
            .map(|task| if task == 200 { 50_000_000 } else { 100_000 })
            .collect();
        let workers = 3;
        let mut scheduler = open(workers);
        (0..durations.len() as u32).for_each(|task| scheduler.add(task));
        let mut now = 0;
        let mut ends = BinaryHeap::new();
        let mut runs = vec![0; durations.len()];
        let mut started = vec![false; workers];
        loop {
            assign(&mut scheduler);
            while let Some((slot, count)) = scheduler.steal() {
                scheduler.revoked(slot, count, |_| {});
                assign(&mut scheduler);
            }
            for (slot, started) in started.iter_mut().enumerate() {
                if let (false, Some(&task)) = (*started, scheduler.oldest(Slot(slot as u32))) {
                    *started = true;
                    ends.push(std::cmp::Reverse((now + durations[task as usize], slot)));
                }
            }
            let Some(std::cmp::Reverse((end, slot))) = ends.pop() else {
                break;
            };
            now = end;
            started[slot] = false;
            let task = scheduler.oldest(Slot(slot as u32)).copied().unwrap();
            let busy = scheduler
                .places
                .iter()
                .filter(|p| !p.held.is_empty())
                .count();
            assert_eq!(scheduler.busy_count(), busy);
            runs[task as usize] += 1;
            scheduler.ended(Slot(slot as u32), 1);
            scheduler.observe(1, durations[task as usize]);
        }
        assert!(runs.iter().all(|&count| count == 1));
        let work: u64 = durations.iter().sum();
        let bound = work / workers as u64 + 50_000_000;
        assert!(now <= bound, "{now} ns, greedy bound {bound} ns");
    }

    #[test]
    fn a_worker_is_given_its_share_and_no_more() {
        let mut scheduler: Scheduler<u32> = Scheduler::new(2);
        scheduler.limit(2);
        for slot in [Slot(0), Slot(1)] {
            scheduler.open(slot, false);
            scheduler.born(slot);
        }
        scheduler.observe(1, 1_000);
        (0..10).for_each(|task| scheduler.add(task));
        assert_eq!(assign(&mut scheduler).len(), 4);
        assert_eq!((scheduler.left(Slot(0)), scheduler.room(Slot(0))), (0, 0));
        // What is taken back was not run: another may be given in its place.
        scheduler.revoked(Slot(0), 1, |_| ());
        assert_eq!(scheduler.left(Slot(0)), 1);
        assert_eq!(assign(&mut scheduler).len(), 1);
        while scheduler.ended(Slot(0), 1).is_some() && scheduler.held_count(Slot(0)) > 0 {}
        // It is done, and no thief.
        assert!(!scheduler.is_low(Slot(0)) && !scheduler.has_idle());
        let _rest = scheduler.take_queue();
        assert_eq!(scheduler.steal(), None);
        assert_eq!(scheduler.choose(Rank::default()), None);
    }

    #[test]
    fn a_first_record_is_not_of_the_share() {
        let mut scheduler: Scheduler<u32> = Scheduler::new(1);
        scheduler.limit(1);
        scheduler.open(Slot(0), true);
        scheduler.published(Slot(0), 100);
        assert_eq!(scheduler.left(Slot(0)), 1);
        scheduler.give_free(Slot(0));
        scheduler.published(Slot(0), 101);
        assert_eq!(scheduler.left(Slot(0)), 1);
        scheduler.died(Slot(0), 0, |_| ());
        scheduler.open(Slot(0), false);
        assert_eq!(scheduler.left(Slot(0)), 1, "a share is one worker's");
    }
}
