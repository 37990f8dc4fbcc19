use super::*;

/// The bytes of items of which each is its index as text.
fn items(range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in range {
        bytes.extend_from_slice(&result(1, &index.to_string()));
    }
    bytes
}

fn result(tag: u8, text: &str) -> Vec<u8> {
    [&item_word(tag, text.len())[..], text.as_bytes()].concat()
}

fn stream(ordered: bool) -> Arc<Stream> {
    Stream::new(StreamOptions::default(), ordered, Arc::default())
}

fn ended(stream: &Stream) -> u64 {
    stream.tally.ended.load(Ordering::Relaxed)
}

/// A block with the items of these indexes.
fn block(stream: &Arc<Stream>, range: std::ops::Range<usize>) -> Arc<Block> {
    let bytes = Bytes::copy_of(&items(range.clone()));
    let (first, count) = (range.start as u64, range.len() as u32);
    Block::new(stream.clone(), first, count, Form::Items, Vec::new(), bytes)
}

/// What a consumer takes: index, and text or kind of end, with a star where more comes of the item.
fn taken(block: &Block) -> Vec<(u64, String)> {
    let Taken { first, pieces } = block.take();
    let (mut index, mut all) = (first, Vec::new());
    let mut end = |index: &mut u64, text: String, more: bool| {
        all.push((*index, if more { text + "*" } else { text }));
        *index += u64::from(!more);
    };
    for piece in pieces {
        match piece {
            Piece::Items(bytes, count) => {
                let (mut rest, before) = (bytes.as_slice(), index);
                while let Some((tag, text)) = next_item(&mut rest) {
                    let text = String::from_utf8(text.to_vec()).unwrap();
                    end(&mut index, text, tag & ITEM_MORE != 0);
                }
                assert_eq!((rest.len(), index), (0, before + u64::from(count)));
            }
            Piece::One(Outcome::Value(_, bytes), more) => {
                let text = bytes.with(<[u8]>::to_vec).unwrap();
                end(&mut index, String::from_utf8(text).unwrap(), more);
            }
            Piece::One(outcome, more) => end(&mut index, format!("{outcome:?}"), more),
            Piece::Over(count, over) => {
                (0..count).for_each(|_| end(&mut index, format!("{over:?}"), false));
            }
        }
    }
    all
}

fn ends(texts: &[(u64, &str)]) -> Vec<(u64, String)> {
    texts
        .iter()
        .map(|&(index, text)| (index, text.to_owned()))
        .collect()
}

fn value(text: &str) -> Outcome {
    Outcome::Value(1, Bytes::copy_of(text.as_bytes()))
}

#[test]
fn items_stand_one_after_another() {
    let bytes = items(8..11);
    let mut rest = bytes.as_slice();
    assert_eq!(next_item(&mut rest), Some((1, &b"8"[..])));
    assert_eq!(next_item(&mut rest), Some((1, &b"9"[..])));
    assert_eq!(next_item(&mut rest), Some((1, &b"10"[..])));
    assert_eq!(next_item(&mut rest), None);
    let mut empty = &item_word(7, 0)[..];
    assert_eq!(next_item(&mut empty), Some((7, &b""[..])));
    let longest = item_word(255, (1 << 24) - 1);
    assert_eq!(u32::from_ne_bytes(longest), u32::MAX);
}

#[test]
fn an_item_that_is_longer_than_what_is_there_is_none() {
    for cut in 0..6 {
        let bytes = result(1, "ab");
        let mut rest = &bytes[..cut];
        assert_eq!(next_item(&mut rest), None);
        assert_eq!(rest.len(), cut, "nothing was taken");
    }
}

#[test]
fn results_are_taken_once_with_their_indexes() {
    let stream = stream(true);
    let block = block(&stream, 10..14);
    assert!(!block.is_ready() && taken(&block).is_empty());
    let bytes = [result(1, "a"), result(2, "b")].concat();
    assert_eq!(block.take_items(&bytes, 4), Ok((bytes.len(), 2)));
    assert!(block.is_ready() && !block.is_over());
    assert_eq!(ended(&stream), 2);
    assert_eq!(taken(&block), ends(&[(10, "a"), (11, "b")]));
    assert_eq!((block.is_ready(), ended(&stream)), (false, 2));
    block.take_one(value("c"), false);
    assert_eq!(block.take_items(&result(1, "d"), 1), Ok((5, 1)));
    assert!(block.is_over() && !block.is_exhausted());
    assert_eq!(taken(&block), ends(&[(12, "c"), (13, "d")]));
    assert!(block.is_exhausted() && block.is_ready());
    assert!(taken(&block).is_empty());
}

#[test]
fn an_item_that_yields_keeps_its_index() {
    let stream = stream(true);
    let block = block(&stream, 0..3);
    let more = 1 | ITEM_MORE;
    let bytes = [result(1, "a"), result(more, "b1"), result(more, "b2")].concat();
    assert_eq!(block.take_items(&bytes, 3), Ok((bytes.len(), 1)));
    assert_eq!(taken(&block), ends(&[(0, "a"), (1, "b1*"), (1, "b2*")]));
    block.take_one(value("b3"), true);
    assert_eq!(taken(&block), ends(&[(1, "b3*")]));
    let bytes = [result(1, "b"), result(1, "c")].concat();
    assert_eq!(block.take_items(&bytes, 2), Ok((bytes.len(), 2)));
    assert_eq!(taken(&block), ends(&[(1, "b"), (2, "c")]));
    assert!(block.is_exhausted());
}

