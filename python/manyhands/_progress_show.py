"""Where progress is shown: a terminal's line, a notebook's cell, a log, or what the user gave.

**The terminal.** The bar is drawn in the line below the cursor, and the cursor goes back to where
it was. So the program, its workers and the person who types go on at a place of their own, and what
they write is never overwritten. Before the program itself prints, the bar is taken away (its
streams' `write` is wrapped as long as there is a bar), and drawn anew below. A worker's line is
clean too, unless many come within a tenth of a second. Nothing is drawn while the terminal is
another's: the program runs in the background, or something reads single keys from the terminal,
as a prompt, an editor or a pager does.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from manyhands._progress_text import line, sentence

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from manyhands._progress import Counts

__all__ = ["Display", "kind_of", "open_display"]

_LINES_SECONDS = 10.0

# After a print the bar is drawn again at once, unless prints come faster than this.
_REDRAW_SECONDS = 0.02

# Clear the rest of this line; make sure of a line below (index, up); save the cursor; draw there
# and clear all after it; go back.
_DRAW = "\x1b[K\x1bD\x1b[A\x1b7\x1b[B\r{}\x1b[J\x1b8"
_ERASE = b"\x1b[J"


class Display(Protocol):
    """Something that shows counts. Its methods are called one at a time."""

    def show(self, counts: Counts) -> None: ...
    def end(self, counts: Counts) -> None: ...


def kind_of(target: Any) -> str:
    """What was given as `progress=`: "rich", "tqdm" or "function", by what it can do.

    Raises:
        TypeError: none of that.
    """
    if not isinstance(target, type):
        if hasattr(target, "add_task") and hasattr(target, "update"):
            return "rich"
        if hasattr(target, "update") and hasattr(target, "n") and hasattr(target, "refresh"):
            return "tqdm"
        if callable(target):
            return "function"
    given = f"the class {target.__name__}" if isinstance(target, type) else repr(target)
    raise TypeError(
        f"progress= takes True, False, a function, a bar of tqdm or a rich.progress.Progress, "
        f"not {given}"
    )


def open_display(
    kind: str, target: Any, label: str, context: contextvars.Context | None
) -> Display:
    """What shows the progress of one map."""
    if kind == "terminal":
        return TerminalLine(target, label)
    if kind == "notebook":
        assert context is not None
        return NotebookCell(label, context)
    if kind == "lines":
        return Lines(target, label)
    if kind == "rich":
        return RichTask(target, label)
    if kind == "tqdm":
        return TqdmBar(target)
    return Called(target)


# ------------------------------------------------------------------------------------- a terminal


class TerminalLine:
    """A bar in the line below the cursor of the terminal that the stream leads to."""

    def __init__(self, stream: Any, label: str) -> None:
        self._label = label
        self._descriptor = stream.fileno()
        self._unicode = _can_write_blocks(stream)
        self._lock = threading.RLock()  # a signal handler may print within a print
        self._bytes = b""
        self._is_drawn = False
        self._drawn_at = 0.0
        self._ended = False
        # Streams whose `write` is ours for now, and what it is.
        self._wrapped: list[tuple[io.TextIOWrapper, Callable[[str], int]]] = []

    def show(self, counts: Counts) -> None:
        columns, rows = self._size()
        if not self._is_ours():
            if hasattr(sys, "ps1"):
                with self._lock:
                    self._erase()  # what reads keys is the prompt, which has its own line
            return
        if rows < 3:
            return
        text = line(counts, self._label, columns - 1, self._unicode)
        with self._lock:
            self._bytes = _DRAW.format(text).encode("utf-8" if self._unicode else "ascii")
            try:
                self._draw()
            except OSError:
                self._unwrap()
                raise
            if not self._wrapped:
                self._wrap()

    def end(self, counts: Counts) -> None:
        del counts
        with self._lock:
            self._ended = True
            self._unwrap()
            if self._is_ours():
                self._erase()

    def _size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self._descriptor)
        except OSError:
            columns = rows = 0
        return columns or 80, rows or 24  # some say 0 for what they do not know

    def _is_ours(self) -> bool:
        """Whether this program is in the foreground, and nobody reads keys from the terminal."""
        import termios

        try:
            if os.tcgetpgrp(self._descriptor) != os.getpgrp():
                return False
        except OSError:
            pass  # not our controlling terminal: there is no foreground to be in
        try:
            modes = termios.tcgetattr(self._descriptor)[3]
        except termios.error:
            return False  # the terminal is gone
        return bool(modes & termios.ICANON and modes & termios.ECHO)

    def _draw(self) -> None:
        os.write(self._descriptor, self._bytes)
        self._is_drawn = True
        self._drawn_at = monotonic()

    def _erase(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            os.write(self._descriptor, _ERASE)

    # ------------------------------------------------------------------ around the program's prints

    def _wrap(self) -> None:
        _wrapping.append(self)  # first: another thread may fork at any moment
        for stream in {id(stream): stream for stream in (sys.stdout, sys.stderr)}.values():
            # What is no plain stream does with its text what it likes.
            if type(stream) is io.TextIOWrapper and not stream.closed and stream.isatty():
                wrapped = self._around(stream.write)
                self._wrapped.append((stream, wrapped))
                stream.write = wrapped  # type: ignore[method-assign]

    def _unwrap(self) -> None:
        for stream, wrapped in self._wrapped:
            if stream.__dict__.get("write") is wrapped:
                del stream.__dict__["write"]
        self._wrapped.clear()
        if self in _wrapping:
            _wrapping.remove(self)

    def _around(self, write: Callable[[str], int]) -> Callable[[str], int]:
        def write_around_bar(text: str, /) -> int:
            if self._ended:  # somebody kept this function
                return write(text)
            with self._lock:
                self._quietly(self._erase)
                length = write(text)
                if "\n" in text and monotonic() - self._drawn_at >= _REDRAW_SECONDS:
                    self._quietly(self._draw)
                return length

        return write_around_bar

    def _quietly(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError:
            pass  # the print is the program's, and tells of a terminal that is gone

    def forget(self) -> None:
        """In a child of fork: the bar is the parent's."""
        self._ended = True
        self._unwrap()


