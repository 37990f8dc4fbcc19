"""The inputs of `manyhands map`: paths, lines, JSON records and rows, as items with a reference.

A record is not read here but in a worker, except that rows have to be told from each other. One
that is malformed is an item all the same, with a sentence about what is wrong.

**Input that comes slowly.** The thread that takes results also takes the input, so it must not wait
for input while tasks run: their results would wait too. So while nothing comes from a pipe or
terminal, pauses are given as items, for as long as any item is on its way. A pause does nothing in
its worker, and comes back in its place; when all items are back, the input is waited for. Pauses
follow each other more slowly the longer nothing comes, so a result is late by a quarter of the time
that it took, and by a tenth of a second at most.
"""

from __future__ import annotations

import csv
import os
import select
import signal
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from manyhands._command_line import UsageError

if TYPE_CHECKING:
    from manyhands._command_task import Item

__all__ = ["Flow", "PathInput", "RecordInput"]

_SHORTEST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_READ_BYTES = 1 << 16
# A row goes on over so many lines, or this many characters; what is longer has an open quote.
_ROW_LINES = 1000
_FIELD_CHARACTERS = 1 << 24


class Flow:
    """How many items were given and have come back.

    Attributes:
        given: items that were taken as input, pauses counted.
        returned: those whose results were taken.
        batch: how many travel together.
    """

    def __init__(self, batch: int) -> None:
        self.given = 0
        self.returned = 0
        self.batch = batch

    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        return self.given == self.returned

    def is_batch_open(self) -> bool:
        """Whether the last batch lacks items, and so has not been started."""
        return self.given % self.batch != 0


class PathInput:
    """Paths; each is an item.

    >>> list(PathInput(["a", "b"]).items(Flow(1)))
    [(0, 'a', None, None), (1, 'b', None, None)]
    """

    header: tuple[str, ...] = ()

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self.total: int | None = len(paths)

    def items(self, flow: Flow) -> Iterator[Item]:
        """The items, in their order."""
        for index, path in enumerate(self._paths):
            flow.given += 1
            yield index, path, None, None


class RecordInput:
    """The records of a file, or of standard input as `-`.

    Attributes:
        header: the names of the columns of a table.
        total: how many records there are, which nobody knows.

    Raises:
        UsageError: the file cannot be read, or a table has no usable header.
    """

    total: int | None = None

    def __init__(self, file: str, form: str) -> None:
        self.header: tuple[str, ...] = ()
        self._form = form
        self._name = "<stdin>" if file == "-" else file
        try:
            # Open for as long as items are taken.
            self._file: BinaryIO = open(  # noqa: SIM115
                0 if file == "-" else file, "rb", closefd=file != "-"
            )
            regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        except OSError as error:
            raise UsageError(f"{self._name} cannot be read: {error.strerror}.") from None
        self._arrivals = None if regular else _Arrivals(self._file.fileno())
        lines = _without_mark(_lines_of(self._file) if regular else iter(self._arrivals or ()))
        self._rows = _Rows(lines) if form == "csv" else None
        self._lines = lines
        if self._rows is not None:
            self.header = self._read_header(self._rows)

    def items(self, flow: Flow) -> Iterator[Item]:
        """The items, in their order, and pauses while nothing comes."""
        if self._arrivals is not None:
            self._arrivals.flow = flow
        records = self._numbered_lines() if self._rows is None else self._checked(self._rows)
        index = 0
        for found in records:
            flow.given += 1
            if found is None:
                yield ()
                continue
            line, record, problem = found
            yield index, f"{self._name}:{line}", record, problem
            index += 1

    def _numbered_lines(self) -> Iterator[tuple[int, bytes, None] | None]:
        blank_is_nothing = self._form == "jsonl"
        number = 0
        for line in self._lines:
            if line is None:
                yield None
                continue
            number += 1
            if blank_is_nothing and not line.strip():
                continue
            yield number, line[:-1] if line.endswith(b"\r") else line, None

    def _read_header(self, rows: _Rows) -> tuple[str, ...]:
        for found in rows:
            if found is None:
                continue
            line, names, problem = found
            if problem is not None:
                raise UsageError(f"{self._name}:{line}, the header, {problem}.")
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise UsageError(
                    f"{self._name}:{line}: the header has the name {min(twice)!r} twice."
                )
            return tuple(names)
        return ()

    def _checked(self, rows: _Rows) -> Iterator[tuple[int, Any, str | None] | None]:
        width = len(self.header)
        for found in rows:
            if found is not None and found[2] is None and len(found[1]) != width:
                line, fields, _ = found
                yield line, None, f"has {_count(len(fields), 'field')}, and the header has {width}"
            else:
                yield found


