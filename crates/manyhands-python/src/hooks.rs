//! What the Rust side asks of Python, looked up once.

use crate::once::Once;
use pyo3::prelude::*;

macro_rules! hook {
    ($(#[$doc:meta])* $name:ident, $module:literal, $attribute:literal) => {
        $(#[$doc])*
        pub(crate) fn $name<'py>(py: Python<'py>) -> PyResult<&'py Bound<'py, PyAny>> {
            static CELL: Once<Py<PyAny>> = Once::new();
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
hook!(/// `(callable) -> Definition | None`: of one that was kept, where that is as it was.
    find_captured, "manyhands._encoding", "find_captured");
hook!(/// `(callable) -> Definition | None`: of one whose call came to many bytes, if it carries them.
    keep_captured, "manyhands._encoding", "keep_captured");
hook!(/// `(object) -> (pickle, needs)`; the slow way.
    dumps, "manyhands._encoding", "dumps");
hook!(/// `() -> bool`: whether the program has imported a library that is pickled by the table.
    find_libraries, "manyhands._reducers", "find");
hook!(/// `(value, buffer_callback=None) -> bytes`: by the table.
    dumps_by_table, "manyhands._reducers", "dumps");
hook!(/// `(value) -> object`: what to pickle in place of large bytes, or of a bytearray or a memoryview.
    apart, "manyhands._octets", "apart");
hook!(/// `(names) -> needs`.
    bindings, "manyhands._encoding", "bindings");
hook!(/// The sentinel of a missing value.
    missing, "manyhands._definitions", "MISSING");
hook!(/// `() -> Context`.
    copy_context, "_contextvars", "copy_context");
hook!(/// `(context, generator) -> generator`: its body runs in that context.
    stream_in_context, "manyhands._context", "stream");
hook!(/// `(payload, …) -> BaseException`, from what a worker sent.
    rebuild_error, "manyhands._outcome", "rebuild_error");
hook!(/// `(…) -> BaseException`, for a worker that died.
    death, "manyhands._outcome", "death");
hook!(/// `(label, index, pid, seconds) -> BaseException`, for a task whose time was up.
    timed_out, "manyhands._outcome", "timed_out");
hook!(/// `(label, index, pid, limit, peak, attempts) -> BaseException`, for a task that took too much memory.
    over_memory, "manyhands._outcome", "over_memory");
hook!(/// `(…) -> BaseException`, for a pool that broke.
    breakage, "manyhands._outcome", "breakage");
hook!(/// `(seconds, dump) -> BaseException`, for a pool in which nothing happened any more.
    stalled, "manyhands._outcome", "stalled");
hook!(/// `()`: hands on what the supervisor had to log.
    forward_logs, "manyhands._future", "forward_logs");
hook!(/// `() -> bool`: whether this thread may wait for room in the store.
    may_wait, "manyhands._future", "may_wait");
hook!(/// `() -> str`: where temporary files are.
    temporary_directory, "tempfile", "gettempdir");
hook!(/// `(what, bytes, why)`: for the log, large buffers went to disk.
    tell_spilled, "manyhands._store", "tell_spilled");
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
hook!(/// `(error, index, input, attempts, pid, timed_out, results) -> Failure`.
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
hook!(/// `(cause, code) -> str`: how a worker died.
    manner, "manyhands._outcome", "manner");
hook!(/// `(function) -> str`: its name for people.
    name_of, "manyhands._describe", "name_of");
hook!(/// `(function, index, run, error, pause)`: for the log, a task of this process runs again.
    log_retry, "manyhands._local", "log_retry");
hook!(/// `(crew, slot, name) -> Thread`, started.
    start_thread, "manyhands._threads", "start");
hook!(/// `()`: starts the thread that sees when the time of a task is up.
    start_clock, "manyhands._threads", "start_clock");
hook!(/// `(line)`: a pool goes on without a thread, and says so.
    left_behind, "manyhands._threads", "left_behind");
hook!(/// `(function, index, thread, seconds, attempts) -> BaseException`: for a task of this process whose time
    /// was up.
    timed_out_here, "manyhands._local", "timed_out");
hook!(/// The class of an exception that is never made.
    parked, "manyhands._threads", "Parked");
hook!(/// `(error) -> str`: in one line.
    described, "manyhands._outcome", "described");
hook!(/// The class of what is raised in a task that is to end.
    task_stopped, "manyhands._errors", "TaskStopped");
hook!(/// `(seed, path)`: the stream of a task.
    stream, "manyhands._seeds", "Stream");
hook!(/// `()`: the generators of this process draw from nobody's stream.
    forget_stream, "manyhands._seeds", "forget");
hook!(/// `(key, index, slot)`: what this worker writes from here on is a task's.
    begin_capture, "manyhands._capture_worker", "begin");
hook!(/// `()`: that task has ended.
    end_capture, "manyhands._capture_worker", "end");
hook!(/// `(notices)`: what workers wanted to be told.
    tell_notices, "manyhands._module_globals", "tell");
hook!(/// `(threads)`: waits for threads that have nothing left to do.
    join_threads, "manyhands._threads", "join");
