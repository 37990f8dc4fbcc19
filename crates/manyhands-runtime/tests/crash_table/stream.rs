//! Streams of items in blocks, whose ends are collected, each exactly once.

use crate::crash_table::helpers::{show, wait};
use crate::crash_table::site::Site;
use crate::crash_table::tally::{End, Expected, Tally};
use crate::crash_table::worker::{self, NOTHING};
use manyhands_runtime::{
    Block, Bytes, Definition, Entry, Form, ITEM_MORE, Limits, Outcome, Over, Piece, Pool, Stream,
    StreamOptions, Taken, item_word, next_item,
};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// An item, and what has come of it.
struct Item {
    number: u64,
    command: String,
    expected: Expected,
    /// What it must yield before it ends.
    yields: Vec<Vec<u8>>,
    /// How many of these have come.
    yielded: usize,
    end: Option<Outcome>,
}

/// A stream of commands and its consumer.
pub(crate) struct Items {
    pub(crate) stream: Arc<Stream>,
    ordered: bool,
    items: Vec<Item>,
    /// The blocks as they were sent, for cancelling.
    heads: Vec<Arc<Block>>,
    /// In order: what was not taken to its end.
    window: VecDeque<Arc<Block>>,
    /// In order: the item whose end comes next.
    next: u64,
    /// How many have ended.
    ended: usize,
}

impl Item {
    fn new(site: &Site, command: &str, expected: Expected) -> Self {
        let mut yields = Vec::new();
        if let Some(rest) = command.strip_prefix("yield:") {
            let mut parts = rest.split(' ');
            let (count, size) = (parts.next().unwrap(), parts.next().unwrap());
            let size: usize = size.parse().unwrap();
            // Of what has no end, more than may wait.
            let count = count.parse().unwrap_or(100_000_000 / size.max(250));
            yields.extend((0..count).map(|index| worker::yielded(index, size)));
        }
        Self {
            number: site.next_number(),
            command: command.to_owned(),
            expected,
            yields,
            yielded: 0,
            end: None,
        }
    }

    fn is_yielding(&self) -> bool {
        self.command.starts_with("yield:")
    }

    fn take(&mut self, outcome: Outcome, more: bool) {
        let (number, command) = (self.number, &self.command);
        let shown = show(&outcome);
        assert!(
            self.end.is_none(),
            "{number} ({command}) had ended: {shown}"
        );
        if !more {
            self.end = Some(outcome);
            return;
        }
        let expected = &self.yields[self.yielded];
        let Outcome::Value(1, bytes) = outcome else {
            panic!("{number} ({command}) yielded {shown}");
        };
        assert!(
            bytes.with(|bytes| bytes == expected.as_slice()).unwrap(),
            "{number} ({command}) yielded {shown}"
        );
        self.yielded += 1;
    }
}

impl Items {
    pub(crate) fn new(ordered: bool) -> Self {
        Self::of(None, ordered)
    }

    /// Items that run a definition.
    pub(crate) fn of(definition: Option<Arc<Definition>>, ordered: bool) -> Self {
        Self::made_of(definition, ordered, Limits::default())
    }

    /// Items that may take so much.
    pub(crate) fn limited(ordered: bool, limits: Limits) -> Self {
        Self::made_of(None, ordered, limits)
    }

    fn made_of(definition: Option<Arc<Definition>>, ordered: bool, limits: Limits) -> Self {
        let options = StreamOptions {
            definition,
            limits,
            ..StreamOptions::default()
        };
        Self {
            stream: Stream::new(options, ordered, Arc::default()),
            ordered,
            items: Vec::new(),
            heads: Vec::new(),
            window: VecDeque::new(),
            next: 0,
            ended: 0,
        }
    }

