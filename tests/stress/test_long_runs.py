"""The tests of `tests/crash` that get better the longer they run: MANYHANDS_STRESS_SECONDS each."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest
import test_interrupt
import test_leaks
import test_parent_kill
import test_stopping

from programs import on_terminal, run_command, seed, stress_seconds

pytestmark = pytest.mark.stress

# Workers that are ended by SIGSEGV have nothing to say of it.
_QUIET = {"PYTHONFAULTHANDLER": ""}
_CRASH = Path(__file__).parents[1] / "crash"


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("signals", ["KILL", "KILL,STOP,TERM,SEGV"])
def test_a_thousand_kills_at_random_instants(workers: int, signals: str) -> None:
    end = time.monotonic() + stress_seconds() / 6
    kills, turn, first = 0, 0, seed()
    while kills < 1000 or time.monotonic() < end:
        count = "250"
        command = [
            sys.executable,
            str(_CRASH / "chaos_program.py"),
            count,
            str(first + turn),
            str(workers),
            signals,
        ]
        ended = run_command(command, 240, environment=_QUIET).check()
        print(f"seed {first + turn}: {ended.out}")
        assert "all is well" in ended.out
        kills += 250
        turn += 1
    assert kills >= 1000


@pytest.mark.parametrize("threads", [2, 8])
def test_soak(threads: int) -> None:
    seconds = stress_seconds()
    program = Path(__file__).with_name("soak_program.py")
    command = [sys.executable, str(program), str(seconds), str(seed()), str(threads)]
    ended = run_command(command, seconds + 90, environment=_QUIET).check()
    print(ended.out)
    assert "all is well" in ended.out


def test_parents_are_killed_at_random_instants() -> None:
    choose = random.Random(seed())
    end = time.monotonic() + stress_seconds()
    count = 0
    while count < 50 or time.monotonic() < end:
        chosen = choose.choice(test_parent_kill._PROGRAMS)
        with chosen.start() as running:
            time.sleep(choose.choice((0.05, 0.15, 0.5)) * choose.random())
            test_parent_kill.gone_after(running, lambda running: running.process.kill())
        count += 1
    print(f"{count} programs")


def test_interrupts_at_random_instants() -> None:
    choose = random.Random(seed())
    end = time.monotonic() + stress_seconds()
    count = 0
    while count < 20 or time.monotonic() < end:
        chosen = choose.choice(test_interrupt._PROGRAMS)
        typed = on_terminal(chosen.source(), b"\x03", delay=0.2 * choose.random())
        assert typed.shown.count("Traceback") == 1, typed.shown
        assert typed.code == -2, typed
        assert not typed.survivors
        count += 1
    print(f"{count} programs")


def test_thousands_of_pools() -> None:
    test_leaks.run_pools_in_a_row(
        test_leaks.pools_in_a_row, int(100 * stress_seconds()), 10 * stress_seconds() + 60
    )


def test_limits_that_equal_the_duration_of_a_hundred_thousand_tasks() -> None:
    """pebble#153."""
    program = test_stopping.limits_that_equal_the_duration
    print(program.run(count=100_000, chosen=seed(), seconds=stress_seconds() + 480).check().out)


def test_crash_tests_again_and_again() -> None:
    """The tests of `tests/crash`, in another order each time: what fails once in a hundred runs."""
    end = time.monotonic() + stress_seconds()
    choose = random.Random(seed())
    files = sorted(_CRASH.glob("test_*.py"))
    assert files
    while time.monotonic() < end:
        choose.shuffle(files)
        for file in files:
            if time.monotonic() > end:
                break
            ended = run_command([sys.executable, "-m", "pytest", "-q", "-x", str(file)], 600)
            assert ended.code == 0, str(ended)
