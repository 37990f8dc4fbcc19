//! The process engine's source: items go to workers in blocks, and what came of them is taken.

use crate::bystanders::detach;
use crate::calls::{self, ARGS_PLAIN, HIDE_ARGS, ItemEncoder, Large, ONE_PLAIN};
use crate::capture;
use crate::codec::Decoder;
use crate::engine::TaskOptions;
use crate::input::Input;
use crate::local::Turn;
use crate::outcome;
use crate::output;
use crate::process;
use crate::processes::{Shared, wait_for};
use crate::results::{Counts, Failed, Source, Taken, is_ctrl_c, is_interruption};
use crate::store;
use manyhands_os::monotonic_nanos;
use manyhands_runtime::{
    Block, Bytes, Definition, Form, ITEM_MORE, LONGEST_ITEM, Outcome, Over, Piece, Pool, Stream,
    StreamOptions, item_word, next_item,
};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The most items of one map that are on their way, where the caller says nothing else.
const WINDOW_ITEMS: u64 = 100_000;
/// The most encoded bytes of one map that are on their way, but for an item or two of each worker.
const WINDOW_BYTES: u64 = 64 << 20;
/// How many items a map takes before it returns.
const FIRST_ITEMS: u64 = 64;
/// How much estimated work a block holds, in nanoseconds.
const BLOCK_NANOS: u64 = 250_000;
/// The most items of a block.
const BLOCK_ITEMS: u64 = 4096;
/// The most bytes of a block.
const BLOCK_BYTES: usize = 32 * 1024;
/// How long input is taken at a time while a result is there, in nanoseconds.
const PULL_NANOS: u64 = 500_000;
/// The longest wait before somebody's wish to stop is looked for, in nanoseconds.
const LONGEST_WAIT: u64 = 100_000_000;
/// The shortest wait before workers may have run out of items.
const SHORTEST_WAIT: u64 = 200_000;

/// The input side of a map over worker processes, and what is on its way.
pub(crate) struct Feed {
    pool: Arc<Shared>,
    runtime: Arc<Pool>,
    stream: Arc<Stream>,
    ordered: bool,
    /// The most items of a block.
    most_per_block: u64,
    counts: Arc<Counts>,
    deadline: Option<u64>,
    input: Input,
    encoder: ItemEncoder,
    decoder: Decoder,
    /// Items that are encoded and not sent yet.
    open: Vec<u8>,
    open_count: u32,
    /// What is on its way, in order; in no order some of it may be over.
    window: VecDeque<Arc<Block>>,
    /// When to look for what is over, without order.
    prune_at: usize,
    /// Items on their way, and their encoded bytes.
    in_flight: u64,
    bytes: u64,
    most_items: u64,
    /// Results that were taken, and their encoded bytes.
    taken: u64,
    taken_bytes: u64,
    /// How long results are, as estimated last.
    result_len: u64,
    /// Items that could not be encoded, with why.
    bad: HashMap<u64, (PyErr, Py<PyAny>)>,
    priority: i32,
    /// The one of them whose end was taken last.
    last_bad: Option<Py<PyAny>>,
    /// The block whose pieces are being handed over.
    block: Option<Arc<Block>>,
    pieces: VecDeque<Piece>,
    /// Results of the piece that comes first.
    items: Vec<u8>,
    items_at: usize,
    /// Index of the item that the next result is of.
    index: u64,
    /// How long the consumer stays away, in nanoseconds, and when it left.
    away: u64,
    left_at: u64,
    turn: Turn,
}

/// What a map over processes is made of.
pub(crate) struct FeedOptions {
    pub(crate) definition: Arc<Definition>,
    pub(crate) tag: u8,
    pub(crate) ordered: bool,
    pub(crate) deadline: Option<u64>,
    pub(crate) buffer: Option<u64>,
    pub(crate) task: TaskOptions,
    /// The values of context variables that its items find.
    pub(crate) context: Option<Arc<Definition>>,
}

