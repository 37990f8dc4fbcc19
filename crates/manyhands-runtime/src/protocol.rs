//! What parent, worker and zygote say to each other, byte by byte.
//!
//! All numbers are in the machine's own order: both ends run on one machine. Every length that comes
//! from the other end is checked before it is used.
//!
//! **Task record**, in the task area of a control block, numbered by the queue word:
//!
//! | bytes | field                                                                       |
//! |-------|-----------------------------------------------------------------------------|
//! | 0-3   | length of the record, a multiple of 8                                       |
//! | 4     | kind (`TaskKind`)                                                           |
//! | 5     | tag: how the payload is encoded; the face's business                        |
//! | 6     | flags: bit 0 = the body is in a message file, whose `u64` number stands     |
//! |       | in its place; bit 1 = there are sections; bit 3 = what the task yields is   |
//! |       | wanted one by one                                                           |
//! | 7     | attempt, from 1                                                             |
//! | 8-11  | id of the definition to run, or 0                                           |
//! | 12-15 | length of the payload, which ends the body                                  |
//! | 16-23 | index of the task for messages to people                                    |
//! | 24-27 | id of the definition of the context that it runs in, or 0                   |
//! | 28-31 | zero                                                                        |
//!
//! A record of a **block** (kind 5) owns as many numbers as it has items. Before its body stands a `u32`
//! count of its items, which the parent lowers when it takes the last of them back, and a zero. Its
//! payload is the items, each a `u32` word (tag in the upper 8 bits, length in the lower 24) and its
//! bytes. The index is that of the first.
//!
//! **Body**: with bit 1 first a `u32` length of the sections and then the sections, each a `u8` kind
//! (`SECTION_*`), a `u32` length and its content; then the payload. Sections carry definitions,
//! ids to forget, and options of a task.
//!
//! **Message files** for a worker come by its socket, each with its number, which grows by one. A task
//! that is taken back leaves its file in the socket, so a worker passes over files with a smaller
//! number than the one its record names. Of files that were not asked for yet there are at most
//! `MOST_FILES_AHEAD`; a worker that has run out of tasks before is sent a *discard* record, which names
//! the last file to pass over and gets an empty result. An idle worker is sent one, too, if it keeps large
//! buffers of definitions that it is to forget.
//!
//! **Result record**, in the result ring:
//!
//! | bytes | field                                                                       |
//! |-------|-----------------------------------------------------------------------------|
//! | 0-3   | length of the record, a multiple of 8                                       |
//! | 4     | kind (`ResultKind`)                                                         |
//! | 5     | tag                                                                         |
//! | 6     | flags: bit 0 = the payload is in a message file; bit 1 = before the payload |
//! |       | stand sections, as in a body, counted with it; bit 2 = the worker could     |
//! |       | not read the task's body, so what came with it is unknown to it; bit 4 =    |
//! |       | the task has yielded this and has not ended                                 |
//! | 7     | zero                                                                        |
//! | 8-11  | number of the task in the worker's queue                                    |
//! | 12-15 | length of the payload                                                       |
//! | 16-23 | duration of the task in nanoseconds                                         |
//!
//! **Result of an item**, in the result ring: a word and bytes as for the item itself, of the oldest item
//! without a result. Its tag is not 0, and the length of a result record has no bits there. With the
//! tag's bit 6 the item has yielded this and has not ended. A result that is longer than `LONGEST_ITEM`,
//! and an error, is a result record. A *lap* record says how long some items took together, whose results
//! came before it: their count stands for the number.
//!
//! **Output record**, in the result ring, of no task (kind 18): what a worker puts out for people, before the
//! result of the task that did so; see `output`. The tag says what it is, which is the face's business;
//! the duration stands for how many notes the worker has dropped before it. With a payload of no bytes
//! it says only that.
//!
//! **Reserved**, so that what comes later changes no layout: the frozen bit of the queue word (a time
//! limit freezes, asks, kills); section kinds 16 to 31 for the options of a task; result kinds 19 to 31 for requests of a worker to its
//! parent, which carry no number of a task; the attempt byte. A worker
//! passes over sections that it does not know; a parent kills a worker whose result it does not know.

