"""`pool.dump()` on every engine."""

from __future__ import annotations

import os
import time

from capabilities import Capabilities

import manyhands as mh
from gate import Gate, pass_through


def test_what_runs_and_what_does_not(engine: Capabilities, pool: mh.Pool, gate: Gate) -> None:
    assert pool.dump().workers == ()
    assert pool.dump().engine == engine.name
    if not engine.background:
        gate.open()
    future = pool.submit(pass_through, gate.path, 5)
    gate.wait_arrivals()
    dump = pool.dump()
    if engine.background:
        while dump.workers[0].stack is None:  # on a machine that has no time for it
            dump = pool.dump()
        (worker,) = dump.workers
        assert (worker.state, worker.task_index, worker.kernel) == ("busy", 0, None)
        assert (worker.pid != os.getpid()) == engine.own_pids
        assert worker.task_age is not None
        assert worker.stack is not None
        assert worker.stack.splitlines()[0].endswith(", in pass_through")
        assert dump.pending == 1
        gate.open()
        assert future.result() == 5
        while pool.dump().workers[0].state != "idle":
            time.sleep(0.001)
        assert pool.dump().workers[0].stack is None
    assert pool.dump().pending == 0
    assert str(pool.dump()).startswith("pool of ")
