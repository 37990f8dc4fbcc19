//! Which pages of the window are whose: a pure data structure, without system calls and without a clock.
//!
//! A range of pages is
//!
//! - *live*: a block is there;
//! - *warm*: free, but it still has its memory;
//! - *leaving*: free, and its memory is being given back, by whoever took it out of here;
//! - *cold*: addresses without memory.
//!
//! What is not cold counts as *populated*, and may not be more than the budget. Only taking cold addresses
//! adds to it.
//!
//! Who asks rounds lengths up to size classes, eight for each power of two (`class_above`), so that recycled
//! ranges fit again and less than an eighth is wasted. Warm ranges of a class lie on one stack for each *writer*, that is, the
//! process that wrote there last and has the pages mapped: who writes there next should be the same. Who has none takes
//! one that nobody has mapped; else the oldest of whoever has most, since what was freed last is used next.
//!
//! Cold ranges that touch are one. Warm ones stay as they are, in shapes that are wanted, until the budget
//! leaves no other way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Classes for each power of two.
const CLASSES: u64 = 8;

/// Some pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    /// The first page.
    pub(super) start: u64,
    /// How many.
    pub(super) pages: u64,
}

impl Range {
    fn end(self) -> u64 {
        self.start + self.pages
    }
}

/// A free range with its memory.
#[derive(Clone, Copy, Debug)]
struct Warm {
    range: Range,
    writer: Option<u64>,
    /// So many bytes from its start on are what the writer wrote; what comes behind may be anybody's.
    written: u64,
    /// When it was freed.
    since: u64,
}

/// The ages of ranges, by their writer.
type Stacks = Vec<(Option<u64>, VecDeque<u64>)>;

/// The pages of a window, and what they are used for.
#[derive(Debug)]
pub(super) struct Allocator {
    /// By age: a number that grows with each.
    warm: BTreeMap<u64, Warm>,
    /// The ages of the warm ranges of a class, by writer, the youngest last. No stack is empty.
    stacks: BTreeMap<u64, Stacks>,
    next_age: u64,
    /// Lengths by start; and the same ranges by length.
    cold: BTreeMap<u64, u64>,
    cold_by_length: BTreeSet<(u64, u64)>,
    live: u64,
    warm_pages: u64,
    populated: u64,
    budget: u64,
}

impl Allocator {
    /// All of a window, cold.
    pub(super) fn new(pages: u64, budget: u64) -> Self {
        let mut allocator = Self {
            warm: BTreeMap::new(),
            stacks: BTreeMap::new(),
            next_age: 0,
            cold: BTreeMap::new(),
            cold_by_length: BTreeSet::new(),
            live: 0,
            warm_pages: 0,
            populated: 0,
            budget,
        };
        allocator.add_cold(Range { start: 0, pages });
        allocator
    }

    /// A warm range of about this length: of this writer, else of another one, else the next larger class.
    /// And how many bytes of it this writer wrote last: nothing if another one has.
    pub(super) fn reuse(&mut self, pages: u64, writer: u64) -> Option<(Range, Option<u64>)> {
        let age = self
            .most_fitting(pages, writer)
            .or_else(|| self.most_fitting(class_above(pages + 1), writer))?;
        let warm = self.remove_warm(age)?;
        self.live += warm.range.pages;
        let written = (warm.writer == Some(writer)).then_some(warm.written);
        Some((warm.range, written))
    }

    /// Whether cold addresses and the budget suffice for this length.
    pub(super) fn can_grow(&self, pages: u64) -> bool {
        self.populated + pages <= self.budget && self.best_cold(pages).is_some()
    }

    /// A cold range of this length, if `can_grow`. It is populated from here on.
    pub(super) fn grow(&mut self, pages: u64) -> Option<Range> {
        if self.populated + pages > self.budget {
            return None;
        }
        let found = self.best_cold(pages)?;
        self.remove_cold(found);
        let (range, rest) = split(found, pages);
        self.add_cold(rest);
        self.populated += pages;
        self.live += pages;
        Some(range)
    }

    /// A part of a larger warm range; neighbours are put together if no single one is large enough.
    pub(super) fn split(&mut self, pages: u64) -> Option<Range> {
        if self.warm_pages < pages {
            return None;
        }
        if self.smallest_warm(pages).is_none() {
            self.merge_warm();
        }
        let age = self.smallest_warm(pages)?;
        let warm = self.remove_warm(age)?;
        let (range, rest) = split(warm.range, pages);
        if rest.pages > 0 {
            self.add_warm(Warm {
                range: rest,
                written: 0,
                ..warm
            });
        }
        self.live += range.pages;
        Some(range)
    }

    /// A live range is free now, and warm; its writer wrote so many bytes.
    pub(super) fn free(&mut self, range: Range, writer: Option<u64>, written: u64, now: u64) {
        self.live -= range.pages;
        self.add_warm(Warm {
            range,
            writer,
            written,
            since: now,
        });
    }

    /// Live pages have no memory: they are leaving.
    pub(super) fn retire(&mut self, range: Range) {
        self.live -= range.pages;
    }

    /// Takes warm ranges out, the oldest first, until `pages` are leaving. Their memory is given back next.
    pub(super) fn evict(&mut self, pages: u64) -> Vec<Range> {
        let mut leaving = Vec::new();
        let mut count = 0;
        while count < pages
            && let Some(warm) = self.remove_oldest()
        {
            count += warm.range.pages;
            leaving.push(warm.range);
        }
        leaving
    }

    /// Takes out the oldest warm range if it was freed at this time or before.
    pub(super) fn evict_older(&mut self, time: u64) -> Option<Range> {
        let is_old = self.oldest_since()? <= time;
        is_old.then(|| self.remove_oldest())?.map(|warm| warm.range)
    }

