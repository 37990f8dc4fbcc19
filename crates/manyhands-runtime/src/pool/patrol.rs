//! Looking now and then whether all goes on: tasks that are stuck, and a protocol that is.
//!
//! While tasks of a pool are pending the supervisor comes a few times per `stuck_after`, and per
//! `stalled_after`. Nobody else does anything for it.
//!
//! **Stuck tasks.** An item is told of, once, with the stack of its worker, if it runs for longer than
//! `stuck_after` and for longer than `FACTOR` times the longest that its definition took before. It is
//! not ended. Time that its worker was read no further, because nobody takes what it yields, is not
//! counted, and each result that it yields starts it anew.
//!
//! **A stall** is a mistake of ours: tasks are pending, and nothing is there that could end them.
//! What could is a list, and only a pool for which none of it holds, at each visit for the whole of
//! `stalled_after`, and nothing of which has changed, is still:
//!
//! | what could | why |
//! |---|---|
//! | a worker runs something, or is told to end, to leave, or was killed | its result comes, or its death |
//! | a worker is asked for, or on its way | it comes, or the zygote's death; an import may take long |
//! | a task waits for its pause, for the kernel, or to be shared out | the supervisor has the time |
//! | a worker is read no further, or results are there and nobody waits | a consumer comes back |
//! | a worker has work and does not sleep in `WorkerEnd::wait` | it flushes a stream whose reader stands still, waits for its language's lock, or for a processor |
//!
//! Then all workers are asked for their stacks. One that does not answer may be stopped, frozen or held by a
//! debugger: no stall. That the signal wakes those that had missed a wake-up is welcome: who is not
//! still any more goes on, and it is logged. Else the pool breaks, and all its tasks end.
//!
//! Time is counted in visits: one that comes much later than it was planned was late because the whole
//! program stood still, or the machine did, and all begins anew.

use super::dumping::{Reach, ask};
use super::{Phase, Pool, Seat, State};
use crate::dump::{Answer, PoolDump, Question};
use crate::protocol::TaskKind;
use crate::scheduler::Slot;
use crate::supervisor::{Command, LogLine};
use crate::task::Breakage;
use manyhands_os::monotonic_nanos;
use manyhands_shm::QueueWord;
use std::sync::Arc;

/// How many times longer than any before it a task may run.
const FACTOR: u64 = 10;
/// How often the supervisor looks in each of the times.
const LOOKS: u64 = 4;
/// How soon it looks whether a worker has answered, in nanoseconds.
const LOOK_FOR_ANSWER: u64 = 20_000_000;
/// The shortest time between two visits, in nanoseconds.
const SHORTEST: u64 = 10_000_000;
/// How much later than planned a visit may come on a busy machine, in nanoseconds.
const LATE: u64 = 2_000_000_000;

/// What the supervisor remembers of a pool between two visits.
#[derive(Debug, Default)]
pub(crate) struct Patrol {
    /// When it wants to come again.
    pub(crate) next: u64,
    /// When it last began anew.
    floor: u64,
    seats: Vec<Option<Seen>>,
    asked: Vec<(Stuck, Option<Question>)>,
    still: Option<Still>,
}

/// What a worker ran.
#[derive(Debug, Clone, Copy)]
struct Seen {
    generation: u32,
    number: u32,
    /// How many bytes of results it had had taken.
    taken: u64,
    since: u64,
    is_told: bool,
}

/// A task that is told of.
#[derive(Debug)]
struct Stuck {
    pid: i32,
    /// How many items its worker had started, which had not ended: it is the last of them.
    started: u32,
    index: u64,
    name: String,
    age: u64,
    longest: u64,
}

/// A pool in which nothing happens.
#[derive(Debug)]
struct Still {
    signs: Signs,
    last: u64,
    /// For how long, as far as that was seen.
    time: u64,
    /// The workers were asked what they do.
    dump: Option<Asked>,
}

#[derive(Debug)]
struct Asked {
    stats: super::PoolStats,
    questions: Vec<Option<Question>>,
}

/// What changes when anything happens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signs {
    done: u64,
    drains: u64,
    submits: u64,
    deaths: u64,
    pending: usize,
    queued: usize,
    /// Of each worker: which one it is, and what it starts next.
    workers: Vec<(u32, u32)>,
}

impl Pool {
    /// Has the supervisor come now and then.
    pub(super) fn start_patrol(&self, state: &mut State) {
        state.is_patrolled = true;
        self.supervisor.command(Command::Patrol(self.id));
    }

    fn patrol_every(&self) -> u64 {
        let stuck = self.stuck_after.unwrap_or(u64::MAX);
        (stuck.min(self.stalled_after) / LOOKS).max(SHORTEST)
    }

