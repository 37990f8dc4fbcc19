"""What tasks write to standard output and errors, kept for their futures: `capture=`.

A worker process writes to a file of this process, one for each place of a worker, and says by notes
where the output of a task begins and where it ends (`_capture_worker`). Here `Reader` of `_logs`
hands these notes to the pool's `Captures`, which copies what lies between. In this process, for
threads and inline, the streams in `sys` ask which task the thread runs.
"""

from __future__ import annotations

import io
import itertools
import marshal
import os
import sys
import threading
import time
from collections import OrderedDict
from weakref import WeakSet, WeakValueDictionary

from manyhands import _core
from manyhands._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

    from manyhands._logs import Reader

__all__ = ["CAPTURED", "Captures", "Kept", "KeptOfMap", "forget_parent"]

# As in `_capture_worker`.
CAPTURED = 8
_NAME = "manyhands-output"
_MARK = b"\0\xffbegin\xff\0"

# So many bytes of what a task has written are kept of its beginning, and of its end.
_HALF = 512 << 10

# So much of a map is kept: items, and bytes.
_MOST_ITEMS = 10_000
_MOST_BYTES = 64 << 20

# Where a worker that has died had no file of this process.
_UNKNOWN = "... what came then is lost: the worker has died, and wrote to a file of its own ...\n"

# Where a program has begun its standard output or errors anew, as `> /dev/stderr` does.
_CUT_OFF = b"... what was written here is lost: a program has begun the output anew ...\n"

# So often it is looked how much those have written that run, in seconds: more seldom while they do
# not write. What is more than so much is taken then.
_LOOK_AT_LEAST, _LOOK_AT_MOST = 0.25, 4.0
_MUCH = 2 * _HALF

_numbers = itertools.count(1)
# What tasks write, all of it, for `forget_parent`.
_all: WeakSet[_Known] = WeakSet()


class _Known:
    """What is known by a key to the workers of a pool; without `captures` it is of this process."""

    def __init__(self, captures: Captures | None) -> None:
        self._captures = captures
        self._number = next(_numbers)
        self._lock = threading.Lock()
        _all.add(self)
        if captures is not None:
            captures.keep(self._number, self)

    @property
    def key(self) -> bytes:
        """What a worker has to know."""
        assert self._captures is not None
        return self._captures.key(self._number)

    def of(self, index: int) -> Kept:
        """That of an item, which is about to run."""
        raise NotImplementedError

    def ended(self, index: int) -> None:
        """An item, or an attempt of it, has ended."""
        raise NotImplementedError

    def enter(self, index: int) -> _Inside:
        """This thread runs that item from here on, until the answer's `leave`."""
        return _Inside(self, index)

    def _settle(self) -> None:
        """Waits until what has come was handled."""
        if self._captures is not None:
            self._captures.settle()


class Kept(_Known):
    """What one task has written, in all of its attempts: the beginning and the end of it."""

    def __init__(self, captures: Captures | None) -> None:
        super().__init__(captures)
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0
        # Where it begins what it writes just now, or has written when its worker died.
        self._open: tuple[_File, int] | None = None
        # Where that began, behind a mark; 0 once somebody has cut the file off.
        self._began = 0
        # Whether it writes where nobody else can look.
        self._is_hidden = False

    def of(self, index: int) -> Kept:
        """This one, of a task that was submitted."""
        return self

    def ended(self, index: int) -> None:
        """Nothing changes with the end of the task, or of an attempt of it."""

    def text(self) -> str:
        """What was written so far."""
        self._settle()
        with self._lock:
            self._look()
            head, tail = bytes(self._head), bytes(self._tail[-_HALF:])
            left_out = self._left_out + len(self._tail) - len(tail)
            is_hidden = self._is_hidden
        if left_out:
            # Whole lines, where they are not very long.
            cut = head.rfind(b"\n", -4096) + 1 or len(head)
            start = tail.find(b"\n", 0, 4096) + 1
            left_out += len(head) - cut + start
            line = f"... {left_out:,} bytes are left out ...\n".encode()
            if not head.endswith(b"\n", 0, cut):
                line = b"\n" + line
            head, tail = head[:cut] + line, tail[start:]
        text = (head + tail).decode("utf-8", "backslashreplace")
        if is_hidden:
            text += _UNKNOWN
        return text

    def size(self) -> int:
        """How many bytes are kept."""
        return len(self._head) + len(self._tail)

    def write(self, data: bytes) -> None:
        """The task has written this."""
        with self._lock:
            self._add(data)

    def begin(self, file: _File | None, start: int) -> None:
        """An attempt of it has begun, which writes to that file from there on."""
        with self._lock:
            self._look()
            self._close()
            if file is None:
                self._is_hidden = True
            else:
                self._open, self._began = (file, start), start

    def end(self, at: int) -> None:
        """It has ended, and so has what it wrote, there."""
        with self._lock:
            self._is_hidden = False
            self._look(at)
            self._close()

    def look(self) -> bool:
        """Takes what it has written while it runs, where that is much; whether it was."""
        with self._lock:
            if self._open is None:
                return False
            file, start = self._open
            if file.size() - start < _MUCH:
                return False
            self._look()
            # The mark goes with it.
            self._began = 0
            file.ended(self._open[1])
            return True

    def cut_off(self, file: _File | None) -> None:
        """Its worker has died, and another one writes to the same file."""
        with self._lock:
            if self._open is not None and self._open[0] is file:
                self._look()
                self._close()

    def _close(self) -> None:
        if self._open is not None:
            file, start = self._open
            self._open = None
            file.ended(start)

    def _look(self, until: int | None = None) -> None:
        """Takes what it has written since, until there, if that is known, or another begins."""
        if self._open is None:
            return
        file, start = self._open
        size = file.size()
        mark = self._began - len(_MARK)
        if size < start or (self._began and file.read(mark, len(_MARK)) != _MARK):
            start = self._began = 0
            self._add(_CUT_OFF)
        at = file.find(_MARK, start, size) if until is None else min(until, size)
        if at - start > 2 * _HALF:
            self._add(file.read(start, _HALF))
            self._left_out += len(self._tail) + at - start - 2 * _HALF
            self._tail.clear()
            start = at - _HALF
        self._add(file.read(start, at - start))
        self._open = file, max(start, at)

    def _add(self, data: bytes) -> None:
        room = _HALF - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * _HALF:
            self._left_out += len(self._tail) - _HALF
            del self._tail[:-_HALF]


