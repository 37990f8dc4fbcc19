"""Tells people of functions that drag a lot of data along to each worker."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from manyhands._describe import name_of


def tell(function: Any, names: Iterable[str], size: int) -> None:
    """Warns of a definition of `size` bytes: of a function, or of names of `__main__`.

    Sizes of single values are estimates: what arrays and the like say of their buffers, else what
    `sys.getsizeof` says.
    """
    if function is None:
        values = _of_main(names)
        what = "What tasks use of your program"
    else:
        values = _captured(function)
        what = name_of(function)
    largest = max(values, key=lambda item: _size(item[1]), default=None)
    text = f"{what} carries {size / 1e6:,.0f} MB of data to each worker"
    if largest is not None:
        name, value = largest
        text += f"; the largest is {name}, {_size(value) / 1e6:,.0f} MB ({type(value).__name__})"
    text += (
        ". It is sent once to each worker and kept there. Pass what an item needs as its argument, "
        "or load it in the workers, by an initializer or in the function"
    )
    from manyhands._results import caller

    warnings.warn_explicit(text, RuntimeWarning, *caller())


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
