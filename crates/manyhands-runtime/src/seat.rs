//! A worker as its parent keeps it: its memory, its lines, what it was taught.

use crate::block::Stream;
use crate::definition::{self, Definition};
use crate::lease::{Buffer, Holdings};
use crate::life_line::LifeLine;
use crate::pool::{Calls, Stop, Term};
use crate::protocol::{
    self, FLAG_FILE, FLAG_SECTIONS, FLAG_UNREAD, MOST_FILES_AHEAD, Malformed, SECTION_FORGET,
    SECTION_RETRY, Section, split_body,
};
use crate::task::{Bytes, Entry};
use manyhands_os::{MemoryGauge, MessageFile, Process, Received, Socket};
use manyhands_shm::{ControlBlock, RESULT_AREA, RingReader, Unwanted};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

/// Message files that may wait in this process before results are copied out of them.
const MOST_MESSAGE_FILES: usize = 64;

/// A definition that a worker was sent.
#[derive(Debug)]
pub(crate) struct Taught {
    definition: Weak<Definition>,
    /// How often it had been recalled by then.
    recalls: u32,
}

impl Taught {
    fn new(definition: &Arc<Definition>) -> Self {
        Self {
            definition: Arc::downgrade(definition),
            recalls: definition.recalls(),
        }
    }

    /// What the worker is to keep; none if that is gone or was recalled.
    fn definition(&self) -> Option<Arc<Definition>> {
        let definition = self.definition.upgrade()?;
        (definition.recalls() == self.recalls).then_some(definition)
    }
}

/// A worker as its parent keeps it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) control: Arc<ControlBlock>,
    pub(crate) reader: RingReader,
    pub(crate) socket: Socket,
    /// Closing it kills the worker.
    pub(crate) life_line: LifeLine,
    pub(crate) process: Option<Arc<Process>>,
    pub(crate) generation: u32,
    /// What it was sent; whatever is dead there is forgotten in time.
    pub(crate) known: HashMap<u32, Taught>,
    /// The count of `definition::changes` for which `known` was looked through last.
    pub(crate) known_changes: u64,
    /// The last id found in `known`: most tasks run what the task before ran.
    pub(crate) known_last: u32,
    /// The last context found there, for the same reason.
    pub(crate) known_context: u32,
    /// How large `known` may grow before it is looked through.
    pub(crate) known_limit: usize,
    pub(crate) forget: Vec<u32>,
    /// Its part of the store.
    pub(crate) holdings: Holdings,
    /// Number of the oldest record without a result.
    pub(crate) oldest: u32,
    /// Number that the next record gets.
    pub(crate) next: u32,
    /// Where the next record goes.
    pub(crate) write_position: u64,
    /// Records written and not yet published.
    pub(crate) unpublished: u32,
    /// Number of the message file that was sent last.
    pub(crate) files_sent: u64,
    /// Number of the message file that a finished task has asked for last.
    pub(crate) files_taken: u64,
    /// Where the record of the last block stands, as long as the worker may look at it: until the
    /// first result of a later record.
    pub(crate) last_block: Option<u64>,
    /// The stream whose items it ran last, for the time that they took, if anybody wants to know.
    pub(crate) last_stream: Weak<Stream>,
    /// What it runs is being ended.
    pub(crate) stop: Option<Stop>,
    /// Tells how much private memory it has, once anybody wanted to know.
    pub(crate) gauge: Option<MemoryGauge>,
    /// What its tasks have submitted, once they have.
    pub(crate) calls: Option<Box<Calls>>,
    /// Number of the record with which it stood still when that was looked for.
    pub(crate) stands_at: Option<u32>,
    /// Number of the item of which it was told that nobody wants what it yields, until that has ended.
    pub(crate) unwanted: Option<u32>,
    /// Number of the item of whose start was told before its end, and when that was.
    pub(crate) told_start: Option<(u32, u64)>,
    /// How many bytes of memory it had when that was told last.
    pub(crate) told_memory: u64,
    /// It is read no further, because its results would pile up: see `Stream::is_full`.
    pub(crate) paused: bool,
    /// Bytes of results since the worker was last looked after.
    pub(crate) consumed: usize,
    pub(crate) finished: u64,
    pub(crate) busy_nanos: u64,
    pub(crate) born_at: u64,
    pub(crate) leaving: bool,
    /// It was killed because nobody wants what it runs: no fault of the item's.
    pub(crate) dismissed: bool,
    pub(crate) violation: bool,
    /// What it is for, and how long it stays.
    pub(crate) term: Term,
}