class KeptOfMap(_Known):
    """What the items of a map have written: the newest of those that have written something."""

    def __init__(self, captures: Captures | None) -> None:
        super().__init__(captures)
        # Also those whose workers have died, until another one begins there.
        self._running: dict[int, Kept] = {}
        self._ended: OrderedDict[int, Kept] = OrderedDict()
        self._bytes = 0

    def of(self, index: int) -> Kept:
        """That of an item, which is about to run."""
        with self._lock:
            found = self._ended.pop(index, None)
            if found is not None:
                self._bytes -= found.size()
            else:
                found = self._running.get(index) or Kept(None)
            self._running[index] = found
            return found

    def ended(self, index: int) -> None:
        """An item, or an attempt of it, has ended: the oldest go where they are too many."""
        with self._lock:
            found = self._running.pop(index, None)
            if found is None or not found.size():
                return
            self._ended[index] = found
            self._bytes += found.size()
            while len(self._ended) > _MOST_ITEMS or self._bytes > _MOST_BYTES:
                _, oldest = self._ended.popitem(last=False)
                self._bytes -= oldest.size()

    def text(self, index: int) -> str:
        """What that item has written so far."""
        self._settle()
        with self._lock:
            found = self._ended.get(index) or self._running.get(index)
        return "" if found is None else found.text()

    def texts(self) -> dict[int, str]:
        """The same of all items that have written something, by their indexes."""
        self._settle()
        with self._lock:
            items = sorted((*self._ended.items(), *self._running.items()))
        texts = ((index, kept.text()) for index, kept in items)
        return {index: text for index, text in texts if text}


class _File:
    """A memory file to which the workers of one place write, one after another."""

    def __init__(self) -> None:
        self.number = os.memfd_create(_NAME)
        # What lies before that has no memory any more.
        self._given = 0

    def __del__(self) -> None:
        os.close(self.number)

    def size(self) -> int:
        return os.fstat(self.number).st_size

    def read(self, start: int, length: int) -> bytes:
        parts = []
        while length > 0 and (part := os.pread(self.number, length, start)):
            parts.append(part)
            start += len(part)
            length -= len(part)
        return b"".join(parts)

    def find(self, what: bytes, start: int, end: int) -> int:
        """Where that begins which stands there first; the end, if nothing of it does."""
        while start < end:
            part = self.read(start, min(_HALF, end - start))
            found = part.find(what)
            if found >= 0:
                return start + found
            if start + len(part) >= end or len(part) < len(what):
                return end
            start += len(part) - len(what) + 1
        return end

    def ended(self, at: int) -> None:
        """Nobody reads again what lies before that."""
        if at - self._given >= _HALF or at < self._given:
            _core.give_back(self.number, 0, at)
            self._given = at