    /// For the supervisor: looks whether all goes on; what there is to log. False if it need not come again.
    pub(crate) fn patrol(&self, patrol: &mut Patrol) -> (bool, Vec<LogLine>) {
        let now = monotonic_nanos();
        let every = self.patrol_every();
        if now > patrol.next.saturating_add(every / 2 + LATE) {
            // Nobody knows for how long anything ran, or stood still.
            patrol.still.take_if(|still| still.dump.is_none());
            patrol.floor = now;
            for seen in patrol.seats.iter_mut().flatten() {
                seen.since = now;
            }
        }
        let mut lines = patrol.tell_stuck();
        lines.extend(self.look_at_stall(patrol));
        let mut state = self.lock();
        if state.pending == 0 && !patrol.awaits_answers() {
            state.is_patrolled = false;
            return (false, lines);
        }
        let mut found = Vec::new();
        if let Some(after) = self.stuck_after {
            let times = (patrol.floor, now);
            patrol.seats.resize_with(state.seats.len(), || None);
            for index in 0..state.seats.len() {
                let stuck = state.stuck(index, &mut patrol.seats[index], after, times);
                if let Some((stuck, _)) = &stuck {
                    let slot = Slot(index as u32);
                    self.say_stuck(&mut state, slot, stuck.started, stuck.age);
                }
                found.extend(stuck);
            }
        }
        let signs = state.is_still().then(|| state.signs());
        drop(state);
        patrol.note_still(signs, now, every);
        let found = found.into_iter().map(|(stuck, reach)| (stuck, ask(reach)));
        patrol.asked.extend(found);
        patrol.next = now
            + if patrol.awaits_answers() {
                LOOK_FOR_ANSWER.min(every)
            } else {
                every
            };
        (true, lines)
    }

    /// Asks the workers of a pool that was still for long enough, and breaks it if it still is when they have
    /// answered.
    fn look_at_stall(&self, patrol: &mut Patrol) -> Option<LogLine> {
        let still = patrol.still.as_mut()?;
        let Some(asked) = &still.dump else {
            if still.time >= self.stalled_after {
                let (stats, reaches) = self.reach_all();
                let questions = reaches.into_iter().map(ask).collect();
                still.dump = Some(Asked { stats, questions });
            }
            return None;
        };
        let answers: Option<Vec<Answer>> = asked
            .questions
            .iter()
            .map(|question| {
                question
                    .as_ref()
                    .map_or(Some(Answer::default()), Question::poll)
            })
            .collect();
        let answers = answers?;
        let mut state = self.lock();
        let is_still = state.is_still() && state.signs() == still.signs;
        let time = still.time;
        let seconds = time / 1_000_000_000;
        let dump = PoolDump {
            stats: asked.stats.clone(),
            answers,
        };
        patrol.still = None;
        if !is_still {
            let text = format!(
                "tasks waited for {seconds} s although nothing kept them, and went on when their workers \
                 were asked what they do: a wake-up was lost, which is a mistake of manyhands; please \
                 report it"
            );
            return Some(LogLine::warning(text));
        }
        if dump.answers.iter().any(|answer| answer.stack.is_none()) {
            return None; // one is stopped, or frozen
        }
        let why = Breakage::Stalled(seconds, Box::new(dump));
        self.say_stalled(time);
        self.break_down(&mut state, Arc::new(why));
        self.tell_all(&mut state);
        None
    }
}

impl Patrol {
    /// Of a pool that has been given something to do.
    pub(crate) fn of(pool: &Pool) -> Self {
        Self {
            next: monotonic_nanos() + pool.patrol_every(),
            ..Self::default()
        }
    }

    /// What is to be logged of those that have answered.
    fn tell_stuck(&mut self) -> Vec<LogLine> {
        let mut lines = Vec::new();
        self.asked.retain(|(stuck, question)| {
            let answer = match question {
                Some(question) => question.poll(),
                None => Some(Answer::default()),
            };
            let Some(answer) = answer else {
                return true;
            };
            lines.push(stuck.line(answer));
            false
        });
        lines
    }

    /// Whether a worker was asked what it does, and what is to be told of that was not.
    fn awaits_answers(&self) -> bool {
        let is_asked = |still: &Still| still.dump.is_some();
        !self.asked.is_empty() || self.still.as_ref().is_some_and(is_asked)
    }

    fn note_still(&mut self, signs: Option<Signs>, now: u64, every: u64) {
        self.still = match (self.still.take(), signs) {
            // It was found when it was still, and goes on, or not.
            (Some(still), _) if still.dump.is_some() => Some(still),
            (Some(mut still), Some(signs)) if still.signs == signs => {
                still.time += now.saturating_sub(still.last).min(2 * every);
                still.last = now;
                Some(still)
            }
            (_, Some(signs)) => Some(Still {
                signs,
                last: now,
                time: 0,
                dump: None,
            }),
            (_, None) => None,
        };
    }
}