impl Feed {
    pub(crate) fn new(
        py: Python<'_>,
        pool: Arc<Shared>,
        input: Input,
        options: FeedOptions,
        counts: Arc<Counts>,
    ) -> PyResult<Self> {
        let runtime = pool.pool.clone();
        let FeedOptions {
            definition,
            tag,
            ordered,
            deadline,
            buffer,
            task:
                TaskOptions {
                    limits,
                    plan,
                    priority,
                    origin,
                    kept,
                },
            context,
        } = options;
        let priority = priority.unwrap_or(pool.priority);
        let origin = capture::section(py, kept.as_ref(), origin)?;
        // What runs again goes back to the queue by itself.
        let retry = plan.map(|plan| plan.retry.clone());
        let most_per_block = if retry.is_some() { 1 } else { BLOCK_ITEMS };
        let options = StreamOptions {
            definition: Some(definition),
            context,
            tag,
            limits,
            retry,
            seed: origin,
        };
        let mut feed = Self {
            pool,
            runtime,
            stream: Stream::new(options, ordered, counts.tally.clone()),
            ordered,
            most_per_block,
            counts,
            deadline,
            input,
            encoder: ItemEncoder::new(Large::Apart { waits: false }),
            decoder: Decoder::default(),
            open: Vec::new(),
            open_count: 0,
            window: VecDeque::new(),
            prune_at: 64,
            in_flight: 0,
            bytes: 0,
            most_items: buffer.unwrap_or(WINDOW_ITEMS).max(1),
            taken: 0,
            taken_bytes: 0,
            result_len: 0,
            bad: HashMap::new(),
            priority,
            last_bad: None,
            block: None,
            pieces: VecDeque::new(),
            items: Vec::new(),
            items_at: 0,
            index: 0,
            away: 0,
            left_at: 0,
            turn: Turn::default(),
        };
        // As much as comes at once; input that takes its time is taken while somebody waits.
        while feed.input.index < FIRST_ITEMS && !feed.is_full() && !feed.input.is_slow() {
            let (_, per_block) = feed.appetite();
            feed.pull(py, 8, per_block);
        }
        match feed.input.take_interruption(py) {
            Some(interruption) => Err(interruption),
            None => Ok(feed),
        }
    }

    /// Whether nothing more may be on its way, or is to come.
    fn is_full(&self) -> bool {
        if self.input.ended || self.in_flight >= self.most_items {
            return true;
        }
        // However large they are, no worker goes without.
        self.bytes + self.in_flight * self.result_len >= WINDOW_BYTES
            && self.in_flight >= 2 * self.runtime.width() as u64
    }

    /// How many items the workers could do with, and how many make a block.
    fn appetite(&self) -> (u64, u64) {
        let (wanted, estimate) = self.runtime.appetite(self.away, self.priority);
        let per_block = match estimate {
            Some(nanos) => (BLOCK_NANOS / nanos.max(1)).clamp(1, self.most_per_block),
            None => 1,
        };
        (wanted as u64, per_block)
    }

    /// Takes up to `count` items, as far as the window has room, and sends them.
    fn pull(&mut self, py: Python<'_>, count: u64, per_block: u64) {
        let start = monotonic_nanos();
        for taken in 0..count {
            if self.is_full() {
                break;
            }
            let Some(item) = self.input.next(py) else {
                break;
            };
            self.in_flight += 1;
            self.append(&item);
            if u64::from(self.open_count) >= per_block || self.open.len() >= BLOCK_BYTES {
                self.flush(py);
            }
            if self.input.is_slow() || (taken % 64 == 63 && monotonic_nanos() - start > PULL_NANOS)
            {
                break;
            }
        }
        self.flush(py);
        self.counts
            .pulled
            .store(self.input.index, Ordering::Relaxed);
        if self.input.ended {
            self.counts.complete.store(true, Ordering::Relaxed);
        }
    }

