"""manyhands, with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.model import OURS
from benchmarks.peers.base import ExecutorSession, Function, Peer, Program, Session


class ManyhandsSession(ExecutorSession):
    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return list(self._executor.map(function, items))


class Manyhands(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        import manyhands as mh

        pool = mh.Pool(workers, preload=list(preload)) if preload else mh.Pool(workers)
        return ManyhandsSession(pool, workers)


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
