"""Calls and functions as short text, for messages; used by parent and workers."""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, whose import would cost each worker milliseconds
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

_LONGEST = 60


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


def call_text(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> str:
    """The call as it would be written, each argument shortened, at most five shown."""
    parts = [short(arg) for arg in args]
    parts += [f"{key}={short(value)}" for key, value in (kwargs or {}).items()]
    if len(parts) > 5:
        parts = [*parts[:4], f"... {len(parts) - 4} more"]
    return f"{name}({', '.join(parts)})"


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of manyhands that it begins with."""
    while trace is not None:
        if not trace.tb_frame.f_globals.get("__name__", "").startswith("manyhands._"):
            return trace
        trace = trace.tb_next
    return None
