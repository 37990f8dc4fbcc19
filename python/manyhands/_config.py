"""Which value counts where a call and its pool say nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from manyhands import _core
from manyhands._cpu import cpu_count
from manyhands._typing import Any

__all__ = [
    "ENGINES",
    "MOST_WORKERS",
    "check_engine",
    "check_inner_threads",
    "check_workers",
    "configure",
    "configured",
    "default_engine",
    "default_show_args",
    "default_workers",
]

ENGINES = ("process", "thread", "inline")

# What the table of life lines has room for, less some zygotes.
MOST_WORKERS = 4000

_MOST_INNER_THREADS = 4096

# The most threads of a pool that was not told, as of the standard library's.
_MOST_DEFAULT_THREADS = 32

_UNCHANGED: Any = object()


class Settings:
    """What the program has configured; None where it has not."""

    __slots__ = ("context", "engine", "inner_threads", "progress", "show_args", "workers")

    def __init__(self) -> None:
        self.workers: int | None = None
        self.engine: str | None = None
        self.progress: Any = None
        self.show_args: bool | None = None
        self.context: tuple[str, ...] | None = None
        self.inner_threads: int | None = None


configured = Settings()


def configure(
    *,
    workers: int | None = _UNCHANGED,
    engine: str | None = _UNCHANGED,
    progress: Any = _UNCHANGED,
    show_args: bool | None = _UNCHANGED,
    context: Sequence[str] | None = _UNCHANGED,
    inner_threads: int | None = _UNCHANGED,
) -> None:
    """Sets what holds where a call and its pool say nothing else.

    What is not given stays as it is; None goes back to what the environment says, or the default.
    Pools that exist stay as they are; those that the functions of the module share are made anew.

    Args:
        workers: how many workers a pool has; else `MANYHANDS_WORKERS`.
        engine: "process", "thread" or "inline"; else `MANYHANDS_ENGINE`.
        progress: as the option of `map`; else `MANYHANDS_PROGRESS`.
        show_args: whether errors show shortened arguments; else `MANYHANDS_SHOW_ARGS`.
        context: names of the context variables that travel with tasks, as in `Pool`.
        inner_threads: how many threads libraries have inside of a worker process, as in `Pool`.

    >>> import manyhands as mh
    >>> mh.configure(engine="inline")
    >>> list(mh.map(abs, [-1, 2]))
    [1, 2]
    >>> mh.configure(engine=None)
    """
    changed: dict[str, Any] = {}
    if workers is not _UNCHANGED:
        changed["workers"] = None if workers is None else check_workers(workers)
    if engine is not _UNCHANGED:
        changed["engine"] = None if engine is None else check_engine(engine)
    if progress is not _UNCHANGED:
        changed["progress"] = progress
    if show_args is not _UNCHANGED:
        if show_args is not None and not isinstance(show_args, bool):
            raise TypeError(f"show_args must be True or False, not {show_args!r}")
        changed["show_args"] = show_args
    if context is not _UNCHANGED:
        if context is not None:
            from manyhands._context import check_names

            context = check_names(context)
        changed["context"] = context
    if inner_threads is not _UNCHANGED:
        if inner_threads is not None:
            inner_threads = check_inner_threads(inner_threads)
        changed["inner_threads"] = inner_threads
    # All or nothing: a value that is refused above leaves everything as it was.
    for name, value in changed.items():
        setattr(configured, name, value)


def check_engine(engine: object, name: str = "engine") -> str:
    """The engine, if there is one of that name."""
    if engine not in ENGINES:
        choices = ", ".join(f'"{choice}"' for choice in ENGINES)
        raise ValueError(f"{name} is one of {choices}; not {engine!r}")
    return str(engine)


def check_workers(workers: object) -> int:
    """The number, if a pool can have so many workers."""
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers must be a whole number, not {type(workers).__name__}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    if workers > MOST_WORKERS:
        raise ValueError(f"workers must be at most {MOST_WORKERS}, not {workers}")
    return workers


def check_inner_threads(value: object, engine: str | None = None) -> int:
    """The number, if workers of that engine can have so many threads inside.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is out of its range, or the engine has no worker processes.
    """
    if engine is not None and engine != "process":
        raise ValueError(
            f'inner_threads= is for engine="process": with engine="{engine}" tasks share the '
            "libraries of this program, and with them their threads"
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"inner_threads must be a whole number, not {type(value).__name__}")
    if not 1 <= value <= _MOST_INNER_THREADS:
        raise ValueError(f"inner_threads must be from 1 to {_MOST_INNER_THREADS}, not {value}")
    return value


def default_engine() -> str:
    """The engine of a pool that was not told.

    Raises:
        ValueError: `MANYHANDS_ENGINE` names none.
    """
    if configured.engine is not None:
        return configured.engine
    text = os.environ.get("MANYHANDS_ENGINE", "").strip()
    return check_engine(text, "MANYHANDS_ENGINE") if text else "process"


def default_workers(engine: str) -> int:
    """How many workers a pool of that engine has that was not told.

    Processes: one per processor; in a worker, one for each that is its share, also where
    `MANYHANDS_WORKERS`, which is the program's, says more. Threads, which mostly wait: four more,
    and at most 32. The calling thread is one, whatever is asked for.

    Raises:
        ValueError: `MANYHANDS_WORKERS` is not a whole number above 0.
    """
    if engine == "inline":
        return 1
    if configured.workers is not None:
        return configured.workers
    text = os.environ.get("MANYHANDS_WORKERS", "").strip()
    if text:
        if not text.isdecimal() or int(text) == 0:
            raise ValueError(f"MANYHANDS_WORKERS must be a whole number above 0, not {text!r}")
        count, share = check_workers(int(text)), _core.cpu_share()
        return count if share is None or engine == "thread" else min(count, share)
    processors = cpu_count()
    return min(_MOST_DEFAULT_THREADS, processors + 4) if engine == "thread" else processors


def default_show_args() -> bool:
    """Whether errors show arguments where nobody said."""
    if configured.show_args is not None:
        return configured.show_args
    return os.environ.get("MANYHANDS_SHOW_ARGS", "1") != "0"
