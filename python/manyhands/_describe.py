"""Calls and functions as short text, for messages; used by parent and workers."""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, whose import would cost each worker milliseconds
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

_LONGEST = 60

# inspect.CO_COROUTINE, CO_ITERABLE_COROUTINE and CO_ASYNC_GENERATOR, without an import of it.
_ASYNCHRONOUS = 0x80 | 0x100 | 0x200


def short(value: Any) -> str:
    """`repr(value)`, cut to about 60 characters; never raises."""
    from reprlib import Repr

    shortener = Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = _LONGEST
    try:
        text = shortener.repr(value)
    except BaseException as error:  # the user's __repr__, whatever it does
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]}...{text[-17:]}"


def name_of(function: Any) -> str:
    """What people call the function."""
    inner = function
    while not hasattr(inner, "__qualname__"):
        if not hasattr(inner, "func"):
            return type(inner).__name__
        inner = inner.func  # functools.partial
    return str(inner.__qualname__).replace("<locals>.", "")


def is_coroutine_function(function: Any) -> bool:
    """Whether calling it makes a coroutine, or an asynchronous generator."""
    while hasattr(function, "func"):
        function = function.func  # functools.partial
    code = getattr(function, "__code__", None)
    flags = getattr(code, "co_flags", 0)
    return isinstance(flags, int) and flags & _ASYNCHRONOUS != 0


def call_text(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> str:
    """The call as it would be written, each argument shortened, at most five shown."""
    parts = [short(arg) for arg in args]
    parts += [f"{key}={short(value)}" for key, value in (kwargs or {}).items()]
    if len(parts) > 5:
        parts = [*parts[:4], f"... {len(parts) - 4} more"]
    return f"{name}({', '.join(parts)})"


def task_note(
    index: int,
    function: Any,
    call: tuple[tuple[Any, ...], Mapping[str, Any] | None] | None,
    where: str,
) -> str:
    """The note of an exception that a task raised; `call` where its arguments may be shown."""
    if function is None:
        return f"manyhands: task {index}, in {where}"
    name = name_of(function)
    what = name if call is None else call_text(name, *call)
    return f"manyhands: task {index}: {what}, in {where}"


# What is given by `options()`, and not to the function.
TASK_OPTIONS = (
    "task_timeout",
    "grace",
    "retry",
    "seed",
    "task_memory",
    "priority",
    "capture",
)


def option_hint(error: BaseException, kwargs: Mapping[str, Any] | None) -> str | None:
    """What to say of a function that was given one of our options as its own argument."""
    if type(error) is not TypeError or not error.args or type(error.args[0]) is not str:
        return None
    message = error.args[0]
    for name in TASK_OPTIONS:
        if f"unexpected keyword argument '{name}'" in message:
            value = short(kwargs[name]) if kwargs and name in kwargs else "..."
            return (
                f"manyhands: every argument of submit() goes to the function; the option is given "
                f"by pool.options({name}={value}).submit(...)"
            )
    return None


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of manyhands that it begins with."""
    while trace is not None:
        if not trace.tb_frame.f_globals.get("__name__", "").startswith("manyhands._"):
            return trace
        trace = trace.tb_next
    return None
