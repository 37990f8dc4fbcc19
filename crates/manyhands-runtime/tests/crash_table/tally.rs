//! How tasks and items ended, checked and counted.

use crate::crash_table::asks::CALL_DIED;
use crate::crash_table::helpers::show;
use crate::crash_table::worker;
use manyhands_runtime::{Cause, Outcome};

/// What a task or an item must come to, if it ends by itself.
#[derive(Clone)]
pub(crate) enum Expected {
    Value(Vec<u8>),
    Error(String),
    /// It fails before it runs.
    Unread,
    Anything,
    /// It returns this, unless a call of it dies.
    Asked(Vec<u8>),
    /// It returns this in its run of that number, and runs no more often but for workers that die.
    Again(u8),
}

impl Expected {
    /// What a command must come to.
    pub(crate) fn of(command: &str) -> Self {
        match command.split_once(':').unwrap() {
            ("echo", text) => Self::Value(text.into()),
            ("sleep", _) => Self::Value(b"slept".to_vec()),
            ("big", count) => Self::Value(worker::big(count.parse().unwrap())),
            ("error", text) => Self::Error(text.to_owned()),
            ("listen", _) => Self::Error("asked".to_owned()),
            ("stop", _) => Self::Value(b"continued".to_vec()),
            ("until", _) => Self::Value(b"seen".to_vec()),
            ("touch", _) => Self::Value(b"touched".to_vec()),
            ("meet", _) => Self::Value(b"met".to_vec()),
            ("initialized", _) => Self::Value(b"yes".to_vec()),
            ("fail_until" | "die_until", run) => Self::Again(run.parse().unwrap()),
            ("ask" | "ask_in_turn", rest) => {
                let (count, command) = rest.split_once(' ').unwrap();
                match Self::of(command) {
                    Self::Value(value) | Self::Asked(value) => {
                        let values = vec![value; count.parse().unwrap()];
                        Self::Asked(values.join(&b','))
                    }
                    _ => Self::Anything,
                }
            }
            ("ask_again" | "ask_limited", command) => match Self::of(command) {
                Self::Value(value) => Self::Asked(value),
                _ => Self::Anything,
            },
            ("ask_and_leave", _) => Self::Value(b"left".to_vec()),
            ("ask_mirror", count) => Self::Asked(worker::big(count.parse().unwrap())),
            ("haunt", _) => Self::Value(b"haunted".to_vec()),
            ("hold", _) => Self::Value(b"held".to_vec()),
            ("put", _) => Self::Value(b"put".to_vec()),
            ("stored", rest) => Self::of(rest.split_once(' ').unwrap().1),
            ("yield", rest) => Self::of(rest.splitn(3, ' ').last().unwrap()),
            _ => Self::Anything,
        }
    }
}

/// How a task or an item ended, and what is known of it.
pub(crate) struct End<'a> {
    pub(crate) number: u64,
    pub(crate) command: &'a str,
    pub(crate) outcome: &'a Outcome,
    pub(crate) expected: &'a Expected,
    /// How often it ran.
    pub(crate) runs: usize,
}

/// How the jobs of a case ended.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) values: usize,
    /// Number, pid and cause of those that died.
    pub(crate) died: Vec<(u64, i32, Cause)>,
    pub(crate) cancelled: usize,
    /// How many of these had started; only killing cancels what runs.
    pub(crate) cancelled_runs: usize,
    pub(crate) broken: usize,
    /// Those that lost a call.
    pub(crate) calls_died: usize,
    /// Those that failed as often as they might.
    pub(crate) failed: usize,
    /// Those whose time was up.
    pub(crate) timed_out: usize,
    /// Those that took too much memory, and how often they ran.
    pub(crate) over_memory: usize,
    pub(crate) over_memory_runs: usize,
}

