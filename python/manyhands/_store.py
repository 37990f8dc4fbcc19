"""Large data that tasks share: `put`, and how much memory all of it may take."""

from __future__ import annotations

import logging
import os

from manyhands import _core
from manyhands._typing import TypeVar

__all__ = ["put", "set_budget", "set_budget_from_environment", "tell_spilled"]

T = TypeVar("T")

# Whether it was said that something went to disk.
_is_warned = False

_SIZE = r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*"


def put(value: T) -> T:
    """An equal object of the same type, read-only, whose large buffers are in the object store.

    Its arrays, and those in what it contains, are in memory that all workers see. Passing it to a
    task, or a part of it, or what holds it, then passes a reference: nothing is copied, however
    many tasks get it. It works with all pools, and lives as long as somebody uses it.

    What goes to the store are the buffers of NumPy arrays, pandas frames, Arrow tables,
    memoryviews and all else that supports pickle protocol 5, from 8 KiB on. What has none, as
    bytes, is copied as pickle copies. Some rows of a pandas frame, or a slice of an Arrow table,
    are references like the whole.
    In a task the object is in the task's own memory, and passing it on copies it.

    Past the budget of the store it goes to a file in the temporary directory (`TMPDIR`), which has
    no name and is gone with the object; a line in the log says so.

    Raises:
        MemoryError: neither the store nor that directory has room for it; the message has the
            numbers of both.
        PicklingError, TypeError: pickle cannot copy it.

    >>> import manyhands as mh, numpy as np
    >>> table = mh.put(np.arange(1_000_000.0))
    >>> with mh.Pool(2) as pool:
    ...     pool.map(np.sum, [table[:10], table[-3:]]).list()
    [np.float64(45.0), np.float64(2999994.0)]
    >>> table[0] = 1
    Traceback (most recent call last):
        ...
    ValueError: assignment destination is read-only
    """
    return _core.put_apart(value)


def tell_spilled(what: str, size: int, why: str) -> None:
    """For the log: so many bytes went to disk. The first time is worth a warning."""
    global _is_warned
    import tempfile

    logging.getLogger("manyhands").log(
        logging.INFO if _is_warned else logging.WARNING,
        "%s: %d bytes went to a file in %s: %s",
        what,
        size,
        tempfile.gettempdir(),
        why,
    )
    _is_warned = True


def set_budget(value: int | str) -> None:
    """Sets how many bytes the store may take: a number, or a text as `"8GB"` or `"512 MiB"`."""
    _core.set_store_budget(parse_size(value, "store="))


def set_budget_from_environment() -> None:
    """Takes the budget from `MANYHANDS_STORE`, if that is set."""
    value = os.environ.get("MANYHANDS_STORE")
    if value:
        _core.set_store_budget(parse_size(value, "MANYHANDS_STORE, the budget of the store,"))


def parse_size(value: int | str, what: str) -> int:
    """How many bytes that is: a number, or a text as `"8GB"`; `what` is for messages."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{what} must be a number of bytes or a text, not {type(value).__name__}")
    if isinstance(value, str):
        import re

        found = re.fullmatch(_SIZE, value, re.IGNORECASE)
        if found is None:
            raise ValueError(f"{what} must be a size as '8GB' or '512 MiB', not {value!r}")
        number, unit, binary = found.groups()
        power = "KMGT".find(unit.upper()) + 1 if unit else 0
        value = int(float(number) * (1024 if binary else 1000) ** power)
    if value < 1_000_000:
        raise ValueError(f"{what} must be at least 1 MB, not {value} bytes")
    return value
