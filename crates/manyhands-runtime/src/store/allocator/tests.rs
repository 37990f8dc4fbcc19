use super::*;

fn reserve(allocator: &mut Allocator, pages: u64, writer: u64) -> Range {
    let pages = class_above(pages);
    allocator
        .reuse(pages, writer)
        .map(|(range, _)| range)
        .or_else(|| allocator.grow(pages))
        .expect("there is room")
}

#[test]
fn classes_waste_less_than_an_eighth() {
    for pages in 1..5000 {
        let (above, below) = (class_above(pages), class_below(pages));
        assert!(below <= pages && pages <= above);
        assert!(8 * (above - pages) < pages, "{pages} in {above}");
        assert_eq!((class_above(above), class_below(above)), (above, above));
        assert_eq!(class_above(pages + 1) > class_above(pages), above == pages);
    }
}

#[test]
fn recycled_memory_goes_to_who_wrote_it_last() {
    let mut allocator = Allocator::new(1000, 1000);
    let [first, second, third] = [1, 2, 1].map(|writer| {
        let range = reserve(&mut allocator, 16, writer);
        (range, writer)
    });
    for (range, writer) in [first, second, third] {
        allocator.free(range, Some(writer), 0, 0);
    }
    assert_eq!((allocator.live(), allocator.warm()), (0, 48));
    assert_eq!(allocator.reuse(16, 2), Some((second.0, Some(0))));
    assert_eq!(
        allocator.reuse(16, 1),
        Some((third.0, Some(0))),
        "the last is the warmest"
    );
    assert_eq!(
        allocator.reuse(16, 2),
        Some((first.0, None)),
        "somebody else's is better than none"
    );
    assert_eq!(allocator.reuse(16, 1), None);
    allocator.free(first.0, Some(1), 0, 0);
    assert_eq!(
        allocator.reuse(15, 1),
        Some((first.0, Some(0))),
        "of the next class"
    );
    allocator.free(first.0, None, 0, 0);
    assert_eq!(
        allocator.reuse(16, 1),
        Some((first.0, None)),
        "it was nobody's"
    );
    allocator.free(first.0, Some(1), 0, 0);
    assert_eq!(allocator.reuse(14, 1), None, "too much would be wasted");
}

#[test]
fn who_has_none_takes_what_others_miss_least() {
    let mut allocator = Allocator::new(1000, 1000);
    let writers = [Some(1), Some(2), Some(2), Some(2), None, None];
    let ranges = writers.map(|writer| (reserve(&mut allocator, 16, 9), writer));
    for (range, writer) in ranges {
        allocator.free(range, writer, 0, 0);
    }
    let of = |index: usize| Some((ranges[index].0, None));
    assert_eq!(
        allocator.reuse(16, 3),
        of(5),
        "the youngest that nobody has"
    );
    assert_eq!(allocator.reuse(16, 3), of(4));
    assert_eq!(allocator.reuse(16, 3), of(1), "the oldest of who has most");
    assert_eq!(allocator.reuse(16, 3), of(2));
    assert_eq!(allocator.reuse(16, 1), Some((ranges[0].0, Some(0))));
    assert_eq!(allocator.reuse(16, 1), of(3));
}

#[test]
fn growing_ends_at_the_budget_and_at_the_last_address() {
    let mut allocator = Allocator::new(100, 40);
    let range = allocator.grow(30).unwrap();
    assert!(!allocator.can_grow(11) && allocator.can_grow(10));
    assert_eq!(allocator.grow(11), None);
    allocator.free(range, Some(0), 0, 0);
    assert_eq!(allocator.grow(11), None, "warm is populated");
    assert_eq!(allocator.evict(1), [range]);
    assert_eq!(allocator.grow(11), None, "it has not left yet");
    allocator.has_left(range);
    assert!(allocator.can_grow(40));
    let mut small = Allocator::new(8, 100);
    assert!(!small.can_grow(9) && small.grow(9).is_none());
    assert_eq!(small.grow(8), Some(Range { start: 0, pages: 8 }));
}

#[test]
fn larger_ranges_are_split_and_neighbours_put_together() {
    let mut allocator = Allocator::new(64, 64);
    let ranges: Vec<_> = (0..4).map(|_| allocator.grow(16).unwrap()).collect();
    assert_eq!(allocator.split(16), None, "nothing is free");
    allocator.free(ranges[0], Some(0), 0, 0);
    let part = allocator.split(4).unwrap();
    assert_eq!(part, Range { start: 0, pages: 4 });
    assert_eq!((allocator.live(), allocator.warm()), (52, 12));
    allocator.free(ranges[1], Some(0), 0, 0);
    assert_eq!(
        allocator.split(28),
        Some(Range {
            start: 4,
            pages: 28
        })
    );
    assert_eq!(allocator.split(1), None);
    assert_eq!((allocator.live(), allocator.warm()), (64, 0));
}

#[test]
fn the_oldest_leave_first() {
    let mut allocator = Allocator::new(1000, 1000);
    let ranges: Vec<_> = (0..3).map(|_| allocator.grow(16).unwrap()).collect();
    assert_eq!(allocator.oldest_since(), None);
    for (at, time) in [(2, 10), (0, 20), (1, 30)] {
        allocator.free(ranges[at], None, 0, time);
    }
    assert_eq!(allocator.oldest_since(), Some(10));
    assert_eq!(allocator.evict_older(9), None);
    assert_eq!(allocator.evict_older(20), Some(ranges[2]));
    assert_eq!(allocator.evict(17), [ranges[0], ranges[1]]);
    assert_eq!(allocator.evict(1), []);
    assert_eq!(allocator.warm(), 0);
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

const WINDOW: u64 = 2000;
const BUDGET: u64 = 700;

/// What the pages are: the model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Page {
    Cold,
    Warm,
    Live,
    Leaving,
}

