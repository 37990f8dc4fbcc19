"""How many processors there are to use."""

from __future__ import annotations

import os

from manyhands import _core


def cpu_count() -> int:
    """How many processors this process may use, at least 1.

    The smallest of: the machine's processors, this process's affinity, and the CPU quota of its
    control group and of every group above it (cgroup v1 and v2). A quota of 1.5 processors counts
    as 2. Read anew at each call.

    >>> cpu_count() >= 1
    True
    """
    return _core.cpu_count()


def default_workers() -> int:
    """How many workers a pool has that was not told: `MANYHANDS_WORKERS`, else `cpu_count()`.

    Raises:
        ValueError: the variable is not a whole number above 0.
    """
    text = os.environ.get("MANYHANDS_WORKERS", "").strip()
    if not text:
        return cpu_count()
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"MANYHANDS_WORKERS must be a whole number above 0, not {text!r}")
    return int(text)
