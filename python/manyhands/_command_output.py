"""Where the results of `manyhands map` go: standard output, or a file, named when complete."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time

from manyhands._command_line import UsageError

__all__ = ["Output", "keep_standard_output"]

_MANY_BYTES = 1 << 16
# How long a result may lie here, so that others are written with it.
_SECONDS = 0.01
# How long a reader that has stopped reading may hold up the end of an interrupted run.
_PATIENCE = 0.5


def keep_standard_output() -> int | None:
    """A descriptor of standard output for data alone; from here on all else that is printed, by
    this process or a worker, goes to standard error. None where it is closed."""
    try:
        kept = os.dup(1)
    except OSError:
        return None
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    return kept


class Output:
    """Takes what is written, and passes it on soon.

    A file is written as FILE.partial, and renamed by `complete`. What is no regular file, as a
    device or a named pipe, is written as it is.

    Args:
        file: its name, or `-` for standard output.
        standard: the descriptor of standard output, if there is one.
        binary: whether what is written is nothing for a terminal.

    Raises:
        UsageError: it cannot be written.
    """

    def __init__(self, file: str, standard: int | None, *, binary: bool) -> None:
        self.name: str | None = None
        self.partial: str | None = None
        self._target = ""
        if file == "-":
            if standard is None:
                raise UsageError("Standard output is closed.", "write to a file with -o FILE")
            self._descriptor = standard
        else:
            self.name = file
            self._descriptor = self._open(file)
        if binary and os.isatty(self._descriptor):
            raise UsageError(
                "Pickles are not written to a terminal.",
                "write to a file with -o FILE, or to a pipe",
            )
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._size = 0
        self._something = threading.Event()
        self._error: OSError | None = None
        self._writer = threading.Thread(
            target=self._write_soon, name="manyhands-output", daemon=True
        )
        self._writer.start()

    def _open(self, file: str) -> int:
        # A link stays a link, to a new file.
        self._target = os.path.realpath(file)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            if os.path.exists(self._target):
                mode = os.stat(self._target).st_mode
                if stat.S_ISDIR(mode):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                if not stat.S_ISREG(mode):
                    return os.open(self._target, os.O_WRONLY)
            descriptor = os.open(f"{self._target}.partial", flags, 0o666)
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}.") from None
        self.partial = f"{file}.partial"
        return descriptor

    def write(self, data: bytes) -> None:
        """Takes data; it is written at once if it is much, and in a moment otherwise."""
        if self._error is not None:
            raise self._error
        with self._lock:
            self._waiting.append(data)
            self._size += len(data)
            if self._size >= _MANY_BYTES:
                self._drain()
                return
        if not self._something.is_set():
            self._something.set()

    def complete(self) -> None:
        """Writes what is left, and gives the file its name."""
        with self._lock:
            self._drain()
        if self.partial is not None:
            os.fsync(self._descriptor)
            os.replace(f"{self._target}.partial", self._target)
            directory = os.open(os.path.dirname(self._target), os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def abandon(self) -> None:
        """Writes what is left, if it can be; a file keeps its other name."""
        if not self._lock.acquire(timeout=_PATIENCE):
            return
        try:
            # A pipe may be full and its reader asleep; a file has room, or it has not.
            if self.partial is not None or self._size <= self._room():
                self._drain()
        except OSError:
            return  # it is abandoned for worse already
        finally:
            self._lock.release()

    def discard(self) -> None:
        """Leaves no file behind, where nothing was run."""
        if self.partial is not None:
            os.unlink(f"{self._target}.partial")

    def _room(self) -> int:
        """What can be written without waiting."""
        import select

        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return select.PIPE_BUF if poll.poll(0) else 0

    def _drain(self) -> None:
        if self._error is not None:
            raise self._error
        if not self._waiting:
            return
        data = memoryview(b"".join(self._waiting))
        self._waiting.clear()
        self._size = 0
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _write_soon(self) -> None:
        while True:
            self._something.wait()
            self._something.clear()
            time.sleep(_SECONDS)
            try:
                with self._lock:
                    self._drain()
            except OSError as error:
                self._error = error  # the next `write` raises it
                return
