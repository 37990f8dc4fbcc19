"""A worker's side of `capture=`: what a task writes goes to a file of the parent.

Imported with the first such task. See `_capture` for what becomes of the file.
"""

from __future__ import annotations

import fcntl
import io
import marshal
import os
import sys

from manyhands import _core
from manyhands._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["begin", "end", "is_running"]

# As in `_capture`, which workers do not import.
CAPTURED = 8
NAME = "manyhands-output"
# Stands in front of what a task writes: it is gone where somebody has cut the file off.
MARK = b"\0\xffbegin\xff\0"

# The most bytes of a note of text, and of the beginning and the end of what is sent by notes.
_MOST_BYTES = 40_000
_HALF = 256 << 10


class _Place:
    """Where the output of this worker's tasks goes while they run."""

    def __init__(self, origin: tuple[int, int] | None) -> None:
        self.origin = origin
        # Of one that has none of the parent's nothing outlives this process.
        self.file = _make() if origin is None else _open(*origin)


class _Running:
    """A task whose output is kept."""

    def __init__(self, place: _Place, number: int, index: int, start: int) -> None:
        self.place = place
        self.number = number
        self.index = index
        self.start = start
        # What the descriptors 1 and 2 were; None where one was closed.
        self.descriptors: list[int | None] = []
        self.streams = sys.stdout, sys.stderr


_place: _Place | None = None
_running: _Running | None = None
_streams: tuple[TextIO, TextIO] | None = None


def _make() -> int:
    file = os.memfd_create(NAME)
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    return file


def _open(pid: int, number: int) -> int:
    file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    if f"memfd:{NAME}" not in os.readlink(f"/proc/self/fd/{file}"):
        os.close(file)
        raise OSError("the parent has closed its file")
    return file


def _place_for(slot: int, pid: int, files: tuple[int, ...]) -> _Place:
    global _place
    origin = (pid, files[slot]) if slot < len(files) else None
    if _place is None or (_place.origin != origin and origin is not None):
        before = _place
        try:
            _place = _Place(origin)
        except OSError:
            # What one process may open of another's the system decides, or somebody who runs it.
            _place = _Place(None)
        if before is not None:
            os.close(before.file)
    return _place


def begin(key: bytes, index: int, slot: int) -> None:
    """What is written from here on is the task's of that key, or its item's of that index."""
    global _running, _streams
    end()
    number, pid, files = marshal.loads(key)
    place = _place_for(slot, pid, files)
    if _streams is None or any(stream.closed for stream in _streams):
        _streams = _stream(1), _stream(2)
    # What was printed before is not the task's.
    _flush(sys.stdout, sys.stderr)
    start = os.lseek(place.file, 0, os.SEEK_END) + len(MARK)
    os.write(place.file, MARK)
    _running = running = _Running(place, number, index, start)
    for descriptor in (1, 2):
        try:
            saved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
        except OSError:
            saved = None
        running.descriptors.append(saved)
        os.dup2(place.file, descriptor)
    sys.stdout, sys.stderr = _streams
    _core.put_output(CAPTURED, marshal.dumps((number, index, place.origin is not None, start)))


def is_running() -> bool:
    """Whether a task runs whose output is kept."""
    return _running is not None


def end() -> None:
    """That task has ended: its streams are again what they were."""
    global _running
    running = _running
    if running is None:
        return
    # Also what others have kept of these streams, and have written to them.
    _flush(*running.streams)
    _running = None
    assert _streams is not None
    # What the task itself has put there stays, as it does without `capture=`.
    if sys.stdout is _streams[0]:
        sys.stdout = running.streams[0]
    if sys.stderr is _streams[1]:
        sys.stderr = running.streams[1]
    for descriptor, saved in zip((1, 2), running.descriptors, strict=False):
        if saved is None:
            os.close(descriptor)
        else:
            os.dup2(saved, descriptor)
            os.close(saved)
    place = running.place
    size = os.fstat(place.file).st_size
    if place.origin is None:
        _send(running, size)
    content = (running.number, running.index, None, size)
    _core.put_output(CAPTURED, marshal.dumps(content))


def _send(running: _Running, size: int) -> None:
    """Sends what lies in a file that is this worker's own, the middle of what is long left out."""
    file, at = running.place.file, running.start
    if os.pread(file, len(MARK), at - len(MARK)) != MARK:
        at = 0
    first = at
    left_out = size - at - 2 * _HALF
    while at < size:
        data = os.pread(file, min(_MOST_BYTES, size - at), at)
        at += len(data)
        if left_out > 0 and at - first > _HALF:
            data += f"\n... {left_out:,} bytes are left out ...\n".encode()
            at, left_out = at + left_out, 0
        content = (running.number, running.index, data, 0)
        _core.put_output(CAPTURED, marshal.dumps(content))
    os.ftruncate(file, 0)


def _stream(descriptor: int) -> TextIO:
    """A stream that holds nothing back, as those of `python -u`.

    It stays for the worker's life, so that what a task keeps of it goes on to write to the
    descriptor, whatever that is by then.
    """
    raw: Any = io.FileIO(descriptor, "w", closefd=False)
    stream = io.TextIOWrapper(
        raw, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True
    )
    stream.mode = "w"  # type: ignore[misc]
    return stream


def _flush(*streams: TextIO | None) -> None:
    for stream in streams:
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # the reader is gone, a task closed it, or put something else there
