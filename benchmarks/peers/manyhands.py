"""manyhands, with its defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.model import OURS
from benchmarks.peers.base import ExecutorSession, Function, FunctionWith, Peer, Program, Session


class ManyhandsSession(ExecutorSession):
    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return list(self._executor.map(function, items))

    def map_unordered(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return list(self._executor.map(function, items, ordered=False))

    def stream(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self._executor.map(function, items)
        return results

    def put(self, value: Any) -> Any:
        import manyhands as mh

        return mh.put(value)

    def submit_with(self, function: FunctionWith, given: Any, items: Iterable[Any]) -> list[Any]:
        submit = self._executor.submit
        futures = [submit(function, given, item) for item in items]
        return [future.result() for future in futures]

    @contextmanager
    def filled(self, function: FunctionWith, length: int, parts: Iterable[Any]) -> Iterator[Any]:
        import manyhands as mh

        array = mh.shared_array(length, float)
        self.submit_with(function, array, parts)
        yield array


class Manyhands(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        import manyhands as mh

        pool = mh.Pool(workers, preload=list(preload)) if preload else mh.Pool(workers)
        return ManyhandsSession(pool, workers)

    def nested(self, function: Function, items: Sequence[Any]) -> list[Any]:
        import manyhands as mh

        with mh.Pool() as pool:
            return list(pool.map(function, items))

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
