"""mpire's WorkerPool with fork, its default and its fastest start method here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.peers.base import Function, Peer, Program, Session


class WorkerPoolSession(Session):
    def __init__(self, workers: int) -> None:
        from mpire.pool import WorkerPool

        self._pool = WorkerPool(n_jobs=workers, start_method="fork", keep_alive=True)

    def close(self) -> None:
        self._pool.stop_and_join()

    def caller(self, function: Function) -> Function:
        apply = self._pool.apply
        return lambda item: apply(function, (item,))

    def submit_all(self, function: Function, items: Iterable[Any]) -> list[Any]:
        apply_async = self._pool.apply_async
        results = [apply_async(function, (item,)) for item in items]
        return [result.get() for result in results]

    def one_by_one(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        apply_async = self._pool.apply_async
        results = deque([apply_async(function, (item,)) for item in items])
        while results:
            yield results.popleft().get()

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return list(self._pool.map(function, items))


class Mpire(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        return WorkerPoolSession(workers)


PEER = Mpire(
    key="mpire",
    label="mpire",
    module="mpire",
    program=Program(
        imports="from mpire import WorkerPool",
        pool='WorkerPool({workers}, start_method="fork")',
        call="pool.apply(work, (1,))",
    ),
)
