//! What goes first of what waits.
//!
//! A *rank* is a depth and a priority. What tasks wait for comes before what they were submitted with, whatever
//! its priority: who waits has begun, and would wait for ever behind others that may go on coming. Among what
//! is equally deep the higher priority comes first, and among equals who came first.

use std::collections::{BTreeMap, VecDeque};

/// What goes first: the greater of two.
///
/// The depth stands above the lower 32 bits, and the priority is added to that: so one comparison of
/// numbers says which is the greater, and the lower 32 bits are the priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rank(i64);

impl Rank {
    /// Of so many tasks that wait for it, one for the other, and of that priority.
    #[inline]
    pub fn new(depth: u8, priority: i32) -> Self {
        Self((i64::from(depth) << 32) + i64::from(priority))
    }

    /// How many tasks wait for it, one for the other.
    #[inline]
    pub fn depth(self) -> u8 {
        // What is negative was taken from the depth.
        ((self.0 - i64::from(self.priority())) >> 32) as u8
    }

    /// Which goes first of what is equally deep: the higher.
    #[inline]
    pub fn priority(self) -> i32 {
        self.0 as i32
    }

    /// As a number of which the same is the greater; never `i64::MIN`.
    #[inline]
    pub fn number(self) -> i64 {
        self.0
    }
}

/// What can wait in a `RankedQueue`. Neither changes while it does.
pub trait Ranked {
    /// What goes first.
    fn rank(&self) -> Rank;

    /// For how many it counts.
    fn weight(&self) -> usize {
        1
    }
}

/// What is of one rank, in its order.
#[derive(Debug)]
struct Level<T> {
    entries: VecDeque<T>,
    weight: usize,
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            weight: 0,
        }
    }
}

impl<T: Ranked> Level<T> {
    #[inline]
    fn push_back(&mut self, entry: T) {
        self.weight += entry.weight();
        self.entries.push_back(entry);
    }

    #[inline]
    fn push_front(&mut self, entry: T) {
        self.weight += entry.weight();
        self.entries.push_front(entry);
    }
}

/// What waits, in the order of ranks. Where all is of one rank it is as fast as a plain queue.
#[derive(Debug)]
pub struct RankedQueue<T> {
    /// What comes first. Empty only if nothing waits.
    first: Level<T>,
    first_rank: Rank,
    /// What comes after that; no level of it is empty.
    later: BTreeMap<Rank, Level<T>>,
}

impl<T> Default for RankedQueue<T> {
    fn default() -> Self {
        Self {
            first: Level::default(),
            first_rank: Rank::default(),
            later: BTreeMap::new(),
        }
    }
}

