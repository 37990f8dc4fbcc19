"""A worker's side of forwarding: its log records are handled by its parent, and what it prints is
shown by a parent that is the kernel of a notebook.

Imported by workers whose parent wants them, and by the zygote before it forks such workers.
"""

from __future__ import annotations

import io
import logging
import marshal
import os
import sys
from _pickle import dumps

from manyhands import _cells, _core
from manyhands._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["ERRORS", "LOG", "OUTPUT", "begin"]

# What a note is: the same in `_logs`, and a bit of what the parent wants; errors come with output.
LOG, OUTPUT, ERRORS = 1, 2, 4

# The most characters of a note of text.
_MOST_CHARACTERS = 10_000

# The most bytes of a record; a longer one has its long parts shortened to so many.
_MOST_BYTES = 40_000
_SHORTENED = 16_000

_formatter = logging.Formatter()
# What every record has; everything else is what the program has added by `extra=`.
_OWN = frozenset(vars(logging.makeLogRecord({})))


def begin(wanted: int, content: bytes) -> None:
    """Takes what the parent has told of its logging at this worker's birth."""
    if wanted & OUTPUT:
        sys.stdout = _Stream(OUTPUT, sys.stdout)
        sys.stderr = _Stream(ERRORS, sys.stderr)
    settings = marshal.loads(content).get("logging")
    if wanted & LOG and settings is not None:
        _configure(settings)


def _configure(settings: dict[str, Any]) -> None:
    root = logging.getLogger()
    # What was preloaded may have set up something, as the parent's import of the same has there.
    for logger in root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    root.handlers[:] = [_Forwarder()]
    for level, name in settings["names"]:
        logging.addLevelName(level, name)
    for name, level in settings["levels"].items():
        logging.getLogger(name or None).setLevel(level)
    for name in settings["disabled"]:
        logging.getLogger(name).disabled = True
    logging.disable(settings["disable"])


class _Forwarder(logging.Handler):
    """Sends records to the parent instead of handling them."""

    def createLock(self) -> None:
        # None is needed, and none can be held by a thread that is not there after a fork.
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        # From Python 3.13 on that of the base class wants a lock.
        kept: Any = self.filter(record)
        if isinstance(kept, logging.LogRecord):
            record = kept  # from Python 3.12 on a filter may give another one
        if kept:
            self.emit(record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sent = _core.put_output(LOG, _packed(record))
        except Exception:
            self.handleError(record)
        else:
            last = logging.lastResort
            if not sent and last is not None and record.levelno >= last.level:
                # A child that a task has forked is no worker.
                last.handle(record)


def _packed(record: logging.LogRecord) -> bytes:
    """The record as bytes, made ready as `logging.handlers.QueueHandler` does it: the message is
    formatted, without its arguments, and of an exception there is the text."""
    values = dict(record.__dict__)
    values["msg"] = record.getMessage()
    values["args"] = None
    if record.exc_info and not record.exc_text:
        values["exc_text"] = _formatter.formatException(record.exc_info)
    values["exc_info"] = None
    if record.process == os.getpid():
        # The parent knows how this worker is called; records from further away keep their name.
        values["processName"] = None
    try:
        data = dumps(values, 5)
    except Exception:  # whatever `extra=` carries
        data = dumps({name: _plain(name, value) for name, value in values.items()}, 5)
    return data if len(data) <= _MOST_BYTES else dumps(_shortened(values), 5)


def _plain(name: str, value: Any) -> Any:
    if name in _OWN:
        return value
    try:
        dumps(value, 5)
    except Exception:
        return repr(value)
    return value


def _shortened(values: dict[str, Any]) -> dict[str, Any]:
    """A record of which the long parts are shortened: the ends of tracebacks say most."""
    short = {name: value for name, value in values.items() if name in _OWN}
    short["msg"] = _beginning(short["msg"], _SHORTENED)
    for name in ("exc_text", "stack_info"):
        text = short.get(name)
        if text is not None and len(text) > _SHORTENED // 4:
            short[name] = f"... ({len(text):,} characters)\n{text[-_SHORTENED // 4 :]}"
    for name, value in values.items():
        if name not in _OWN:
            short[name] = repr(value)[:200]
    return short


def _beginning(text: str, most: int) -> str:
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= most:
        return text
    return f"{data[:most].decode('utf-8', 'ignore')}... ({len(text):,} characters)"


def _is_captured() -> bool:
    """Whether what is written to the descriptor is kept with the task that runs."""
    capture = sys.modules.get("manyhands._capture_worker")
    return capture is not None and capture.is_running()


class _Stream(io.TextIOBase):
    """Sends whole lines to the parent, with the cell of the task that wrote them.

    What is written to the descriptor, by C code and by other programs, goes where it always goes.
    """

    def __init__(self, tag: int, real: TextIO | None) -> None:
        self._tag = tag
        self._real = real
        self._parts: list[str] = []

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return "backslashreplace"

    @property
    def buffer(self) -> Any:
        """For bytes, which no cell is known of."""
        return None if self._real is None else self._real.buffer

    def fileno(self) -> int:
        return super().fileno() if self._real is None else self._real.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._parts.append(text)
        if "\n" in text:
            whole, newline, rest = self._take().rpartition("\n")
            if rest:
                self._parts.insert(0, rest)
            self._put(whole + newline)
        return len(text)

    def flush(self) -> None:
        self._put(self._take())
        if self._real is not None:
            self._real.flush()

    def _take(self) -> str:
        # No lock: one may be held by a thread that is not there after a fork.
        parts, self._parts = self._parts, []
        return "".join(parts)

    def _put(self, text: str) -> None:
        for start in range(0, len(text), _MOST_CHARACTERS):
            part = text[start : start + _MOST_CHARACTERS]
            sent = False
            if not _is_captured():
                sent = _core.put_output(self._tag, marshal.dumps((_cells.key(), part)))
            if not sent and self._real is not None:
                # A child that a task has forked is no worker.
                self._real.write(part)
                self._real.flush()
