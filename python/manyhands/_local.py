"""Tasks that run in this very process, in threads or in the caller: how their errors look."""

from __future__ import annotations

import logging
from _pickle import loads

from manyhands import _encoding, _resolve
from manyhands._describe import name_of, option_hint, task_note
from manyhands._errors import RemoteError, TaskTimeout
from manyhands._outcome import kept_from_ending
from manyhands._typing import Any

__all__ = [
    "copied",
    "explained",
    "initializer_failed",
    "log_retry",
    "not_awaited",
    "timed_out",
    "turn",
]

# What would end the program, or a thread, if a result's taker met it.
_ENDS = (SystemExit, KeyboardInterrupt, GeneratorExit)

_MOST_NOTES = 8


def explained(
    error: BaseException,
    function: Any,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
    index: int,
    where: str,
) -> BaseException:
    """The exception of a task: that very object, with a note.

    Where it would end this program if it were raised (`SystemExit` and its kind), a `RemoteError`
    stands for it, whose cause it is.
    """
    if isinstance(error, _ENDS):
        error = _stand_in(error, name_of(function), index)
    call = None if args is None else (args, kwargs)
    hint = option_hint(error, kwargs)
    if hint is not None:
        error.add_note(hint)
    note = task_note(index, function, call, where)
    notes: list[str] = getattr(error, "__notes__", [])
    if len(notes) < _MOST_NOTES:
        error.add_note(note)
    else:
        notes[-1] = note  # one object that many tasks raise
    return error


def _stand_in(error: BaseException, label: str, index: int) -> RemoteError:
    kind = type(error).__qualname__
    stands = RemoteError(
        kept_from_ending(label, index, kind, str(error)),
        type_name=kind,
        remote_message=str(error),
    )
    stands.__cause__ = error
    return stands


def timed_out(
    function: Any, index: int, thread: str | None, seconds: float, attempts: int
) -> BaseException:
    """For a task whose time was up: in a thread of a pool, or in the calling one."""
    task = f"task {index} ({name_of(function)})"
    tried = f", attempt {attempts}" if attempts > 1 else ""
    if thread is None:
        return TaskTimeout(
            f"{task} took longer than its task_timeout of {seconds:g} s{tried}, until it ended: "
            "what runs in the calling thread can be asked to end, and not be killed"
        )
    return TaskTimeout(
        f"{task} took longer than its task_timeout of {seconds:g} s in thread {thread}{tried}; it "
        "was asked to end, and runs until it does: a thread cannot be killed; other tasks go on"
    )


def initializer_failed(error: BaseException) -> BaseException:
    """What the tasks of a pool end with whose initializer has raised."""
    if isinstance(error, _ENDS):
        error = _stand_in(error, "the initializer", 0)
    error.add_note("manyhands: the pool's initializer raised this; the pool runs no tasks")
    return error


def log_retry(
    function: Any, index: int, run: int, error: BaseException | None, pause: float
) -> None:
    """A task has failed with this exception, or took too long, and runs again."""
    logger = logging.getLogger("manyhands")
    if logger.isEnabledFor(logging.INFO):
        when = f" in {pause:.3f} s" if pause else ""
        what = "took too long" if error is None else "failed"
        kind = "" if error is None else f": {type(error).__name__}"
        text = "%s (task %d) %s in run %d and runs again%s%s"
        logger.info(text, name_of(function), index, what, run, when, kind)


def not_awaited(value: Any, function: Any) -> BaseException:
    """For a coroutine that a task made: nobody awaits it here."""
    close = getattr(value, "close", None)  # an asynchronous generator that did not start has none
    if close is not None:
        close()
    return TypeError(refusal(name_of(function)))


def refusal(name: str) -> str:
    """What is said of a coroutine function."""
    return (
        f"{name} is a coroutine function (async def), and no engine awaits those yet: make a "
        f"function that runs it, as in lambda item: asyncio.run({name}(item)), and map that with "
        'engine="thread"'
    )


def copied(value: Any, tag: int | None) -> Any:
    """A copy by the slow pickle, which takes what is meant for another process: with the tag of a
    call its arguments, else a result.

    Raises:
        NotPicklable: that does not work, on processes neither; the message names the path.
    """
    return loads(_resolve.dumps(value) if tag is None else _encoding.dumps(value, tag)[0])


def turn() -> None:
    """What a loop without Python calls now and then.

    The interpreter does it on the way in: it lets other threads run, and signal handlers.
    """
