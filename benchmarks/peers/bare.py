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
        gate, opener = os.pipe()
        # Every process says that it stands at the gate, so that none is late.
        ready, ready_end = os.pipe()
        answers: list[int] = []
        for position in range(workers):
            answer, answer_end = os.pipe()
            answers.append(answer)
            if os.fork() == 0:
                try:
                    os.write(ready_end, b"r")
                    os.read(gate, 1)
                    results = [function(item) for item in items[position::workers]]
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
        shares = []
        for answer in answers:
            with os.fdopen(answer, "rb") as stream:
                shares.append(pickle.load(stream))
        seconds = time.perf_counter() - begin
        for _ in range(workers):
            os.wait()
        ordered: list[Any] = [None] * len(items)
        for position, share in enumerate(shares):
            ordered[position::workers] = share
        return seconds, ordered


PEER = BareProcesses(key="bare", label="bare processes (ideal)", competes=False)
