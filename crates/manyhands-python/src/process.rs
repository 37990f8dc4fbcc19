//! What this process has one of: its supervisor, and its generation among forks.

use crate::{bystanders, clock};
use manyhands_os::ThreadedLibrary;
use manyhands_runtime::{Launcher, Supervisor, close_life_lines_after_fork};
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

/// The supervisor, made at first use. A pointer and no lock, since a child of fork replaces it while
/// its parent's other threads, which may have held a lock, are not there.
static SUPERVISOR: AtomicPtr<Arc<Supervisor>> = AtomicPtr::new(std::ptr::null_mut());

/// Grows with every fork by the program in this line of processes.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How many processors are this worker's, and its children's; 0 in a process that is no worker.
static SHARE: AtomicU32 = AtomicU32::new(0);

/// Whether a Ctrl-C has ended a wait, and nothing was submitted since.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// For who waits: runs the handlers of signals that have come. If one of them raises `KeyboardInterrupt` and
/// nothing is submitted any more, the program ends as if that had ended it, whoever catches it: a test runner does
/// to tell of it.
pub(crate) fn check_signals(py: Python<'_>) -> PyResult<()> {
    py.check_signals().inspect_err(|error| {
        if error.is_instance_of::<PyKeyboardInterrupt>(py) {
            // Relaxed, here and below: it changes with the GIL.
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    })
}

/// The program goes on: it submits something.
#[inline]
pub(crate) fn goes_on() {
    if INTERRUPTED.load(Ordering::Relaxed) {
        INTERRUPTED.store(false, Ordering::Relaxed);
    }
}

/// Whether a Ctrl-C has ended a wait for tasks, and nothing was submitted since.
#[pyfunction]
pub(crate) fn was_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Which fork this process is; a pool of another generation is another process's.
#[inline]
pub(crate) fn generation() -> u32 {
    // Relaxed: changes only in a child of fork, before anything else runs there.
    GENERATION.load(Ordering::Relaxed)
}

/// Whether something made in that generation belongs to this process; `what` names it.
#[inline]
pub(crate) fn check(made_in: u32, what: &str) -> PyResult<()> {
    if made_in == generation() {
        return Ok(());
    }
    Err(PyRuntimeError::new_err(format!(
        "{what} belongs to the process that made it, and this is a child that was forked from it; \
         make a new pool here"
    )))
}

/// The supervisor of this process.
pub(crate) fn supervisor() -> PyResult<Arc<Supervisor>> {
    let found = SUPERVISOR.load(Ordering::Acquire);
    // SAFETY: a pointer that is set stays valid: it is leaked on purpose.
    if let Some(supervisor) = unsafe { found.as_ref() } {
        return Ok(supervisor.clone());
    }
    let made = Supervisor::new().map_err(|error| {
        PyRuntimeError::new_err(format!("the supervisor could not be started: {error}"))
    })?;
    let leaked = Box::into_raw(Box::new(made.clone()));
    match SUPERVISOR.compare_exchange(
        std::ptr::null_mut(),
        leaked,
        Ordering::AcqRel,
        Ordering::Acquire,
    ) {
        Ok(_) => Ok(made),
        // SAFETY: as above; the one just made goes with the box, without a thread started.
        Err(other) => Ok(unsafe {
            drop(Box::from_raw(leaked));
            (*other).clone()
        }),
    }
}

/// Has children know from the first moment that they are.
pub(crate) fn watch_forks() -> PyResult<()> {
    static IS_WATCHED: AtomicBool = AtomicBool::new(false);
    if !IS_WATCHED.swap(true, Ordering::Relaxed) {
        manyhands_os::at_fork_in_child(forget_parent)?;
    }
    Ok(())
}

/// In a child that the program forked: nothing of the parent's pools is this process's. The interpreter has not begun
/// to let go of what the parent's other threads had, so what goes with that knows that it is a copy.
extern "C" fn forget_parent() {
    // Relaxed: one thread runs here.
    GENERATION.fetch_add(1, Ordering::Relaxed);
    INTERRUPTED.store(false, Ordering::Relaxed);
    SUPERVISOR.store(std::ptr::null_mut(), Ordering::Release);
    bystanders::forget_parent();
    clock::forget_parent();
    close_life_lines_after_fork();
}

/// Which fork this process is.
#[pyfunction]
pub(crate) fn process_generation() -> u32 {
    generation()
}

/// Says how zygotes are started: program, arguments, environment.
#[pyfunction]
pub(crate) fn set_launcher(
    argv: Vec<OsString>,
    environment: Option<Vec<(OsString, OsString)>>,
) -> PyResult<()> {
    supervisor()?.set_launcher(Launcher { argv, environment });
    Ok(())
}

/// Says what workers find at their birth.
#[pyfunction]
pub(crate) fn set_birth(content: &[u8]) -> PyResult<()> {
    supervisor()?
        .set_birth(content)
        .map_err(|error| PyRuntimeError::new_err(format!("the pool could not be made: {error}")))
}

/// Has modules imported before the next worker is forked.
#[pyfunction]
pub(crate) fn preload(modules: Vec<String>) -> PyResult<()> {
    supervisor()?.preload(modules);
    Ok(())
}

/// Starts the zygote, if there is none.
#[pyfunction]
pub(crate) fn warm() -> PyResult<()> {
    Ok(supervisor()?.warm()?)
}

/// Ends the zygote and the supervisor's thread, once no pool is left.
#[pyfunction]
pub(crate) fn stop_supervisor() -> PyResult<()> {
    supervisor()?.stop();
    Ok(())
}

/// The pid of the zygote, 0 without one.
#[pyfunction]
pub(crate) fn zygote_pid() -> PyResult<i32> {
    Ok(supervisor()?.zygote_pid())
}

/// Waits for tokens of observed futures whose tasks ended.
#[pyfunction]
pub(crate) fn wait_completions(py: Python<'_>, timeout: f64) -> PyResult<Vec<u64>> {
    let supervisor = supervisor()?;
    let time = Duration::from_secs_f64(timeout.clamp(0.0, 3600.0));
    let _inside = bystanders::enter(py)?;
    Ok(bystanders::detach(py, || {
        supervisor.completions().wait(time)
    }))
}

/// Has tokens come out of `wait_completions`, emptying the list.
pub(crate) fn tell_completions(tokens: &mut Vec<u64>) {
    // There is a supervisor where something is observed: whoever reads the tokens asked for it.
    if let Ok(supervisor) = supervisor() {
        supervisor.completions().push(tokens);
    }
}

/// Makes `wait_completions` return.
#[pyfunction]
pub(crate) fn ring_completions() -> PyResult<()> {
    supervisor()?.completions().ring();
    Ok(())
}

/// A line of the log: whether it is a warning, the text, and the stack that belongs to it, as a worker wrote
/// it.
type LogTuple<'py> = (bool, String, Option<Bound<'py, PyBytes>>);