use std::sync::Arc;

use crate::definition::Definition;
use crate::lease::Buffer;

/// Length of a task record's head.
pub(crate) const TASK_HEAD: usize = 32;
/// Length of a result record's head.
pub(crate) const RESULT_HEAD: usize = 24;
/// A record longer than this goes by a message file.
pub(crate) const LONGEST_RECORD: usize = 48 * 1024;

/// Message files on their way to one worker that no task has asked for yet.
pub(crate) const MOST_FILES_AHEAD: u64 = 16;

/// The body is in a message file that comes by the socket.
pub(crate) const FLAG_FILE: u8 = 1;
/// The body starts with sections.
pub(crate) const FLAG_SECTIONS: u8 = 2;

/// In a result: the body of the task could not be read.
pub(crate) const FLAG_UNREAD: u8 = 4;

/// In a task: what it yields is wanted one by one.
pub(crate) const FLAG_STREAM: u8 = 8;

/// In a task: its time or its memory is limited, so that its start has to be known, and what its worker had then.
pub(crate) const FLAG_WATCHED: u8 = 32;

/// In a task: what it yields comes as one list.
pub(crate) const FLAG_GATHER: u8 = 128;

/// In a task: if it fails, the worker says whether it is to run again.
pub(crate) const FLAG_RETRY: u8 = 64;

/// In a result: the task is to run again.
pub(crate) const FLAG_AGAIN: u8 = 64;

/// In a result: the task has yielded this and has not ended.
pub(crate) const FLAG_MORE: u8 = 16;

/// In the tag of an item's result: the same.
pub const ITEM_MORE: u8 = 0x40;

/// Length of what stands before the body of a block: count and zero.
pub(crate) const BLOCK_PREFIX: usize = 8;

/// Definition: `u32` id, `u32` count of needs, `u32` count of buffers, the needs' ids, the buffers that the
/// bytes speak of as in `SECTION_BUFFERS`, bytes.
pub(crate) const SECTION_DEFINE: u8 = 1;
/// Ids of definitions that no task will need again.
pub(crate) const SECTION_FORGET: u8 = 2;
/// Ids of definitions that this task needs besides the one it runs.
pub(crate) const SECTION_NEEDS: u8 = 3;
/// The id of the definition that says after which failures the task runs again.
pub(crate) const SECTION_RETRY: u8 = 4;
/// The large buffers that the payload speaks of, in its order: each the `u64` number of a block of the
/// store, where in it the buffer starts, its length, and `MODE_*`. Also in results.
pub(crate) const SECTION_BUFFERS: u8 = 5;
/// What the random streams of the task, or of a block's items, are made from; the face's business.
pub(crate) const SECTION_SEED: u8 = 20;

/// The tag of an `Ask`: the worker writes through its mapping, and not with one call.
pub(crate) const ASKED_TO_LAY_OPEN: u8 = 1;

/// Of a buffer: who gets it may write to it, and nobody else sees that.
const MODE_WRITABLE: u64 = 0;
/// Nobody writes to it.
const MODE_READ_ONLY: u64 = 1;

/// What a task record asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskKind {
    /// Run a task.
    Run = 1,
    /// Run the initializer; a failure ends the worker.
    Initialize = 2,
    /// Leave.
    Exit = 3,
    /// Pass over message files up to the one whose number is the index, and take in what came along.
    Discard = 4,
    /// Run the items of a block, one after another.
    Block = 5,
}

/// What a result record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ResultKind {
    /// The task returned.
    Value = 1,
    /// The task failed.
    Error = 2,
    /// How long some items took, and as the payload how much processor time, in nanoseconds; that may
    /// be of items of earlier laps, too.
    Lap = 3,
    /// The payload is offsets of blocks that the worker has released, each as often as it stands there. No
    /// number.
    Release = 16,
    /// The worker wants a block of as many bytes as the duration says, and waits for the answer in its
    /// control block. The tag says how it writes there. No number.
    Ask = 17,
    /// The payload is something that the worker puts out for people; the duration says how much it has dropped
    /// before. No number.
    Output = 18,
}