class _Arrivals:
    """Lines from a pipe or terminal, and None for a pause. They have no line ends.

    A signal ends each wait for them. One that comes between the interpreter's look for signals and
    the system call would not by itself, nor would one that the kernel hands to another thread.
    """

    def __init__(self, descriptor: int) -> None:
        self.flow: Flow | None = None  # without it, what comes is waited for
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def __iter__(self) -> Iterator[bytes | None]:
        signals, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        self._poll.register(signals, select.POLLIN)
        try:
            yield from self._read_lines()
        finally:
            signal.set_wakeup_fd(before)
            self._poll.unregister(signals)
            os.close(signals)
            os.close(told)

    def _read_lines(self) -> Iterator[bytes | None]:
        begun: list[bytes] = []
        while True:
            yield from self._pauses()
            data = os.read(self._descriptor, _READ_BYTES)
            if not data:
                break
            first, *others = data.split(b"\n")
            begun.append(first)
            if others:
                yield b"".join(begun)
                yield from others[:-1]
                begun = [others[-1]]
        last = b"".join(begun)
        if last:
            yield last

    def _pauses(self) -> Iterator[None]:
        waited = 0.0
        while True:
            pause = None
            if self.flow is not None and not self.flow.is_idle():
                pause = min(max(waited / 4, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            ready = [place for place, _ in self._poll.poll(pause and pause * 1000)]
            if self._descriptor in ready:
                return
            for place in ready:
                os.read(place, _READ_BYTES)  # by now the signal's handler has run
            if pause is None:
                continue
            assert self.flow is not None
            waited += pause
            yield None
            while self.flow.is_batch_open():
                yield None


def _lines_of(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file that is there already, without line ends."""
    with file:
        for line in file:
            yield line[:-1] if line.endswith(b"\n") else line


def _without_mark(lines: Iterable[bytes | None]) -> Iterator[bytes | None]:
    """Drops the byte order mark that some programs begin a file with."""
    first = True
    for line in lines:
        if first and line is not None:
            first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield line


class _Rows:
    """The rows of a table: number of the first line, fields, and what is wrong with it.

    A quote that is never closed spoils its own line alone; reading goes on behind that.
    """

    def __init__(self, lines: Iterator[bytes | None]) -> None:
        self._lines = lines
        self._again: deque[bytes] = deque()
        self._number = 0
        csv.field_size_limit(_FIELD_CHARACTERS)

    def __iter__(self) -> Iterator[tuple[int, Any, str | None] | None]:
        while True:
            try:
                line = self._again.popleft() if self._again else next(self._lines)
            except StopIteration:
                return
            if line is None:
                yield None
                continue
            self._number += 1
            row = self._row(line)
            if row is not None:
                yield row

    def _row(self, line: bytes) -> tuple[int, Any, str | None] | None:
        """The row that begins with this line; None for an empty line."""
        number = self._number
        taken = [line]
        try:
            fields = next(csv.reader(self._texts(taken), strict=True))
        except csv.Error as error:
            if len(taken) > 1:
                self._again.extendleft(reversed(taken[1:]))
                self._number = number
            problem = str(error)
            if problem == "unexpected end of data":
                problem = "a quote is not closed"
            return number, None, f"is no row of a table: {problem}"
        if not fields:
            return None
        try:
            "".join(fields).encode()
        except UnicodeEncodeError:
            return number, None, "is not UTF-8"
        return number, fields, None

    def _texts(self, taken: list[bytes]) -> Iterator[str]:
        """Lines as text, for as long as the row goes on; bytes that are no text are marked."""
        yield taken[0].decode(errors="surrogateescape") + "\n"
        while len(taken) < _ROW_LINES:
            try:
                line = self._again.popleft() if self._again else next(self._lines)
            except StopIteration:
                return
            if line is None:
                continue  # the rest of a row that was begun is waited for
            taken.append(line)
            self._number += 1
            yield line.decode(errors="surrogateescape") + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
