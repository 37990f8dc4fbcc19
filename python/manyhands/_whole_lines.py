"""Whole lines on a terminal, file or pipe to which several workers write.

A line is written by one call of the system. To a pipe one of more than 4,096 bytes is still not
one: others may come in between. So workers whose standard output or errors is a pipe write one
after another, by a lock on the pipe, which goes with its process and of which nobody else has to
know.
"""

from __future__ import annotations

import io
import os
import stat
import time

from manyhands._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["whole_lines"]

# Up to so many bytes a line is written at once.
_LONGEST = 1 << 20

# So often the processor is given away for the lock, before there are pauses, of so many seconds.
_SPINS = 20
_PAUSE = 0.0005
# After so many in which the pipe had room, and who has the lock did not write: it stands still.
_MOST_PAUSES = 1000


def whole_lines(stream: TextIO) -> TextIO:
    """The same stream, for a process that is to write whole lines only."""
    try:
        descriptor = stream.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        stream.flush()
    except (OSError, ValueError):
        return stream  # it was closed
    raw: Any = (_Turns if is_pipe else io.FileIO)(descriptor, "w", closefd=False)
    name = getattr(stream, "name", None)
    if name is not None:
        raw.name = name
    lines = io.TextIOWrapper(
        io.BufferedWriter(raw, _LONGEST),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=True,
    )
    lines.mode = "w"  # type: ignore[misc]
    return lines


class _Turns(io.FileIO):
    """Writes all that it is given with nothing of others in between."""

    def write(self, data: Any) -> Any:
        is_locked = self._lock()
        try:
            view, written = memoryview(data), 0
            while written < len(view):
                count = super().write(view[written:])
                if count is None:
                    return written or None  # a pipe that somebody has set not to be waited for
                written += count
            return written
        finally:
            if is_locked:
                import fcntl

                fcntl.lockf(self.fileno(), fcntl.LOCK_UN)

    def _lock(self) -> bool:
        import fcntl

        descriptor = self.fileno()
        spins, pauses = 0, 0
        while pauses < _MOST_PAUSES:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                pass  # another one writes
            except OSError:
                return False  # no lock can be had: the write itself says what is wrong
            else:
                return True
            if spins < _SPINS:
                spins += 1
                time.sleep(0)
            else:
                import select

                # Where there is no room all wait for the reader, with and without a lock.
                pauses += bool(select.select((), (descriptor,), (), 0)[1])
                time.sleep(_PAUSE)
        return False
