"""`joblib.Parallel` with its default backend and its automatic batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.peers.base import Function, Peer, Program, Session


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


class Joblib(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        return ParallelSession(workers)


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
