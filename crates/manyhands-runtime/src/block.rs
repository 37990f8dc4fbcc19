//! Items that travel together, and what came of them.
//!
//! A block is a run of neighbouring items of one *stream*, which is what one consumer takes from. The
//! items' bytes stand one after another, each behind a word (tag and length). What ends items is
//! kept in *pieces* until the consumer takes them: bytes as they came from the worker, or one end
//! that is not of this form.
//!
//! A block can be cut between any two items that have not started: it keeps the first ones, and a new
//! block has the rest. The old one knows the new one, so that a consumer in order finds its way.

use crate::definition::Definition;
use crate::events::number_of_map;
use crate::protocol::{ITEM_MORE, Malformed};
use crate::task::{Breakage, Bytes, Limits, Outcome, Retry};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Length of the word before each item.
pub const ITEM_WORD: usize = 4;
/// The longest item that can stand in a block, or be a result in the items' form.
pub const LONGEST_ITEM: usize = 16 * 1024;
/// So many bytes of a stream whose tasks yield results may wait for a consumer that is not there.
const MOST_UNREAD: u64 = 16 << 20;

/// The word before an item.
#[inline]
pub fn item_word(tag: u8, len: usize) -> [u8; ITEM_WORD] {
    debug_assert!(tag != 0 && len < 1 << 24);
    ((u32::from(tag) << 24) | len as u32).to_ne_bytes()
}

/// Takes the first item off the front: its tag and its bytes.
#[inline]
pub fn next_item<'bytes>(rest: &mut &'bytes [u8]) -> Option<(u8, &'bytes [u8])> {
    let (word, others) = rest.split_first_chunk::<ITEM_WORD>()?;
    let word = u32::from_ne_bytes(*word);
    let (item, others) = others.split_at_checked((word & 0xff_ffff) as usize)?;
    *rest = others;
    Some(((word >> 24) as u8, item))
}

/// How a block travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As a record of items.
    Items,
    /// As a task: its one item is long. The tag says how it is encoded.
    Single(u8),
}

/// What is known of a stream at any moment, and from any thread: figures to show.
#[derive(Debug, Default)]
pub struct Tally {
    /// Items that have ended.
    pub ended: AtomicU64,
    /// Time spent in them, in nanoseconds.
    pub busy_nanos: AtomicU64,
    /// Processor time of that, in nanoseconds.
    pub cpu_nanos: AtomicU64,
}

/// What the blocks of one consumer have in common.
#[derive(Debug)]
pub struct Stream {
    /// Blocks with pieces that nobody took, for a consumer that takes in no order.
    ready: Option<Mutex<VecDeque<Arc<Block>>>>,
    /// Ends that nobody took.
    unread: AtomicUsize,
    /// The bytes of values that nobody took.
    unread_bytes: AtomicU64,
    /// Whether a task has yielded more than one result: what comes has no bound then but this one.
    yields: AtomicBool,
    /// Whether its consumer is gone.
    abandoned: AtomicBool,
    /// Whether its consumer waits for the end of the pool, and takes nothing until then.
    left: AtomicBool,
    tally: Arc<Tally>,
    /// What holds for each item.
    pub options: StreamOptions,
    /// Its number among all maps of this process.
    pub number: u64,
}

/// What holds for each item of a stream.
#[derive(Debug, Default)]
pub struct StreamOptions {
    /// What is run.
    pub definition: Option<Arc<Definition>>,
    /// The context that it runs in, if not in an empty one; the face's business.
    pub context: Option<Arc<Definition>>,
    /// The upper bits of records' tags; the face's business.
    pub tag: u8,
    /// What it may take.
    pub limits: Limits,
    /// Whether it runs again if it fails; each has a block of its own then.
    pub retry: Option<Arc<Retry>>,
    /// What its random streams are made from; the face's business.
    pub seed: Option<Arc<[u8]>>,
}

impl Stream {
    /// A stream without blocks.
    pub fn new(options: StreamOptions, ordered: bool, tally: Arc<Tally>) -> Arc<Self> {
        Arc::new(Self {
            ready: (!ordered).then(Mutex::default),
            unread: AtomicUsize::new(0),
            unread_bytes: AtomicU64::new(0),
            yields: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            left: AtomicBool::new(false),
            tally,
            options,
            number: number_of_map(),
        })
    }

    /// How many ends wait for the consumer.
    pub fn unread(&self) -> usize {
        // Relaxed: whoever waits asks again under the pool's lock.
        self.unread.load(Ordering::Relaxed)
    }