/// The head of a task record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskHead {
    /// Length of the record.
    pub(crate) length: u32,
    /// What is asked for.
    pub(crate) kind: TaskKind,
    /// How the payload is encoded.
    pub(crate) tag: u8,
    /// `FLAG_*`.
    pub(crate) flags: u8,
    /// From 1.
    pub(crate) attempt: u8,
    /// What to run.
    pub(crate) definition: u32,
    /// Length of the payload.
    pub(crate) payload: u32,
    /// For messages.
    pub(crate) index: u64,
    /// The context that it runs in.
    pub(crate) context: u32,
}

/// The head of a result record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResultHead {
    /// Length of the record.
    pub(crate) length: u32,
    /// How the task ended.
    pub(crate) kind: ResultKind,
    /// How the payload is encoded.
    pub(crate) tag: u8,
    /// `FLAG_FILE` and `FLAG_UNREAD`.
    pub(crate) flags: u8,
    /// Which task of the queue.
    pub(crate) number: u32,
    /// Length of the payload.
    pub(crate) payload: u32,
    /// Nanoseconds.
    pub(crate) duration: u64,
}

/// The other end broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The next multiple of 8.
#[inline]
pub(crate) fn padded(len: usize) -> usize {
    (len + 7) & !7
}

#[inline]
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[inline]
fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl TaskHead {
    /// As bytes.
    #[inline]
    pub(crate) fn encode(&self) -> [u8; TASK_HEAD] {
        let mut bytes = [0; TASK_HEAD];
        bytes[0..4].copy_from_slice(&self.length.to_ne_bytes());
        bytes[4..8].copy_from_slice(&[self.kind as u8, self.tag, self.flags, self.attempt]);
        bytes[8..12].copy_from_slice(&self.definition.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.payload.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.index.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.context.to_ne_bytes());
        bytes
    }

    /// From the first bytes of a record.
    #[inline]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let bytes = bytes.get(..TASK_HEAD).ok_or(Malformed)?;
        let kind = match bytes[4] {
            1 => TaskKind::Run,
            2 => TaskKind::Initialize,
            3 => TaskKind::Exit,
            4 => TaskKind::Discard,
            5 => TaskKind::Block,
            _ => return Err(Malformed),
        };
        let head = Self {
            length: word(bytes, 0).ok_or(Malformed)?,
            kind,
            tag: bytes[5],
            flags: bytes[6],
            attempt: bytes[7],
            definition: word(bytes, 8).ok_or(Malformed)?,
            payload: word(bytes, 12).ok_or(Malformed)?,
            index: long(bytes, 16).ok_or(Malformed)?,
            context: word(bytes, 24).ok_or(Malformed)?,
        };
        let fits = head.length as usize >= TASK_HEAD && head.length.is_multiple_of(8);
        if fits { Ok(head) } else { Err(Malformed) }
    }
}

impl ResultHead {
    /// As bytes.
    #[inline]
    pub(crate) fn encode(&self) -> [u8; RESULT_HEAD] {
        let mut bytes = [0; RESULT_HEAD];
        bytes[0..4].copy_from_slice(&self.length.to_ne_bytes());
        bytes[4..8].copy_from_slice(&[self.kind as u8, self.tag, self.flags, 0]);
        bytes[8..12].copy_from_slice(&self.number.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.payload.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.duration.to_ne_bytes());
        bytes
    }

    /// The head and the payload of the first record in `bytes`.
    #[inline]
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let head_bytes = bytes.get(..RESULT_HEAD).ok_or(Malformed)?;
        let kind = match head_bytes[4] {
            1 => ResultKind::Value,
            2 => ResultKind::Error,
            3 => ResultKind::Lap,
            16 => ResultKind::Release,
            17 => ResultKind::Ask,
            18 => ResultKind::Output,
            _ => return Err(Malformed),
        };
        let head = Self {
            length: word(head_bytes, 0).ok_or(Malformed)?,
            kind,
            tag: head_bytes[5],
            flags: head_bytes[6],
            number: word(head_bytes, 8).ok_or(Malformed)?,
            payload: word(head_bytes, 12).ok_or(Malformed)?,
            duration: long(head_bytes, 16).ok_or(Malformed)?,
        };
        let record = bytes
            .get(RESULT_HEAD..head.length as usize)
            .ok_or(Malformed)?;
        if !head.length.is_multiple_of(8) {
            return Err(Malformed);
        }
        let payload = if head.flags & FLAG_FILE != 0 {
            &[]
        } else {
            record.get(..head.payload as usize).ok_or(Malformed)?
        };
        Ok((head, payload))
    }
}