    /// Encodes an item, whose index is the one before `input.index`.
    #[inline]
    fn append(&mut self, item: &Bound<'_, PyAny>) {
        let py = item.py();
        let start = self.open.len();
        self.open.extend_from_slice(&[0; 4]);
        let encoded = self
            .encoder
            .encode(item, self.input.is_star(), &mut self.open);
        let body = start + 4;
        match encoded {
            Ok(Ok(tag)) if self.open.len() - body <= LONGEST_ITEM => {
                let word = item_word(tag, self.open.len() - body);
                self.open[start..body].copy_from_slice(&word);
                self.open_count += 1;
            }
            Ok(Ok(tag)) => {
                let bytes = calls::to_bytes(&self.open[body..]);
                self.open.truncate(start);
                self.send_alone(py, tag, bytes);
            }
            Ok(Err(pickled)) => {
                let bytes = pickled.bytes.bind(py).as_bytes();
                self.open.truncate(body);
                if bytes.len() <= LONGEST_ITEM && pickled.kept.buffers.is_empty() {
                    self.open.extend_from_slice(bytes);
                    let word = item_word(pickled.tag, bytes.len());
                    self.open[start..body].copy_from_slice(&word);
                    self.open_count += 1;
                } else {
                    self.open.truncate(start);
                    let bytes = pickled.kept.with(calls::to_bytes(bytes));
                    self.send_alone(py, pickled.tag, bytes);
                }
            }
            Err(error) if is_interruption(py, &error) => {
                self.open.truncate(start);
                self.flush_before(py);
                self.in_flight -= 1;
                self.input.end();
                self.input.error = Some(error);
            }
            Err(error) => {
                self.open.truncate(start);
                self.fail(item, error);
            }
        }
    }

    /// Sends the items that are encoded as a block.
    fn flush(&mut self, py: Python<'_>) {
        let count = std::mem::take(&mut self.open_count);
        if count == 0 {
            return;
        }
        let bytes = Bytes::copy_of(&self.open);
        self.open.clear();
        let first = self.input.index - u64::from(count);
        self.send(py, first, count, Form::Items, bytes);
    }

    /// Sends the last item, which is long, alone; those before it first. What it needs goes with
    /// either.
    fn send_alone(&mut self, py: Python<'_>, tag: u8, bytes: Bytes) {
        self.flush_before(py);
        self.send(py, self.input.index - 1, 1, Form::Single(tag), bytes);
    }

    /// Sends what is open when the last item that was taken is not part of it.
    fn flush_before(&mut self, py: Python<'_>) {
        // What the last item needs is known by now, and goes with both.
        let needs = self.encoder.take_needs();
        self.encoder.put_back(&needs);
        self.input.index -= 1;
        self.flush(py);
        self.input.index += 1;
        self.encoder.put_back(&needs);
    }

    fn send(&mut self, py: Python<'_>, first: u64, count: u32, form: Form, bytes: Bytes) {
        let needs = self.encoder.take_needs();
        let block = Block::new(self.stream.clone(), first, count, form, needs, bytes);
        if let Err(error) = self.pool.send_block(py, block.clone(), self.priority) {
            return self.stop(error, count);
        }
        self.bytes += block.weight();
        Counts::add(&self.counts.sent, block.weight());
        self.keep(block);
    }

    /// The pool takes nothing any more: what is on its way comes, then the error.
    fn stop(&mut self, error: PyErr, count: u32) {
        self.in_flight -= u64::from(count);
        self.input.end();
        self.input.error = Some(error);
    }

    fn keep(&mut self, block: Arc<Block>) {
        if !self.ordered && self.window.len() >= self.prune_at {
            self.window.retain(|block| !is_over(block));
            self.prune_at = 64 + 2 * self.window.len();
        }
        self.window.push_back(block);
    }

