//! Answers: how calls ended.

use super::packet::{Packet, Reader, Writer};
use crate::lease::Buffer;
use crate::protocol::Malformed;
use crate::task::{Breakage, Cause, Death, Deaths, Outcome};
use manyhands_os::MessageFile;
use std::io;
use std::sync::Arc;

const VALUE: u8 = 1;
const ERROR: u8 = 2;
const DIED: u8 = 3;
const TIMED_OUT: u8 = 4;
const CANCELLED: u8 = 5;
const FAILED: u8 = 6;
const BROKEN_INITIALIZER: u8 = 7;
const BROKEN_BY_DEATH: u8 = 8;
const BROKEN: u8 = 9;
const UNREAD: u8 = 10;
const OVER_MEMORY: u8 = 11;

/// How a call ended, as its asker hears it.
#[derive(Debug)]
pub(crate) enum Answer {
    Ended(Outcome),
    /// It was lost on its way, and perhaps definitions with it.
    Unread,
}

/// Says that a call was lost on its way.
pub(crate) fn unread(call: u64) -> io::Result<Packet> {
    let mut out = Writer::default();
    out.u64(call);
    out.u8(UNREAD);
    Packet::new(call, &out.0, None)
}

/// Says how a call ended.
pub(crate) fn answer(call: u64, outcome: &Outcome) -> io::Result<Packet> {
    let mut out = Writer::default();
    out.u64(call);
    let mut file = None;
    match outcome {
        Outcome::Value(tag, payload) | Outcome::Error(tag, payload) => {
            let is_value = matches!(outcome, Outcome::Value(..));
            out.u8(if is_value { VALUE } else { ERROR });
            out.u8(*tag);
            file = out.payload(payload)?;
        }
        Outcome::Died {
            deaths,
            tag,
            payload,
            attempts,
        } => {
            out.u8(DIED);
            put_death(&mut out, deaths.last);
            out.u32(deaths.earlier.len() as u32);
            for death in &deaths.earlier {
                put_death(&mut out, *death);
            }
            out.u8(*tag);
            out.u8(*attempts);
            file = out.payload(payload)?;
        }
        Outcome::TimedOut {
            limit,
            pid,
            attempts,
        } => {
            out.u8(TIMED_OUT);
            out.u64(*limit);
            out.u32(pid.cast_unsigned());
            out.u8(*attempts);
        }
        Outcome::OverMemory {
            limit,
            peak,
            pid,
            attempts,
        } => {
            out.u8(OVER_MEMORY);
            out.u64(*limit);
            out.u64(*peak);
            out.u32(pid.cast_unsigned());
            out.u8(*attempts);
        }
        Outcome::Cancelled => out.u8(CANCELLED),
        Outcome::Failed(why) => {
            out.u8(FAILED);
            out.bytes(why.as_bytes());
        }
        Outcome::Broken(why) => match &**why {
            Breakage::Initializer(tag, error) => {
                out.u8(BROKEN_INITIALIZER);
                out.u8(*tag);
                file = out.payload(error)?;
            }
            &Breakage::InitializerDied(pid, cause) => {
                out.u8(BROKEN_BY_DEATH);
                put_death(&mut out, Death { pid, cause });
            }
            Breakage::Start(why) | Breakage::Limit(why) => {
                out.u8(BROKEN);
                out.bytes(why.as_bytes());
            }
            // Whoever waits in the program is shown the stacks.
            Breakage::Stalled(seconds, _) => {
                out.u8(BROKEN);
                out.bytes(format!("nothing happened in it for {seconds} s").as_bytes());
            }
        },
    }
    Packet::new(call, &out.0, file)
}

/// The number of the call, and how it ended.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    file: &mut Option<MessageFile>,
) -> Result<(u64, Answer), Malformed> {
    let call = reader.u64()?;
    let outcome = match reader.u8()? {
        UNREAD => return Ok((call, Answer::Unread)),
        VALUE => {
            let tag = reader.u8()?;
            // The parent has leases for this worker now.
            let payload = reader.stored(file, |reference| Ok(Buffer::leased(reference)))?;
            Outcome::Value(tag, payload)
        }
        ERROR => Outcome::Error(reader.u8()?, reader.payload(file)?),
        DIED => Outcome::Died {
            deaths: Box::new(Deaths {
                last: death(reader)?,
                earlier: reader.each(death)?,
            }),
            tag: reader.u8()?,
            attempts: reader.u8()?,
            payload: reader.payload(file)?,
        },
        TIMED_OUT => Outcome::TimedOut {
            limit: reader.u64()?,
            pid: reader.u32()?.cast_signed(),
            attempts: reader.u8()?,
        },
        OVER_MEMORY => Outcome::OverMemory {
            limit: reader.u64()?,
            peak: reader.u64()?,
            pid: reader.u32()?.cast_signed(),
            attempts: reader.u8()?,
        },
        CANCELLED => Outcome::Cancelled,
        FAILED => Outcome::Failed(reader.text()?),
        kind => Outcome::Broken(Arc::new(match kind {
            BROKEN_INITIALIZER => Breakage::Initializer(reader.u8()?, reader.payload(file)?),
            BROKEN_BY_DEATH => {
                let death = death(reader)?;
                Breakage::InitializerDied(death.pid, death.cause)
            }
            BROKEN => Breakage::Start(reader.text()?),
            _ => return Err(Malformed),
        })),
    };
    Ok((call, Answer::Ended(outcome)))
}

fn put_death(out: &mut Writer, death: Death) {
    let (kind, number) = match death.cause {
        Cause::Signal(signal) => (1, signal),
        Cause::Exit(status) => (2, status),
        Cause::Unknown => (3, 0),
        Cause::Protocol => (4, 0),
        Cause::Start => (5, 0),
        Cause::Oom => (6, 0),
    };
    out.u32(death.pid.cast_unsigned());
    out.u8(kind);
    out.u32(number.cast_unsigned());
}

fn death(reader: &mut Reader<'_>) -> Result<Death, Malformed> {
    let pid = reader.u32()?.cast_signed();
    let kind = reader.u8()?;
    let number = reader.u32()?.cast_signed();
    let cause = match kind {
        1 => Cause::Signal(number),
        2 => Cause::Exit(number),
        3 => Cause::Unknown,
        4 => Cause::Protocol,
        5 => Cause::Start,
        6 => Cause::Oom,
        _ => return Err(Malformed),
    };
    Ok(Death { pid, cause })
}
