"""What limits, retries and cancelling cost; how soon a worker is back whose task took too long."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.model import DEFAULT_WORKERS, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.tasks import ENDLESS, identity, nap, note_and_run
from benchmarks.workloads.warm import (
    NAPS,
    WrongResult,
    in_turns,
    medians,
    seconds_of,
    submit_and_wait,
)

TASKS = 20_000
TURNS = 21
QUICK_TURNS = 3
LATE_TASKS = 90
QUICK_LATE_TASKS = 30
LIMIT_SECONDS = 0.05
QUEUED = 100_000


def with_options(peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    def seconds(submit: Callable[..., mh.Future[int]]) -> float:
        return seconds_of(lambda: submit_and_wait(submit, TASKS), list(range(TASKS)))

    with (
        mh.Pool(DEFAULT_WORKERS) as pool,
        mh.Pool(DEFAULT_WORKERS, task_timeout=60, retry=3) as careful,
    ):
        view = pool.options(task_timeout=60, retry=3)
        submits: dict[str, Callable[..., mh.Future[int]]] = {
            "plain": pool.submit,
            "pool": careful.submit,
            "view": view.submit,
        }
        for warmed in (pool, careful):
            warmed.map(*NAPS).run()
            seconds(warmed.submit)
        ways = {name: partial(seconds, submit) for name, submit in submits.items()}
        took = medians(in_turns(ways, QUICK_TURNS if settings.quick else TURNS))
    plain = took["plain"]
    return Outcome(
        {"pool": plain / took["pool"], "view": plain / took["view"], "rate": TASKS / plain}
    )


def slot_is_back(peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    count = QUICK_LATE_TASKS if settings.quick else LATE_TASKS
    delays = []
    with tempfile.TemporaryDirectory() as folder, mh.Pool(1) as pool:
        pool.submit(nap, 0.01).result()
        strict = pool.options(task_timeout=LIMIT_SECONDS)
        number = 0
        while len(delays) < count:
            note = Path(folder) / f"note{number}"
            late = strict.submit(note_and_run, str(note), ENDLESS[number % len(ENDLESS)])
            after = pool.submit(time.monotonic)
            if not isinstance(late.exception(), mh.TaskTimeout):
                raise WrongResult(f"{late} did not end by its limit")
            begin = after.result()
            # Where the machine is so slow that its time was up before the note was there, it is
            # not known when that was.
            if note.exists():
                delays.append(begin - float(note.read_text()) - LIMIT_SECONDS)
            number += 1
    delays.sort()
    p99 = delays[math.ceil(0.99 * count) - 1]
    return Outcome({"p99": p99, "p50": statistics.median(delays)})


def cancel_queued(peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    pool = mh.Pool(DEFAULT_WORKERS)
    running: list[mh.Future[Any]] = [pool.submit(nap, 600.0) for _ in range(DEFAULT_WORKERS)]
    while not all(future.running() for future in running):
        time.sleep(0.001)
    futures = [pool.submit(identity, number) for number in range(QUEUED)]
    begin = time.perf_counter()
    cancelled = [future.cancel() for future in futures]
    seconds = time.perf_counter() - begin
    if not all(cancelled):
        raise WrongResult("some were not cancelled")
    pool.terminate()
    for future in (futures[0], futures[-1]):
        try:
            future.result(0)
        except CancelledError:
            continue
        raise WrongResult(f"{future} is not cancelled")
    return Outcome({"seconds": seconds})


WORKLOADS = (
    Workload(
        name="submit_with_options",
        title="Submit 20,000 empty tasks with a limit and retries",
        peers=(OURS,),
        metrics=(
            Metric(
                key="pool",
                title="throughput of `Pool(task_timeout=60, retry=3)`, of that without",
                unit="times",
                better="higher",
                must=Bound(0.9),
            ),
            Metric(
                key="view",
                title="throughput of `pool.options(task_timeout=60, retry=3)`, of that without",
                unit="times",
                better="higher",
                must=Bound(0.9),
            ),
            Metric(key="rate", title="tasks per second without", unit="tasks/s", better="higher"),
        ),
        run=with_options,
        note="In turns with plain `submit`, in one process; medians of 21 turns.",
    ),
    Workload(
        name="slot_is_back",
        title="A worker whose task took too long",
        peers=(OURS,),
        metrics=(
            Metric(
                key="p99",
                title="from the end of its time to the start of the next task, p99",
                unit="s",
                better="lower",
                must=Bound(1.0),
            ),
            Metric(key="p50", title="the same, median", unit="s", better="lower"),
        ),
        run=slot_is_back,
        note="`task_timeout=0.05` and the usual `grace=0.5`; 90 tasks that compute, sleep, or loop "
        "in C and have to be killed, by turns, one worker.",
        rounds=3,
    ),
    Workload(
        name="cancel100k",
        title="Cancel 100,000 queued tasks",
        peers=(OURS,),
        metrics=(
            Metric(
                key="seconds",
                title="seconds for all `cancel()` together",
                unit="s",
                better="lower",
                must=Bound(0.2),
            ),
        ),
        run=cancel_queued,
        note="One after the other, while two long tasks keep the workers.",
    ),
)
