"""The parent's way from objects to bytes, for the Rust side to call when its fast path ends."""

from __future__ import annotations

import sys
import types
from _pickle import dumps as _plain_dumps
from _thread import RLock
from collections.abc import Iterable

from manyhands import _core
from manyhands._by_value import PROTOCOL
from manyhands._captured import Captured
from manyhands._definitions import Check, Definer
from manyhands._describe import name_of
from manyhands._errors import NotPicklable
from manyhands._typing import Any

_ARGS, _ARGS_KWARGS = 2, 3  # tags of calls.rs

_lock = RLock()
_label = ""


# What is being defined, for messages.
_function: Any = None

# Bytes that a definition may have before somebody should know.
_LARGE = 100 * 1024 * 1024


def _make(
    payload: bytes, needs: tuple[_core.Definition, ...], stored: _core.Stored | None
) -> _core.Definition:
    shared = 0 if stored is None else stored.copied
    if len(payload) + shared > _LARGE:
        from manyhands._large import tell

        tell(_function, _definer.pending, len(payload), shared)
    return _core.Definition(payload, needs, _label, stored=stored)


_definer: Definer[_core.Definition] = Definer(_make, _core.hear_needs)


def forget_parent() -> None:
    """In a child of fork: another thread of the parent may have held the lock, or been half-way."""
    global _lock, _definer, _captured
    _lock = RLock()
    _definer = Definer(_make, _core.hear_needs)
    _captured = Captured(_define_any)
    _core.forget_functions()


def define(function: Any) -> tuple[_core.Definition, list[Check]]:
    """The definition of a function, and what must still hold for it to be current."""
    global _label
    owner = getattr(function, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType | type):
        return _define_any(function)
    # A method that is a function of its module, as `random.random` is: sent by name, since a copy
    # of its object would give the same numbers in every task.
    module = sys.modules[type(owner).__module__]
    with _lock:
        _label = name_of(function)
        return _definer.reference(function, module, function.__name__)


def capture(function: Any) -> _core.Definition:
    """The definition of a callable of any kind, with what it has captured as that is now."""
    return _define_any(function)[0]


def _define_any(function: Any) -> tuple[_core.Definition, list[Check]]:
    global _label, _function
    with _lock:
        _label, _function = name_of(function), function
        try:
            return _definer.function(function)
        finally:
            _function = None  # it may carry much


_captured = Captured(_define_any)


def find_captured(function: Any) -> _core.Definition | None:
    """The definition of a callable that `keep_captured` has kept, if it still is what it was."""
    return _captured.find(function)


def keep_captured(function: Any) -> _core.Definition | None:
    """The definition of a callable whose call came to many bytes, if these are its own."""
    return _captured.keep(function)


def refresh(function: Any) -> None:
    """Has a callable looked at anew, with all that it uses, when it is next used."""
    with _lock:
        _definer.refresh(function)
        _captured.forget(function)
        _core.forget_function(function)


def define_broadcast(token: str, obj: Any) -> _core.Definition:
    """The definition by which workers get to know what a `Broadcast` holds, as that is now."""
    global _label
    with _lock:
        # A `PerWorker` is broadcast while something else is defined, which goes on after this.
        outer, _label = _label, "a definition"
        try:
            data, within, stored, needs = _definer.dumps_apart(obj, root="the object")
        finally:
            _label = outer
        payload = _plain_dumps(("broadcast", data, within, token), PROTOCOL)
        return _core.Definition(payload, needs, "a broadcast", stored=stored)


def define_context(
    items: Any, last: tuple[bytes, _core.Definition] | None
) -> tuple[bytes, _core.Definition]:
    """The definition of the values of context variables, with their pickle if that says it all; the
    last one, if it is of the same."""
    global _label
    with _lock:
        _label = "a definition"
        data, within, stored, needs = _definer.dumps_apart(items, root="context")
        is_all = not within and not needs and stored is None
        if is_all and last is not None and last[0] == data:
            return last
        payload = _plain_dumps(("context", data, within), PROTOCOL)
        made = _core.Definition(payload, needs, "context variables", stored=stored)
        return data if is_all else b"", made


def dumps(call: Any, tag: int) -> tuple[bytes, tuple[_core.Definition, ...]]:
    """Pickles a call by value where it must be, or raises `NotPicklable` with the path."""
    global _label
    with _lock:
        _label = "a definition"
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
    global _label
    with _lock:
        _label = "a definition"
        return _definer.bindings(names)