    /// The bytes of the values that wait for the consumer.
    pub fn unread_bytes(&self) -> u64 {
        // Relaxed: an estimate is made of it.
        self.unread_bytes.load(Ordering::Relaxed)
    }

    /// The first block with an end that nobody took, in the order in which they got one.
    pub fn next_ready(&self) -> Option<Arc<Block>> {
        lock(self.ready.as_ref()?).pop_front()
    }

    pub(crate) fn add_busy(&self, nanos: u64, cpu: u64) {
        self.tally.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.tally.cpu_nanos.fetch_add(cpu, Ordering::Relaxed);
    }

    /// Its consumer waits for the end of the pool, or is back from that.
    pub fn leave(&self, left: bool) {
        // Relaxed: at worst a little more or less is kept.
        self.left.store(left, Ordering::Relaxed);
    }

    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Nobody will take its results any more: what still comes is dropped.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        if let Some(ready) = &self.ready {
            lock(ready).clear();
        }
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        // Relaxed: at worst a little more is kept, until its block is gone.
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Whether its tasks have yielded so much that their workers are read no further while nobody
    /// waits.
    pub(crate) fn is_full(&self) -> bool {
        // Relaxed: whoever takes looks at the pool again after that.
        !self.is_abandoned()
            && self.yields.load(Ordering::Relaxed)
            && self.unread_bytes.load(Ordering::Relaxed) > MOST_UNREAD
    }
}

/// A part of what came of a block's items.
#[derive(Debug)]
pub enum Piece {
    /// Results as the worker wrote them, and how many items end with them.
    Items(Vec<u8>, u32),
    /// One result by itself; `true` if the item has not ended with it.
    One(Outcome, bool),
    /// So many items ended in the same way, without having started.
    Over(u32, Over),
}

/// Why items that had not started never will.
#[derive(Debug, Clone)]
pub enum Over {
    /// They were cancelled.
    Cancelled,
    /// The pool can run nothing any more.
    Broken(Arc<Breakage>),
    /// They could not be sent; what happened, as a sentence.
    Failed(String),
}

/// What a consumer takes at a time: the index of the first item in it, and pieces in order.
#[derive(Debug, Default)]
pub struct Taken {
    /// Index of the item that the first piece begins with.
    pub first: u64,
    /// In order.
    pub pieces: VecDeque<Piece>,
}

#[derive(Debug)]
struct State {
    /// Its items; fewer after a cut.
    count: u32,
    /// Items that have ended.
    ended: u32,
    /// Items whose ends the consumer took.
    taken: u32,
    pieces: VecDeque<Piece>,
    /// What was cut off.
    rest: Option<Arc<Block>>,
}

/// Neighbouring items of a stream.
#[derive(Debug)]
pub struct Block {
    /// The stream that they are of.
    pub stream: Arc<Stream>,
    /// Index of the first item.
    pub first: u64,
    /// How it travels.
    pub form: Form,
    /// What else has to be known to run them.
    pub needs: Vec<Arc<Definition>>,
    /// The items.
    pub bytes: Bytes,
    /// Where it was published last: as `Task::place`.
    place: AtomicU64,
    /// How many ends wait in `pieces`.
    unread: AtomicU32,
    /// Whether all items have ended.
    over: AtomicBool,
    /// What the consumer counts for it.
    weight: AtomicU64,
    state: Mutex<State>,
}

const NOWHERE: u64 = u64::MAX;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        Err(_) => crate::bug("a thread panicked while it held a block"),
    }
}

impl Block {
    /// A block of `count` items; with `Form::Single` of one, whose bytes have no word before them.
    pub fn new(
        stream: Arc<Stream>,
        first: u64,
        count: u32,
        form: Form,
        needs: Vec<Arc<Definition>>,
        bytes: Bytes,
    ) -> Arc<Self> {
        debug_assert!(count > 0 && (count == 1 || form == Form::Items));
        let weight = AtomicU64::new(bytes.copied());
        Arc::new(Self {
            stream,
            first,
            form,
            needs,
            bytes,
            place: AtomicU64::new(NOWHERE),
            unread: AtomicU32::new(0),
            over: AtomicBool::new(false),
            weight,
            state: Mutex::new(State {
                count,
                ended: 0,
                taken: 0,
                pieces: VecDeque::new(),
                rest: None,
            }),
        })
    }

    /// How many items it has now.
    pub fn count(&self) -> u32 {
        lock(&self.state).count
    }

