"""What a pool says of itself."""

from __future__ import annotations

from manyhands._snapshot import Snapshot


class WorkerStats(Snapshot):
    """One worker of a pool, at one moment."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "slot": "its place in the pool, from 0",
        "pid": "its process id; None while it is being started",
        "state": "'starting', 'idle', or 'busy' while it runs a task",
        "restarts": "how many workers the place has had before",
        "done": "tasks it has finished",
        "busy": "seconds it has spent in tasks that have ended, without `transfer`",
        "idle": "seconds of its age outside of tasks: it waited, or was being started",
        "transfer": (
            "seconds in which it read arguments and wrote results of tasks that have ended: of "
            "those that are large, since the few microseconds of short ones are in `busy`; 0 for "
            "threads, to which nothing is moved"
        ),
        "task_age": "seconds since its running task started, or None",
        "task_index": "number of its running task in the pool or map, or None",
        "task": "name of the function that it runs, or None",
        "waiting": "tasks that it holds besides the running one; they can be taken back",
        "age": "seconds since it was asked for",
        "resident": (
            "bytes of memory that it has, what it shares with others among them; None for threads, "
            "and for who is gone"
        ),
    }

    slot: int
    pid: int | None
    state: str
    restarts: int
    done: int
    busy: float
    idle: float
    transfer: float
    task_age: float | None
    task_index: int | None
    task: str | None
    waiting: int
    age: float
    resident: int | None


class StoreStats(Snapshot):
    """The object store of this process, at one moment; in bytes."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "live": "what tasks, their functions and results use, and what was put",
        "in_flight": "the part of it that is arguments of tasks which have not ended",
        "warm": "memory that is kept to be used again",
        "budget": "the most that live and warm may be together",
        "spilled": (
            "what was put past the budget, and is in files in the temporary directory instead"
        ),
        "leases": (
            "how many buffers each worker of the pool looks at, by its process id; without those "
            "that look at none"
        ),
    }

    live: int
    in_flight: int
    warm: int
    budget: int
    spilled: int
    leases: dict[int, int]


class PoolStats(Snapshot):
    """A pool, at one moment."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "workers": "its living workers",
        "queued": "tasks that no worker has yet",
        "pending": "tasks that have not ended, wherever they are",
        "done": "tasks that have ended",
        "deaths": "workers that died",
        "recycled": "workers that gave way to fresh ones; no deaths",
        "left_behind": (
            "threads that the pool went on without, since their tasks did not end when they were "
            "asked to; 0 for processes, which are killed"
        ),
        "late_wakes": "results that came late, a wake-up being lost; 0, but for killed wakers",
        "store": "the object store, which all pools share; see `StoreStats`",
    }

    workers: tuple[WorkerStats, ...]
    queued: int
    pending: int
    done: int
    deaths: int
    recycled: int
    left_behind: int
    late_wakes: int
    store: StoreStats
