"""`concurrent.futures.ThreadPoolExecutor`, for the thread engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.model import NotOffered
from benchmarks.peers.base import ExecutorSession, Function, Peer, Session


class ThreadSession(ExecutorSession):
    def stream(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self._executor.map(function, items)
        return results


class Threads(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        raise NotOffered

    def open_threads(self, workers: int) -> Session:
        return ThreadSession(ThreadPoolExecutor(workers), workers)


PEER = Threads(key="tpe", label="ThreadPoolExecutor")
