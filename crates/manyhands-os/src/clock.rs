//! The monotonic clock, which all processes of a machine share.

use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

/// Nanoseconds of the system-wide monotonic clock.
#[inline]
pub fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The monotonic clock starts at boot and never is negative.
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// The same clock, as the last timer tick left it: cheaper, and some milliseconds behind.
#[inline]
pub fn coarse_nanos() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// Nanoseconds since 1970, by the clock that people set.
#[inline]
pub fn wall_nanos() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    // A clock that is set to before 1970 is at 0.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + now.tv_nsec as u64
}

/// Processor time of this process, all its threads together, in nanoseconds. A system call.
#[inline]
pub fn process_cpu_nanos() -> u64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// Processor time of this thread in nanoseconds. A system call.
#[inline]
pub fn thread_cpu_nanos() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// A duration as the system calls want it; saturates instead of overflowing.
pub fn to_timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