def _can_write_blocks(stream: Any) -> bool:
    # The bar is written past the stream, so its other encodings are left alone.
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


_wrapping: list[TerminalLine] = []


def _after_fork_in_child() -> None:
    for display in list(_wrapping):
        display.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)


# ------------------------------------------------------------------------------------ plain lines


class Lines:
    """A sentence every ten seconds, and one at the end."""

    def __init__(self, stream: Any, label: str) -> None:
        self._stream = stream
        self._label = label
        self._next = _LINES_SECONDS

    def show(self, counts: Counts) -> None:
        if counts.elapsed >= self._next:
            self._next = counts.elapsed + _LINES_SECONDS
            self._say(counts)

    def end(self, counts: Counts) -> None:
        self._say(counts)

    def _say(self, counts: Counts) -> None:
        self._stream.write(sentence(counts, self._label) + "\n")
        self._stream.flush()


# -------------------------------------------------------------------------------------- a notebook


class _Cell:
    """What a notebook shows: a bar and a line, or nothing any more."""

    def __init__(self, counts: Counts | None, text: str) -> None:
        self._counts = counts
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        if self._counts is None:
            return ""
        import html

        done, total = self._counts.done, self._counts.total
        bar = (
            "" if total is None else f'<progress value="{done}" max="{max(total, 1)}"></progress> '
        )
        return f"<div>{bar}<code>{html.escape(self._text)}</code></div>"


class NotebookCell:
    """An output of the cell that started the map; empty at the end."""

    def __init__(self, label: str, context: contextvars.Context) -> None:
        self._label = label
        self._context = context
        self._handle: Any = None

    def show(self, counts: Counts) -> None:
        # The notebook has its own bar.
        text = line(counts, self._label, 100, True, bar=False)
        self._update(_Cell(counts, text))

    def end(self, counts: Counts) -> None:
        del counts
        if self._handle is not None:
            self._update(_Cell(None, ""))

    def _update(self, cell: _Cell) -> None:
        if self._handle is not None:
            self._context.run(self._handle.update, cell)
            return
        from IPython.display import display

        self._handle = self._context.run(display, cell, display_id=True)


# ------------------------------------------------------------------------------ what the user gave


class Called:
    """A function of the user's."""

    def __init__(self, function: Callable[[Counts], object]) -> None:
        self._function = function

    def show(self, counts: Counts) -> None:
        self._function(counts)

    def end(self, counts: Counts) -> None:
        self._function(counts)


class TqdmBar:
    """A bar of tqdm, or what behaves like one. It stays open: it is the user's."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._told = 0

    def show(self, counts: Counts) -> None:
        if counts.total is not None and getattr(self._bar, "total", 0) is None:
            self._bar.total = counts.total
        self._bar.update(counts.done - self._told)
        self._told = counts.done

    def end(self, counts: Counts) -> None:
        self.show(counts)
        self._bar.refresh()


class RichTask:
    """A task of a `rich.progress.Progress`, which is started, and stopped again, if it was not."""

    def __init__(self, progress: Any, label: str) -> None:
        self._progress = progress
        live = getattr(progress, "live", None)
        self._starts_it = live is not None and not live.is_started
        self._task = progress.add_task(label.replace("[", "\\["), total=None)
        if self._starts_it:
            progress.start()

    def show(self, counts: Counts) -> None:
        total = counts.done if counts.total is None and counts.ended else counts.total
        self._progress.update(self._task, completed=counts.done, total=total)

    def end(self, counts: Counts) -> None:
        self.show(counts)
        if self._starts_it:
            self._progress.stop()
