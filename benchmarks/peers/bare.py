"""No pool at all: bare processes that share the work evenly. The ideal for long equal tasks."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.model import NotOffered
from benchmarks.peers.base import Function, Peer, Session


class BareProcesses(Peer):
    def open(self, workers: int, preload: tuple[str, ...] = ()) -> Session:
        raise NotOffered

    def run(
        self, function: Function, items: Sequence[Any], workers: int
    ) -> tuple[float, list[Any]]:
        """Seconds from letting all processes go to the last one's end, and the results."""
        shares = [items[position::workers] for position in range(workers)]
        seconds, results = self.run_shares(function, shares)
        ordered: list[Any] = [None] * len(items)
        for position, share in enumerate(results):
            ordered[position::workers] = share
        return seconds, ordered

    def run_shares(
        self, function: Function, shares: Sequence[Sequence[Any]]
    ) -> tuple[float, list[list[Any]]]:
        """The same, with a process for each share of the items."""
        workers = len(shares)
        gate, opener = os.pipe()
        # Every process says that it stands at the gate, so that none is late.
        ready, ready_end = os.pipe()
        answers: list[int] = []
        for share in shares:
            answer, answer_end = os.pipe()
            answers.append(answer)
            if os.fork() == 0:
                try:
                    os.write(ready_end, b"r")
                    os.read(gate, 1)
                    results = [function(item) for item in share]
                    with os.fdopen(answer_end, "wb") as stream:
                        pickle.dump(results, stream)
                finally:
                    # Whatever happened, the parent's code is not for this process.
                    os._exit(0)
            os.close(answer_end)
        waiting = 0
        while waiting < workers:
            waiting += len(os.read(ready, workers))
        begin = time.perf_counter()
        os.write(opener, b"g" * workers)
        given = []
        for answer in answers:
            with os.fdopen(answer, "rb") as stream:
                given.append(pickle.load(stream))
        seconds = time.perf_counter() - begin
        for _ in range(workers):
            os.wait()
        return seconds, given


PEER = BareProcesses(key="bare", label="bare processes (ideal)", competes=False)