impl<T: Ranked> RankedQueue<T> {
    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.first.entries.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        let later = self.later.values().map(|level| level.entries.len());
        self.first.entries.len() + later.sum::<usize>()
    }

    /// The rank of what comes first; none if nothing waits.
    #[inline]
    pub fn first_rank(&self) -> Option<Rank> {
        (!self.is_empty()).then_some(self.first_rank)
    }

    /// For how many all counts that is of the first rank.
    #[inline]
    pub fn first_weight(&self) -> usize {
        self.first.weight
    }

    /// For how many all counts that goes before what is of a lower rank than this.
    pub fn weight_from(&self, rank: Rank) -> usize {
        if self.first_rank < rank {
            return 0;
        }
        let later = self.later.range(rank..).map(|(_, level)| level.weight);
        self.first.weight + later.sum::<usize>()
    }

    /// Puts it behind all that is of its rank.
    #[inline]
    pub fn push_back(&mut self, entry: T) {
        self.level(entry.rank()).push_back(entry);
    }

    /// Puts it before all that is of its rank.
    #[inline]
    pub fn push_front(&mut self, entry: T) {
        self.level(entry.rank()).push_front(entry);
    }

    /// Takes what comes first.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let entry = self.first.entries.pop_front()?;
        self.first.weight -= entry.weight();
        if self.is_empty()
            && let Some((rank, level)) = self.later.pop_last()
        {
            (self.first_rank, self.first) = (rank, level);
        }
        Some(entry)
    }

    /// All that waits, in its order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let later = self.later.values().rev().flat_map(|level| &level.entries);
        self.first.entries.iter().chain(later)
    }

    /// Where what is of that rank goes.
    #[inline]
    fn level(&mut self, rank: Rank) -> &mut Level<T> {
        if rank == self.first_rank {
            return &mut self.first;
        }
        self.other_level(rank)
    }

    #[cold]
    fn other_level(&mut self, rank: Rank) -> &mut Level<T> {
        if self.is_empty() {
            self.first_rank = rank;
            return &mut self.first;
        }
        if rank < self.first_rank {
            return self.later.entry(rank).or_default();
        }
        let first = std::mem::take(&mut self.first);
        self.later.insert(self.first_rank, first);
        self.first_rank = rank;
        &mut self.first
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Waits(u8, i32, usize);

    impl Ranked for Waits {
        fn rank(&self) -> Rank {
            Rank::new(self.0, self.1)
        }

        fn weight(&self) -> usize {
            self.2
        }
    }

    #[test]
    fn depth_counts_first_and_then_priority() {
        let parts = [
            (0, i32::MIN),
            (0, -1),
            (0, 0),
            (0, 1),
            (0, i32::MAX),
            (1, i32::MIN),
            (1, 0),
            (255, i32::MAX),
        ];
        let ranks = parts.map(|(depth, priority)| Rank::new(depth, priority));
        assert!(ranks.is_sorted());
        for (rank, parts) in ranks.iter().zip(parts) {
            assert_eq!((rank.depth(), rank.priority()), parts);
        }
        assert_eq!(Rank::default(), Rank::new(0, 0));
    }

    #[test]
    fn what_waits_comes_in_order_of_rank_and_then_as_it_came() {
        let mut queue = RankedQueue::default();
        assert_eq!((queue.first_rank(), queue.pop()), (None, None));
        let came = [(0, 0), (0, 5), (0, -5), (1, -9), (0, 5), (0, 0), (1, 2)];
        for (number, (depth, priority)) in came.into_iter().enumerate() {
            queue.push_back(Waits(depth, priority, number));
        }
        queue.push_front(Waits(0, 0, 10));
        queue.push_front(Waits(0, -5, 20));
        let order: Vec<_> = queue.iter().map(|entry| entry.2).collect();
        assert_eq!(order, [6, 3, 1, 4, 10, 0, 5, 20, 2]);
        assert_eq!(queue.len(), order.len());
        let taken: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|e| e.2).collect();
        assert_eq!(taken, order);
        assert!(queue.is_empty());
    }

    #[test]
    fn weights_are_those_of_what_waits() {
        let mut queue = RankedQueue::default();
        for (priority, weight) in [(0, 7), (3, 2), (1, 4), (3, 1)] {
            queue.push_back(Waits(0, priority, weight));
        }
        let from = |queue: &RankedQueue<Waits>, p| queue.weight_from(Rank::new(0, p));
        assert_eq!([4, 3, 2, 1, 0].map(|p| from(&queue, p)), [0, 3, 3, 7, 14]);
        assert_eq!(queue.first_weight(), 3);
        assert_eq!(queue.pop(), Some(Waits(0, 3, 2)));
        assert_eq!((queue.first_weight(), from(&queue, 0)), (1, 12));
        queue.pop();
        assert_eq!((queue.first_weight(), from(&queue, 0)), (4, 11));
    }

    #[test]
    fn many_ranks_at_random_come_sorted() {
        let mut queue = RankedQueue::default();
        let mut bits = 1_u64;
        let mut expected = Vec::new();
        for number in 0..2000 {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            let entry = Waits((bits % 3) as u8, (bits >> 8) as i32 % 50, number);
            queue.push_back(entry);
            expected.push(entry);
            if bits.is_multiple_of(5) {
                expected.sort_by_key(|entry| std::cmp::Reverse(entry.rank()));
                assert_eq!(queue.pop(), Some(expected.remove(0)));
            }
        }
        expected.sort_by_key(|entry| std::cmp::Reverse(entry.rank()));
        let taken: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(taken, expected);
    }
}
