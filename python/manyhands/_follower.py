"""Threads that handle what comes from a pool: its events, and what its workers put out."""

from __future__ import annotations

import threading

from manyhands import _core
from manyhands._typing import Generic, TypeVar

__all__ = ["Follower", "finish_all", "forget_parent"]

S = TypeVar("S", _core.EventStream, _core.OutputStream)

# Those whose pools have not ended, or that have not handled all that came.
_running: set[Follower[_core.EventStream] | Follower[_core.OutputStream]] = set()


class Follower(Generic[S]):
    """Handles what comes from a pool in a stream, one after another, in a thread of its own.

    It refers to the pool by nothing, and ends when the pool has: also after one that was dropped.
    """

    def __init__(self, stream: S) -> None:
        self.stream: S = stream
        self._generation = _core.process_generation()
        self._thread: threading.Thread | None = None

    def _follow(self) -> None:
        """Handles all that comes; ends as well where `_is_elsewhere`."""
        raise NotImplementedError

    def _start_thread(self, name: str) -> None:
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        _running.add(self)
        try:
            thread.start()
        except BaseException:
            _running.discard(self)
            raise
        self._thread = thread

    def _is_elsewhere(self) -> bool:
        """Whether this is a child that was forked by what is called here, and that came back."""
        return self._generation != _core.process_generation()

    def join(self, timeout: float | None) -> bool:
        """Waits until all that came from a pool that has ended was handled; whether it was."""
        thread = self._thread
        if thread is None or self._is_elsewhere():
            return True
        if thread is threading.current_thread():
            return True  # what is called here ends the pool: the rest is handled when it returns
        thread.join(timeout)
        return not thread.is_alive()

    def unread(self) -> int:
        """How much has come that was not handled, about."""
        return self.stream.unread()

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            _running.discard(self)


def finish_all(timeout: float) -> None:
    """Has handled what has come so far, for the end of the program: whatever has not ended."""
    followers = list(_running)
    for follower in followers:
        follower.stream.finish()
    for follower in followers:
        follower.join(timeout)


def forget_parent() -> None:
    """In a child of fork: what comes from the parent's pools is not handled here."""
    _running.clear()
