//! A worker as its parent keeps it: its memory, its lines, what it was taught.

use crate::block::Stream;
use crate::definition::Definition;
use crate::life_line::LifeLine;
use crate::pool::Stop;
use crate::protocol::{self, MOST_FILES_AHEAD, Malformed, SECTION_FORGET, SECTION_RETRY};
use crate::task::{Bytes, Entry};
use manyhands_os::{MessageFile, Process, Received, Socket};
use manyhands_shm::{ControlBlock, RESULT_AREA, RingReader, Unwanted};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

/// Message files that may wait in this process before results are copied out of them.
const MOST_MESSAGE_FILES: usize = 64;

/// A worker as its parent keeps it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) control: ControlBlock,
    pub(crate) reader: RingReader,
    pub(crate) socket: Socket,
    /// Closing it kills the worker.
    pub(crate) life_line: LifeLine,
    pub(crate) process: Option<Process>,
    pub(crate) generation: u32,
    /// What it was sent; whatever is dead there is forgotten in time.
    pub(crate) known: HashMap<u32, Weak<Definition>>,
    /// The last id found in `known`: most tasks run what the task before ran.
    pub(crate) known_last: u32,
    /// How large `known` may grow before it is looked through.
    pub(crate) known_limit: usize,
    pub(crate) forget: Vec<u32>,
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
    /// The stream whose items it ran last, for the time that they took.
    pub(crate) last_stream: Option<Arc<Stream>>,
    /// What it runs is being ended.
    pub(crate) stop: Option<Stop>,
    /// Number of the record with which it stood still when that was looked for.
    pub(crate) stands_at: Option<u32>,
    /// Number of the item of which it was told that nobody wants what it yields, until that has ended.
    pub(crate) unwanted: Option<u32>,
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
}

/// What the supervisor sends to a new worker.
#[derive(Debug)]
pub(crate) struct WorkerEnds {
    pub(crate) control: OwnedFd,
    pub(crate) socket: Socket,
    pub(crate) life_line: OwnedFd,
}

impl Worker {
    /// Its process id for messages; a worker that nobody reported yet says it itself.
    pub(crate) fn pid(&self) -> i32 {
        match &self.process {
            Some(process) => process.pid(),
            None => self.control.pid().cast_signed(),
        }
    }

    /// What has to travel with the task: definitions that the worker lacks, in the order of their
    /// needs, ids that it may forget, and the ids of further needs.
    pub(crate) fn sections(&mut self, entry: &mut Entry) -> Option<Vec<u8>> {
        let main = entry.definition.as_ref();
        let policy = entry.retry.as_ref().and_then(|retry| retry.policy.as_ref());
        if policy.is_none()
            && entry.needs().is_empty()
            && self.forget.is_empty()
            && main.is_none_or(|definition| definition.id() == self.known_last)
        {
            return None;
        }
        let mut sections = Vec::new();
        let mut carried = Vec::new();
        for definition in entry.needs().iter().chain(main) {
            self.teach(definition, &mut sections, &mut carried);
        }
        if let Some(definition) = main {
            self.known_last = definition.id();
        }
        if !entry.needs().is_empty() {
            protocol::put_needs(&mut sections, entry.needs());
        }
        if let Some(policy) = policy {
            self.teach(policy, &mut sections, &mut carried);
            let id = [policy.id()].into_iter();
            protocol::put_ids(&mut sections, SECTION_RETRY, id);
        }
        if self.known.len() > self.known_limit {
            let dead: Vec<u32> = self
                .known
                .iter()
                .filter(|(_, definition)| definition.strong_count() == 0)
                .map(|(&id, _)| id)
                .collect();
            for id in &dead {
                self.known.remove(id);
            }
            self.known_limit = 64 + 2 * self.known.len();
            self.forget.extend(dead);
        }
        if !self.forget.is_empty() {
            entry.forgets = std::mem::take(&mut self.forget);
            protocol::put_ids(&mut sections, SECTION_FORGET, entry.forgets.iter().copied());
        }
        entry.carried = carried;
        (!sections.is_empty()).then_some(sections)
    }

    fn teach(
        &mut self,
        definition: &Arc<Definition>,
        sections: &mut Vec<u8>,
        carried: &mut Vec<u32>,
    ) {
        if self.known.contains_key(&definition.id()) {
            return;
        }
        for need in definition.needs() {
            self.teach(need, sections, carried);
        }
        protocol::put_definition(sections, definition);
        self.known
            .insert(definition.id(), Arc::downgrade(definition));
        carried.push(definition.id());
    }

    /// The record did not go out, or was taken back: the worker never saw what it carried.
    pub(crate) fn unlearn(&mut self, entry: &mut Entry) {
        for id in entry.carried.drain(..) {
            self.known.remove(&id);
        }
        self.forget.append(&mut entry.forgets);
        self.known_last = 0;
        entry.file = 0; // numbers of files are the worker's
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
        if let (None, Bytes::File(file)) = (sections, payload) {
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
    pub(crate) fn receive_file(&self) -> Result<Result<Bytes, String>, Malformed> {
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