#[test]
fn no_more_results_are_taken_than_items_were_started() {
    let stream = stream(true);
    let block = block(&stream, 0..4);
    let bytes = [result(1, "a"), result(1, "b"), result(1, "c")].concat();
    assert_eq!(block.take_items(&bytes, 2), Ok((10, 2)));
    assert_eq!(taken(&block), ends(&[(0, "a"), (1, "b")]));
    // A record that is not in the items' form ends the run.
    let bytes = [result(1, "c"), vec![0; 24]].concat();
    assert_eq!(block.take_items(&bytes, 2), Ok((5, 1)));
}

#[test]
fn results_that_were_whole_count_before_one_that_is_not() {
    let stream = stream(true);
    let block = block(&stream, 0..4);
    for lost in 1..5 {
        let broken = result(1, "b");
        let broken = &broken[..broken.len() - lost];
        assert_eq!(block.take_items(broken, 4), Err(Malformed), "{lost} bytes");
    }
    assert_eq!((ended(&stream), block.is_ready()), (0, false));
    let bytes = [result(1, "a"), item_word(1, 1_000_000).to_vec()].concat();
    assert_eq!(block.take_items(&bytes, 4), Ok((5, 1)));
    assert_eq!(block.take_items(&bytes[5..], 3), Err(Malformed));
    assert_eq!(taken(&block), ends(&[(0, "a")]));
    assert!(!block.is_over());
}

#[test]
fn what_is_cut_off_is_a_block_of_its_own() {
    let stream = stream(true);
    let block = block(&stream, 5..15);
    let weight = block.weight();
    assert_eq!(block.take_items(&result(1, "a"), 10), Ok((5, 1)));
    let rest = block.cut(4);
    assert_eq!((block.count(), rest.count(), rest.first), (4, 6, 9));
    assert!(Arc::ptr_eq(&block.rest().unwrap(), &rest) && rest.rest().is_none());
    assert_eq!(rest.bytes.with(<[u8]>::to_vec).unwrap(), items(9..15));
    assert_eq!(block.weight() + rest.weight(), weight);
    assert_eq!(rest.weight(), items(9..15).len() as u64);
    // An item is found in the block that has it.
    assert_eq!(
        rest.item(11, |tag, item| (tag, item.to_vec())),
        Some((1, b"11".to_vec()))
    );
    assert_eq!(rest.item(8, |_, _| ()), None);
    assert_eq!(rest.item(15, |_, _| ()), None);
    let bytes = [result(1, "b"), result(1, "c"), result(1, "d")].concat();
    assert_eq!(block.take_items(&bytes, 3), Ok((15, 3)));
    assert!(block.is_over() && !rest.is_over());
    assert_eq!(
        taken(&block),
        ends(&[(5, "a"), (6, "b"), (7, "c"), (8, "d")])
    );
    rest.take_one(value("e"), false);
    assert_eq!(taken(&rest), ends(&[(9, "e")]));
}

#[test]
fn cuts_keep_their_order() {
    let stream = stream(true);
    let block = block(&stream, 0..10);
    let last = block.cut(8);
    let middle = block.cut(3);
    let end_of_middle = middle.cut(1);
    let mut chain = Vec::new();
    let mut next = Some(block.clone());
    while let Some(block) = next {
        chain.push((block.first, block.count()));
        next = block.rest();
    }
    assert_eq!(chain, [(0, 3), (3, 1), (4, 4), (8, 2)]);
    assert_eq!(
        end_of_middle.bytes.with(<[u8]>::to_vec).unwrap(),
        items(4..8)
    );
    assert_eq!(last.bytes.with(<[u8]>::to_vec).unwrap(), items(8..10));
    let weights = [&block, &middle, &end_of_middle, &last].map(|block| block.weight());
    assert_eq!(weights.iter().sum::<u64>(), items(0..10).len() as u64);
}

#[test]
fn a_cut_behind_all_that_has_ended_ends_the_block() {
    let stream = stream(true);
    let block = block(&stream, 0..4);
    block.take_one(value("a"), false);
    assert_eq!(taken(&block).len(), 1);
    assert!(!block.is_ready());
    let rest = block.cut(1);
    assert!(block.is_over() && block.is_ready() && block.is_exhausted());
    assert_eq!((rest.first, rest.count()), (1, 3));
    assert_eq!(block.end(Over::Cancelled), 0);
}

#[test]
fn what_has_not_ended_is_ended_once() {
    let stream = stream(true);
    let block = block(&stream, 0..4);
    block.take_one(value("a"), false);
    assert_eq!(block.end(Over::Cancelled), 3);
    assert_eq!(block.end(Over::Failed("no".into())), 0);
    let cancelled = "Cancelled";
    assert_eq!(
        taken(&block),
        ends(&[(0, "a"), (1, cancelled), (2, cancelled), (3, cancelled)])
    );
    assert!(block.is_exhausted());
    assert_eq!(ended(&stream), 4);
}