    /// Sends commands as one block.
    pub(crate) fn send<C: AsRef<str>>(&mut self, site: &Site, pool: &Pool, commands: &[C]) {
        let first = self.items.len() as u64;
        let mut bytes = Vec::new();
        for command in commands {
            let command = command.as_ref();
            let mut expected = Expected::of(command);
            if let (Some(text), Some(definition)) = (
                command.strip_prefix("define:"),
                &self.stream.options.definition,
            ) {
                expected = Expected::Value([definition.bytes(), text.as_bytes()].concat());
            }
            let item = Item::new(site, command, expected);
            let payload = format!("{} {command}", item.number);
            bytes.extend_from_slice(&item_word(1, payload.len()));
            bytes.extend_from_slice(payload.as_bytes());
            self.items.push(item);
        }
        let count = commands.len() as u32;
        self.submit(pool, first, count, Form::Items, Bytes::copy_of(&bytes));
    }

    /// Sends a command as a block of its own form.
    pub(crate) fn send_single(&mut self, site: &Site, pool: &Pool, command: &str) {
        self.send_stored(site, pool, &[], command);
    }

    /// The same, with buffers of these lengths; see `stored`.
    pub(crate) fn send_stored(
        &mut self,
        site: &Site,
        pool: &Pool,
        lengths: &[usize],
        command: &str,
    ) {
        let item = Item::new(site, command, Expected::of(command));
        let payload = format!("{} {command}", item.number).into_bytes();
        let payload = Bytes::copy_of(&payload).with_buffers(site.stored(lengths));
        self.send_alone(pool, item, payload);
    }

    /// Sends an item with so many bytes, which no other has.
    pub(crate) fn send_bytes(&mut self, site: &Site, pool: &Pool, count: usize) {
        let mut item = Item::new(site, "sum:", Expected::Anything);
        let bytes = worker::pattern(item.number as usize, count);
        item.expected = Expected::Value(worker::sum(&bytes).into());
        let payload = [format!("{} sum:", item.number).as_bytes(), &bytes].concat();
        let payload = if count.is_multiple_of(2) {
            Bytes::copy_of(&payload)
        } else {
            Bytes::File(manyhands_os::MessageFile::new(&payload).unwrap())
        };
        self.send_alone(pool, item, payload);
    }

    fn send_alone(&mut self, pool: &Pool, item: Item, payload: Bytes) {
        self.items.push(item);
        let first = self.items.len() as u64 - 1;
        self.submit(pool, first, 1, Form::Single(1), payload);
    }

    /// All items so far fail before they run.
    pub(crate) fn expect_unread(&mut self) {
        for item in &mut self.items {
            item.expected = Expected::Unread;
        }
    }

    fn submit(&mut self, pool: &Pool, first: u64, count: u32, form: Form, bytes: Bytes) {
        let definition = self.stream.options.definition.as_ref();
        let needs = definition.map_or_else(Vec::new, |definition| definition.needs().to_vec());
        let block = Block::new(self.stream.clone(), first, count, form, needs, bytes);
        self.heads.push(block.clone());
        if self.ordered {
            self.window.push_back(block.clone());
        }
        pool.submit(Entry::block(block)).unwrap();
    }

    /// The item of this index fails with this text.
    pub(crate) fn expect_error(&mut self, index: usize, text: &str) {
        self.items[index].expected = Expected::Error(text.to_owned());
    }

    /// How many items there are.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// How many items' ends were taken.
    pub(crate) fn ended(&self) -> usize {
        self.ended
    }

    /// The number under which the item of this index runs.
    pub(crate) fn number(&self, index: usize) -> u64 {
        self.items[index].number
    }

    /// Whether the end of the item of this index was taken.
    pub(crate) fn has_ended(&self, index: usize) -> bool {
        self.items[index].end.is_some()
    }

    /// How many results the item of this index has yielded.
    pub(crate) fn yielded(&self, index: usize) -> usize {
        self.items[index].yielded
    }

    /// How often the item of this index ran.
    pub(crate) fn runs_of(&self, site: &Site, index: usize) -> usize {
        let number = self.number(index).to_string();
        site.runs().get(&number).copied().unwrap_or(0)
    }

    /// Cancels what has not started; the last blocks first, to make it hard.
    pub(crate) fn cancel(&self, pool: &Pool) {
        pool.cancel_blocks(self.heads.iter().rev().cloned(), false);
    }

