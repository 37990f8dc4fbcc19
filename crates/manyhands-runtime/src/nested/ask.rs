//! Asks: what a worker wants of its parent.

use super::packet::{Packet, Reader, Writer};
use crate::definition::Definition;
use crate::lease::Holdings;
use crate::protocol::{Malformed, TaskKind};
use crate::task::{Asker, Entry, Limits, Retry, Task};
use manyhands_os::MessageFile;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};

const SUBMIT: u8 = 1;
const CANCEL: u8 = 2;

/// An ask, as the parent understands it.
#[derive(Debug)]
pub(crate) enum Ask {
    /// To run this.
    Submit(Box<Entry>),
    /// Nobody wants the call of that number any more.
    Cancel(u64),
    /// To run something whose definition was lost on its way.
    Unread(u64),
}

/// What a worker has told its parent of definitions.
#[derive(Debug, Default)]
pub(crate) struct Told {
    known: HashMap<u32, Weak<Definition>>,
    /// How large `known` may grow before it is looked through.
    limit: usize,
}

impl Told {
    /// The parent has lost something: all is told anew.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    fn tell(&mut self, definition: &Arc<Definition>, count: &mut u32, out: &mut Writer) {
        if self.known.contains_key(&definition.id()) {
            return;
        }
        for need in definition.needs() {
            self.tell(need, count, out);
        }
        debug_assert!(definition.buffers().is_empty(), "the store is the parent's");
        *count += 1;
        out.u32(definition.id());
        out.bytes(definition.label().as_bytes());
        out.bytes(definition.bytes());
        put_ids(out, definition.needs());
        self.known
            .insert(definition.id(), Arc::downgrade(definition));
    }

    /// Ids of which this process has no use any more.
    fn dead(&mut self) -> Vec<u32> {
        if self.known.len() <= self.limit {
            return Vec::new();
        }
        let is_dead = |(&id, known): (&u32, &Weak<_>)| (known.strong_count() == 0).then_some(id);
        let dead: Vec<u32> = self.known.iter().filter_map(is_dead).collect();
        for id in &dead {
            self.known.remove(id);
        }
        self.limit = 64 + 2 * self.known.len();
        dead
    }
}

fn put_ids(out: &mut Writer, definitions: &[Arc<Definition>]) {
    out.u32(definitions.len() as u32);
    for definition in definitions {
        out.u32(definition.id());
    }
}

fn put_id(out: &mut Writer, definition: Option<&Arc<Definition>>) {
    out.u32(definition.map_or(0, |definition| definition.id()));
}

/// Asks to run this.
pub(crate) fn submit(call: u64, entry: &Entry, told: &mut Told) -> io::Result<Packet> {
    let mut out = Writer::default();
    out.u8(SUBMIT);
    out.u64(call);
    let dead = told.dead();
    out.u32(dead.len() as u32);
    dead.iter().for_each(|&id| out.u32(id));
    let mut count = 0;
    let mut definitions = Writer::default();
    let policy = entry.retry.as_ref().and_then(|retry| retry.policy.as_ref());
    let run = entry.context.iter().chain(&entry.definition).chain(policy);
    for definition in entry.needs.iter().chain(run) {
        told.tell(definition, &mut count, &mut definitions);
    }
    out.u32(count);
    out.0.append(&mut definitions.0);
    put_id(&mut out, entry.definition.as_ref());
    put_ids(&mut out, &entry.needs);
    put_id(&mut out, entry.context.as_ref());
    out.u64(entry.task.as_ref().map_or(0, |task| task.index));
    out.u8(entry.tag);
    out.u8(u8::from(entry.gathers));
    out.u64(entry.limits.time.unwrap_or(0));
    out.u64(entry.limits.memory.unwrap_or(0));
    out.u64(entry.limits.grace);
    out.u8(u8::from(entry.priority.is_some()));
    out.u32(entry.priority.unwrap_or_default().cast_unsigned());
    match &entry.retry {
        None => out.u8(0),
        Some(retry) => {
            out.u8(1);
            out.u32(retry.failures);
            out.u32(retry.deaths);
            out.u8(u8::from(retry.timeouts));
            out.u8(u8::from(retry.memory));
            out.u64(retry.backoff);
            out.u64(retry.longest);
            out.u64(retry.jitter.to_bits());
            put_id(&mut out, retry.policy.as_ref());
        }
    }
    out.bytes(entry.seed.as_deref().unwrap_or_default());
    let file = out.payload(&entry.payload)?;
    Packet::new(call, &out.0, file)
}