fn set(pages: &mut [Page], range: Range, from: &[Page], to: Page) {
    for page in &mut pages[range.start as usize..range.end() as usize] {
        assert!(from.contains(page), "{page:?} becomes {to:?} in {range:?}");
        *page = to;
    }
}

fn check(allocator: &Allocator, pages: &[Page]) {
    let count = |kind| pages.iter().filter(|&&page| page == kind).count() as u64;
    assert_eq!(allocator.live(), count(Page::Live));
    assert_eq!(allocator.warm(), count(Page::Warm));
    assert_eq!(allocator.populated, WINDOW - count(Page::Cold));
    assert!(allocator.populated <= BUDGET);
    let mut ages = 0;
    for (&class, stacks) in &allocator.stacks {
        assert!(!stacks.is_empty());
        for (writer, stack) in stacks {
            assert!(!stack.is_empty() && stack.iter().is_sorted());
            ages += stack.len();
            for age in stack {
                let warm = &allocator.warm[age];
                assert_eq!(
                    (warm.writer, class_below(warm.range.pages)),
                    (*writer, class)
                );
            }
        }
    }
    assert_eq!(ages, allocator.warm.len());
    let cold: Vec<_> = allocator.cold.iter().collect();
    assert!(
        cold.windows(2)
            .all(|pair| pair[0].0 + pair[0].1 < *pair[1].0)
    );
    assert_eq!(
        cold.iter().map(|(_, pages)| **pages).sum::<u64>(),
        count(Page::Cold)
    );
    assert_eq!(cold.len(), allocator.cold_by_length.len());
}

#[test]
fn random_use_agrees_with_a_model() {
    let mut steps = [0; 5];
    for seed in 1..30 {
        let mut numbers = Numbers(seed);
        let mut allocator = Allocator::new(WINDOW, BUDGET);
        let mut pages = vec![Page::Cold; WINDOW as usize];
        let mut live = Vec::new();
        let mut leaving = Vec::new();
        for now in 0..400 {
            let writer = numbers.below(3);
            match numbers.below(10) {
                0..5 => {
                    let most = if numbers.below(5) == 0 { 300 } else { 40 };
                    let wanted = class_above(1 + numbers.below(most));
                    let can_grow = allocator.can_grow(wanted);
                    let found = if let Some((range, _)) = allocator.reuse(wanted, writer) {
                        set(&mut pages, range, &[Page::Warm], Page::Live);
                        steps[0] += 1;
                        Some(range)
                    } else if let Some(range) = allocator.grow(wanted) {
                        assert!(can_grow);
                        set(&mut pages, range, &[Page::Cold], Page::Live);
                        steps[1] += 1;
                        Some(range)
                    } else if let Some(range) = allocator.split(wanted) {
                        assert!(!can_grow);
                        set(&mut pages, range, &[Page::Warm], Page::Live);
                        steps[2] += 1;
                        Some(range)
                    } else {
                        for range in allocator.evict(wanted) {
                            set(&mut pages, range, &[Page::Warm], Page::Leaving);
                            leaving.push(range);
                            steps[3] += 1;
                        }
                        None
                    };
                    if let Some(range) = found {
                        assert!(range.pages >= wanted);
                        live.push((range, writer));
                    }
                }
                5..8 if !live.is_empty() => {
                    let at = numbers.below(live.len() as u64) as usize;
                    let (range, writer) = live.swap_remove(at);
                    set(&mut pages, range, &[Page::Live], Page::Warm);
                    allocator.free(range, Some(writer), 0, now);
                }
                8 => {
                    for range in leaving.drain(..) {
                        set(&mut pages, range, &[Page::Leaving], Page::Cold);
                        allocator.has_left(range);
                    }
                }
                _ => {
                    if let Some(range) = allocator.evict_older(now.saturating_sub(10)) {
                        set(&mut pages, range, &[Page::Warm], Page::Leaving);
                        leaving.push(range);
                        steps[4] += 1;
                    }
                }
            }
            check(&allocator, &pages);
        }
        for (range, writer) in live {
            allocator.free(range, Some(writer), 0, 400);
        }
        leaving.extend(allocator.evict(WINDOW));
        for range in leaving {
            allocator.has_left(range);
        }
        check(&allocator, &vec![Page::Cold; WINDOW as usize]);
        assert_eq!(allocator.cold, BTreeMap::from([(0, WINDOW)]));
    }
    assert!(steps.iter().all(|&count| count > 100), "{steps:?}");
}

#[test]
fn what_is_free_can_be_one_range_again() {
    let mut allocator = Allocator::new(100, 64);
    let mut ranges: Vec<_> = (0..16).map(|_| allocator.grow(4).unwrap()).collect();
    ranges.swap(3, 9);
    for (at, range) in ranges.into_iter().enumerate() {
        allocator.free(range, Some(at as u64 % 3), 0, 0);
    }
    assert_eq!(
        allocator.split(64),
        Some(Range {
            start: 0,
            pages: 64
        })
    );
}