    /// Cancels all, also what runs.
    pub(crate) fn kill(&self, pool: &Pool) {
        pool.cancel_blocks(self.heads.iter().rev().cloned(), true);
    }

    /// Takes what has come; whether anything had.
    pub(crate) fn take(&mut self) -> bool {
        let mut found = false;
        if !self.ordered {
            while let Some(block) = self.stream.next_ready() {
                found |= self.keep(block.take());
            }
            return found;
        }
        while let Some(block) = self.window.front().cloned() {
            let taken = block.take();
            if !taken.pieces.is_empty() {
                assert_eq!(taken.first, self.next, "another item's result");
            }
            found |= self.keep(taken);
            if !block.is_exhausted() {
                break;
            }
            self.window.pop_front();
            if let Some(rest) = block.rest() {
                self.window.push_front(rest);
            }
        }
        found
    }

    fn keep(&mut self, taken: Taken) -> bool {
        let found = !taken.pieces.is_empty();
        let mut index = taken.first;
        for piece in taken.pieces {
            match piece {
                Piece::Items(bytes, count) => {
                    let (mut rest, first) = (bytes.as_slice(), index);
                    while let Some((tag, bytes)) = next_item(&mut rest) {
                        let more = tag & ITEM_MORE != 0;
                        let value = Outcome::Value(tag & !ITEM_MORE, Bytes::copy_of(bytes));
                        self.take_one(&mut index, value, more);
                    }
                    assert!(rest.is_empty());
                    assert_eq!(index, first + u64::from(count), "ends in a piece");
                }
                Piece::One(outcome, more) => self.take_one(&mut index, outcome, more),
                Piece::Over(count, over) => {
                    for _ in 0..count {
                        let outcome = match &over {
                            Over::Cancelled => Outcome::Cancelled,
                            Over::Broken(why) => Outcome::Broken(why.clone()),
                            Over::Failed(why) => Outcome::Failed(why.clone()),
                        };
                        self.take_one(&mut index, outcome, false);
                    }
                }
            }
        }
        if self.ordered && found {
            self.next = index;
        }
        found
    }

    fn take_one(&mut self, index: &mut u64, outcome: Outcome, more: bool) {
        self.items[*index as usize].take(outcome, more);
        if !more {
            *index += 1;
            self.ended += 1;
        }
    }

    /// Takes ends until there are so many, waiting for them.
    pub(crate) fn take_until(&mut self, pool: &Pool, count: usize) {
        loop {
            self.take();
            if self.ended >= count {
                return;
            }
            match self.window.front() {
                Some(block) => wait(pool, block),
                None => {
                    assert!(
                        !self.ordered,
                        "{} of {} ended",
                        self.ended,
                        self.items.len()
                    );
                    wait(pool, &self.stream);
                }
            }
        }
    }

    /// Waits for all items and counts how they ended, as `Site::settle`.
    pub(crate) fn settle(&mut self, site: &Site, pool: &Pool) -> Tally {
        self.take_until(pool, self.items.len());
        self.tally(&site.runs())
    }

    /// As `settle`, when all have ended.
    pub(crate) fn tally(&mut self, runs: &HashMap<String, usize>) -> Tally {
        self.take();
        assert_eq!(self.ended, self.items.len());
        assert!(!self.take(), "more than all came");
        assert_eq!(self.stream.unread(), 0);
        for head in &self.heads {
            let mut next = Some(head.clone());
            while let Some(block) = next {
                assert!(block.is_over() && block.is_exhausted() && block.count() > 0);
                next = block.rest();
            }
        }
        let mut tally = Tally::default();
        for item in &self.items {
            let runs = runs.get(&item.number.to_string()).copied().unwrap_or(0);
            let outcome = item.end.as_ref().unwrap();
            if let (true, Outcome::Value(tag, _)) = (item.is_yielding(), outcome) {
                assert_eq!(item.yielded, item.yields.len(), "{}", item.command);
                assert_eq!(*tag, NOTHING, "{}", item.command);
            }
            tally.add(&End {
                number: item.number,
                command: &item.command,
                outcome,
                expected: &item.expected,
                runs,
            });
        }
        tally
    }
}
