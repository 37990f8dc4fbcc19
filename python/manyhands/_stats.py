"""What a pool says of itself."""

from __future__ import annotations

from typing import Any, NoReturn, dataclass_transform


# Named tuples and dataclasses, which would do here, each take a millisecond of the import.
@dataclass_transform(frozen_default=True, kw_only_default=True)
class _Snapshot:
    """Values at one moment, by name; they do not change."""

    # Names, each with what it means, which help() shows.
    __slots__: dict[str, str] = {}

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self.__slots__):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(self.__slots__)}")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is a snapshot: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is a snapshot: {name} cannot be deleted")

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), {name: getattr(self, name) for name in self.__slots__}))


def _rebuild(kind: type[_Snapshot], values: dict[str, Any]) -> _Snapshot:
    return kind(**values)


class WorkerStats(_Snapshot):
    """One worker of a pool, at one moment."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "slot": "its place in the pool, from 0",
        "pid": "its process id; 0 while it is being started",
        "restarts": "how many workers the place has had before",
        "done": "tasks it has finished",
        "busy": "seconds it has spent in tasks",
        "task_age": "seconds since its running task started, or None",
        "task_index": "number of its running task in the pool or map, or None",
        "waiting": "tasks that it holds besides the running one; they can be taken back",
        "age": "seconds since it was asked for",
    }

    slot: int
    pid: int
    restarts: int
    done: int
    busy: float
    task_age: float | None
    task_index: int | None
    waiting: int
    age: float


class PoolStats(_Snapshot):
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