impl Stuck {
    fn line(&self, answer: Answer) -> LogLine {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        let known = match self.longest {
            0 => "none like it has ended yet".to_owned(),
            longest => format!("the longest like it took {:.3} s", seconds(longest)),
        };
        let seen = match (&answer.stack, answer.kernel) {
            (Some(_), _) => "Its stack".to_owned(),
            (None, Some(state)) => format!(
                "It does not say what it does; for the kernel it is in state {}{}",
                state.letter,
                state
                    .wait
                    .map_or(String::new(), |wait| format!(", in {wait}"))
            ),
            (None, None) => "Its worker is gone".to_owned(),
        };
        let text = format!(
            "task {}{} has run for {:.1} s in worker {} and goes on; {known}. task_timeout= would end it, \
             and stuck_after= says when to tell. {seen}",
            self.index,
            self.name,
            seconds(self.age),
            self.pid,
        );
        LogLine {
            stack: answer.stack,
            ..LogLine::warning(text)
        }
    }
}

impl State {
    /// What the worker of the seat runs, if it runs for too long and that was not told.
    fn stuck(
        &self,
        index: usize,
        seen: &mut Option<Seen>,
        after: u64,
        (floor, now): (u64, u64),
    ) -> Option<(Stuck, Option<Reach>)> {
        let slot = Slot(index as u32);
        let before = seen.take();
        let Seat::Taken(worker) = &self.seats[index] else {
            return None;
        };
        let next = worker.control.queue().state().next;
        let started = QueueWord::distance(worker.oldest, next);
        if started == 0 || worker.paused || worker.leaving || worker.stop.is_some() {
            return None;
        }
        if worker.lends() {
            return None; // it waits for other tasks: these may be stuck
        }
        let number = QueueWord::distance(1, next);
        let taken = worker.reader.consumed();
        let now_seen = match before {
            Some(before) if (before.generation, before.number) == (worker.generation, number) => {
                let has_yielded = before.taken != taken;
                Seen {
                    taken,
                    since: if has_yielded { now } else { before.since },
                    ..before
                }
            }
            // Of tasks it is known when they started, of most items when they were first seen.
            _ => Seen {
                generation: worker.generation,
                number,
                taken,
                since: worker
                    .control
                    .running_since(number)
                    .map_or(now, |start| start.max(floor)),
                is_told: false,
            },
        };
        let now_seen = seen.insert(now_seen);
        let age = now.saturating_sub(now_seen.since);
        if now_seen.is_told || age < after {
            return None;
        }
        let (entry, at) = self.started_entry(slot, started)?;
        let definition = entry.definition.as_ref();
        let longest = definition.map_or(0, |definition| definition.longest());
        if age < longest.saturating_mul(FACTOR)
            || !matches!(entry.kind, TaskKind::Run | TaskKind::Block)
        {
            return None;
        }
        now_seen.is_told = true;
        let name = definition.map_or(String::new(), |known| format!(" ({})", known.label()));
        let stuck = Stuck {
            pid: worker.pid(),
            started,
            index: entry.index() + at,
            name,
            age,
            longest,
        };
        Some((stuck, self.reach(index)))
    }

    /// Whether nothing is there that could end a task: see above.
    fn is_still(&self) -> bool {
        let waits = self.waiting > 0 || self.observed > 0;
        let is_still = |seat: &Seat| match seat {
            Seat::Vacant => true,
            Seat::Asked { .. } => false,
            Seat::Taken(worker) => {
                let is_unread = worker.reader.has_unread();
                worker.process.is_some()
                    && !(worker.leaving || worker.dismissed || worker.violation || worker.paused)
                    && worker.stop.is_none()
                    && worker.control.queue().state().next == worker.oldest
                    && worker.control.is_waiting()
                    && (!is_unread || waits)
            }
        };
        self.pending > 0
            && matches!(self.phase, Phase::Open | Phase::Closing(false))
            && self.delayed.is_empty()
            && !self.is_to_be_looked_at()
            && self.seats.iter().all(is_still)
    }

    fn signs(&self) -> Signs {
        let of_worker = |seat: &Seat| match seat {
            Seat::Taken(worker) => (worker.generation, worker.control.queue().state().next),
            _ => (0, 0),
        };
        Signs {
            done: self.done,
            drains: self.drains,
            submits: self.submits,
            deaths: self.deaths,
            pending: self.pending,
            queued: self.scheduler.queued(),
            workers: self.seats.iter().map(of_worker).collect(),
        }
    }
}