    /// The last item cannot be sent: it fails, in its place, and no other does.
    fn fail(&mut self, item: &Bound<'_, PyAny>, error: PyErr) {
        self.flush_before(item.py());
        let index = self.input.index - 1;
        self.bad.insert(index, (error, item.clone().unbind()));
        let block = Block::new(
            self.stream.clone(),
            index,
            1,
            Form::Single(0),
            Vec::new(),
            Bytes::default(),
        );
        self.runtime.say_unsent(&block);
        block.end(Over::Failed(String::new()));
        self.keep(block);
    }

    /// Sees to it that there is a piece to hand over; false when all are out.
    fn refill(&mut self, py: Python<'_>) -> PyResult<bool> {
        self.pool.check_process()?;
        let now = monotonic_nanos();
        self.turn.pass(py, now)?;
        if self.left_at > 0 {
            let away = now.saturating_sub(self.left_at);
            self.away = away.max(self.away - self.away / 8);
        }
        self.decoder.forget_classes();
        loop {
            let found = self.next_pieces(py);
            // Of slow input only what is needed: a result that is there does not wait for it.
            if !found || !self.input.is_slow() {
                self.fill(py);
            }
            if let Some(interruption) = self.input.take_interruption(py) {
                return Err(interruption);
            }
            if found {
                self.left_at = monotonic_nanos();
                return Ok(true);
            }
            if self.in_flight == 0 && self.input.ended {
                return match self.input.error.take() {
                    Some(error) => Err(error),
                    None => Ok(false),
                };
            }
            self.wait(py)?;
        }
    }

    /// Gives workers more, if they could do with it.
    fn fill(&mut self, py: Python<'_>) {
        let start = monotonic_nanos();
        self.estimate();
        while !self.is_full() {
            let (wanted, per_block) = self.appetite();
            // However much others have queued: one item waits for its turn, and this for its end.
            let wanted = wanted.max(u64::from(self.in_flight == 0));
            if wanted == 0 {
                return;
            }
            self.pull(py, wanted.min(per_block.max(16)), per_block);
            if self.input.is_slow() || monotonic_nanos() - start > PULL_NANOS {
                return;
            }
        }
    }

    /// How long a result is, from those that were taken and those that have come: all of these may wait for one that
    /// takes long.
    fn estimate(&mut self) {
        let ends = self.taken + self.stream.unread() as u64;
        self.result_len = (self.taken_bytes + self.stream.unread_bytes()) / ends.max(1);
    }

    /// Takes what has come of the block whose turn it is.
    fn next_pieces(&mut self, py: Python<'_>) -> bool {
        loop {
            let block = match self.block.take() {
                Some(block) => block,
                None => {
                    let next = if self.ordered {
                        self.window.pop_front()
                    } else {
                        self.stream.next_ready()
                    };
                    match next {
                        Some(block) => block,
                        None => return false,
                    }
                }
            };
            let taken = block.take();
            if !taken.pieces.is_empty() {
                output::settle(py, &self.runtime);
                self.pieces = taken.pieces;
                self.index = taken.first;
                self.block = Some(block);
                return true;
            }
            if block.is_exhausted() {
                self.bytes = self.bytes.saturating_sub(block.release());
                // Without order what was cut off comes by itself.
                self.block = if self.ordered { block.rest() } else { None };
            } else if self.ordered {
                self.block = Some(block);
                return false;
            }
        }
    }

    /// Waits for the next result, but no longer than workers have something to do.
    fn wait(&mut self, py: Python<'_>) -> PyResult<()> {
        if self.counts.closing.load(Ordering::Relaxed) {
            self.cancel(py, false);
            return Ok(());
        }
        let now = monotonic_nanos();
        let mut longest = LONGEST_WAIT;
        if !self.is_full() {
            longest = if self.input.is_slow() {
                // The result may be there in a moment, the next item will not.
                self.input.pull_nanos() / 8
            } else {
                self.runtime
                    .supply(self.priority)
                    .clamp(SHORTEST_WAIT, LONGEST_WAIT)
            };
        }
        let until = now + longest;
        let until = self.deadline.map_or(until, |deadline| deadline.min(until));
        let come = match &self.block {
            Some(block) => wait_for(py, &self.runtime, block, Some(until))?,
            // Without order; or nothing is on its way.
            None => wait_for(py, &self.runtime, &self.stream, Some(until))?,
        };
        if !come {
            // A wait that ends with its time looks for no signal.
            process::check_signals(py)?;
        }
        if !come
            && self
                .deadline
                .is_some_and(|deadline| monotonic_nanos() >= deadline)
        {
            return Err(PyTimeoutError::new_err(()));
        }
        Ok(())
    }