fn begin_section(body: &mut Vec<u8>, kind: u8) -> usize {
    body.push(kind);
    body.extend_from_slice(&[0; 4]);
    body.len()
}

fn end_section(body: &mut [u8], start: usize) {
    let len = (body.len() - start) as u32;
    body[start - 4..start].copy_from_slice(&len.to_ne_bytes());
}

/// Appends a definition.
pub(crate) fn put_definition(sections: &mut Vec<u8>, definition: &Definition) {
    let start = begin_section(sections, SECTION_DEFINE);
    sections.extend_from_slice(&definition.id().to_ne_bytes());
    for count in [definition.needs().len(), definition.buffers().len()] {
        sections.extend_from_slice(&(count as u32).to_ne_bytes());
    }
    for need in definition.needs() {
        sections.extend_from_slice(&need.id().to_ne_bytes());
    }
    put_references(sections, definition.buffers().iter().map(Buffer::reference));
    sections.extend_from_slice(definition.bytes());
    end_section(sections, start);
}

/// Appends a list of ids as a section of the given kind.
pub(crate) fn put_ids(sections: &mut Vec<u8>, kind: u8, ids: impl Iterator<Item = u32>) {
    let start = begin_section(sections, kind);
    for id in ids {
        sections.extend_from_slice(&id.to_ne_bytes());
    }
    end_section(sections, start);
}

/// Appends the ids of definitions that a task needs besides the one that it runs.
pub(crate) fn put_needs(sections: &mut Vec<u8>, needs: &[Arc<Definition>]) {
    put_ids(sections, SECTION_NEEDS, needs.iter().map(|need| need.id()));
}

/// Appends what random streams are made from.
pub(crate) fn put_seed(sections: &mut Vec<u8>, seed: &[u8]) {
    let start = begin_section(sections, SECTION_SEED);
    sections.extend_from_slice(seed);
    end_section(sections, start);
}

/// One section of a task's body.
#[derive(Debug, PartialEq, Eq)]
pub enum Section<'body> {
    /// A definition: its id, the ids of what it needs, the buffers that its bytes speak of, its bytes.
    Define(u32, Vec<u32>, Vec<Reference>, &'body [u8]),
    /// Ids to forget.
    Forget(Vec<u32>),
    /// Ids that the task needs.
    Needs(Vec<u32>),
    /// The id of what says after which failures the task runs again.
    Retry(u32),
    /// The buffers that the payload speaks of.
    Buffers(Vec<Reference>),
    /// What random streams are made from.
    Seed(&'body [u8]),
}

/// A part of a block of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The number of the block.
    pub block: u64,
    /// Where in the block.
    pub start: usize,
    /// How many bytes.
    pub len: usize,
    /// Whether who gets it may write to what it sees of it.
    pub is_writable: bool,
}

impl Reference {
    /// As the numbers that stand for it.
    pub(crate) fn encode(self) -> [u64; 4] {
        let mode = if self.is_writable {
            MODE_WRITABLE
        } else {
            MODE_READ_ONLY
        };
        [self.block, self.start as u64, self.len as u64, mode]
    }

    /// From them.
    pub(crate) fn decode([block, start, len, mode]: [u64; 4]) -> Result<Self, Malformed> {
        let size = |number| usize::try_from(number).map_err(|_| Malformed);
        Ok(Self {
            block,
            start: size(start)?,
            len: size(len)?,
            is_writable: match mode {
                MODE_WRITABLE => true,
                MODE_READ_ONLY => false,
                _ => return Err(Malformed),
            },
        })
    }
}

/// Length of one that is named.
const REFERENCE: usize = size_of::<[u64; 4]>();