class Captures:
    """Where the workers of a pool write what is kept, and for whom."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._files: list[_File] = []
        self._kept: WeakValueDictionary[int, _Known] = WeakValueDictionary()
        # What began at each place last, and has not ended: of that map, the item of that index.
        self._running: dict[int, tuple[Kept, _Known, int]] = {}
        self._pid = os.getpid()
        self._pause = _LOOK_AT_LEAST
        self._looked_at = 0.0

    def prepare(self, workers: int) -> None:
        """Before a call: as many workers may write."""
        while len(self._files) < workers:
            self._files.append(_File())

    def keep(self, number: int, kept: _Known) -> None:
        self._kept[number] = kept

    def key(self, number: int) -> bytes:
        return marshal.dumps((number, self._pid, tuple(file.number for file in self._files)))

    def settle(self) -> None:
        """Waits until what has come was handled."""
        self._reader.stream.settle()

    def look(self) -> float:
        """Looks how much those have written that run, if it is time; when to look again."""
        if not self._running:
            return 3600.0
        now = time.monotonic()
        if now >= self._looked_at + self._pause:
            self._looked_at = now
            # In a list: those that write much at once are all looked at.
            is_much = any([kept.look() for kept, _, _ in self._running.values()])
            self._pause = _LOOK_AT_LEAST if is_much else min(2 * self._pause, _LOOK_AT_MOST)
        return self._looked_at + self._pause - now

    def handle(self, place: int, data: bytes) -> None:
        """A note of the worker at that place, in the thread that handles them."""
        number, index, what, at = marshal.loads(data)
        if what is None:
            running = self._running.pop(place, None)
            if running is not None:
                kept, whole, index = running
                kept.end(at)
                whole.ended(index)
        elif isinstance(what, bytes):
            running = self._running.get(place)
            if running is not None:
                running[0].write(what)
        else:
            self._begin(place, number, index, self._files[place] if what else None, at)

    def _begin(self, place: int, number: int, index: int, file: _File | None, at: int) -> None:
        died = self._running.pop(place, None)
        if died is not None:
            kept, whole, of = died
            kept.cut_off(file)
            whole.ended(of)
        found = self._kept.get(number)
        if found is not None:
            kept = found.of(index)
            kept.begin(file, at)
            self._running[place] = kept, found, index
            self._pause = _LOOK_AT_LEAST
        elif file is not None:
            file.ended(at)  # nobody can ask any more


# ---- In this process: threads and inline ----------------------------------------------------


class _Current(threading.local):
    """What this thread writes is kept there."""

    kept: Kept | None = None


_current = _Current()
_lock = threading.Lock()
_inside = 0
_before: tuple[Any, Any] = (None, None)


def forget_parent() -> None:
    """In a child of fork: another thread of the parent may have held a lock; and what the child
    writes nobody would ask for."""
    global _lock
    _lock = threading.Lock()
    for known in list(_all):
        known._lock = threading.Lock()
    _current.kept = None


class _Inside:
    """From here on, until `leave`, what this thread writes is a task's."""

    def __init__(self, whole: _Known, index: int) -> None:
        global _inside, _before
        kept = whole.of(index)
        self._whole = whole
        self._index = index
        self._outer = _current.kept
        self._is_over = False
        with _lock:
            if _inside == 0:
                _before = sys.stdout, sys.stderr
                # Not around one that somebody has kept, and put there again.
                if not isinstance(sys.stdout, _Stream):
                    sys.stdout = _Stream(sys.stdout)
                if not isinstance(sys.stderr, _Stream):
                    sys.stderr = _Stream(sys.stderr)
            _inside += 1
        _current.kept = kept

    def leave(self) -> None:
        """The task has ended."""
        global _inside, _before
        if self._is_over:
            return
        self._is_over = True
        _current.kept = self._outer
        with _lock:
            _inside -= 1
            if _inside == 0:
                # What others have put there meanwhile stays.
                if isinstance(sys.stdout, _Stream):
                    sys.stdout = _before[0]
                if isinstance(sys.stderr, _Stream):
                    sys.stderr = _before[1]
                _before = (None, None)
        self._whole.ended(self._index)


class _Bytes(io.RawIOBase):
    """The bytes beneath a stream, of one task."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._kept.write(data)
        return len(data)


class _Stream:
    """Stands in `sys` for a stream: what a thread writes that runs a task is kept with that."""

    def __init__(self, real: TextIO | None) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, text: str) -> int:
        kept = _current.kept
        if kept is None:
            return len(text) if self._real is None else self._real.write(text)
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        kept.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if _current.kept is None and self._real is not None:
            self._real.flush()

    def isatty(self) -> bool:
        return _current.kept is None and self._real is not None and self._real.isatty()

    @property
    def buffer(self) -> Any:
        kept = _current.kept
        if kept is not None:
            return _Bytes(kept)
        return getattr(self._real, "buffer", None)
