"""The parent's way from objects to bytes, for the Rust side to call when its fast path ends."""

from __future__ import annotations

import sys
import types
from _thread import RLock
from collections.abc import Iterable
from typing import Any

from manyhands import _core
from manyhands._definitions import Check, Definer
from manyhands._describe import name_of
from manyhands._errors import NotPicklable

_ARGS, _ARGS_KWARGS = 2, 3  # tags of calls.rs

_lock = RLock()
_label = ""


# What is being defined, for messages.
_function: Any = None

# Bytes that a definition may have before somebody should know.
_LARGE = 100 * 1024 * 1024


def _make(payload: bytes, needs: tuple[_core.Definition, ...]) -> _core.Definition:
    if len(payload) > _LARGE:
        from manyhands._large import tell

        tell(_function, _definer.pending, len(payload))
    return _core.Definition(payload, needs, _label)


_definer: Definer[_core.Definition] = Definer(_make)


def forget_parent() -> None:
    """In a child of fork: another thread of the parent may have held the lock, or been half-way."""
    global _lock, _definer
    _lock = RLock()
    _definer = Definer(_make)
    _core.forget_functions()


def define(function: Any) -> tuple[_core.Definition, list[Check]]:
    """The definition of a function, and what must still hold for it to be current."""
    global _label, _function
    with _lock:
        _label, _function = name_of(function), function
        owner = getattr(function, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            # A method that is a function of its module, as `random.random` is: sent by name, since
            # a copy of its object would give the same numbers in every task.
            module = sys.modules[type(owner).__module__]
            return _definer.reference(function, module, function.__name__)
        return _definer.function(function)


def capture(function: Any) -> _core.Definition:
    """The definition of a callable of any kind, with what it has captured as that is now."""
    global _label, _function
    with _lock:
        _label, _function = name_of(function), function
        return _definer.function(function)[0]


def dumps(call: Any, tag: int) -> tuple[bytes, tuple[_core.Definition, ...]]:
    """Pickles a call by value where it must be, or raises `NotPicklable` with the path."""
    global _label, _function
    with _lock:
        _label, _function = "a definition", None
        if tag == _ARGS:
            return _definer.dumps(call, root="args")
        try:
            return _definer.dumps(call)
        except NotPicklable:
            roots = (
                ("args", "kwargs") if tag == _ARGS_KWARGS else ("the function", "args", "kwargs")
            )
            for part, root in zip(call, roots, strict=True):
                _definer.dumps(part, root=root)  # raises for the culprit, with a better path
            raise


def bindings(names: Iterable[str]) -> tuple[_core.Definition, ...]:
    """The definitions that put these names into the workers' `__main__`."""
    global _label, _function
    with _lock:
        _label, _function = "a definition", None
        return _definer.bindings(names)