    /// The next end of the piece that comes first.
    #[inline]
    fn next_end<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Taken<'py>>> {
        loop {
            if self.items_at < self.items.len() {
                let mut rest = &self.items[self.items_at..];
                let Some((tag, item)) = next_item(&mut rest) else {
                    self.items_at = self.items.len();
                    continue;
                };
                let more = tag & ITEM_MORE != 0;
                let tag = tag & !ITEM_MORE;
                let value = calls::decode_result(py, &mut self.decoder, tag, item);
                let len = item.len();
                self.items_at = self.items.len() - rest.len();
                self.taken_bytes += len as u64;
                let outcome = match value {
                    Ok(value) => Ok(value),
                    Err(error) if is_ctrl_c(py, &error) => return Err(*error),
                    Err(error) => Err(self.bad_result(py, *error)),
                };
                return Ok(Some(self.end(more, tag != calls::NOTHING, outcome)));
            }
            match self.pieces.pop_front() {
                None => return Ok(None),
                Some(Piece::Items(bytes, _)) => {
                    self.items = bytes;
                    self.items_at = 0;
                }
                Some(Piece::One(outcome, more)) => {
                    let is_value = !matches!(outcome, Outcome::Value(calls::NOTHING, _));
                    if let Outcome::Value(_, bytes) = &outcome {
                        self.taken_bytes += bytes.weight();
                    }
                    let label = self.label();
                    let value = outcome::of_item(py, &outcome, &label, self.index);
                    if let (Outcome::Value(..), Err(failed)) = (&outcome, &value)
                        && is_ctrl_c(py, &failed.error)
                    {
                        return Err(failed.error.clone_ref(py));
                    }
                    return Ok(Some(self.end(more, is_value, value)));
                }
                Some(Piece::Over(count, over)) => {
                    if count > 1 {
                        self.pieces.push_front(Piece::Over(count - 1, over.clone()));
                    }
                    let error = match self.bad.remove(&self.index) {
                        Some((error, item)) => {
                            self.last_bad = Some(item);
                            error
                        }
                        None => outcome::of_over(py, over, &self.label(), self.index),
                    };
                    let failed = Failed::new(error, 0, 0);
                    return Ok(Some(self.end(false, true, Err(failed))));
                }
            }
        }
    }

    #[inline]
    fn end<'py>(
        &mut self,
        more: bool,
        is_value: bool,
        outcome: Result<Bound<'py, PyAny>, Failed>,
    ) -> Taken<'py> {
        let index = self.index;
        if !more {
            self.index += 1;
            self.in_flight -= 1;
            self.taken += 1;
        }
        Taken {
            index,
            more,
            is_value,
            outcome,
        }
    }

    fn label(&self) -> String {
        let definition = self.stream.options.definition.as_ref();
        definition.map_or_else(String::new, |definition| definition.label().to_owned())
    }

    #[cold]
    fn bad_result(&self, py: Python<'_>, error: PyErr) -> Failed {
        let error = outcome::bad_result(py, error, &self.label(), self.index);
        Failed::new(error, 0, 1)
    }
}

/// Whether all items of a block and of what was cut off from it have ended, and were taken.
fn is_over(block: &Arc<Block>) -> bool {
    let mut next = Some(block.clone());
    while let Some(block) = next {
        if !block.is_exhausted() {
            return false;
        }
        next = block.rest();
    }
    true
}

