"""What a pool says of itself."""

from __future__ import annotations

from manyhands._snapshot import Snapshot


class WorkerStats(Snapshot):
    """One worker of a pool, at one moment."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "slot": "its place in the pool, from 0",
        "pid": "its process id; 0 while it is being started",
        "state": "'starting', 'idle', or 'busy' while it runs a task",
        "restarts": "how many workers the place has had before",
        "done": "tasks it has finished",
        "busy": "seconds it has spent in tasks",
        "task_age": "seconds since its running task started, or None",
        "task_index": "number of its running task in the pool or map, or None",
        "task": "name of the function that it runs, or None; None for threads",
        "waiting": "tasks that it holds besides the running one; they can be taken back",
        "age": "seconds since it was asked for",
        "resident": (
            "bytes of memory that it has, what it shares with others among them; None for threads, "
            "and for who is gone"
        ),
    }

    slot: int
    pid: int
    state: str
    restarts: int
    done: int
    busy: float
    task_age: float | None
    task_index: int | None
    task: str | None
    waiting: int
    age: float
    resident: int | None


class PoolStats(Snapshot):
    """A pool, at one moment."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "workers": "its living workers",
        "queued": "tasks that no worker has yet",
        "pending": "tasks that have not ended, wherever they are",
        "done": "tasks that have ended",
        "deaths": "workers that died",
        "late_wakes": "results that came late, a wake-up being lost; 0, but for killed wakers",
    }

    workers: tuple[WorkerStats, ...]
    queued: int
    pending: int
    done: int
    deaths: int
    late_wakes: int
