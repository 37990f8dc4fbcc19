"""What is raised in a task that is to end.

It imports nothing: a worker has it before its first task, since whoever is asked to end may be in
the middle of any import.
"""

from __future__ import annotations

__all__ = ["TaskStopped"]


class TaskStopped(BaseException):
    """Raised in a task that is to end, because its time is up or it was cancelled.

    It has the `grace` of the task to clean up; then its worker is killed. Whatever it returns or
    raises is dropped. Like `KeyboardInterrupt` it is no `Exception`, so that `except Exception`
    lets it through.

    In a process it is raised soon whatever the task does in Python; in a thread, or inline, at the
    task's next line of Python, and never while it is in C code.
    """

    def __init__(
        self, message: str = "the task is to end: its time is up, or it was cancelled"
    ) -> None:
        super().__init__(message)
