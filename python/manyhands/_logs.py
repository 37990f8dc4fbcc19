"""The parent's side of forwarding: what workers are told of its logging, and the thread that
handles their records.

The records come by `output.rs` of the runtime, which says what holds of their order and loss.
"""

from __future__ import annotations

import itertools
import logging
import marshal
import pickle

from manyhands import _cells, _core
from manyhands._follower import Follower
from manyhands._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyhands._capture import Captures

__all__ = ["Reader", "settings"]

_log = logging.getLogger("manyhands")

# As in `_forward`, which only workers import.
_LOG, _OUTPUT, _ERRORS = 1, 2, 4
# As in `_capture`.
_CAPTURED = 8

_numbers = itertools.count(1)


def settings() -> dict[str, Any] | None:
    """What workers are told of the logging of this process, as plain values; None where nobody has
    configured it: then theirs stays as it is, too."""
    root = logging.getLogger()
    is_configured = bool(root.handlers) or root.manager.disable > 0
    levels = {"": root.level}
    disabled = []
    for name, logger in list(root.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger):
            continue
        levels[name] = logger.level
        if logger.disabled:
            disabled.append(name)
        if not is_configured and any(
            not isinstance(handler, logging.NullHandler) for handler in logger.handlers
        ):
            is_configured = True
    levels = {name: level for name, level in levels.items() if level != logging.NOTSET or not name}
    if not is_configured and levels == {"": logging.WARNING} and not disabled:
        return None
    names = logging.getLevelNamesMapping() if hasattr(logging, "getLevelNamesMapping") else {}
    return {
        "levels": levels,
        "disabled": disabled,
        "disable": root.manager.disable,
        "names": [(level, name) for name, level in names.items() if name not in _STANDARD],
    }


_STANDARD = frozenset(("CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET"))


class Reader(Follower[_core.OutputStream]):
    """Handles what the workers of a pool log; in a notebook it shows what they print, too."""

    def __init__(self, name: str | None, logging: bool) -> None:
        super().__init__(_core.OutputStream())
        self._handles_logs = logging
        self._name = f"manyhands-{name if name is not None else next(_numbers)}"
        self._captures: Captures | None = None

    def captures(self) -> Captures:
        """Where what tasks write is kept; with that the thread starts."""
        if self._captures is None:
            from manyhands._capture import Captures

            self._captures = Captures(self)
        if self._thread is None:
            self._start()
        return self._captures

    def wanted(self) -> int:
        """What workers that are born now are to send, as bits; with it the thread starts.

        Called after it was said what workers find at their birth.
        """
        from manyhands import _launch

        wanted = _LOG if self._handles_logs and _launch.has_logging else 0
        if _cells.find_notebook():
            wanted |= _OUTPUT
        if wanted and self._thread is None and not self._start():
            return 0
        return wanted

    def _start(self) -> bool:
        _core.preload(["manyhands._forward"])
        try:
            self._start_thread(f"{self._name}-logs")
        except RuntimeError:
            return False  # from Python 3.12 on no thread starts once the interpreter ends
        self.stream.expect()
        return True

    def _pause(self) -> float:
        # Nobody tells how much a task has written that runs.
        try:
            return 3600.0 if self._captures is None else self._captures.look()
        except Exception:  # memory that there is none of
            _log.exception("what tasks of %s have written cannot be kept", self._name)
            return 3600.0

    def _follow(self) -> None:
        while (taken := self.stream.take(self._pause())) is not None:
            notes, lost = taken
            for tag, slot, pid, data in notes:
                if tag == _LOG:
                    self._handle(slot, pid, data)
                elif tag == _CAPTURED:
                    self._keep(slot, data)
                else:
                    self._show(tag == _ERRORS, data)
                if self._is_elsewhere():
                    return
            if lost:
                _log.warning(
                    "%d log records or prints of the workers of %s were lost: they came faster "
                    "than they were handled",
                    lost,
                    self._name,
                )

    def _handle(self, slot: int, pid: int, data: bytes) -> None:
        try:
            values = pickle.loads(data)
        except BaseException:  # whatever `extra=` has carried, and what its import does
            _log.exception("a log record of worker %d (process %d) cannot be read", slot, pid)
            return
        record = logging.makeLogRecord(values)
        if record.processName is None:
            record.processName = f"{self._name}-{slot}"
        try:
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        except BaseException:  # a handler, or a filter, that keeps nothing to itself
            _handle_error(record)

    def _keep(self, slot: int, data: bytes) -> None:
        try:
            if self._captures is not None:
                self._captures.handle(slot, data)
        except Exception:  # memory that there is none of
            _log.exception("what a task of %s has written cannot be kept", self._name)

    def _show(self, is_error: bool, data: bytes) -> None:
        try:
            _cells.show(is_error, *marshal.loads(data))
        except Exception:  # the kernel's stream, which may be closed by now
            _log.exception("what a worker of %s has printed cannot be shown", self._name)


def _handle_error(record: logging.LogRecord) -> None:
    """Has logging itself say that handling failed, as its handlers do."""
    logging.Handler().handleError(record)