/// Appends the buffers that the payload speaks of.
pub(crate) fn put_buffers(sections: &mut Vec<u8>, buffers: impl Iterator<Item = Reference>) {
    let start = begin_section(sections, SECTION_BUFFERS);
    put_references(sections, buffers);
    end_section(sections, start);
}

fn put_references(sections: &mut Vec<u8>, buffers: impl Iterator<Item = Reference>) {
    for number in buffers.flat_map(Reference::encode) {
        sections.extend_from_slice(&number.to_ne_bytes());
    }
}

fn references(bytes: &[u8]) -> Result<Vec<Reference>, Malformed> {
    let (numbers, rest) = bytes.as_chunks::<8>();
    let (references, more) = numbers.as_chunks::<4>();
    if !rest.is_empty() || !more.is_empty() {
        return Err(Malformed);
    }
    let read = |numbers: &[[u8; 8]; 4]| Reference::decode(numbers.map(u64::from_ne_bytes));
    references.iter().map(read).collect()
}

fn ids(bytes: &[u8]) -> Result<Vec<u32>, Malformed> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    if rest.is_empty() {
        Ok(chunks.iter().map(|id| u32::from_ne_bytes(*id)).collect())
    } else {
        Err(Malformed)
    }
}

/// Splits a body into its sections and its payload.
pub(crate) fn split_body<'body>(
    body: &'body [u8],
    flags: u8,
    payload: u32,
    mut visit: impl FnMut(Section<'body>),
) -> Result<&'body [u8], Malformed> {
    let mut rest = body;
    if flags & FLAG_SECTIONS != 0 {
        let len = word(rest, 0).ok_or(Malformed)? as usize;
        let mut sections = rest.get(4..4 + len).ok_or(Malformed)?;
        rest = &rest[4 + len..];
        while !sections.is_empty() {
            let len = word(sections, 1).ok_or(Malformed)? as usize;
            let content = sections.get(5..5 + len).ok_or(Malformed)?;
            match sections[0] {
                SECTION_DEFINE => {
                    let id = word(content, 0).ok_or(Malformed)?;
                    let needs = word(content, 4).ok_or(Malformed)? as usize;
                    let buffers = word(content, 8).ok_or(Malformed)? as usize;
                    let rest = &content[12..];
                    let (needs, rest) = rest.split_at_checked(4 * needs).ok_or(Malformed)?;
                    let (buffers, bytes) = rest
                        .split_at_checked(REFERENCE * buffers)
                        .ok_or(Malformed)?;
                    let (needs, buffers) = (ids(needs)?, references(buffers)?);
                    visit(Section::Define(id, needs, buffers, bytes));
                }
                SECTION_FORGET => visit(Section::Forget(ids(content)?)),
                SECTION_NEEDS => visit(Section::Needs(ids(content)?)),
                SECTION_RETRY => visit(Section::Retry(word(content, 0).ok_or(Malformed)?)),
                SECTION_BUFFERS => visit(Section::Buffers(references(content)?)),
                SECTION_SEED => visit(Section::Seed(content)),
                // From a later version of the protocol; sections may be passed over.
                _ => {}
            }
            sections = &sections[5 + len..];
        }
    }
    rest.get(..payload as usize).ok_or(Malformed)
}

/// What parent and zygote say, one message of the socket each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ZygoteMessage {
    /// Parent: import these modules, one per line, before any worker is forked. One descriptor:
    /// the birth file, as in `Fork`.
    Preload(String),
    /// Parent: fork a worker. Descriptors: see `WORKER_DESCRIPTORS`.
    Fork(WorkerKey),
    /// Parent: become a worker yourself. Descriptors as for `Fork`.
    Become(WorkerKey),
    /// Zygote: is up; the version of its language's runtime.
    Hello(u32),
    /// Zygote: how many threads it has now, and what could not be imported.
    Preloaded(u32, String),
    /// Zygote: forked this worker with this pid. One descriptor where pidfds exist.
    Forked(WorkerKey, i32),
    /// Zygote: could not or would not fork; why.
    NotForked(WorkerKey, String),
    /// Zygote: a worker ended with this wait status.
    Exited(i32, i32),
}

