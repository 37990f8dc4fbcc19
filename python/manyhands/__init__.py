"""manyhands: parallel processing for Python, with its core in Rust.

>>> import manyhands as mh
>>> list(mh.map(abs, [-1, 2, -3]))
[1, 2, 3]
>>> with mh.Pool(2) as pool:
...     future = pool.submit(pow, 2, 10)
...     future.result()
1024
"""

TYPE_CHECKING = False  # as in `typing`, whose import takes long
if TYPE_CHECKING:
    from manyhands._broadcast import Broadcast, broadcast
    from manyhands._config import configure
    from manyhands._cpu import cpu_count
    from manyhands._default import map, options, starmap, submit
    from manyhands._dump import PoolDump, WorkerDump
    from manyhands._errors import (
        NotPicklable,
        OwnerDied,
        PoolStalled,
        RemoteError,
        RemoteTraceback,
        TaskError,
        TaskMemoryExceeded,
        TaskStopped,
        TaskTimeout,
        WorkerDied,
    )
    from manyhands._events import Event
    from manyhands._future import Future
    from manyhands._per_worker import PerWorker, per_worker
    from manyhands._pool import Pool, PoolView
    from manyhands._results import Failure, Results, Summary
    from manyhands._retry import Retry
    from manyhands._seeds import rng
    from manyhands._shared import share, shared_array
    from manyhands._stats import PoolStats, StoreStats, WorkerStats
    from manyhands._store import put

__version__ = "0.1.0"

__all__ = [
    "Broadcast",
    "Event",
    "Failure",
    "Future",
    "NotPicklable",
    "OwnerDied",
    "PerWorker",
    "Pool",
    "PoolDump",
    "PoolStalled",
    "PoolStats",
    "PoolView",
    "RemoteError",
    "RemoteTraceback",
    "Results",
    "Retry",
    "StoreStats",
    "Summary",
    "TaskError",
    "TaskMemoryExceeded",
    "TaskStopped",
    "TaskTimeout",
    "WorkerDied",
    "WorkerDump",
    "WorkerStats",
    "broadcast",
    "configure",
    "cpu_count",
    "map",
    "options",
    "per_worker",
    "put",
    "rng",
    "share",
    "shared_array",
    "starmap",
    "submit",
]

# Where each name is. A module is imported when one of its names is first used: a program, a command
# or a worker that imports manyhands and then does without pays next to nothing.
_HOMES = {
    "Broadcast": "_broadcast",
    "Event": "_events",
    "Failure": "_results",
    "Future": "_future",
    "NotPicklable": "_errors",
    "OwnerDied": "_errors",
    "PerWorker": "_per_worker",
    "Pool": "_pool",
    "PoolDump": "_dump",
    "PoolStalled": "_errors",
    "PoolStats": "_stats",
    "PoolView": "_pool",
    "RemoteError": "_errors",
    "RemoteTraceback": "_errors",
    "Results": "_results",
    "Retry": "_retry",
    "StoreStats": "_stats",
    "Summary": "_results",
    "TaskError": "_errors",
    "TaskMemoryExceeded": "_errors",
    "TaskStopped": "_errors",
    "TaskTimeout": "_errors",
    "WorkerDied": "_errors",
    "WorkerDump": "_dump",
    "WorkerStats": "_stats",
    "broadcast": "_broadcast",
    "configure": "_config",
    "cpu_count": "_cpu",
    "map": "_default",
    "options": "_default",
    "per_worker": "_per_worker",
    "put": "_store",
    "rng": "_seeds",
    "share": "_shared",
    "shared_array": "_shared",
    "starmap": "_default",
    "submit": "_default",
}


# To type checkers the names above are all that there is.
if not TYPE_CHECKING:

    def __getattr__(name):
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'manyhands' has no attribute {name!r}")
        value = getattr(__import__(f"manyhands.{home}", fromlist=[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