#[test]
fn without_order_blocks_come_as_they_get_ends() {
    let stream = stream(false);
    let (first, second) = (block(&stream, 0..2), block(&stream, 2..4));
    assert!(stream.next_ready().is_none());
    second.take_one(value("c"), false);
    first.take_one(value("a"), false);
    second.take_one(value("d"), false);
    assert_eq!(ended(&stream), 3);
    let ready = stream.next_ready().unwrap();
    assert_eq!(taken(&ready), ends(&[(2, "c"), (3, "d")]));
    let ready = stream.next_ready().unwrap();
    assert_eq!(taken(&ready), ends(&[(0, "a")]));
    assert!(stream.next_ready().is_none());
    // Taken without having been asked for: then it comes once more, and is empty.
    first.take_one(value("b"), false);
    assert_eq!(taken(&first).len(), 1);
    assert!(
        stream
            .next_ready()
            .is_none_or(|block| taken(&block).is_empty())
    );
    assert_eq!(ended(&stream), 4);
}

/// Whatever a consumer does at the same time: every end is taken once, and nothing stays behind.
#[test]
fn ends_are_taken_while_they_come() {
    const COUNT: usize = 20_000;
    for ordered in [true, false] {
        let stream = stream(ordered);
        let block = block(&stream, 0..COUNT);
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut index = 0;
                while index < COUNT {
                    let some = items(index..COUNT.min(index + 1 + index % 3));
                    let (_, ended) = block.take_items(&some, COUNT - index).unwrap();
                    index += ended;
                }
            });
            while seen.len() < COUNT {
                assert!(seen.len() as u64 <= ended(&stream));
                match (ordered, stream.next_ready()) {
                    (true, _) => seen.extend(taken(&block)),
                    (false, Some(ready)) => seen.extend(taken(&ready)),
                    (false, None) => std::hint::spin_loop(),
                }
            }
        });
        let expected: Vec<_> = (0..COUNT)
            .map(|index| (index as u64, index.to_string()))
            .collect();
        assert!(seen == expected);
        assert!(block.is_exhausted() && block.is_over());
        assert_eq!((ended(&stream), stream.is_full()), (COUNT as u64, false));
    }
}

#[test]
fn a_stream_is_full_of_what_was_yielded_alone() {
    let stream = stream(true);
    let long = "x".repeat(1 << 20);
    let returning = block(&stream, 0..20);
    for _ in 0..20 {
        returning.take_one(value(&long), false);
    }
    assert!(!stream.is_full(), "the window bounds these");
    let yielding = block(&stream, 20..21);
    yielding.take_one(value(&long), true);
    assert!(stream.is_full());
    assert_eq!(taken(&returning).len(), 20);
    assert!(!stream.is_full());
    assert_eq!(taken(&yielding).len(), 1);
}

#[test]
fn nothing_is_kept_for_a_consumer_that_is_gone() {
    for ordered in [true, false] {
        let stream = stream(ordered);
        let block = block(&stream, 0..5);
        let long = "x".repeat(MOST_UNREAD as usize + 1);
        block.take_one(value(&long), true);
        assert!(stream.is_full());
        stream.abandon();
        assert!(!stream.is_full());
        block.take_one(value(&long), true);
        assert_eq!(block.take_items(&result(1, "a"), 5), Ok((5, 1)));
        assert_eq!(block.end(Over::Cancelled), 4);
        assert!(block.is_over(), "what runs is still counted");
        assert!(stream.next_ready().is_none());
        assert!(taken(&block).is_empty());
    }
}

/// What a consumer counts for blocks is given back, all of it and once, in whatever way they end.
#[test]
fn the_weight_of_a_block_is_given_back_once() {
    let stream = stream(false);
    let block = block(&stream, 0..10);
    let mut weight = block.weight();
    block.take_one(value("a"), false);
    let ready = stream.next_ready().unwrap();
    assert_eq!(taken(&ready).len(), 1);
    assert!(!ready.is_exhausted());
    // Nothing comes of the block any more, and yet it comes once more: it has ended.
    let rest = block.cut(1);
    rest.take_one(value("b"), false);
    rest.take_one(value("c"), false);
    rest.end(Over::Cancelled);
    while let Some(ready) = stream.next_ready() {
        taken(&ready);
        assert!(ready.is_exhausted());
        weight -= ready.release();
        weight -= ready.release();
    }
    assert_eq!(weight, 0);
}

/// On a thread whose stack is as small as some programs make it.
#[test]
fn a_long_chain_of_cuts_is_dropped() {
    let drop_chain = || {
        let stream = stream(true);
        let head = block(&stream, 0..4096);
        let mut block = head.clone();
        while block.count() > 1 {
            block = block.cut(1);
        }
        drop(block);
        drop(head);
    };
    let thread = std::thread::Builder::new().stack_size(128 * 1024);
    thread.spawn(drop_chain).unwrap().join().unwrap();
}
