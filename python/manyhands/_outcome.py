"""From the end of a task to the exception that people see."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
from _pickle import loads

from manyhands._describe import call_text
from manyhands._errors import (
    NotPicklable,
    PoolStalled,
    RemoteError,
    RemoteTraceback,
    TaskError,
    TaskMemoryExceeded,
    TaskTimeout,
    WorkerDied,
)
from manyhands._typing import Any


def _task(label: str, index: int) -> str:
    return f"task {index} ({label})" if label else f"task {index}"


# The most characters of a message that are shown of an exception in one line.
_LONGEST = 200

# The most deaths before the last that a message names.
_MOST_DEATHS = 4

_KEPT = ", which is kept from ending this program"


def _raised(type_name: str, message: str) -> str:
    return f"raised {type_name}: {message}" if message else f"raised {type_name}"


def kept_from_ending(label: str, index: int, type_name: str, message: str) -> str:
    """What is said of a `SystemExit`, or one of its kind, that a task raised."""
    return f"{_task(label, index)} {_raised(type_name, message)}{_KEPT}"


def rebuild_error(payload: bytes, label: str, index: int) -> tuple[BaseException, int, int]:
    """The exception that a task raised, with the worker's traceback as its cause; the worker's pid;
    which attempt it was.

    Where it cannot be rebuilt, or would end this program if it were raised (`SystemExit` and its
    kind), a `RemoteError` stands for it.
    """
    pickled, type_name, message, text, note, pid, attempt = loads(payload)
    error: BaseException | None = None
    why = _raised(type_name, message)
    if pickled is None:
        why += "; this exception cannot be pickled, so this error stands for it"
    else:
        try:
            rebuilt = loads(pickled)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # whatever the exception's own code does
            why += f"; unpickling it raised {type(problem).__name__}: {problem}"
        else:
            if not isinstance(rebuilt, BaseException):
                why += f"; what it unpickles to is no exception but {type(rebuilt).__name__}"
            elif isinstance(rebuilt, SystemExit | KeyboardInterrupt | GeneratorExit):
                why += _KEPT
            else:
                error = rebuilt
    if error is None:
        error = RemoteError(
            f"{_task(label, index)} {why}", type_name=type_name, remote_message=message
        )
    error.__cause__ = RemoteTraceback(_with_lines(text))
    error.add_note(note)
    return error, pid, attempt


def _with_lines(text: str) -> str:
    """The traceback, with lines of sources that this process alone has: of a notebook's cells."""
    import linecache
    import re

    def with_line(frame: re.Match[str]) -> str:
        line = linecache.getline(frame[2], int(frame[3])).strip()
        return f"{frame[1]}    {line}\n" if line else frame[1]

    without_line = r'^(  File "(.+)", line (\d+), in .+\n)(?!    )'
    return re.sub(without_line, with_line, text, flags=re.MULTILINE)


def bad_result(problem: BaseException, label: str, index: int) -> BaseException:
    """For a result that came and cannot be unpickled."""
    if isinstance(problem, MemoryError):
        problem.add_note(f"manyhands: unpickling the result of {_task(label, index)} raised this")
        return problem
    error = NotPicklable(
        f"the result of {_task(label, index)} cannot be unpickled here: "
        f"{type(problem).__name__}: {problem}"
    )
    error.__cause__ = problem
    return error


def _signal_name(number: int) -> str:
    # Some numbers have an older name, too. The program may hide the module `signal`.
    older = ("SIGCLD", "SIGIOT", "SIGPOLL")
    names: dict[str, object] = vars(_signal)
    for name, value in names.items():
        if value == number and name.startswith("SIG") and "_" not in name and name not in older:
            return name
    return f"signal {number}"


def manner(cause: str, code: int | None) -> str:
    if cause == "signal" and code is not None:
        return f"was killed by {_signal_name(code)}"
    if cause == "oom":
        return "was killed by the kernel's OOM killer"
    if cause == "exit":
        return f"exited with status {code}"
    if cause == "protocol":
        return "broke the protocol and was killed"
    if cause == "start":
        return "could not be started"
    return "died; how is not known, because the process that forks workers died too"


