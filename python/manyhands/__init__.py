"""manyhands: parallel processing for Python, with its core in Rust.

>>> import manyhands as mh
>>> list(mh.map(abs, [-1, 2, -3]))
[1, 2, 3]
>>> with mh.Pool(2) as pool:
...     future = pool.submit(pow, 2, 10)
...     future.result()
1024
"""

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
