"""`joblib.Parallel` with its default backend and its automatic batches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Function, FunctionWith, Peer, Program, Session


class ParallelSession(Session):
    def __init__(self, workers: int) -> None:
        from joblib import Parallel, delayed

        self._delayed = delayed
        self._parallel = Parallel(n_jobs=workers)
        self._parallel.__enter__()

    def close(self) -> None:
        self._parallel.__exit__(None, None, None)

    def submit_all(self, function: Function, items: Iterable[Any]) -> list[Any]:
        delayed = self._delayed(function)
        return list(self._parallel(delayed(item) for item in items))

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return self.submit_all(function, items)

    def put(self, value: Any) -> Any:
        # It writes a large array to a memory-mapped file by itself, with the first task.
        return value

    def submit_with(self, function: FunctionWith, given: Any, items: Iterable[Any]) -> list[Any]:
        delayed = self._delayed(function)
        return list(self._parallel(delayed(given, item) for item in items))

    @contextmanager
    def filled(self, function: FunctionWith, length: int, parts: Iterable[Any]) -> Iterator[Any]:
        import numpy

        # Where joblib puts its own memory-mapped files.
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            array = numpy.memmap(Path(folder) / "array", float, mode="w+", shape=length)
            self.submit_with(function, array, parts)
            yield array


class Joblib(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        return ParallelSession(workers)

    def nested(self, function: Function, items: Sequence[Any]) -> list[Any]:
        from joblib import Parallel, delayed

        return list(Parallel(n_jobs=-1)(delayed(function)(item) for item in items))


PEER = Joblib(
    key="joblib",
    label="joblib",
    module="joblib",
    program=Program(
        imports="from joblib import Parallel, delayed",
        pool="Parallel(n_jobs={workers})",
        call="pool([delayed(work)(1)])[0]",
    ),
)
