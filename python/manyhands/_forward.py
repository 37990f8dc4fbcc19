"""A worker's side of forwarding: its log records are handled by its parent.

Imported by workers whose parent wants them, and by the zygote before it forks such workers.
"""

from __future__ import annotations

import logging
import marshal
import os
from _pickle import dumps
from typing import Any

from manyhands import _core

__all__ = ["LOG", "begin"]

# What a note is: the same in `_logs`, and a bit of what the parent wants.
LOG = 1

# The most bytes of a record; a longer one has its long parts shortened to so many.
_MOST_BYTES = 40_000
_SHORTENED = 16_000

_formatter = logging.Formatter()
# What every record has; everything else is what the program has added by `extra=`.
_OWN = frozenset(vars(logging.makeLogRecord({})))


def begin(wanted: int, content: bytes) -> None:
    """Takes what the parent has told of its logging at this worker's birth."""
    settings = marshal.loads(content).get("logging")
    if not wanted & LOG or settings is None:
        return
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