impl Source for Feed {
    #[inline]
    fn take<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Taken<'py>>> {
        loop {
            if let Some(taken) = self.next_end(py)? {
                return Ok(Some(taken));
            }
            let found = self.refill(py)?;
            let counts = &self.counts;
            counts.received.store(self.taken_bytes, Ordering::Relaxed);
            if !found {
                return Ok(None);
            }
        }
    }

    #[inline]
    fn take_value<'py>(&mut self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let mut rest = self.items.get(self.items_at..)?;
        let (tag, item) = next_item(&mut rest)?;
        if tag != calls::PLAIN {
            return None;
        }
        // What cannot be decoded is met again the long way.
        let value = calls::decode_result(py, &mut self.decoder, tag, item).ok()?;
        self.taken_bytes += item.len() as u64;
        self.items_at = self.items.len() - rest.len();
        self.index += 1;
        self.in_flight -= 1;
        self.taken += 1;
        Some(value)
    }

    fn is_ready(&mut self, py: Python<'_>) -> bool {
        if self.items_at < self.items.len() || !self.pieces.is_empty() {
            return true;
        }
        let found = self.next_pieces(py);
        if found && !self.input.is_slow() {
            self.fill(py);
        }
        found
    }

    fn input<'py>(&mut self, py: Python<'py>, taken: &Taken<'py>) -> Option<Bound<'py, PyAny>> {
        if let Some(item) = self.input.kept(py, taken.index, !taken.more) {
            return Some(item);
        }
        if let Some(item) = self.last_bad.take() {
            return Some(item.into_bound(py));
        }
        let block = self.block.as_ref()?;
        // What was pickled stays so where a worker died: it may have died of unpickling it.
        let died = matches!(&taken.outcome, Err(failed) if failed.died);
        let args = block.item(taken.index, |tag, bytes| {
            let is_plain = matches!(tag & !HIDE_ARGS, ARGS_PLAIN | ONE_PLAIN);
            (is_plain || !died).then(|| {
                let buffers = store::views(py, block.bytes.buffers())?;
                calls::decode_call(py, tag, bytes, buffers).map(|(_, args, _)| args)
            })
        })??;
        let args = args.ok()?;
        if self.input.is_star() {
            return Some(args.into_any());
        }
        args.get_item(0).ok()
    }

    fn batch_len(&self, index: u64) -> Option<usize> {
        self.input.batch_len(index)
    }

    fn forget_inputs(&mut self) {
        self.input.forget();
    }

    fn cancel(&mut self, py: Python<'_>, kill: bool) {
        self.input.end();
        self.open.clear();
        self.open_count = 0;
        self.pieces.clear();
        self.items = Vec::new();
        self.items_at = 0;
        self.in_flight = 0;
        let window = std::mem::take(&mut self.window);
        let blocks: Vec<_> = self.block.take().into_iter().chain(window).collect();
        if blocks.is_empty() || self.pool.check_process().is_err() {
            return; // nothing, or the parent's
        }
        let runtime = &self.runtime;
        let stream = &self.stream;
        detach(py, || {
            stream.abandon();
            runtime.cancel_blocks(blocks, kill);
        });
    }

    fn take_all_input(&mut self, py: Python<'_>, until: u64) -> PyResult<()> {
        let most = std::mem::replace(&mut self.most_items, u64::MAX);
        while !self.input.ended && monotonic_nanos() < until {
            let (_, per_block) = self.appetite();
            // Whatever it needs of memory: the caller leaves the pool, and nothing is lost.
            self.bytes = 0;
            self.pull(py, per_block.max(16), per_block);
            detach(py, || ()); // in all of this there may be no Python that would let others run
            py.check_signals()?;
            if let Some(interruption) = self.input.take_interruption(py) {
                return Err(interruption);
            }
        }
        self.most_items = most;
        Ok(())
    }

    fn leave(&mut self, left: bool) {
        self.stream.leave(left);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if !self.window.is_empty() || self.block.is_some() {
            Python::attach(|py| self.cancel(py, false));
        }
    }
}