    /// Whether something waits for the consumer, or nothing will come any more.
    #[inline]
    pub fn is_ready(&self) -> bool {
        // Acquire pairs with the Release of `add`: what is counted is there.
        self.unread.load(Ordering::Acquire) > 0 || self.is_over()
    }

    /// Whether all its items have ended.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Takes what has come. Empty if nothing has.
    pub fn take(&self) -> Taken {
        if self.unread.load(Ordering::Acquire) == 0 {
            return Taken::default();
        }
        let mut state = lock(&self.state);
        let first = self.first + u64::from(state.taken);
        state.taken = state.ended;
        let pieces = std::mem::take(&mut state.pieces);
        // Relaxed: the lock orders; `is_ready` asks again after each change.
        let unread = self.unread.swap(0, Ordering::Relaxed);
        drop(state);
        self.stream
            .unread
            .fetch_sub(unread as usize, Ordering::Relaxed);
        let bytes = pieces.iter().map(Piece::weight).sum();
        self.stream.unread_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Taken { first, pieces }
    }

    /// Whether the consumer has taken all that will ever come, from this block alone.
    pub fn is_exhausted(&self) -> bool {
        let state = lock(&self.state);
        state.ended == state.count && state.pieces.is_empty()
    }

    /// The block that was cut off from it.
    pub fn rest(&self) -> Option<Arc<Self>> {
        lock(&self.state).rest.clone()
    }

    /// What the consumer counts for this block; after a cut only what it kept.
    pub fn weight(&self) -> u64 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Its weight, which the consumer gives back when the block is exhausted; 0 from the second time
    /// on.
    pub fn release(&self) -> u64 {
        self.weight.swap(0, Ordering::Relaxed)
    }

    /// The encoded item of that index, for messages.
    pub fn item<R>(&self, index: u64, read: impl FnOnce(u8, &[u8]) -> R) -> Option<R> {
        let skip = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.bytes
            .with(|bytes| match self.form {
                Form::Single(tag) => Some(read(tag, bytes)),
                Form::Items => {
                    let mut rest = bytes;
                    for _ in 0..skip {
                        next_item(&mut rest)?;
                    }
                    let (tag, item) = next_item(&mut rest)?;
                    Some(read(tag, item))
                }
            })
            .ok()
            .flatten()
    }

    /// Where its first item was published, and under which number.
    pub(crate) fn place(&self) -> Option<(u32, u32)> {
        let word = self.place.load(Ordering::Relaxed);
        (word != NOWHERE).then_some(((word >> 32) as u32, word as u32))
    }

    pub(crate) fn set_place(&self, place: Option<(u32, u32)>) {
        let word = place.map_or(NOWHERE, |(slot, number)| {
            (u64::from(slot) << 32) | u64::from(number)
        });
        // Relaxed: under the pool's lock.
        self.place.store(word, Ordering::Relaxed);
    }

    /// Keeps the first `keep` of its items and gives a block with the others.
    pub(crate) fn cut(self: &Arc<Self>, keep: u32) -> Arc<Self> {
        let mut state = lock(&self.state);
        debug_assert!(self.form == Form::Items && keep > 0 && keep < state.count);
        let (Bytes::Heap(_) | Bytes::Short(..)) = &self.bytes else {
            crate::bug("a block of items is in a file");
        };
        let rest = self.bytes.with(|bytes| {
            let skip = |bytes: &mut &[u8], count| {
                for _ in 0..count {
                    if next_item(bytes).is_none() {
                        crate::bug("a block has fewer items than it says");
                    }
                }
            };
            let mut rest = bytes;
            skip(&mut rest, keep);
            // What was cut off before still stands behind.
            let mut behind = rest;
            skip(&mut behind, state.count - keep);
            Bytes::copy_of(&rest[..rest.len() - behind.len()])
        });
        let Ok(rest) = rest else {
            crate::bug("the bytes of a block cannot be read");
        };
        let weight = rest.len() as u64;
        let rest = Self::new(
            self.stream.clone(),
            self.first + u64::from(keep),
            state.count - keep,
            Form::Items,
            self.needs.clone(),
            rest,
        );
        self.weight.fetch_sub(weight, Ordering::Relaxed);
        lock(&rest.state).rest = state.rest.take();
        state.rest = Some(rest.clone());
        state.count = keep;
        if state.ended == state.count {
            self.over.store(true, Ordering::Release);
            if state.pieces.is_empty() {
                // Nothing will come of it by which its consumer would hear that it is over.
                self.make_ready();
            }
        }
        rest
    }

