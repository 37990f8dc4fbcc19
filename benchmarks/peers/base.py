"""What a peer is: how its pool is opened, and its own way to do each kind of work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from benchmarks.model import NotOffered

Function = Callable[[Any], Any]
FunctionWith = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Program:
    """The peer's use in a small script: the import, a context manager, and the call of one task.

    `call` is an expression that uses `pool` and calls `work` with 1.
    """

    imports: str
    pool: str
    call: str


class Session(AbstractContextManager["Session"], ABC):
    """A running pool. Each method is what a user of this library would write for it."""

    @abstractmethod
    def close(self) -> None: ...

    def caller(self, function: Function) -> Function:
        """A function that does one task in the pool and returns its result."""
        raise NotOffered

    def submit_all(self, function: Function, items: Iterable[Any]) -> list[Any]:
        """One task per item, all submitted before the first result is asked for, in order."""
        raise NotOffered

    def one_by_one(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        """As `submit_all`, but each result is let go of before the next is asked for."""
        raise NotOffered

    def futures(self, function: Function, items: Iterable[Any]) -> Sequence[Future[Any]]:
        """One task per item as futures that `concurrent.futures.as_completed` takes."""
        raise NotOffered

    def put(self, value: Any) -> Any:
        """Hand over what many tasks will need; what they are to be given in its place."""
        raise NotOffered

    def submit_with(self, function: FunctionWith, given: Any, items: Iterable[Any]) -> list[Any]:
        """As `submit_all`, each task with what `put` gave as its first argument."""
        raise NotOffered

    def filled(
        self, function: FunctionWith, length: int, parts: Iterable[Any]
    ) -> AbstractContextManager[Any]:
        """An array of so many float64 that tasks have filled in place, one task for each part."""
        raise NotOffered

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        """The library's map, with the chunks it is best used with."""
        raise NotOffered

    def map_unordered(self, function: Function, items: Sequence[Any]) -> list[Any]:
        """The library's map, with results as they come."""
        raise NotOffered

    def stream(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        """The results of the library's map, one by one."""
        raise NotOffered

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Peer(ABC):
    """A library in one setting. `module` is None for what comes with Python."""

    key: str
    label: str
    module: str | None = None
    program: Program | None = None
    # Takes seconds to start; takes part in one round of a quick run only.
    slow_start: bool = False
    # False for the ideal that others are compared with.
    competes: bool = True

    @abstractmethod
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        """Start a pool; `preload` are modules its tasks will need, used where there is a way."""

    def open_threads(self, workers: int) -> Session:
        """As `open`, with threads of this process for workers."""
        raise NotOffered

    def nested(self, function: Function, items: Sequence[Any]) -> list[Any]:
        """In a task: a map over a pool of its own, of as many workers as the library chooses."""
        raise NotOffered

    def is_installed(self) -> bool:
        return self.module is None or importlib.util.find_spec(self.module) is not None

    def version(self) -> str | None:
        if self.module is None:
            return platform.python_version()
        try:
            return importlib.metadata.version(self.module)
        except importlib.metadata.PackageNotFoundError:
            return "unknown" if self.is_installed() else None


class ExecutorSession(Session):
    """Any `concurrent.futures.Executor`."""

    def __init__(self, executor: Any, workers: int) -> None:
        self._executor = executor
        self._workers = workers

    def close(self) -> None:
        self._executor.shutdown()

    def caller(self, function: Function) -> Function:
        submit = self._executor.submit
        return lambda item: submit(function, item).result()

    def submit_all(self, function: Function, items: Iterable[Any]) -> list[Any]:
        submit = self._executor.submit
        futures = [submit(function, item) for item in items]
        return [future.result() for future in futures]

    def one_by_one(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        submit = self._executor.submit
        futures = deque([submit(function, item) for item in items])
        while futures:
            yield futures.popleft().result()

    def futures(self, function: Function, items: Iterable[Any]) -> Sequence[Future[Any]]:
        submit = self._executor.submit
        return [submit(function, item) for item in items]

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        # Its default of one item a chunk is known to be slow; this is multiprocessing.Pool's rule.
        chunk = -(-len(items) // (self._workers * 4))
        return list(self._executor.map(function, items, chunksize=chunk))