impl Tally {
    /// Checks and counts one end.
    pub(crate) fn add(&mut self, end: &End<'_>) {
        let End {
            number,
            command,
            outcome,
            expected,
            runs,
        } = *end;
        match (outcome, expected) {
            (Outcome::Value(_, bytes), Expected::Value(expected) | Expected::Asked(expected)) => {
                let same = bytes.with(|bytes| bytes == expected.as_slice()).unwrap();
                assert!(same, "{number} ({command}) ended with {}", show(outcome));
                assert_eq!(runs, 1, "runs of {number} ({command}), which returned");
                self.values += 1;
            }
            (Outcome::Error(_, bytes), Expected::Error(expected)) => {
                let same = bytes.with(|bytes| bytes == expected.as_bytes()).unwrap();
                assert!(same, "{number} ({command}) ended with {}", show(outcome));
                assert_eq!(runs, 1, "runs of {number} ({command}), which failed");
                self.values += 1;
            }
            (Outcome::Error(..), Expected::Unread) => {
                assert_eq!(runs, 0, "runs of {number} ({command}), which was not read");
                self.values += 1;
            }
            (Outcome::Value(_, bytes), Expected::Again(run)) => {
                let attempt = bytes.with(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
                let attempt: usize = attempt.unwrap().parse().unwrap();
                assert!(attempt >= usize::from(*run), "{number} ({command})");
                assert!(runs <= attempt, "{number} ({command}) ran {runs} times");
                self.values += 1;
            }
            (Outcome::Error(_, bytes), Expected::Asked(_)) => {
                let died = |bytes: &[u8]| bytes.starts_with(CALL_DIED.as_bytes());
                let died = bytes.with(died).unwrap();
                assert!(died, "{number} ({command}) ended with {}", show(outcome));
                assert_eq!(runs, 1, "runs of {number} ({command}), which failed");
                self.calls_died += 1;
            }
            (Outcome::Error(..), Expected::Again(_)) => self.failed += 1,
            (Outcome::Value(..), Expected::Anything) => {
                assert_eq!(runs, 1, "runs of {number} ({command}), which returned");
                self.values += 1;
            }
            (
                &Outcome::Died {
                    ref deaths,
                    tag,
                    ref payload,
                    attempts,
                },
                _,
            ) => {
                assert!(
                    runs <= usize::from(attempts),
                    "{number} ({command}) died and ran {runs} times"
                );
                // A long item is no use in a message.
                if !payload.is_empty() {
                    assert_eq!(tag, 1, "the tag of {number}");
                    let start = format!("{number} ").into_bytes();
                    assert!(payload.with(|bytes| bytes.starts_with(&start)).unwrap());
                }
                self.died.push((number, deaths.last.pid, deaths.last.cause));
            }
            (Outcome::Cancelled, _) => {
                assert!(
                    runs <= 1 || matches!(expected, Expected::Again(_)),
                    "{number} ({command}) was cancelled, ran {runs} times"
                );
                self.cancelled += 1;
                self.cancelled_runs += runs;
            }
            (&Outcome::TimedOut { attempts, .. }, _) => {
                // It may be over before a worker that waits for its processor comes from taking the task to
                // running it.
                assert!(
                    runs <= usize::from(attempts),
                    "{runs} runs of {number} ({command}), which took too long in {attempts}"
                );
                self.timed_out += 1;
            }
            (&Outcome::OverMemory { attempts, .. }, _) => {
                assert_eq!(
                    runs,
                    usize::from(attempts),
                    "runs of {number} ({command}), which took too much memory"
                );
                self.over_memory += 1;
                self.over_memory_runs += runs;
            }
            (Outcome::Broken(_), _) => {
                assert_eq!(runs, 0, "runs of {number} ({command}), which never started");
                self.broken += 1;
            }
            (outcome, _) => panic!("{number} ({command}) ended with {}", show(outcome)),
        }
    }

    /// So many ended by themselves, and so many were cancelled before they ran.
    #[track_caller]
    pub(crate) fn assert_cancelled(&self, values: usize, cancelled: usize) {
        assert_eq!(
            (self.values, self.cancelled, self.cancelled_runs),
            (values, cancelled, 0),
            "{self:?}"
        );
    }

    /// Adds what another counted.
    pub(crate) fn merge(&mut self, other: Self) {
        self.values += other.values;
        self.died.extend(other.died);
        self.cancelled += other.cancelled;
        self.cancelled_runs += other.cancelled_runs;
        self.broken += other.broken;
        self.calls_died += other.calls_died;
        self.failed += other.failed;
        self.timed_out += other.timed_out;
        self.over_memory += other.over_memory;
        self.over_memory_runs += other.over_memory_runs;
    }
}