/// What the supervisor sends to a new worker.
#[derive(Debug)]
pub(crate) struct WorkerEnds {
    pub(crate) control: OwnedFd,
    pub(crate) socket: Socket,
    pub(crate) life_line: OwnedFd,
}

impl Worker {
    /// Whether it may be given tasks, as far as it goes itself.
    pub(crate) fn may_take(&self) -> bool {
        self.stop.is_none()
            && !self.leaving
            && !self.dismissed
            && !self.violation
            && !self.lends()
            && self.term.takes()
    }

    /// Whether its slot is lent: what it runs has submitted tasks that have not ended.
    pub(crate) fn lends(&self) -> bool {
        self.calls.as_ref().is_some_and(|calls| calls.is_open())
    }

    /// Its process id for messages; a worker that nobody reported yet says it itself.
    pub(crate) fn pid(&self) -> i32 {
        match &self.process {
            Some(process) => process.pid(),
            None => self.control.pid().cast_signed(),
        }
    }

    /// Its process while nobody has reported that, if it lives and has said its pid itself. The number
    /// is that of the worker and of no later process if, after it was opened, the life line still has
    /// its reader.
    pub(crate) fn unreported(&self) -> Option<Process> {
        let pid = self.control.pid().cast_signed();
        if pid == 0 || self.process.is_some() {
            return None;
        }
        // A process that cannot be opened is treated as gone, and its life line ends it.
        let process = Process::open(pid).ok()?;
        process.descriptor()?;
        self.life_line.has_reader().then_some(process)
    }

    /// What has to travel with the task: definitions that the worker lacks, in the order of their
    /// needs, ids that it may forget, and the ids of further needs.
    pub(crate) fn sections(&mut self, entry: &mut Entry) -> Option<Vec<u8>> {
        self.look_for_changes();
        let main = entry.definition.as_ref();
        let context = entry.context.as_ref();
        let policy = entry.retry.as_ref().and_then(|retry| retry.policy.as_ref());
        let has_buffers = !entry.bytes().buffers().is_empty();
        if policy.is_none()
            && !has_buffers
            && entry.seed.is_none()
            && entry.needs().is_empty()
            && self.forget.is_empty()
            && main.is_none_or(|definition| definition.id() == self.known_last)
            && context.is_none_or(|context| context.id() == self.known_context)
        {
            return None;
        }
        if self.known.len() > self.known_limit {
            self.strike_out();
            self.known_limit = 64 + 2 * self.known.len();
        }
        let mut sections = Vec::new();
        // First: what was recalled may come again in the same record.
        if !self.forget.is_empty() {
            entry.forgets = std::mem::take(&mut self.forget);
            protocol::put_ids(&mut sections, SECTION_FORGET, entry.forgets.iter().copied());
        }
        let mut carried = Vec::new();
        for definition in entry.needs().iter().chain(context).chain(main) {
            self.teach(definition, &mut sections, &mut carried);
        }
        if let Some(definition) = main {
            self.known_last = definition.id();
        }
        if let Some(context) = context {
            self.known_context = context.id();
        }
        if !entry.needs().is_empty() {
            protocol::put_needs(&mut sections, entry.needs());
        }
        if let Some(policy) = policy {
            self.teach(policy, &mut sections, &mut carried);
            let id = [policy.id()].into_iter();
            protocol::put_ids(&mut sections, SECTION_RETRY, id);
        }
        if has_buffers {
            let buffers = entry.bytes().buffers();
            self.holdings.lend(buffers);
            protocol::put_buffers(&mut sections, buffers.iter().map(Buffer::reference));
            entry.leases = true;
        }
        if let Some(seed) = &entry.seed {
            protocol::put_seed(&mut sections, seed);
        }
        entry.carried = carried;
        (!sections.is_empty()).then_some(sections)
    }