/// Takes what was logged.
#[pyfunction]
pub(crate) fn take_logs(py: Python<'_>) -> PyResult<Vec<LogTuple<'_>>> {
    Ok(supervisor()?
        .take_logs()
        .into_iter()
        .map(|line| {
            let stack = line.stack.map(|stack| PyBytes::new(py, &stack));
            (line.warning, line.text, stack)
        })
        .collect())
}

/// The processor limits: machine, affinity, quota or None, where the quota stands or None.
#[pyfunction]
pub(crate) fn cpu_limits() -> (usize, usize, Option<f64>, Option<String>) {
    let limits = manyhands_os::cpu_limits();
    (
        limits.machine,
        limits.affinity,
        limits.quota,
        limits.quota_source,
    )
}

/// How many processors this process may use.
#[pyfunction]
pub(crate) fn cpu_count() -> usize {
    let limit = manyhands_os::cpu_count();
    // Relaxed: written once, before the first task.
    match SHARE.load(Ordering::Relaxed) {
        0 => limit,
        share => limit.min(share as usize),
    }
}

/// How many processors this process was given; None for one that is no worker.
#[pyfunction]
pub(crate) fn cpu_share() -> Option<u32> {
    let share = SHARE.load(Ordering::Relaxed);
    (share > 0).then_some(share)
}

/// This process is a worker, and so many processors are its share: its own pools divide these.
pub(crate) fn set_cpu_share(share: u32) {
    SHARE.store(share, Ordering::Relaxed);
}

/// Has the libraries of a kind that are loaded use so many threads; how many libraries these are.
#[pyfunction]
pub(crate) fn set_library_threads(library: &str, count: u32) -> PyResult<usize> {
    let library = match library {
        "openblas" => ThreadedLibrary::OpenBlas,
        "openmp" => ThreadedLibrary::OpenMp,
        "mkl" => ThreadedLibrary::Mkl,
        "blis" => ThreadedLibrary::Blis,
        _ => {
            return Err(PyValueError::new_err(format!(
                "no kind of library {library:?}"
            )));
        }
    };
    Ok(manyhands_os::set_library_threads(library, count))
}
