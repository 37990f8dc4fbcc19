"""Tells people of functions that drag a lot of data along to each worker."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterable, Iterator

from manyhands._describe import name_of
from manyhands._typing import Any

__all__ = ["tell"]

# How many values a line names, the largest first, and below which part of all none is worth it.
_MOST_NAMED = 3
_LEAST_PART = 0.05

# What was told already: a cell that runs again says nothing new.
_told: set[tuple[str, ...]] = set()


def tell(function: Any, names: Iterable[str], own: int, shared: int) -> None:
    """Tells of a definition, once: of a function, or of names of `__main__`.

    It has `own` bytes that each worker gets, and `shared` ones in memory that all look at.

    Sizes of single values are estimates: what arrays and the like say of their buffers, else what
    `sys.getsizeof` says.
    """
    size = own + shared
    values = dict(_of_main(names))
    if function is None:
        what = "what tasks use of your program"
    else:
        values |= dict(_captured(function))
        what = name_of(function)
    sizes = {name: _size(value) for name, value in values.items()}
    least = _LEAST_PART * size
    named_ones = (name for name, found in sizes.items() if found >= least)
    largest = sorted(named_ones, key=lambda name: -sizes[name])[:_MOST_NAMED]
    if (what, *largest) in _told:
        return
    _told.add((what, *largest))
    named = ", ".join(
        f"{name} ({type(values[name]).__name__}, {sizes[name] / 1e6:,.0f} MB)" for name in largest
    )
    logging.getLogger("manyhands.hints").warning(
        "%s carries %s MB of data to each worker%s%s. It is sent once to each and kept there. "
        "mh.put has all workers share one copy of arrays; mh.broadcast sends any object, and lets "
        "you drop it again",
        what,
        f"{size / 1e6:,.0f}",
        f", {shared / 1e6:,.0f} of them in memory that all share" if shared else "",
        f": {named}" if named else "",
    )


def _captured(function: Any) -> Iterator[tuple[str, Any]]:
    """What a callable carries by value: cells, defaults, arguments of a partial, its object."""
    inner = function
    while hasattr(inner, "func"):  # functools.partial
        for index, value in enumerate(inner.args):
            yield f"argument {index} of the partial", value
        yield from inner.keywords.items()
        inner = inner.func
    owner = getattr(inner, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType | type):
        for name, value in getattr(owner, "__dict__", {}).items():
            yield f"self.{name}", value
    inner = getattr(inner, "__func__", inner)
    if not isinstance(inner, types.FunctionType):
        return
    for name, cell in zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            pass  # an empty cell
    for value in inner.__defaults__ or ():
        yield "a default", value
    for name in inner.__code__.co_names:
        if name in inner.__globals__ and not isinstance(inner.__globals__[name], types.ModuleType):
            yield name, inner.__globals__[name]


def _of_main(names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    main = vars(sys.modules["__main__"])
    for name in names:
        if name in main:
            yield name, main[name]


def _size(value: Any) -> int:
    for attribute in ("nbytes", "memory_usage"):
        try:
            found = getattr(value, attribute)
            found = found() if callable(found) else found
            return int(found.sum() if hasattr(found, "sum") else found)
        except Exception:  # whatever the value's own code does: the next way will do
            continue
    return sys.getsizeof(value)
