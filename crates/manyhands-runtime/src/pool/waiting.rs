//! Waiting for a task; see `drain_role` for who drains meanwhile.

use super::{Pool, State};
use crate::block::{Block, Stream};
use crate::drain_role::{Duty, HandOver};
use crate::task::Task;
use manyhands_os::{Waited, futex_wait_private, futex_wake_private, monotonic_nanos};
use manyhands_shm::Parked;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

/// How long a waiting thread spins before it sleeps, where a core is free for it.
pub(super) const SPIN_NANOS: u64 = 50_000;
/// The longest sleep of a waiting thread. A signal that comes just before a sleep interrupts nothing,
/// and is looked for after this time.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// How long a waiting thread lets results gather while they come in a stream.
const NAP: Duration = Duration::from_micros(50);
/// Results that are further apart are no stream: after one, the next is slept for. In nanoseconds.
const STREAM_GAP: u64 = 200_000;

/// What a thread can wait for.
pub trait Awaited: std::fmt::Debug + Send + Sync + 'static {
    /// Whether it has come. Changes under the pool's lock alone.
    fn is_ready(&self) -> bool;
}

impl Awaited for Task {
    fn is_ready(&self) -> bool {
        self.is_done()
    }
}

impl Awaited for Block {
    fn is_ready(&self) -> bool {
        Self::is_ready(self)
    }
}

impl Awaited for Stream {
    fn is_ready(&self) -> bool {
        self.unread() > 0
    }
}

/// A thread that follows the draining one.
#[derive(Debug)]
pub(super) struct Follower {
    word: AtomicU32,
    pub(super) awaited: Arc<dyn Awaited>,
}

impl Pool {
    /// Takes what has come, without waiting; whether that was awaited.
    pub fn poll(&self, awaited: &Arc<impl Awaited>) -> bool {
        if awaited.is_ready() {
            return true;
        }
        let mut state = self.lock();
        if !state.role.is_held() {
            // Who asks again and again waits, too.
            state.waiting += 1;
            self.drain(&mut state);
            state.waiting -= 1;
        }
        awaited.is_ready()
    }

    /// Waits until the awaited has come (true) or the time is up (false). `interrupted` runs after
    /// a signal; its error ends the wait.
    pub fn wait<E>(
        &self,
        awaited: &Arc<impl Awaited>,
        deadline: Option<u64>,
        interrupted: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut state = self.lock();
        state.waiting += 1;
        let (mut state, answer) = self.wait_locked(state, awaited, deadline, interrupted);
        state.waiting -= 1;
        answer
    }

