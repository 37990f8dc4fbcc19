//! Threads that the interpreter ends by unwinding their stack.
//!
//! Up to CPython 3.13 a thread that comes for the GIL during finalization is ended there and then, by
//! `pthread_exit`: at the end of a sleep, say, in a task. That unwinds its stack, and frames of Rust must not be
//! unwound so: what they hold would be dropped without the GIL, and `catch_unwind`, which is in each function that
//! Python calls, aborts the process ("FATAL: exception not rethrown").
//!
//! So each call from here that may run code of the user goes through a frame that no unwinder knows (build.rs
//! writes them, and has the linker put them between). There glibc takes the stack to be over, and leaves the rest
//! of it as it is: the thread ends, and the frames of Rust below are never seen again, nor dropped. A panic never
//! passes such a frame, since no Rust is called by the functions of Python but through such `catch_unwind`s.

std::arch::global_asm!(include_str!(concat!(env!("OUT_DIR"), "/unwinding.s")));
