//! What the Rust side asks of Python, looked up once.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

macro_rules! hook {
    ($(#[$doc:meta])* $name:ident, $module:literal, $attribute:literal) => {
        $(#[$doc])*
        pub(crate) fn $name<'py>(py: Python<'py>) -> PyResult<&'py Bound<'py, PyAny>> {
            static CELL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let hook = CELL.get_or_try_init(py, || {
                py.import($module)?.getattr($attribute).map(Bound::unbind)
            })?;
            Ok(hook.bind(py))
        }
    };
}

hook!(/// `(callable) -> (Definition, checks)`.
    define, "manyhands._encoding", "define");
hook!(/// `(callable) -> Definition`, for callables that are sent with their arguments elsewhere.
    capture, "manyhands._encoding", "capture");
hook!(/// `(object) -> (pickle, needs)`; the slow way.
    dumps, "manyhands._encoding", "dumps");
hook!(/// `(names) -> needs`.
    bindings, "manyhands._encoding", "bindings");
hook!(/// The sentinel of a missing value.
    missing, "manyhands._definitions", "MISSING");
hook!(/// `(payload, …) -> BaseException`, from what a worker sent.
    rebuild_error, "manyhands._outcome", "rebuild_error");
hook!(/// `(…) -> BaseException`, for a worker that died.
    death, "manyhands._outcome", "death");
hook!(/// `(label, index, pid, seconds) -> BaseException`, for a task whose time was up.
    timed_out, "manyhands._outcome", "timed_out");
hook!(/// `(…) -> BaseException`, for a pool that broke.
    breakage, "manyhands._outcome", "breakage");
hook!(/// `(…) -> BaseException`, for a result that cannot be unpickled.
    bad_result, "manyhands._outcome", "bad_result");
hook!(/// `(message) -> BaseException`.
    failed, "manyhands._outcome", "failed");
hook!(/// `concurrent.futures.CancelledError`.
    cancelled_error, "concurrent.futures", "CancelledError");
hook!(/// The class of futures.
    future, "manyhands._future", "Future");
hook!(/// `(function, modules…)`: called before the first task of a pool.
    prepare, "manyhands._launch", "prepare");
hook!(/// `()`: says what workers find at their birth now.
    tell_birth_again, "manyhands._launch", "tell_birth_again");
hook!(/// `(errors, results) -> BaseExceptionGroup`.
    group, "manyhands._results", "group");
hook!(/// `(error, results, index) -> BaseException`: what a map raises for an item that failed.
    raised, "manyhands._results", "raised");
hook!(/// `(error, index, input, attempts, pid, results) -> Failure`.
    failure, "manyhands._results", "failure");
hook!(/// `(results) -> Summary`, at the end of `run`.
    summary, "manyhands._results", "summary");
hook!(/// `(error, results)`: a map was stopped by a signal.
    stopped, "manyhands._results", "stopped");
hook!(/// `(error, function, args, keywords, index, where) -> BaseException`: what becomes of an exception
    /// that a task raised in this process.
    explained, "manyhands._local", "explained");
hook!(/// `(coroutine, function) -> BaseException`: closes what nobody would await.
    not_awaited, "manyhands._local", "not_awaited");
hook!(/// `(error) -> BaseException`: what all tasks end with when their pool's initializer has raised.
    initializer_failed, "manyhands._local", "initializer_failed");
hook!(/// `(value, tag) -> value`: a copy, for what plain pickle refuses; the tag is a call's, or None.
    copied, "manyhands._local", "copied");
hook!(/// The class of errors for what cannot be sent.
    not_picklable, "manyhands._errors", "NotPicklable");
hook!(/// `()`: lets other threads run, and signal handlers.
    turn, "manyhands._local", "turn");
hook!(/// `sys.getsizeof`.
    size_of, "sys", "getsizeof");
hook!(/// `(crew, slot, name) -> Thread`, started.
    start_thread, "manyhands._threads", "start");
hook!(/// `(threads)`: waits for threads that have nothing left to do.
    join_threads, "manyhands._threads", "join");