def death(
    label: str,
    index: int,
    died: list[tuple[int, str, int | None]],
    args: tuple[Any, ...] | None,
    attempts: int,
) -> BaseException:
    """For a task whose worker died.

    Args:
        died: pid, cause and code of each worker that it has killed, this one last.
        args: its arguments, where they are plain values and may be shown.
        attempts: how often it was tried.
    """
    deaths = tuple((pid, manner(cause, code)) for pid, cause, code in died)
    pid, cause, code = died[-1]
    if args is not None:
        label = call_text(label, args, None)
    tried = f", attempt {attempts}" if attempts > 1 else ""
    if len(deaths) > 1:
        earlier = [f"worker {pid} {how}" for pid, how in deaths[:-1]]
        if len(earlier) > _MOST_DEATHS:
            earlier[_MOST_DEATHS:] = [f"and {len(earlier) - _MOST_DEATHS} more"]
        tried += (
            f": it has killed {len(deaths)} workers, and is not tried again "
            f"(earlier, {', '.join(earlier)})"
        )
    hint = ""
    if cause == "oom":
        hint = _memory_hint()
    elif (cause, code) == ("signal", 9):
        hint = "look for it in the kernel's log if memory was short"
    return WorkerDied(
        f"worker {pid} {deaths[-1][1]} while it ran {_task(label, index)}{tried}; "
        f"other tasks go on{'; ' + hint if hint else ''}",
        pid=pid,
        cause=cause,
        code=code,
        deaths=deaths,
    )


def _memory_hint() -> str:
    """What to say where the kernel has killed for want of memory."""
    from manyhands import _core

    facts = _core.machine_facts()
    limit, total = facts["memory_limit"], facts["memory_total"]
    if limit is not None:
        has = f"its control group may have {limit:,} bytes ({facts['memory_limit_source']})"
    else:
        has = "the machine" + (" is out of memory" if total is None else f" has {total:,} bytes")
    return f"{has}; task_memory= would end one task before that, and fewer workers need less"


def timed_out(label: str, index: int, pid: int, seconds: float, attempts: int) -> BaseException:
    """For a task whose time was up."""
    tried = f", attempt {attempts}" if attempts > 1 else ""
    return TaskTimeout(
        f"{_task(label, index)} took longer than its task_timeout of {seconds:g} s, and was ended "
        f"in worker {pid}{tried}; other tasks go on"
    )


def over_memory(
    label: str, index: int, pid: int, limit: int, peak: int, attempts: int
) -> BaseException:
    """For a task that took too much memory."""
    tried = f", attempt {attempts}" if attempts > 1 else ""
    return TaskMemoryExceeded(
        f"{_task(label, index)} took {peak:,} bytes of memory, more than its task_memory of "
        f"{limit:,}, and was ended with worker {pid}{tried}; other tasks go on",
        limit=limit,
        peak=peak,
    )


def described(error: BaseException | None) -> str:
    """An exception in one line, with what ran; for messages about somebody else's."""
    try:
        message = " ".join(str(error).split())
    except BaseException as problem:  # the user's __str__
        message = f"<its str() raised {type(problem).__name__}>"
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    for note in getattr(error, "__notes__", ()):
        if note.startswith("manyhands: task"):
            return f"{text} ({note.removeprefix('manyhands: ')})"
    return text


def breakage(
    kind: str, payload: bytes | None, pid: int, code: int | None, text: str
) -> BaseException:
    """For a pool that can run nothing any more."""
    if kind == "initializer" and payload is not None:
        error = rebuild_error(payload, "the initializer", 0)[0]
        error.add_note("manyhands: the pool's initializer raised this; the pool runs no tasks")
        return error
    if kind == "died":
        return WorkerDied(
            f"worker {pid} {manner(text, code)} while it ran the pool's initializer, again and "
            "again; the pool runs no tasks",
            pid=pid,
            cause=text,
            code=code,
        )
    return WorkerDied(f"{text}; the pool runs no tasks", cause="start")


def stalled(seconds: int, found: dict[str, Any]) -> BaseException:
    """For a pool in which nothing happened any more, though nothing kept it."""
    from manyhands._dump import make_dump

    dump = make_dump("the pool", "process", found)
    return PoolStalled(
        f"for {seconds} s no worker took up any of the tasks that wait, though nothing kept them "
        "from it; the pool runs no tasks any more. This is a mistake of manyhands: please report "
        f"it, with what the workers did:\n{dump}",
        dump=dump,
    )


def failed(why: str, label: str, index: int) -> BaseException:
    """For a task that never started, or whose result was lost."""
    return TaskError(f"{_task(label, index)}: {why}")
