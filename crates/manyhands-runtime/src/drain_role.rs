//! Who empties the result rings.
//!
//! Of all threads that wait for a task of a pool, one has the role: it drains the rings for all, and
//! sleeps on the pool page's word. The others follow: each sleeps on a word of its own. While nobody
//! waits, the supervisor has the role, by the pool's event.
//!
//! States, all changed under the pool's lock:
//! - *free*: nobody drains, and the supervisor is armed, or a follower has been told to look;
//! - *held*: one waiting thread drains.
//!
//! Rules:
//! - (R1) A thread that wants to wait takes the role if it is free; else it joins the followers,
//!   under the same lock.
//! - (R2) Who drains wakes each follower whose task has ended.
//! - (R3) Who gives the role up, for whatever reason (its task ended, its time is up, a signal), tells
//!   one follower to look; without followers it arms the supervisor.
//! - (R4) A follower that stops waiting while the role is free does as R3 says: it may be the one
//!   that was told to look.
//!
//! So whenever the role is free and a thread waits, one thread has been told to look and has not
//! looked yet: no result stays in a ring while all sleep. `loom_tests` checks it with three waiters.

use std::collections::VecDeque;

/// The state of the role, over any kind of follower.
#[derive(Debug)]
pub(crate) struct DrainRole<F> {
    held: bool,
    followers: VecDeque<F>,
}

/// What a thread that wants to wait has to do.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Duty {
    /// Drain.
    Drain,
    /// Sleep until told to look.
    Follow,
}

/// What a thread that stops waiting has to do.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum HandOver<F> {
    /// Tell this follower to look.
    Tell(F),
    /// Arm the supervisor.
    ArmSupervisor,
    /// Nothing: somebody else drains.
    Nothing,
}

impl<F> Default for DrainRole<F> {
    fn default() -> Self {
        Self {
            held: false,
            followers: VecDeque::new(),
        }
    }
}

impl<F: Clone> DrainRole<F> {
    /// Whether a waiting thread drains.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// R1.
    pub(crate) fn enter(&mut self, follower: impl FnOnce() -> F) -> Duty {
        if self.held {
            self.followers.push_back(follower());
            Duty::Follow
        } else {
            self.held = true;
            Duty::Drain
        }
    }

    /// R3: the draining thread stops.
    pub(crate) fn give_up(&mut self) -> HandOver<F> {
        debug_assert!(self.held);
        self.held = false;
        self.hand_over()
    }

    /// R4: a following thread stops, or goes round to `enter` again.
    pub(crate) fn leave(&mut self, is_me: impl Fn(&F) -> bool) -> HandOver<F> {
        self.followers.retain(|follower| !is_me(follower));
        if self.held {
            HandOver::Nothing
        } else {
            self.hand_over()
        }
    }

    /// A follower was told to look and does: it is no follower any more.
    pub(crate) fn look(&mut self, is_me: impl Fn(&F) -> bool) {
        self.followers.retain(|follower| !is_me(follower));
    }

    fn hand_over(&self) -> HandOver<F> {
        match self.followers.front() {
            Some(follower) => HandOver::Tell(follower.clone()),
            None => HandOver::ArmSupervisor,
        }
    }

    /// R2: whom to wake.
    pub(crate) fn followers(&self) -> impl Iterator<Item = &F> {
        self.followers.iter()
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_drains_and_the_rest_follow() {
        let mut role = DrainRole::default();
        assert_eq!(role.enter(|| 1), Duty::Drain);
        assert_eq!(role.enter(|| 2), Duty::Follow);
        assert_eq!(role.enter(|| 3), Duty::Follow);
        assert_eq!(role.leave(|&follower| follower == 2), HandOver::Nothing);
        assert_eq!(role.give_up(), HandOver::Tell(3));
        assert_eq!(
            role.leave(|&follower| follower == 3),
            HandOver::ArmSupervisor
        );
    }
}

#[cfg(all(test, manyhands_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// A pool whose ring is a bit mask of results that have come and are not drained.
    struct Model {
        state: Mutex<State>,
        /// Wakes the draining thread, as the pool page's word does.
        drainer: Condvar,
        /// Wakes each follower, as its own word does.
        follower: [Condvar; 3],
    }

    struct State {
        role: DrainRole<usize>,
        ring: u32,
        done: u32,
        told: [bool; 3],
        supervisor_armed: bool,
    }

    impl Model {
        fn drain(&self, state: &mut State) {
            state.done |= std::mem::take(&mut state.ring);
            let woken: Vec<_> = state
                .role
                .followers()
                .copied()
                .filter(|&f| state.done & (1 << f) != 0)
                .collect();
            for follower in woken {
                state.told[follower] = true;
                self.follower[follower].notify_one();
            }
        }

        fn hand_over(&self, state: &mut State, next: HandOver<usize>) {
            match next {
                HandOver::Tell(follower) => {
                    state.told[follower] = true;
                    self.follower[follower].notify_one();
                }
                HandOver::ArmSupervisor => {
                    state.supervisor_armed = true;
                    self.drain(state);
                }
                HandOver::Nothing => {}
            }
        }

        /// Waits for task `me`; with `impatient` it gives up at its first wake-up.
        fn wait(&self, me: usize, impatient: bool) {
            let mut state = self.state.lock().unwrap();
            loop {
                if state.done & (1 << me) != 0 {
                    if !state.role.is_held() {
                        let next = state.role.leave(|&f| f == me);
                        self.hand_over(&mut state, next);
                    }
                    return;
                }
                match state.role.enter(|| me) {
                    Duty::Drain => {
                        state.supervisor_armed = false;
                        self.drain(&mut state);
                        let mut gave_up = impatient;
                        while state.done & (1 << me) == 0 && !gave_up {
                            state = self.drainer.wait(state).unwrap();
                            self.drain(&mut state);
                            gave_up = false;
                        }
                        let next = state.role.give_up();
                        self.hand_over(&mut state, next);
                        return;
                    }
                    Duty::Follow => {
                        while !state.told[me] {
                            state = self.follower[me].wait(state).unwrap();
                        }
                        state.told[me] = false;
                        state.role.look(|&f| f == me);
                    }
                }
            }
        }

        /// A result comes.
        fn publish(&self, task: usize) {
            let mut state = self.state.lock().unwrap();
            state.ring |= 1 << task;
            if state.role.is_held() {
                self.drainer.notify_one();
            } else if state.supervisor_armed {
                self.drain(&mut state);
            }
        }
    }

    fn model(impatient: bool) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(move || {
            let model = Arc::new(Model {
                state: Mutex::new(State {
                    role: DrainRole::default(),
                    ring: 0,
                    done: 0,
                    told: [false; 3],
                    supervisor_armed: true,
                }),
                drainer: Condvar::new(),
                follower: [Condvar::new(), Condvar::new(), Condvar::new()],
            });
            let count = Arc::new(AtomicU32::new(0));
            let waiters: Vec<_> = (0..3)
                .map(|me| {
                    let (model, count) = (model.clone(), count.clone());
                    thread::spawn(move || {
                        model.wait(me, impatient && me == 0);
                        count.fetch_add(1, Ordering::Relaxed);
                    })
                })
                .collect();
            for task in [2, 0, 1] {
                model.publish(task);
            }
            for waiter in waiters {
                waiter.join().unwrap();
            }
            assert_eq!(count.load(Ordering::Relaxed), 3);
        });
    }

    #[test]
    fn three_waiters_all_get_their_results() {
        model(false);
    }

    #[test]
    fn a_waiter_that_gives_up_hands_over() {
        model(true);
    }
}
