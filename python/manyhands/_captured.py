"""Partials and bound methods that carry much: sent once to each worker, and not with every call.

Functions are defined once anyway. Partials and methods are mostly made for one call and small, so
`submit` sends them with their arguments, and asks here if that came to many bytes. What is kept is
known by the partial itself, or by the method's object and function, while that lives.

It is as it was at first use. That its code, or an attribute of a method's object, is bound anew
is noticed; what changes inside of objects is not, as for functions.
"""

from __future__ import annotations

import functools
import gc
import types
import weakref
from _pickle import PickleBuffer, dumps
from collections.abc import Callable

from manyhands import _core
from manyhands._code import Check, holds
from manyhands._typing import Any

__all__ = ["Captured"]

# Bytes from which on a second copy costs more than to look whether it is needed.
_MUCH = 64 * 1024

_Key = tuple[int, int]


class Captured:
    """The partials and methods that are sent as definitions.

    Args:
        define: gives the definition of a callable, and what must hold for that to be current.
    """

    def __init__(self, define: Callable[[Any], tuple[_core.Definition, list[Check]]]) -> None:
        self._define = define
        self._entries: dict[_Key, _Entry] = {}

    def find(self, function: Any) -> _core.Definition | None:
        """The definition of what was kept, if that is as it was."""
        entry = self._entries.get(_key_of(function))
        return entry.definition if entry is not None and entry.is_current(function) else None

    def keep(self, function: Any) -> _core.Definition | None:
        """Keeps a callable whose call came to many bytes, if that is why; gives its definition."""
        if type(function) not in (functools.partial, types.MethodType) or _is_small(function):
            return None
        key = _key_of(function)
        entries = self._entries

        def forget(gone: Any) -> None:
            entry = entries.get(key)
            if entry is not None and entry.reference is gone:
                del entries[key]

        try:
            reference = weakref.ref(_anchor(function), forget)
        except TypeError:
            return None  # nobody would say when it is gone
        definition, checks = self._define(function)
        entries[key] = _Entry(reference, definition, checks, _Attributes(_owner(function)))
        return definition

    def forget(self, function: Any) -> None:
        """Has a callable looked at anew when it is next used."""
        self._entries.pop(_key_of(function), None)


class _Entry:
    __slots__ = ("_attributes", "_checks", "definition", "reference")

    def __init__(
        self,
        reference: weakref.ref[Any],
        definition: _core.Definition,
        checks: list[Check],
        attributes: _Attributes,
    ) -> None:
        self.reference = reference
        self.definition = definition
        self._checks = checks
        self._attributes = attributes

    def is_current(self, function: Any) -> bool:
        return (
            self.reference() is _anchor(function)
            and self._attributes.are_those_of(_owner(function))
            and all(map(holds, self._checks))
        )


class _Attributes:
    """To which objects the attributes of an object are bound, without keeping that object alive."""

    __slots__ = ("_bound",)

    def __init__(self, owner: Any) -> None:
        self._bound = {name: _hold(value) for name, value in _attributes(owner).items()}

    def are_those_of(self, owner: Any) -> bool:
        attributes = _attributes(owner)
        return len(attributes) == len(self._bound) and all(
            (held := self._bound.get(name)) is not None and held() is value
            for name, value in attributes.items()
        )


def _hold(value: Any) -> Callable[[], Any]:
    """Gives the value back while it lives; weakly, where it may lead back to the object."""
    if gc.is_tracked(value):
        try:
            return weakref.ref(value)
        except TypeError:
            pass  # a list or a dictionary: held, since the next one may get its address
    return lambda: value


def _attributes(owner: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(owner, "__dict__", {})
    return found


def _owner(function: Any) -> Any:
    """The object of the method that is called in the end, or None."""
    while type(function) is functools.partial:
        function = function.func
    return function.__self__ if type(function) is types.MethodType else None


def _anchor(function: Any) -> Any:
    """With what the callable goes: methods are made anew each time they are named."""
    return function.__self__ if type(function) is types.MethodType else function


def _key_of(function: Any) -> _Key:
    if type(function) is types.MethodType:
        return id(function.__self__), id(function.__func__)
    return id(function), 0


def _is_small(function: Any) -> bool:
    buffers: list[PickleBuffer] = []
    try:
        pickled = dumps(function, 5, buffer_callback=buffers.append)
        return len(pickled) + sum(buffer.raw().nbytes for buffer in buffers) < _MUCH
    except Exception:  # whatever the object's own code does: it is by value that it may go
        return False
