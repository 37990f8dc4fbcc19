"""`concurrent.futures.ProcessPoolExecutor` with the start methods in use on Linux."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.base import ExecutorSession, Function, Peer, Program, Session


@dataclass(frozen=True)
class Executor(Peer):
    method: str = "fork"

    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        context = multiprocessing.get_context(self.method)
        if preload and self.method == "forkserver":
            context.set_forkserver_preload(list(preload))
        return ExecutorSession(ProcessPoolExecutor(workers, mp_context=context), workers)

    def nested(self, function: Function, items: Sequence[Any]) -> list[Any]:
        context = multiprocessing.get_context(self.method)
        with ProcessPoolExecutor(mp_context=context) as executor:
            return list(executor.map(function, items))


PEERS = tuple(
    Executor(
        key=f"ppe-{method}",
        label=f"ProcessPoolExecutor ({method})",
        program=Program(
            imports="from concurrent.futures import ProcessPoolExecutor\n"
            "from multiprocessing import get_context",
            pool=f'ProcessPoolExecutor({{workers}}, mp_context=get_context("{method}"))',
            call="pool.submit(work, 1).result()",
        ),
        method=method,
    )
    for method in ("fork", "forkserver")
)
