"""The event loop of a worker: on which its asynchronous objects are made, used and closed.

It runs in a thread of its own for as long as the keeper that has it (`_per_worker`), so that what
an object does by itself, such as a heartbeat, goes on between tasks. A task waits for what it has
run there. Imported where the first asynchronous object is made.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

__all__ = ["WorkerLoop"]

# Threads of a pool hear between two instructions of Python that their task is to end: so often a
# thread that waits executes one, in seconds.
_LISTEN = 0.05
# How long lies between two looks whether the thread of a loop that is closed has ended, in seconds.
_LEAVE = 0.001


class _Call:
    """What is run on the loop, and what came of it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.has_ended = threading.Event()
        self.task: asyncio.Task[None] | None = None
        self.is_cancelled = False
        self.value: Any = None
        self.error: BaseException | None = None

    def begin(self) -> None:
        """On the loop."""
        self.task = asyncio.get_running_loop().create_task(self._run())
        # Not at the end of what runs: that never begins if it is cancelled before.
        self.task.add_done_callback(self._end)

    async def _run(self) -> None:
        try:
            self.value = self.make()
            if hasattr(type(self.value), "__await__"):
                self.value = await self.value
        except BaseException as error:  # a SystemExit is the task's, and not the end of the loop
            self.error = error

    def _end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.error = asyncio.CancelledError()
        self.has_ended.set()

    def cancel(self) -> None:
        """On the loop, after `begin`, if that was handed over; once, since a second time would hit
        what cleans up."""
        if self.is_cancelled:
            return
        self.is_cancelled = True
        if self.task is None:
            self.has_ended.set()  # it never begins
        else:
            self.task.cancel()


class WorkerLoop:
    """A running event loop in a thread.

    A thread that ends closes its loop when `threading` has forgotten it already. Nothing here asks
    for the current thread then, as `Thread.join` does: it would be entered anew, and for good.

    Args:
        enter: called first in that thread.
    """

    def __init__(self, enter: Callable[[], object]) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_run, args=(self._loop, enter), name="manyhands-loop", daemon=True
        )
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise

    def is_here(self) -> bool:
        """Whether this thread is that of the loop, which cannot wait for itself."""
        return threading.get_ident() == self._thread.ident

    def call(self, make: Callable[[], Any]) -> Any:
        """What `make` gives, called on the loop; if that can be awaited, what comes of that.

        It runs in a copy of the caller's context. If waiting is interrupted, it is cancelled, and
        has come to its end when this returns, unless waiting is interrupted again.
        """
        call = _Call(make)
        try:
            self._loop.call_soon_threadsafe(call.begin, context=copy_context())
            _wait(call.has_ended)
        except BaseException:
            try:
                self._loop.call_soon_threadsafe(call.cancel)
                _wait(call.has_ended)
            finally:
                # What interrupted that may have come before the loop was told.
                self._loop.call_soon_threadsafe(call.cancel)
            raise
        if call.error is not None:
            try:
                raise call.error
            finally:
                call.error = None  # else it would refer to itself, by this frame
        return call.value

    def close(self) -> None:
        """Cancels what still runs, and ends the loop with its thread."""
        if self._pid == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)
            while self._thread.is_alive():
                time.sleep(_LEAVE)


def _wait(has_ended: threading.Event) -> None:
    is_main = threading.get_ident() == threading.main_thread().ident
    # The main thread is woken by the signal that asks it to end.
    while not has_ended.wait(None if is_main else _LISTEN):
        pass


def _run(loop: asyncio.AbstractEventLoop, enter: Callable[[], object]) -> None:
    enter()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()
