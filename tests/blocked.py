"""A parent in which no Python code runs, until its tasks have."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

import manyhands as mh

_NAME = "told"
_INTERVAL = sys.getswitchinterval()
_WATCHDOG_SECONDS = 20


class Lock:
    """Keeps the interpreter's lock in foreign calls, for as long as tasks run."""

    def __init__(self) -> None:
        os.mkfifo(_NAME)
        # Open for both it opens at once, and never ends.
        file = os.open(_NAME, os.O_RDWR)
        self._c = ctypes.PyDLL(None)
        self._c.fdopen.restype = ctypes.c_void_p
        self._c.fread.argtypes = (
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.c_void_p,
        )
        self._stream = self._c.fdopen(file, b"r")

    def keep_until(self, futures: list[mh.Future[Any]]) -> None:
        """Until each task has told and its result is home, and a second more for what follows.

        To ask a future needs the lock, but lets no other thread have it.
        """
        told = ctypes.create_string_buffer(len(futures))
        sys.setswitchinterval(1e6)
        assert self._c.fread(told, 1, len(futures), self._stream) == len(futures)
        deadline = time.monotonic() + _WATCHDOG_SECONDS
        while not all(future.done() for future in futures) and time.monotonic() < deadline:
            self._c.usleep(1000)
        self._c.sleep(1)
        sys.setswitchinterval(_INTERVAL)


def tell() -> None:
    """What each task does last."""
    file = os.open(_NAME, os.O_WRONLY)
    os.write(file, b".")
    os.close(file)
