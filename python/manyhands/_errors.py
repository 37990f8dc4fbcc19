"""The exceptions of manyhands.

`TaskError` is the base of whatever befalls a task from outside its own code. An exception that the
task's own code raises is never one of these: it arrives with its own type.
"""

from __future__ import annotations

from _pickle import PicklingError
from concurrent.futures import BrokenExecutor

from manyhands._stopped import TaskStopped

TYPE_CHECKING = False  # as in `typing`, whose import would cost workers milliseconds
if TYPE_CHECKING:
    from manyhands._dump import PoolDump

__all__ = [
    "NotPicklable",
    "OwnerDied",
    "PoolStalled",
    "RemoteError",
    "RemoteTraceback",
    "TaskError",
    "TaskMemoryExceeded",
    "TaskStopped",
    "TaskTimeout",
    "WorkerDied",
]


class TaskError(RuntimeError):
    """Something outside the task's own code ended it."""


class WorkerDied(TaskError, BrokenExecutor):
    """The worker process died while it ran this task; every other task goes on.

    Attributes:
        pid: the process id of the worker, or 0 where it is not known.
        cause: `"signal"`: a signal killed it; `"oom"`: the kernel killed it for want of memory;
            `"exit"`: it exited by itself; `"start"`: it could not be started; `"protocol"`: it
            broke the rules of the pool and was killed for it; `"unknown"`: the process that would
            know was killed too.
        code: the signal's number for `"signal"` and `"oom"`, the exit status for `"exit"`, else
            None.
        deaths: each worker that the task has killed, as its process id and how it died; the last of
            them is the one above. There are several where the task was tried again, with `retry=`;
            of more than 255 the first and the last are there. Empty if no task is to blame: the
            pool could not start.

    >>> import os
    >>> import manyhands as mh
    >>> with mh.Pool(1, retry=1) as pool:
    ...     error = pool.submit(os._exit, 3).exception()
    >>> error.cause, error.code
    ('exit', 3)
    >>> [how for pid, how in error.deaths]
    ['exited with status 3', 'exited with status 3']
    """

    def __init__(
        self,
        message: str,
        *,
        pid: int = 0,
        cause: str = "unknown",
        code: int | None = None,
        deaths: tuple[tuple[int, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.cause = cause
        self.code = code
        self.deaths = deaths

    def __reduce__(self) -> tuple[object, ...]:
        state = {"pid": self.pid, "cause": self.cause, "code": self.code, "deaths": self.deaths}
        return (WorkerDied, (str(self),), state)


class TaskTimeout(TaskError, TimeoutError):
    """The task ran longer than its time limit and was stopped."""


class TaskMemoryExceeded(TaskError, MemoryError):
    """The task took more memory than its `task_memory=`, and was ended with its worker.

    Attributes:
        limit: how many bytes it might add to its worker.
        peak: the most that it was seen to have added, in bytes.
    """

    def __init__(self, message: str, *, limit: int = 0, peak: int = 0) -> None:
        super().__init__(message)
        self.limit = limit
        self.peak = peak

    def __reduce__(self) -> tuple[object, ...]:
        return (TaskMemoryExceeded, (str(self),), {"limit": self.limit, "peak": self.peak})


class NotPicklable(TaskError, PicklingError):
    """An argument, a result or an exception cannot travel between processes.

    The message names the path to the part that cannot, as in
    `args[1].model._lock is a thread lock`.
    """


class RemoteError(TaskError):
    """Stands for an exception of the task that could not be rebuilt in this process.

    Attributes:
        type_name: the qualified name of the original exception's type.
        remote_message: what `str()` gave for it in the worker.
    """

    def __init__(self, message: str, *, type_name: str = "", remote_message: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_message = remote_message

    def __reduce__(self) -> tuple[object, ...]:
        state = {"type_name": self.type_name, "remote_message": self.remote_message}
        return (RemoteError, (str(self),), state)


class OwnerDied(TaskError):
    """The process that held a lock or owned an object died."""


class PoolStalled(TaskError, BrokenExecutor):
    """The pool's own protocol stopped making progress, which is a bug in manyhands.

    All tasks of the pool end with it. That tasks take long, that nobody takes results, or that
    workers are stopped does not cause it.

    Attributes:
        dump: what the workers did, as `Pool.dump` gives it; or None.
    """

    def __init__(self, message: str, *, dump: PoolDump | None = None) -> None:
        super().__init__(message)
        self.dump = dump

    def __reduce__(self) -> tuple[object, ...]:
        return (PoolStalled, (str(self),), {"dump": self.dump})


class RemoteTraceback(Exception):
    """The traceback of an exception as it was formatted in the worker; only ever a `__cause__`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'