/// Which worker of all pools is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerKey {
    /// The pool's number in this process.
    pub pool: u32,
    /// The worker's slot.
    pub slot: u32,
    /// Counts the workers that the slot has had.
    pub generation: u32,
}

/// What comes with `Fork` and `Become`, in this order: birth file, control block, pool page,
/// control socket, life line, pool event, pool's request socket, the store's window, standard output,
/// standard error, working directory.
pub(crate) const WORKER_DESCRIPTORS: usize = 11;

/// The longest message between parent and zygote.
pub(crate) const LONGEST_MESSAGE: usize = 32 * 1024;

impl WorkerKey {
    fn put(self, bytes: &mut Vec<u8>) {
        for part in [self.pool, self.slot, self.generation] {
            bytes.extend_from_slice(&part.to_ne_bytes());
        }
    }

    fn get(bytes: &[u8], at: usize) -> Option<Self> {
        Some(Self {
            pool: word(bytes, at)?,
            slot: word(bytes, at + 4)?,
            generation: word(bytes, at + 8)?,
        })
    }

    /// As one number, for a poller; the three highest bits are the supervisor's own keys.
    pub(crate) fn pack(self) -> u64 {
        (u64::from(self.pool & 0x1f_ffff) << 40)
            | (u64::from(self.slot & 0xffff) << 24)
            | u64::from(self.generation & 0xff_ffff)
    }
}