    /// Whether there is something that it is to forget.
    pub(crate) fn has_to_forget(&mut self) -> bool {
        self.look_for_changes();
        !self.forget.is_empty()
    }

    /// Looks through what it knows if any of that may be gone.
    fn look_for_changes(&mut self) {
        let changes = definition::changes();
        if self.known_changes != changes {
            self.known_changes = changes;
            self.strike_out();
        }
    }

    /// Strikes out what is dead, and what was recalled with all that depends on it.
    fn strike_out(&mut self) {
        let mut ids: Vec<u32> = self.known.keys().copied().collect();
        // What a definition needs was made before it, and so has a smaller number.
        ids.sort_unstable();
        for id in ids {
            let stays = self.known[&id].definition().is_some_and(|definition| {
                let needs = definition.needs();
                needs.iter().all(|need| self.known.contains_key(&need.id()))
            });
            if !stays {
                self.known.remove(&id);
                self.forget.push(id);
                for last in [&mut self.known_last, &mut self.known_context] {
                    if *last == id {
                        *last = 0;
                    }
                }
            }
        }
    }

    fn teach(
        &mut self,
        definition: &Arc<Definition>,
        sections: &mut Vec<u8>,
        carried: &mut Vec<Arc<Definition>>,
    ) {
        if self.known.contains_key(&definition.id()) {
            return;
        }
        for need in definition.needs() {
            self.teach(need, sections, carried);
        }
        protocol::put_definition(sections, definition);
        self.holdings.lend(definition.buffers());
        self.known.insert(definition.id(), Taught::new(definition));
        carried.push(definition.clone());
    }

    /// The record did not go out, or was taken back: the worker never saw what it carried.
    pub(crate) fn unlearn(&mut self, entry: &mut Entry) {
        if self.never_saw(entry).is_err() {
            self.speaks_nonsense();
        }
        entry.file = 0; // numbers of files are the worker's
    }

    /// The worker never saw what came with the entry's arguments: definitions, ids to forget, buffers.
    fn never_saw(&mut self, entry: &mut Entry) -> Result<(), Malformed> {
        (self.known_last, self.known_context) = (0, 0);
        self.forget.append(&mut entry.forgets);
        for definition in entry.carried.drain(..) {
            self.known.remove(&definition.id());
            self.holdings.take_back(definition.buffers())?;
        }
        if std::mem::take(&mut entry.leases) {
            self.holdings.take_back(entry.bytes().buffers())?;
        }
        Ok(())
    }

    /// The whole payload of the result that was read just now, of this entry: `payload`, or what came by
    /// the socket; or why it was lost.
    pub(crate) fn receive(
        &mut self,
        payload: Bytes,
        flags: u8,
        entry: Option<&mut Entry>,
    ) -> Result<Result<Bytes, String>, Malformed> {
        let payload = if flags & FLAG_FILE == 0 {
            Ok(payload)
        } else {
            self.receive_file()?
        };
        let payload = self.with_buffers(payload, flags)?;
        if flags & FLAG_UNREAD != 0 {
            // All definitions are sent anew: what it was sent since may need those that it never saw.
            self.known.clear();
            if let Some(entry) = entry {
                self.never_saw(entry)?;
            }
        }
        Ok(payload)
    }

