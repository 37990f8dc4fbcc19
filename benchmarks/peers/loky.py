"""loky's reusable executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.base import ExecutorSession, Function, Peer, Program, Session


class Loky(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        from loky import get_reusable_executor

        return ExecutorSession(get_reusable_executor(max_workers=workers), workers)

    def nested(self, function: Function, items: Sequence[Any]) -> list[Any]:
        from loky import get_reusable_executor

        return list(get_reusable_executor().map(function, items))


PEER = Loky(
    key="loky",
    label="loky",
    module="loky",
    program=Program(
        imports="from loky import get_reusable_executor",
        pool="get_reusable_executor(max_workers={workers})",
        call="pool.submit(work, 1).result()",
    ),
)