impl ZygoteMessage {
    /// As bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Preload(names) => {
                bytes.push(1);
                bytes.extend_from_slice(names.as_bytes());
            }
            Self::Fork(key) => {
                bytes.push(2);
                key.put(&mut bytes);
            }
            Self::Become(key) => {
                bytes.push(3);
                key.put(&mut bytes);
            }
            Self::Hello(version) => {
                bytes.push(10);
                bytes.extend_from_slice(&version.to_ne_bytes());
            }
            Self::Preloaded(threads, failures) => {
                bytes.push(11);
                bytes.extend_from_slice(&threads.to_ne_bytes());
                bytes.extend_from_slice(failures.as_bytes());
            }
            Self::Forked(key, pid) => {
                bytes.push(12);
                key.put(&mut bytes);
                bytes.extend_from_slice(&pid.to_ne_bytes());
            }
            Self::NotForked(key, why) => {
                bytes.push(13);
                key.put(&mut bytes);
                bytes.extend_from_slice(why.as_bytes());
            }
            Self::Exited(pid, status) => {
                bytes.push(14);
                bytes.extend_from_slice(&pid.to_ne_bytes());
                bytes.extend_from_slice(&status.to_ne_bytes());
            }
        }
        bytes.truncate(LONGEST_MESSAGE);
        bytes
    }

    /// From a message.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let text =
            |at: usize| String::from_utf8_lossy(bytes.get(at..).unwrap_or_default()).into_owned();
        let message = || {
            Some(match bytes.first()? {
                1 => Self::Preload(text(1)),
                2 => Self::Fork(WorkerKey::get(bytes, 1)?),
                3 => Self::Become(WorkerKey::get(bytes, 1)?),
                10 => Self::Hello(word(bytes, 1)?),
                11 => Self::Preloaded(word(bytes, 1)?, text(5)),
                12 => Self::Forked(WorkerKey::get(bytes, 1)?, word(bytes, 13)?.cast_signed()),
                13 => Self::NotForked(WorkerKey::get(bytes, 1)?, text(13)),
                14 => Self::Exited(word(bytes, 1)?.cast_signed(), word(bytes, 5)?.cast_signed()),
                _ => return None,
            })
        };
        message().ok_or(Malformed)
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn task_heads_survive_the_trip() {
        let head = TaskHead {
            length: 64,
            kind: TaskKind::Run,
            tag: 3,
            flags: FLAG_SECTIONS,
            attempt: 1,
            definition: 77,
            payload: 12,
            index: u64::MAX,
            context: 78,
        };
        assert_eq!(TaskHead::decode(&head.encode()), Ok(head));
        assert_eq!(TaskHead::decode(&[0; TASK_HEAD]), Err(Malformed));
        assert_eq!(TaskHead::decode(&[1; 3]), Err(Malformed));
    }

    #[test]
    fn results_that_lie_about_their_length_are_refused() {
        let head = ResultHead {
            length: 32,
            kind: ResultKind::Value,
            tag: 0,
            flags: 0,
            number: 1,
            payload: 8,
            duration: 5,
        };
        let mut bytes = head.encode().to_vec();
        bytes.extend_from_slice(&[9; 8]);
        assert_eq!(ResultHead::decode(&bytes), Ok((head, &[9; 8][..])));
        let lying = ResultHead { payload: 9, ..head };
        bytes[..RESULT_HEAD].copy_from_slice(&lying.encode());
        assert_eq!(ResultHead::decode(&bytes), Err(Malformed));
        let long = ResultHead { length: 40, ..head };
        bytes[..RESULT_HEAD].copy_from_slice(&long.encode());
        assert_eq!(ResultHead::decode(&bytes), Err(Malformed));
    }

    #[test]
    fn sections_come_before_the_payload() {
        let first = Definition::new("d", Box::from(&b"one"[..]), Box::from([]));
        let store = Store::new(None).unwrap();
        let buffer = Buffer::whole(store.store(&[1; 5000]).unwrap(), true);
        let named = buffer.reference();
        let second = Definition::keeping(
            "d",
            Box::from(&b"two"[..]),
            Box::from([buffer]),
            Box::from([first.clone()]),
            None,
        );
        let mut sections = Vec::new();
        put_definition(&mut sections, &first);
        put_definition(&mut sections, &second);
        put_ids(&mut sections, SECTION_FORGET, [5, 6].into_iter());
        put_needs(&mut sections, std::slice::from_ref(&second));
        put_seed(&mut sections, b"seed");
        let mut body = (sections.len() as u32).to_ne_bytes().to_vec();
        body.extend_from_slice(&sections);
        body.extend_from_slice(b"payload");
        let mut seen = Vec::new();
        let payload = split_body(&body, FLAG_SECTIONS, 7, |section| seen.push(section));
        assert_eq!(payload, Ok(&b"payload"[..]));
        assert_eq!(
            seen,
            [
                Section::Define(first.id(), vec![], vec![], b"one"),
                Section::Define(second.id(), vec![first.id()], vec![named], b"two"),
                Section::Forget(vec![5, 6]),
                Section::Needs(vec![second.id()]),
                Section::Seed(b"seed"),
            ]
        );
        assert_eq!(split_body(&body, FLAG_SECTIONS, 8, |_| {}), Err(Malformed));
        assert_eq!(
            split_body(&body[..10], FLAG_SECTIONS, 0, |_| {}),
            Err(Malformed)
        );
    }

    #[test]
    fn references_survive_the_trip() {
        let named = [true, false].map(|is_writable| Reference {
            block: 1 << 40,
            start: 5,
            len: usize::MAX,
            is_writable,
        });
        let mut sections = Vec::new();
        put_buffers(&mut sections, named.into_iter());
        let content = &sections[5..];
        assert_eq!(references(content), Ok(named.to_vec()));
        assert_eq!(references(&content[..60]), Err(Malformed));
        assert_eq!(references(&content[..40]), Err(Malformed));
        let mut unknown = content.to_vec();
        unknown[24] = 2;
        assert_eq!(references(&unknown), Err(Malformed));
    }

    #[test]
    fn zygote_messages_survive_the_trip() {
        let key = WorkerKey {
            pool: 1,
            slot: 2,
            generation: 3,
        };
        for message in [
            ZygoteMessage::Preload("numpy\npandas".into()),
            ZygoteMessage::Fork(key),
            ZygoteMessage::Become(key),
            ZygoteMessage::Hello(0x030b_0000),
            ZygoteMessage::Preloaded(2, "no module".into()),
            ZygoteMessage::Forked(key, 1234),
            ZygoteMessage::NotForked(key, "why".into()),
            ZygoteMessage::Exited(1234, 9),
        ] {
            assert_eq!(ZygoteMessage::decode(&message.encode()), Ok(message));
        }
        assert_eq!(ZygoteMessage::decode(&[]), Err(Malformed));
        assert_eq!(ZygoteMessage::decode(&[2, 0]), Err(Malformed));
    }
}