    /// When the oldest warm range was freed.
    pub(super) fn oldest_since(&self) -> Option<u64> {
        self.warm.first_key_value().map(|(_, warm)| warm.since)
    }

    /// A range that was leaving is cold now.
    pub(super) fn has_left(&mut self, range: Range) {
        self.populated -= range.pages;
        let mut range = range;
        if let Some((&start, &pages)) = self.cold.range(..range.start).next_back()
            && start + pages == range.start
        {
            self.remove_cold(Range { start, pages });
            range = Range {
                start,
                pages: pages + range.pages,
            };
        }
        if let Some(&pages) = self.cold.get(&range.end()) {
            self.remove_cold(Range {
                start: range.end(),
                pages,
            });
            range.pages += pages;
        }
        self.add_cold(range);
    }

    /// Pages in use.
    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// Pages that are free and have memory.
    pub(super) fn warm(&self) -> u64 {
        self.warm_pages
    }

    /// Pages that may have memory.
    pub(super) fn set_budget(&mut self, budget: u64) {
        self.budget = budget;
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    // ---- warm ranges ----

    /// The age of the range of a class that this writer should have.
    fn most_fitting(&self, class: u64, writer: u64) -> Option<u64> {
        let stacks = self.stacks.get(&class)?;
        let of = |wanted| stacks.iter().find(|(of, _)| *of == wanted);
        if let Some((_, stack)) = of(Some(writer)).or_else(|| of(None)) {
            return stack.back().copied();
        }
        let (_, stack) = stacks.iter().max_by_key(|(_, stack)| stack.len())?;
        stack.front().copied()
    }

    /// The age of a range of at least this length, of the smallest class that has one.
    fn smallest_warm(&self, pages: u64) -> Option<u64> {
        let (_, stacks) = self.stacks.range(pages..).next()?;
        stacks.first()?.1.front().copied()
    }

    fn add_warm(&mut self, warm: Warm) {
        let age = self.next_age;
        self.next_age += 1;
        self.warm_pages += warm.range.pages;
        self.warm.insert(age, warm);
        let stacks = self
            .stacks
            .entry(class_below(warm.range.pages))
            .or_default();
        match stacks.iter_mut().find(|(of, _)| *of == warm.writer) {
            Some((_, stack)) => stack.push_back(age),
            None => stacks.push((warm.writer, VecDeque::from([age]))),
        }
    }

    fn remove_oldest(&mut self) -> Option<Warm> {
        let (&age, _) = self.warm.first_key_value()?;
        self.remove_warm(age)
    }

    fn remove_warm(&mut self, age: u64) -> Option<Warm> {
        let warm = self.warm.remove(&age)?;
        self.warm_pages -= warm.range.pages;
        let class = class_below(warm.range.pages);
        let stacks = self.stacks.get_mut(&class)?;
        let of = stacks.iter().position(|(of, _)| *of == warm.writer)?;
        let stack = &mut stacks[of].1;
        // Ages grow along a stack, and mostly it is one of its ends.
        if stack.back() == Some(&age) {
            stack.pop_back();
        } else if let Ok(at) = stack.binary_search(&age) {
            stack.remove(at);
        }
        if stack.is_empty() {
            stacks.swap_remove(of);
            if stacks.is_empty() {
                self.stacks.remove(&class);
            }
        }
        Some(warm)
    }

    /// Puts warm ranges that touch together. They are as old as their youngest part, and go by its writer.
    fn merge_warm(&mut self) {
        let mut all: Vec<(u64, Warm)> = std::mem::take(&mut self.warm).into_iter().collect();
        self.stacks.clear();
        self.warm_pages = 0;
        all.sort_unstable_by_key(|(_, warm)| warm.range.start);
        all.dedup_by(|(age, warm), (age_before, before)| {
            let touch = before.range.end() == warm.range.start;
            if touch {
                let pages = before.range.pages + warm.range.pages;
                if *age > *age_before {
                    (*age_before, before.writer, before.since) = (*age, warm.writer, warm.since);
                }
                before.range.pages = pages;
                before.written = 0;
            }
            touch
        });
        all.sort_unstable_by_key(|&(age, _)| age);
        for (_, warm) in all {
            self.add_warm(warm);
        }
    }

    // ---- cold ranges ----

    /// The shortest cold range that is long enough.
    fn best_cold(&self, pages: u64) -> Option<Range> {
        let &(pages, start) = self.cold_by_length.range((pages, 0)..).next()?;
        Some(Range { start, pages })
    }

    fn add_cold(&mut self, range: Range) {
        if range.pages > 0 {
            self.cold.insert(range.start, range.pages);
            self.cold_by_length.insert((range.pages, range.start));
        }
    }

    fn remove_cold(&mut self, range: Range) {
        self.cold.remove(&range.start);
        self.cold_by_length.remove(&(range.pages, range.start));
    }
}

/// The first `pages` of a range, and the rest.
fn split(range: Range, pages: u64) -> (Range, Range) {
    let first = Range { pages, ..range };
    let rest = Range {
        start: first.end(),
        pages: range.pages - pages,
    };
    (first, rest)
}

/// The distance between classes around this length.
fn step(pages: u64) -> u64 {
    let power = 1 << pages.max(1).ilog2();
    (power / CLASSES).max(1)
}

/// The smallest class that is no shorter than this.
pub(super) fn class_above(pages: u64) -> u64 {
    pages.next_multiple_of(step(pages))
}

/// The largest class that is no longer than this.
fn class_below(pages: u64) -> u64 {
    pages - pages % step(pages)
}

#[cfg(test)]
mod tests;