    /// The payload of a result with the buffers that its sections name.
    fn with_buffers(
        &mut self,
        payload: Result<Bytes, String>,
        flags: u8,
    ) -> Result<Result<Bytes, String>, Malformed> {
        if flags & FLAG_SECTIONS == 0 {
            return Ok(payload);
        }
        let Ok(body) = payload else {
            self.holdings.lose_grants();
            return Ok(payload);
        };
        let mut references = Vec::new();
        let read = body.with(|body| {
            let sections = body.first_chunk().ok_or(Malformed)?;
            let before = 4 + u32::from_ne_bytes(*sections) as usize;
            let len = body.len().checked_sub(before).ok_or(Malformed)?;
            let payload = split_body(body, flags, len as u32, |section| {
                if let Section::Buffers(found) = section {
                    references = found;
                }
            });
            payload.map(Bytes::copy_of)
        });
        let bytes = match read {
            Ok(bytes) => bytes?,
            Err(error) => {
                self.holdings.lose_grants();
                return Ok(Err(format!("the result could not be received: {error}")));
            }
        };
        let buffers = references
            .into_iter()
            .map(|buffer| self.holdings.resolve(buffer));
        Ok(Ok(bytes.with_buffers(buffers.collect::<Result<_, _>>()?)))
    }

    /// Sends a body by message file, whose number is `files_sent` then; false if the socket is full.
    pub(crate) fn send_body(
        &mut self,
        sections: Option<&[u8]>,
        payload: &Bytes,
    ) -> io::Result<bool> {
        if self.files_sent - self.files_taken >= MOST_FILES_AHEAD {
            return Ok(false);
        }
        let number = (self.files_sent + 1).to_ne_bytes();
        if let (None, Some(file)) = (sections, payload.file()) {
            let sent = self.socket.send(&number, &[file.as_fd()], false)?;
            self.files_sent += u64::from(sent);
            return Ok(sent);
        }
        let mut body = Vec::new();
        let len = sections.map_or(0, |sections| 4 + sections.len()) + payload.len();
        body.try_reserve_exact(len)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        if let Some(sections) = sections {
            body.extend_from_slice(&(sections.len() as u32).to_ne_bytes());
            body.extend_from_slice(sections);
        }
        payload.with(|payload| body.extend_from_slice(payload))?;
        let file = MessageFile::new(&body)?;
        let sent = self.socket.send(&number, &[file.as_fd()], false)?;
        self.files_sent += u64::from(sent);
        Ok(sent)
    }

    /// Takes the message file that belongs to the result just read.
    fn receive_file(&self) -> Result<Result<Bytes, String>, Malformed> {
        let lost = |why: String| Ok(Err(format!("the result could not be received: {why}")));
        match self.socket.receive(&mut [0], false) {
            Ok(Received::Message(_, mut descriptors)) => {
                let file = descriptors.pop().ok_or(Malformed)?;
                match MessageFile::from_descriptor(file) {
                    Ok(file) if MessageFile::count() <= MOST_MESSAGE_FILES => {
                        Ok(Ok(Bytes::File(file)))
                    }
                    Ok(file) => match file.read() {
                        Ok(bytes) => Ok(Ok(Bytes::Heap(bytes.into_boxed_slice()))),
                        Err(error) => lost(error.to_string()),
                    },
                    Err(error) => lost(error.to_string()),
                }
            }
            Ok(Received::DescriptorsLost(_)) => lost("this process has too many open files".into()),
            // Its message is still there, or never was: no later one would be told apart.
            Ok(Received::Nothing | Received::Closed) | Err(_) => Err(Malformed),
        }
    }

    /// What it says makes no sense: its death tells of it.
    pub(crate) fn speaks_nonsense(&mut self) {
        self.violation = true;
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Tells it that nobody wants what an item yields; its number comes again only when that is over.
    pub(crate) fn set_unwanted(&mut self, number: u32, why: Unwanted) {
        self.unwanted = Some(number);
        self.control.set_unwanted(Some((number, why)));
    }

    /// Is done with the first `len` bytes of its results.
    pub(crate) fn taken(&mut self, len: usize) {
        self.reader.consume(len);
        self.consumed += len;
        if self.consumed > RESULT_AREA / 4 {
            // It may sleep because its ring was full.
            self.consumed = 0;
            self.wake();
        }
    }

    /// Wakes the worker if it sleeps.
    pub(crate) fn wake(&self) {
        if self.control.worker().take_sleeper().is_some() {
            self.control.worker().wake();
        }
    }
}