    fn make_ready(self: &Arc<Self>) {
        if let Some(ready) = &self.stream.ready
            && !self.stream.is_abandoned()
        {
            lock(ready).push_back(self.clone());
        }
    }

    /// Puts something for the consumer, with `len` bytes of values, which ends `ended` items.
    fn add(
        self: &Arc<Self>,
        ended: u32,
        unread: u32,
        len: u64,
        put: impl FnOnce(&mut VecDeque<Piece>),
    ) {
        let mut state = lock(&self.state);
        state.ended += ended;
        // Relaxed: a figure to show.
        let tally = &self.stream.tally;
        tally.ended.fetch_add(ended.into(), Ordering::Relaxed);
        if state.ended == state.count {
            self.over.store(true, Ordering::Release);
        }
        if self.stream.is_abandoned() {
            state.pieces = VecDeque::new();
            return;
        }
        put(&mut state.pieces);
        // All before the lock is released: whoever takes this subtracts it.
        self.stream
            .unread
            .fetch_add(unread as usize, Ordering::Relaxed);
        self.stream.unread_bytes.fetch_add(len, Ordering::Relaxed);
        // Release: who sees the count sees the pieces' lock released after it, and takes it.
        let before = self.unread.fetch_add(unread, Ordering::Release);
        drop(state);
        if before == 0 {
            self.make_ready();
        }
    }

    /// Takes results in the items' form off the front of `bytes`, as far as they are of this block,
    /// of which `left` items have not ended. Gives how many bytes, and how many items ended. What was
    /// whole before something that is not counts.
    pub(crate) fn take_items(
        self: &Arc<Self>,
        bytes: &[u8],
        left: usize,
    ) -> Result<(usize, usize), Malformed> {
        let (mut at, mut ended, mut unread, mut more) = (0, 0, 0, false);
        while ended < left
            && let Some(word) = bytes.get(at..at + ITEM_WORD)
        {
            let word = u32::from_ne_bytes(word.try_into().map_err(|_| Malformed)?);
            let tag = (word >> 24) as u8;
            if tag == 0 {
                break;
            }
            let end = at + ITEM_WORD + (word & 0xff_ffff) as usize;
            if end > bytes.len() {
                break;
            }
            at = end;
            if tag & ITEM_MORE == 0 {
                ended += 1;
            } else {
                more = true;
            }
            unread += 1;
        }
        let run = &bytes[..at];
        if run.is_empty() {
            return Err(Malformed);
        }
        if more {
            self.stream.yields.store(true, Ordering::Relaxed);
        }
        self.add(ended as u32, unread, at as u64, |pieces| {
            match pieces.back_mut() {
                Some(Piece::Items(bytes, count)) => {
                    bytes.extend_from_slice(run);
                    *count += ended as u32;
                }
                _ => pieces.push_back(Piece::Items(run.to_vec(), ended as u32)),
            }
        });
        Ok((at, ended))
    }

    /// Takes one end that is not in the items' form; `more` if the item has not ended with it.
    pub(crate) fn take_one(self: &Arc<Self>, outcome: Outcome, more: bool) {
        let piece = Piece::One(outcome, more);
        let len = piece.weight();
        if more {
            self.stream.yields.store(true, Ordering::Relaxed);
        }
        self.add(u32::from(!more), 1, len, |pieces| pieces.push_back(piece));
    }

    /// The index of the first item that has not ended, and how many have not.
    pub fn open_items(&self) -> (u64, u32) {
        let state = lock(&self.state);
        (
            self.first + u64::from(state.ended),
            state.count - state.ended,
        )
    }

    /// Ends all items that have not ended, in the same way; gives how many.
    pub fn end(self: &Arc<Self>, over: Over) -> usize {
        let (_, left) = self.open_items();
        if left > 0 {
            self.add(left, 1, 0, |pieces| {
                pieces.push_back(Piece::Over(left, over))
            });
        }
        left as usize
    }
}

impl Drop for Block {
    /// A long chain of cuts is let go link by link, and not by recursion.
    fn drop(&mut self) {
        let rest_of = |block: &mut Self| match block.state.get_mut() {
            Ok(state) => state.rest.take(),
            Err(_) => None,
        };
        let mut next = rest_of(self);
        while let Some(block) = next {
            next = Arc::into_inner(block).and_then(|mut block| rest_of(&mut block));
        }
    }
}

impl Piece {
    /// The bytes of its values.
    fn weight(&self) -> u64 {
        match self {
            Self::Items(bytes, _) => bytes.len() as u64,
            Self::One(Outcome::Value(_, bytes), _) => bytes.weight(),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests;
