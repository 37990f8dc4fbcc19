"""Runs the measured processes: one at a time, in turns over the peers, under a hard time limit."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import processes
from benchmarks.model import Outcome, Record, Settings, Workload
from benchmarks.peers.base import Peer

QUICK_TIME_LIMIT_SECONDS = 30.0
# What a program has started may take a moment to notice that it is gone.
GRACE_SECONDS = 3.0
# A peer that fails twice in a row is not tried again: hangs would eat the time of all others.
FAILURES_TO_GIVE_UP = 2
NOT_INSTALLED = "not installed"


def run_workload(
    workload: Workload, peers: Sequence[Peer], *, quick: bool, report: Callable[[Record], None]
) -> list[Record]:
    """Every round of a workload, over those of its peers that are installed."""
    parameters = workload.calibrate() if workload.calibrate else {}
    cpus = (min(os.sched_getaffinity(0)),) if workload.one_cpu else None
    time_limit = workload.time_limit_seconds
    if quick:
        time_limit = min(time_limit, QUICK_TIME_LIMIT_SECONDS)
    records: list[Record] = []
    for number in range(workload.quick_rounds if quick else workload.rounds):
        shift = number % len(peers)
        for peer in [*peers[shift:], *peers[:shift]]:
            if (quick and number > 0 and peer.slow_start) or _is_given_up(records, peer):
                continue
            settings = Settings(workload.name, peer.key, quick, cpus, parameters)
            record = _run_once(settings, number, time_limit)
            records.append(record)
            report(record)
    return _with_wrong_answers_marked(records)


def _is_given_up(records: Sequence[Record], peer: Peer) -> bool:
    last = [record for record in records if record.peer == peer.key][-FAILURES_TO_GIVE_UP:]
    return len(last) == FAILURES_TO_GIVE_UP and all(record.failure for record in last)


def _run_once(settings: Settings, number: int, time_limit_seconds: float) -> Record:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        outcome_path = Path(folder) / "outcome.json"
        messages_path = Path(folder) / "messages"
        arguments = [json.dumps(dataclasses.asdict(settings)), str(outcome_path)]
        begin = time.perf_counter()
        failure = None
        # Messages go to a file: on a pipe we would wait for whoever the program left behind.
        with messages_path.open("wb") as messages:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.measure", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                start_new_session=True,
                # Ray reports home and leaves its logs in the common folder, unless told otherwise.
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder},
            )
            try:
                status = process.wait(time_limit_seconds)
            except subprocess.TimeoutExpired:
                failure = f"not done after {time_limit_seconds:.0f} s, killed"
                _kill_group(process)
            except BaseException:
                _kill_group(process)
                processes.end_descendants(0)
                raise
            else:
                if status != 0:
                    failure = _describe_failure(status, messages_path)
        wall_seconds = time.perf_counter() - begin
        leftovers = processes.end_descendants(GRACE_SECONDS)
        outcome = None
        if failure is None:
            outcome = Outcome(**json.loads(outcome_path.read_text()))
    return Record(
        settings.workload, settings.peer, number, wall_seconds, outcome, failure, leftovers
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _describe_failure(status: int, messages_path: Path) -> str:
    """The last line of what it said, which for an exception is its type and message."""
    ending = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    lines = messages_path.read_text(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    # No paths of this machine in what is published.
    last = re.sub(r"(?<!\w)/[\w.+/-]+", "<path>", said[-1])[:160] if said else ""
    return f"{ending}: {last}" if last else ending


def _with_wrong_answers_marked(records: Sequence[Record]) -> list[Record]:
    """Answers must be equal over all peers and rounds; those that differ from most are wrong."""
    answers = [record.outcome.answer for record in records if record.outcome]
    if len(set(answers)) <= 1:
        return list(records)
    right = max(answers, key=answers.count)
    return [
        dataclasses.replace(record, outcome=None, failure="wrong result")
        if record.outcome and record.outcome.answer != right
        else record
        for record in records
    ]