/// Says that nobody wants the call any more.
pub(crate) fn cancel(call: u64) -> io::Result<Packet> {
    let mut out = Writer::default();
    out.u8(CANCEL);
    out.u64(call);
    Packet::new(call, &out.0, None)
}

/// Understands an ask of the worker `slot`, `generation`, whose definitions are `known`, and which may look at
/// what it holds.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    file: &mut Option<MessageFile>,
    (slot, generation): (u32, u32),
    known: &mut HashMap<u32, Arc<Definition>>,
    holdings: &Holdings,
) -> Result<Ask, Malformed> {
    let kind = reader.u8()?;
    let call = reader.u64()?;
    match kind {
        SUBMIT => {}
        CANCEL => return Ok(Ask::Cancel(call)),
        _ => return Err(Malformed),
    }
    for id in reader.each(Reader::u32)? {
        known.remove(&id);
    }
    let count = reader.u32()?;
    let mut is_whole = true;
    for _ in 0..count {
        let id = reader.u32()?;
        let label = reader.text()?;
        let bytes = Box::from(reader.bytes()?);
        match definitions(reader, known)? {
            Some(needs) => {
                let needs = needs.into_boxed_slice();
                known.insert(id, Definition::new(&label, bytes, needs));
            }
            None => is_whole = false,
        }
    }
    let definition = definition(reader, known)?;
    let needs = definitions(reader, known)?;
    let context = self::definition(reader, known)?;
    let index = reader.u64()?;
    let tag = reader.u8()?;
    let gathers = reader.u8()? != 0;
    let time = Some(reader.u64()?).filter(|&time| time > 0);
    let memory = Some(reader.u64()?).filter(|&memory| memory > 0);
    let grace = reader.u64()?;
    let has_priority = reader.u8()? != 0;
    let priority = Some(reader.u32()?.cast_signed()).filter(|_| has_priority);
    let retry = match reader.u8()? {
        0 => None,
        _ => Some(Arc::new(Retry {
            failures: reader.u32()?,
            deaths: reader.u32()?,
            timeouts: reader.u8()? != 0,
            memory: reader.u8()? != 0,
            backoff: reader.u64()?,
            longest: reader.u64()?,
            jitter: f64::from_bits(reader.u64()?),
            policy: match self::definition(reader, known)? {
                Some(policy) => policy,
                None => {
                    is_whole = false;
                    None
                }
            },
        })),
    };
    let seed = Some(reader.bytes()?).filter(|seed| !seed.is_empty());
    let payload = reader.stored(file, |reference| holdings.leased(reference))?;
    let (true, Some(definition), Some(needs), Some(context)) =
        (is_whole, definition, needs, context)
    else {
        return Ok(Ask::Unread(call));
    };
    let asker = Asker {
        slot,
        generation,
        call,
    };
    let task = Task::asked(index, definition.clone(), Some(asker));
    let mut entry = Entry::new(Some(task), TaskKind::Run, definition, needs, tag, payload);
    entry.limits = Limits {
        time,
        memory,
        grace,
    };
    (entry.retry, entry.gathers) = (retry, gathers);
    entry.priority = priority;
    (entry.seed, entry.context) = (seed.map(Arc::from), context);
    Ok(Ask::Submit(Box::new(entry)))
}

/// A definition, or none where none is meant; nothing if it is not known.
#[expect(clippy::option_option, reason = "unknown is not the same as none")]
fn definition(
    reader: &mut Reader<'_>,
    known: &HashMap<u32, Arc<Definition>>,
) -> Result<Option<Option<Arc<Definition>>>, Malformed> {
    Ok(match reader.u32()? {
        0 => Some(None),
        id => known.get(&id).cloned().map(Some),
    })
}

/// Definitions; none if one of them is not known.
fn definitions(
    reader: &mut Reader<'_>,
    known: &HashMap<u32, Arc<Definition>>,
) -> Result<Option<Vec<Arc<Definition>>>, Malformed> {
    let found = reader.each(|reader| Ok(known.get(&reader.u32()?).cloned()))?;
    Ok(found.into_iter().collect())
}
