"""Cells of a notebook: which one a task is of, and what it prints shown there.

A kernel has streams of its own in place of standard output and errors, which send what is written
to the cell that their `parent_header` names. A task takes a key of that header along, as the value
of something that stands for a context variable; what it prints comes back with the key.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar

from manyhands._typing import Any

__all__ = ["NAME", "CurrentCell", "find_notebook", "key", "show"]

# What stands in lists of context variables for it.
NAME = "manyhands:cell"

# So many cells are known; what a task of an older one prints is shown in the running one.
_MOST_CELLS = 1000

# In a worker: the key of the cell whose task runs.
_key: ContextVar[str] = ContextVar("manyhands_cell", default="")

# The kernel's streams; none outside of notebooks. They stay, whatever is put into `sys`.
_streams: tuple[Any, Any] | None = None
_headers: dict[str, Any] = {}


def find_notebook() -> bool:
    """Whether this process is a kernel that shows what is written in cells."""
    global _streams
    if _streams is None:
        streams = sys.stdout, sys.stderr
        if all(hasattr(stream, "set_thread_parent") for stream in streams):
            _streams = streams
    return _streams is not None


def key() -> str:
    """The key of the cell of the task that runs; empty if nobody knows."""
    return _key.get()


class CurrentCell:
    """Stands where a `ContextVar` does: its value is the key of the cell that submits."""

    def __init__(self) -> None:
        # The last header and its key: the tasks of a cell have one object.
        self._last: tuple[Any, str] = (None, "")

    def get(self, missing: Any) -> Any:
        """The key; `missing` where there is none."""
        if _streams is None:
            return _key.get() or missing  # a task that submits tasks
        header = _streams[0].parent_header
        last, known = self._last
        if header is last:
            return known or missing
        known = header.get("msg_id", "")
        if known:
            _headers[known] = header
            while len(_headers) > _MOST_CELLS:
                del _headers[next(iter(_headers))]
        self._last = header, known
        return known or missing

    def set(self, value: str) -> None:
        """In a worker: the task is of that cell."""
        _key.set(value)


def show(is_error: bool, cell: str, text: str) -> None:
    """Shows what a task of that cell has written."""
    if _streams is None:
        return
    stream = _streams[is_error]
    header = _headers.get(cell)
    if header is None:
        stream.write(text)
        return
    token = stream.set_thread_parent(header)
    try:
        stream.write(text)
    finally:
        stream.reset_thread_parent(token)
