"""Page faults of a warm worker for arrays that a task only reads, and for those that it writes."""

from __future__ import annotations

from typing import Any

from benchmarks.model import OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Function, Peer, Session
from benchmarks.tasks import faults_with_reading, faults_with_writing
from benchmarks.workloads.warm import expect

MEBIBYTES = 32
NUMBERS_PER_MEBIBYTE = 2**20 // 8
# A number in every fourth page.
WRITE_EVERY = 4 * 512
WARM_UP_TASKS = 5
TASKS = 10
# "About none", and what a worker does besides its task.
READ_LIMIT = 1.0
WRITE_LIMIT = NUMBERS_PER_MEBIBYTE / WRITE_EVERY + READ_LIMIT


def run(peer: Peer, settings: Settings) -> Outcome:
    import numpy

    array = numpy.arange(MEBIBYTES * NUMBERS_PER_MEBIBYTE, dtype=float)
    with peer.open(1) as session:
        reading = _faults_per_mebibyte(session, faults_with_reading, array)
        writing = _faults_per_mebibyte(session, faults_with_writing, (array, WRITE_EVERY))
    return Outcome({"reading": reading, "writing": writing})


def _faults_per_mebibyte(session: Session, function: Function, item: Any) -> float:
    """Of all that a worker does from the end of one task to the end of the next."""
    call = session.caller(function)
    answers = [call(item) for _ in range(WARM_UP_TASKS + TASKS)]
    (worker, before), (last_worker, after) = answers[WARM_UP_TASKS - 1], answers[-1]
    expect(last_worker, worker)
    return float(after - before) / TASKS / MEBIBYTES


WORKLOAD = Workload(
    name="page_faults",
    title="Page faults for an argument of 32 MiB",
    peers=(OURS, "mp-fork"),
    metrics=(
        Metric(
            key="reading",
            title="per MiB, only read",
            unit="faults",
            better="lower",
            must=Bound(READ_LIMIT),
        ),
        Metric(
            key="writing",
            title="per MiB, a number written in each fourth page",
            unit="faults",
            better="lower",
            must=Bound(WRITE_LIMIT),
        ),
    ),
    run=run,
    note="One worker, one task at a time; all faults of its process, from the end of one task to "
    "the end of the next. A MiB has 256 pages, of which the second kind of task writes 64.",
    rounds=3,
)
