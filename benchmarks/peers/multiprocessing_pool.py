"""`multiprocessing.Pool` with each start method."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from benchmarks.peers.base import Function, FunctionWith, Peer, Program, Session


class PoolSession(Session):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def close(self) -> None:
        self._pool.close()
        self._pool.join()

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
        return self._pool.map(function, items)

    def map_unordered(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return list(self._pool.imap_unordered(function, items))

    @contextmanager
    def filled(self, function: FunctionWith, length: int, parts: Iterable[Any]) -> Iterator[Any]:
        import numpy

        memory = SharedMemory(create=True, size=length * numpy.dtype(float).itemsize)
        try:
            jobs = [(memory.name, function, length, part) for part in parts]
            self._pool.starmap(_fill_shared_memory, jobs, chunksize=1)
            yield numpy.ndarray(length, float, memory.buf)
        finally:
            memory.unlink()


def _fill_shared_memory(name: str, function: FunctionWith, length: int, part: Any) -> None:
    import numpy

    memory = SharedMemory(name)
    function(numpy.ndarray(length, float, memory.buf), part)
    memory.close()


@dataclass(frozen=True)
class MultiprocessingPool(Peer):
    method: str = "fork"

    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        context = multiprocessing.get_context(self.method)
        if preload and self.method == "forkserver":
            context.set_forkserver_preload(list(preload))
        return PoolSession(context.Pool(workers))


PEERS = tuple(
    MultiprocessingPool(
        key=f"mp-{method}",
        label=f"mp.Pool ({method})",
        program=Program(
            imports="from multiprocessing import get_context",
            pool=f'get_context("{method}").Pool({{workers}})',
            call="pool.apply(work, (1,))",
        ),
        method=method,
    )
    for method in ("fork", "forkserver", "spawn")
)
