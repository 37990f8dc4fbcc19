"""What it costs that context variables travel with tasks, and that logging is forwarded."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from functools import partial

from benchmarks.model import OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.workloads.warm import WrongResult, in_turns, medians, seconds_of, submit_and_wait

TASKS = 20_000
QUICK_TASKS = 4_000
TURNS = 41
QUICK_TURNS = 3
WORKERS = 2

request: ContextVar[str] = ContextVar("request", default="none")


def _is_forwarded() -> bool:
    return bool(logging.getLogger().handlers)


def _request() -> str:
    return request.get()


def forwarded(peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    tasks = QUICK_TASKS if settings.quick else TASKS

    def seconds(pool: mh.Pool) -> float:
        return seconds_of(lambda: submit_and_wait(pool.submit, tasks), list(range(tasks)))

    logger = logging.getLogger(__name__)
    logger.setLevel(logging.INFO)
    token = request.set("4711")
    names = [f"{__name__}:request"]
    try:
        with mh.Pool(WORKERS, logging=False) as plain, mh.Pool(WORKERS, context=names) as full:
            for pool in (plain, full):
                seconds(pool)
            if plain.submit(_is_forwarded).result() or not full.submit(_is_forwarded).result():
                raise WrongResult("the wrong pool forwards what tasks log")
            if full.submit(_request).result() != "4711":
                raise WrongResult("the context variable did not travel")
            ways = {"plain": partial(seconds, plain), "forwarded": partial(seconds, full)}
            took = medians(in_turns(ways, QUICK_TURNS if settings.quick else TURNS))
    finally:
        request.reset(token)
        logger.setLevel(logging.NOTSET)
    return Outcome({"ratio": took["plain"] / took["forwarded"], "rate": tasks / took["forwarded"]})


WORKLOADS = (
    Workload(
        name="forwarded",
        title="20,000 tasks with a context variable, whose log records would be forwarded",
        peers=(OURS,),
        metrics=(
            Metric(
                key="ratio",
                title="speed of `submit` with context and logging, of that without",
                unit="times",
                better="higher",
                must=Bound(0.9),
            ),
            Metric(key="rate", title="tasks per second with both", unit="tasks/s", better="higher"),
        ),
        run=forwarded,
        note="20,000 empty tasks and their results, two workers; nothing is logged; in turns, in "
        "one process; medians of 41 turns.",
    ),
)
