"""When the workers of a pool give way to fresh ones, leave, or become more or fewer.

Imported at first use: most pools want nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manyhands._config import check_workers
from manyhands._options import check_seconds
from manyhands._store import parse_size

if TYPE_CHECKING:
    from manyhands._pool import Pool

__all__ = ["FOREIGN", "recycling", "resize"]

Recycling = tuple[int | None, int | None, float | None, float | None]

# What other libraries call it.
FOREIGN = {
    "maxtasksperchild": "recycle_after_tasks",
    "max_tasks_per_child": "recycle_after_tasks",
    "worker_lifespan": "recycle_after_tasks",
    "inner_max_num_threads": "inner_threads",
    "threads_per_worker": "inner_threads",
}


def recycling(
    engine: str,
    after_tasks: int | None,
    rss: int | str | None,
    age: float | None,
    idle_timeout: float | None,
) -> Recycling:
    """The options as the native part takes them.

    Raises:
        TypeError: one is not of its type.
        ValueError: one is out of its range, or the engine has no workers to replace.
    """
    given = {
        "recycle_after_tasks": after_tasks,
        "recycle_rss": rss,
        "recycle_age": age,
        "idle_timeout": idle_timeout,
    }
    for name, value in given.items():
        has_workers = engine == "process" or (engine == "thread" and name == "idle_timeout")
        if value is not None and not has_workers:
            if name == "idle_timeout":
                raise ValueError(f'idle_timeout= is for workers: engine="{engine}" has none')
            raise ValueError(
                f'{name}= is for engine="process": with engine="{engine}" there are no worker '
                "processes to replace"
            )
    if after_tasks is not None:
        if isinstance(after_tasks, bool) or not isinstance(after_tasks, int):
            kind = type(after_tasks).__name__
            raise TypeError(f"recycle_after_tasks must be a whole number, not {kind}")
        if not 1 <= after_tasks < 1 << 62:
            raise ValueError(f"recycle_after_tasks must be at least 1, not {after_tasks}")
    _check_positive("recycle_age", age)
    _check_positive("idle_timeout", idle_timeout)
    return after_tasks, None if rss is None else parse_size(rss, "recycle_rss="), age, idle_timeout


def _check_positive(name: str, value: Any) -> None:
    if value is not None:
        check_seconds(name, value)
        if value == 0:
            raise ValueError(f"{name} must be above 0, in seconds; None is for ever")


def resize(pool: Pool, workers: int) -> None:
    """`Pool.resize`."""
    check_workers(workers)
    if pool._engine == "inline":
        raise ValueError('resize() is for workers: engine="inline" has none')
    if not pool._resize(workers):
        raise RuntimeError("cannot resize: the pool is shut down or broken, or it runs this task")
    pool._workers = workers
