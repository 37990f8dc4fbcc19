//! Signals of threads and processes.

/// Blocks every signal in the calling thread: the process's own threads handle them.
pub fn block_all_signals() {
    // SAFETY: the set is initialised by sigfillset before it is used; a null pointer for the old
    // set is allowed.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Kills the calling process as an outside SIGKILL does.
pub fn kill_self() -> ! {
    // SAFETY: plain system calls.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    loop {
        std::thread::park();
    }
}
