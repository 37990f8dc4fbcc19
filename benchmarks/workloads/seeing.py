"""What it costs that somebody listens to what happens."""

from __future__ import annotations

from functools import partial

from benchmarks.model import OURS, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.workloads.warm import WrongResult, in_turns, medians, seconds_of, submit_and_wait

TASKS = 20_000
QUICK_TASKS = 4_000
TURNS = 41
QUICK_TURNS = 3
WORKERS = 2


def listened(peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    tasks = QUICK_TASKS if settings.quick else TASKS
    heard = 0

    def listen(event: mh.Event) -> None:
        nonlocal heard
        heard += (event.count or 0) if event.kind == "ended" else 0

    def seconds(pool: mh.Pool) -> float:
        return seconds_of(lambda: submit_and_wait(pool.submit, tasks), list(range(tasks)))

    turns = QUICK_TURNS if settings.quick else TURNS
    with mh.Pool(WORKERS) as plain, mh.Pool(WORKERS, on_event=listen) as told:
        for pool in (plain, told):
            seconds(pool)
        ways = {"plain": partial(seconds, plain), "told": partial(seconds, told)}
        took = medians(in_turns(ways, turns))
    # If it is slow, it is told how many events it has missed.
    if not 0 < heard <= tasks * (turns + 1):
        raise WrongResult(f"{heard} tasks were told of")
    return Outcome({"ratio": took["plain"] / took["told"], "rate": tasks / took["told"]})


WORKLOADS = (
    Workload(
        name="listened",
        title="20,000 tasks with a listener",
        peers=(OURS,),
        metrics=(
            Metric(
                key="ratio",
                title="speed of `submit` with `on_event=`, of that without",
                unit="times",
                better="higher",
            ),
            Metric(key="rate", title="tasks per second with it", unit="tasks/s", better="higher"),
        ),
        run=listened,
        note="20,000 empty tasks and their results, two workers; in turns, in one process; medians "
        "of 41 turns. The listener, in Python, is called three times for each task.",
    ),
)
