//! Whether it was the kernel, for want of memory, that killed a worker.
//!
//! A killed process does not know by whom. The kernel counts whom it has killed, and does so before it kills: so
//! a worker that died of SIGKILL, when there is a kill in the count that was nobody's yet, died of that. A
//! kill that was another process's, as a program's that a task has started, is nobody's after a moment.

use crate::task::Cause;
use manyhands_os::{monotonic_nanos, oom_kills};

const SIGKILL: i32 = 9;
/// How long after they were seen in the count deaths may be told of, in nanoseconds.
const MOMENT: u64 = 2_000_000_000;

#[derive(Debug)]
pub(crate) struct OomWatch {
    /// How many there were when it was looked at last.
    seen: Option<u64>,
    /// How many of them are nobody's yet, and when they were seen.
    open: u64,
    seen_at: u64,
}

impl OomWatch {
    /// What was killed before is nobody's.
    pub(crate) fn new() -> Self {
        Self {
            seen: oom_kills(),
            open: 0,
            seen_at: 0,
        }
    }

    /// Why a worker died that died of this.
    pub(crate) fn cause(&mut self, cause: Cause) -> Cause {
        match cause {
            Cause::Signal(SIGKILL) | Cause::Unknown => {
                self.named(cause, oom_kills(), monotonic_nanos())
            }
            cause => cause,
        }
    }

    fn named(&mut self, cause: Cause, kills: Option<u64>, now: u64) -> Cause {
        if now.saturating_sub(self.seen_at) > MOMENT {
            self.open = 0;
        }
        let (Some(seen), Some(kills)) = (self.seen, kills) else {
            self.seen = kills;
            return cause;
        };
        if kills > seen {
            self.open += kills - seen;
            self.seen_at = now;
        }
        // Less: of another group, to which the program was moved.
        self.seen = Some(kills);
        if self.open == 0 {
            return cause;
        }
        self.open -= 1;
        Cause::Oom
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kill_is_one_workers() {
        let kill = Cause::Signal(SIGKILL);
        let mut watch = OomWatch {
            seen: Some(5),
            open: 0,
            seen_at: 0,
        };
        assert_eq!(watch.named(kill, Some(5), 10), kill, "somebody else");
        assert_eq!(watch.named(kill, Some(7), 20), Cause::Oom);
        assert_eq!(watch.named(Cause::Unknown, Some(7), 30), Cause::Oom);
        assert_eq!(watch.named(kill, Some(7), 40), kill);
        assert_eq!(watch.named(kill, Some(9), 50), Cause::Oom);
        let later = 50 + MOMENT + 1;
        assert_eq!(watch.named(kill, Some(9), later), kill, "it was no worker");
        assert_eq!(watch.named(kill, Some(2), later), kill, "another group");
        assert_eq!(watch.named(kill, Some(3), later), Cause::Oom);
        assert_eq!(watch.named(kill, None, later), kill);
        assert_eq!(
            watch.named(kill, Some(8), later),
            kill,
            "nothing to compare"
        );
        assert_eq!(watch.cause(Cause::Exit(3)), Cause::Exit(3));
    }
}
