"""How many processors there are to use."""

from __future__ import annotations

from manyhands import _core


def cpu_count() -> int:
    """How many processors this process may use, at least 1.

    The smallest of: the machine's processors, this process's affinity, and the CPU quota of its
    control group and of every group above it (cgroup v1 and v2). A quota of 1.5 processors counts
    as 2. Read anew at each call. In a task on a worker process it is at most the worker's share:
    `inner_threads` of its pool, by default the processors divided by the workers.

    >>> cpu_count() >= 1
    True
    """
    return _core.cpu_count()