    fn wait_locked<'pool, E>(
        &'pool self,
        mut state: MutexGuard<'pool, State>,
        awaited: &Arc<impl Awaited>,
        deadline: Option<u64>,
        mut interrupted: impl FnMut() -> Result<(), E>,
    ) -> (MutexGuard<'pool, State>, Result<bool, E>) {
        loop {
            if awaited.is_ready() || is_past(deadline) {
                if !state.role.is_held() {
                    let next = state.role.leave(|_| false);
                    self.hand_over(&mut state, next);
                }
                return (state, Ok(awaited.is_ready()));
            }
            let mut follower = None;
            let duty = state.role.enter(|| {
                let me = Arc::new(Follower {
                    word: AtomicU32::new(0),
                    awaited: awaited.clone(),
                });
                follower.insert(me).clone()
            });
            match (duty, follower) {
                (Duty::Follow, Some(me)) => {
                    drop(state);
                    let waited = futex_wait_private(&me.word, 0, Some(limit(deadline)));
                    let answer = match waited {
                        Waited::Interrupted | Waited::TimedOut => interrupted(),
                        Waited::Woken => Ok(()),
                    };
                    state = self.lock();
                    if let Err(error) = answer {
                        let next = state.role.leave(|follower| Arc::ptr_eq(follower, &me));
                        self.hand_over(&mut state, next);
                        return (state, Err(error));
                    }
                    state.role.look(|follower| Arc::ptr_eq(follower, &me));
                }
                _ => {
                    state = self.drain_until(state, &**awaited, deadline);
                    let next = state.role.give_up();
                    self.hand_over(&mut state, next);
                    if awaited.is_ready() || is_past(deadline) {
                        return (state, Ok(awaited.is_ready()));
                    }
                    // Without the role: this may wait for whoever holds the language's lock.
                    drop(state);
                    let answer = interrupted();
                    state = self.lock();
                    if let Err(error) = answer {
                        return (state, Err(error));
                    }
                }
            }
        }
    }

    pub(super) fn hand_over(&self, state: &mut State, next: HandOver<Arc<Follower>>) {
        match next {
            HandOver::Tell(follower) => follower.tell(),
            HandOver::ArmSupervisor => self.arm_supervisor(state),
            HandOver::Nothing => {}
        }
    }

    /// Makes the supervisor the one that drains. Whatever came before it was armed is taken here.
    pub(crate) fn arm_supervisor(&self, state: &mut State) {
        for _ in 0..4 {
            self.page.parent().announce(Parked::Event);
            if !state.has_unread() {
                return;
            }
            self.page.parent().awake();
            self.drain(state);
        }
        // Results come as fast as they are taken: that is the supervisor's work.
        self.event.signal();
    }

    /// Drains until the awaited has come, the time is up, or it is time to look for signals.
    pub(super) fn drain_until<'pool>(
        &'pool self,
        mut state: MutexGuard<'pool, State>,
        awaited: &dyn Awaited,
        deadline: Option<u64>,
    ) -> MutexGuard<'pool, State> {
        self.page.parent().awake();
        let look_for_signals = monotonic_nanos() + LONGEST_SLEEP.as_nanos() as u64;
        loop {
            let found = self.drain(&mut state);
            let mut is_stream = false;
            if found {
                let before = std::mem::replace(&mut state.found_at, monotonic_nanos());
                is_stream = state.found_at.saturating_sub(before) < STREAM_GAP;
            }
            if awaited.is_ready() || is_past(deadline) || is_past(Some(look_for_signals)) {
                return state;
            }
            let may_spin = state.scheduler.busy_count() < self.cores;
            drop(state);
            let mut waited = Waited::Woken;
            if may_spin && self.spin_until(awaited) {
                // There is something: drain it.
            } else if is_stream {
                // Results come in a stream: they gather while this thread naps, and the workers,
                // which find no mark, wake nobody.
                waited = self.page.parent().nap(NAP);
            } else {
                self.page.parent().announce(Parked::Futex);
                let state = self.lock();
                let come = awaited.is_ready() || state.has_unread();
                drop(state);
                if !come {
                    waited = self.page.parent().sleep(Some(limit(deadline)));
                }
                self.page.parent().awake();
            }
            state = self.lock();
            match waited {
                Waited::Interrupted => return state,
                Waited::TimedOut if !found => {
                    state.late_wakes += u64::from(state.has_unread());
                    self.relieve(&mut state);
                }
                _ => {}
            }
        }
    }

    /// Looks for results for a while; whether there are any. How long it looks follows how often
    /// that paid.
    pub(super) fn spin_until(&self, awaited: &dyn Awaited) -> bool {
        // Relaxed: a figure for tuning.
        let budget = self.spin.load(Ordering::Relaxed);
        let start = monotonic_nanos();
        loop {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
            if awaited.is_ready() || self.state.try_lock().is_ok_and(|state| state.has_unread()) {
                let wanted = budget + budget / 4 + 1_000;
                self.spin.store(wanted.min(SPIN_NANOS), Ordering::Relaxed);
                return true;
            }
            if monotonic_nanos() - start >= budget {
                let wanted = budget - budget / 16;
                self.spin
                    .store(wanted.max(SPIN_NANOS / 16), Ordering::Relaxed);
                return false;
            }
        }
    }

    /// Has the face told when the task has ended, under a token; false if it has ended already.
    pub fn observe(&self, task: &Task, token: u64) -> bool {
        let mut state = self.lock();
        if task.is_done() {
            return false;
        }
        state.observed += u64::from(!task.is_observed());
        task.set_observer(token);
        self.read_on(&mut state);
        true
    }
}

fn is_past(deadline: Option<u64>) -> bool {
    deadline.is_some_and(|deadline| monotonic_nanos() >= deadline)
}

fn limit(deadline: Option<u64>) -> Duration {
    deadline.map_or(LONGEST_SLEEP, |deadline| {
        Duration::from_nanos(deadline.saturating_sub(monotonic_nanos())).min(LONGEST_SLEEP)
    })
}

impl Follower {
    pub(super) fn tell(&self) {
        // Release and the wait's Acquire in the lock that follows: the word only says "look".
        self.word.store(1, Ordering::Release);
        futex_wake_private(&self.word, 1);
    }
}
