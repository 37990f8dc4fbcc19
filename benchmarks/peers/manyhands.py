"""manyhands, with its defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.model import OURS
from benchmarks.peers.base import ExecutorSession, Function, Peer, Program, Session


class ManyhandsSession(ExecutorSession):
    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return list(self._executor.map(function, items))

    def map_unordered(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return list(self._executor.map(function, items, ordered=False))

    def stream(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self._executor.map(function, items)
        return results


class Manyhands(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        import manyhands as mh

        pool = mh.Pool(workers, preload=list(preload)) if preload else mh.Pool(workers)
        return ManyhandsSession(pool, workers)

    def open_threads(self, workers: int) -> Session:
        import manyhands as mh

        return ManyhandsSession(mh.Pool(workers, engine="thread"), workers)


PEER = Manyhands(
    key=OURS,
    label="manyhands",
    module="manyhands",
    program=Program(
        imports="import manyhands as mh",
        pool="mh.Pool({workers})",
        call="pool.submit(work, 1).result()",
    ),
)
