"""No pool at all: a loop in the program itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.peers.base import Function, FunctionWith, Peer, Session


class LoopSession(Session):
    def close(self) -> None:
        """Nothing was opened."""

    def submit_all(self, function: Function, items: Iterable[Any]) -> list[Any]:
        return [function(item) for item in items]

    def put(self, value: Any) -> Any:
        return value

    def submit_with(self, function: FunctionWith, given: Any, items: Iterable[Any]) -> list[Any]:
        return [function(given, item) for item in items]


class Loop(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        return LoopSession()


PEER = Loop(key="serial", label="a loop (no pool)", competes=False)
