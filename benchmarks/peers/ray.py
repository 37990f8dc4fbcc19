"""Ray tasks on a local node without the dashboard."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.peers.base import Function, FunctionWith, Peer, Program, Session

_OPTIONS = "include_dashboard=False, log_to_driver=False, logging_level=40"


class RaySession(Session):
    def __init__(self, workers: int) -> None:
        import ray

        self._ray = ray
        self._workers = workers
        self._remotes: dict[Callable[..., Any], Any] = {}
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def close(self) -> None:
        self._ray.shutdown()

    def _remote(self, function: Callable[..., Any]) -> Any:
        """The remote function, made once for each as by the decorator."""
        if function not in self._remotes:
            self._remotes[function] = self._ray.remote(function)
        return self._remotes[function].remote

    def caller(self, function: Function) -> Function:
        get = self._ray.get
        remote = self._remote(function)
        return lambda item: get(remote(item))

    def submit_all(self, function: Function, items: Iterable[Any]) -> list[Any]:
        remote = self._remote(function)
        return list(self._ray.get([remote(item) for item in items]))

    def one_by_one(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        remote = self._remote(function)
        references = deque([remote(item) for item in items])
        while references:
            yield self._ray.get(references.popleft())

    def put(self, value: Any) -> Any:
        return self._ray.put(value)

    def submit_with(self, function: FunctionWith, given: Any, items: Iterable[Any]) -> list[Any]:
        remote = self._remote(function)
        return list(self._ray.get([remote(given, item) for item in items]))

    def map_unordered(self, function: Function, items: Sequence[Any]) -> list[Any]:
        from ray.util.multiprocessing import Pool

        with Pool(self._workers) as pool:
            return list(pool.imap_unordered(function, items))


class Ray(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        return RaySession(workers)


PEER = Ray(
    key="ray",
    label="Ray",
    module="ray",
    program=Program(
        imports="import ray",
        pool=f"ray.init(num_cpus={{workers}}, {_OPTIONS})",
        call="ray.get(ray.remote(work).remote(1))",
    ),
    slow_start=True,
)
