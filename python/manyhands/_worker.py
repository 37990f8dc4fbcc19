"""A worker process: what it takes from its parent at its birth, and how it reports errors.

The loop over its tasks is in Rust (`_core.run_worker`). Imports as little as it can.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` imports `enum`, which takes long
import builtins
import faulthandler
import marshal
import os
import sys
import types
from _pickle import dumps

from manyhands import _core, _forks, _resolve
from manyhands._describe import option_hint, task_note, users_part
from manyhands._stopped import TaskStopped
from manyhands._whole_lines import whole_lines

TYPE_CHECKING = False  # as in `typing`, whose import would cost each worker milliseconds
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = [
    "ALLOCATOR",
    "NO_THREADS",
    "encode_error",
    "end_forked_child",
    "idle",
    "main",
    "take_paths",
    "take_share",
    "threads_here",
    "write_stacks",
]

_IN_WORKER = "MANYHANDS_DEPTH"

_zygotes_main: Any = None
_users_threads: dict[str, str] = {}

# The variables for numbers of threads as they were set in this worker for its own sake; what the
# user has set is not among them.
threads_here: dict[str, str] = {}


def main(birth: _core.Birth) -> NoReturn:
    """Runs tasks until the parent wants no more, then ends the process."""
    status = 1
    try:
        _forks.watch()
        _be_born(marshal.loads(birth.content))
        _signal.signal(_signal.SIGURG, _stop)
        _core.run_worker(birth)
        _leave()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _stop(_number: int, _frame: object) -> None:
    """The parent asks: the task that runs is to end, if it is still the one that was meant."""
    if _core.is_to_stop():
        raise TaskStopped


def write_stacks(number: int, descriptor: int) -> None:
    """From here on the signal has the stacks of all threads written to the descriptor."""
    _signal.signal(number, _core.resume_dump)
    faulthandler.register(number, file=descriptor, all_threads=True, chain=False)


def _be_born(content: dict[str, Any]) -> None:
    global _zygotes_main
    take_paths(content)
    environ = content["environ"]
    for name, value in NO_THREADS.items():
        if name in environ:
            _users_threads[name] = environ[name]
        else:
            threads_here[name] = value
    for name in [name for name in os.environ if name not in environ and name not in _KEPT]:
        del os.environ[name]
    for name, value in environ.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    os.environ[_IN_WORKER] = str(int(environ.get(_IN_WORKER, "0")) + 1)
    if content["umask"] >= 0:
        os.umask(content["umask"])
    if content["affinity"]:
        try:
            os.sched_setaffinity(0, content["affinity"])
        except OSError:
            pass  # the processors were taken from the machine's program meanwhile
    sys.setrecursionlimit(content["recursion"])
    # The script of the zygote stays referenced: its frames are still on this stack.
    _zygotes_main = sys.modules.get("__main__")
    sys.modules["__main__"] = real_main = types.ModuleType("__main__")
    real_main.__dict__["__builtins__"] = builtins
    if content["main_file"] is not None:
        real_main.__file__ = content["main_file"]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or not hasattr(stream, "reconfigure"):
            continue
        # An unbuffered stream (PYTHONUNBUFFERED) would write each argument of a `print` alone.
        stream.reconfigure(line_buffering=True, write_through=False)
        # What a preloaded module has put there is its own, and it may have kept what was there.
        if stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, whole_lines(stream))
            setattr(sys, f"__{name}__", getattr(sys, name))
    _reseed()


def take_share(count: int, is_given: bool) -> None:
    """So many processors are this worker's: libraries get as many threads.

    Where that is one, as the zygote has it, and the user has set nothing else, nothing is to do.
    """
    global threads_here
    if count != 1 or is_given or _users_threads:
        from manyhands import _inner_threads

        threads_here = _inner_threads.set_up(count, is_given, _users_threads)


# Libraries that start threads when they load start none in the zygote: a process with threads
# cannot be forked. What a worker has instead, see `_inner_threads`.
NO_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
}

# The same for the allocator in Arrow, which pandas imports: the user's own settings count.
ALLOCATOR = ("JE_ARROW_MALLOC_CONF", "background_thread:false")

_KEPT = {*NO_THREADS, ALLOCATOR[0]}


def take_paths(content: dict[str, Any]) -> None:
    """Takes over from the parent where modules are found, and what programs look at in `sys`."""
    sys.path[:] = content["path"]
    sys.argv[:] = content["argv"]
    sys.prefix, sys.exec_prefix = content["prefixes"]
    sys.executable = content["executable"]
    if not hasattr(builtins, "exit"):
        _add_site_builtins()


def _add_site_builtins() -> None:
    """`exit`, `quit` and `help`: what `site`, which is not run here, would add."""
    import _sitebuiltins

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    builtins.help = _sitebuiltins._Helper()


def _reseed() -> None:
    """Gives this birth random streams of its own.

    `random` reseeds itself after a fork; NumPy's legacy generator does not (numpy#9650), nor does
    that of torch (pytorch#5059).
    """
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        words = [int.from_bytes(os.urandom(4), "little") for _ in range(8)]
        numpy_random.seed(words)
    reseed_torch = getattr(sys.modules.get("torch"), "seed", None)
    if reseed_torch is not None:
        reseed_torch()


def idle() -> None:
    """Runs when there is nothing to do: lets out what tasks have printed."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # the reader is gone, or a task closed it: its own prints fail too


def end_forked_child(error: BaseException | None) -> NoReturn:
    """Ends a process that a task forked and that came back from the task: it is no worker."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        import traceback

        traceback.print_exception(error)
        status = 1
    _resolve.close_per_worker()
    idle()
    os._exit(status & 0xFF)


def _leave() -> None:
    import atexit

    # Before what modules do at their end: closing may need them.
    _resolve.close_per_worker()
    # What tasks registered; the zygote's own handlers are the parent's business.
    atexit._run_exitfuncs()
    idle()


def encode_error(
    error: BaseException,
    function: Any,
    call: tuple[tuple[Any, ...], dict[str, Any] | None] | None,
    index: int,
    attempt: int,
    slot: int,
) -> bytes:
    """What `_outcome.rebuild_error` makes an exception of."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    hint = _resolve.note_for(error)
    if hint is not None:
        error.add_note(f"manyhands: {hint}")
    hint = option_hint(error, None if call is None else call[1])
    if hint is not None:
        error.add_note(hint)
    try:
        message = str(error)
    except BaseException as problem:  # the user's __str__
        message = f"<its str() raised {type(problem).__name__}>"
    note = task_note(index, function, call, f"worker {os.getpid()}, attempt {attempt}")
    return dumps((_pickled(error), name, message, _traceback(error), note, os.getpid(), attempt), 5)


def _pickled(error: BaseException) -> bytes | None:
    try:
        return dumps(error, 5)
    except BaseException:  # whatever the exception's own __reduce__ does
        try:
            return _resolve.dumps(error)
        except BaseException:
            return None  # the text stands for it


def _traceback(error: BaseException) -> str:
    import traceback

    try:
        trace = users_part(error.__traceback__)
        return "".join(traceback.format_exception(type(error), error, trace))
    except BaseException as problem:  # the user's __str__, once more
        return f"<the traceback cannot be shown: {type(problem).__name__}>"
