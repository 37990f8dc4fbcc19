"""Everything at once, as `storm_program.py` tells it: a minute of it in each run of the tests.

`make stress` has longer ones, of MANYHANDS_STORM_SECONDS (1800) each.
MANYHANDS_STORM_SEED gives a storm again; its number is in the output of the one that failed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from programs import run_command, stress_seconds

_PROGRAM = Path(__file__).with_name("storm_program.py")
# Workers that are ended by SIGSEGV have nothing to say of it.
_QUIET = {"PYTHONFAULTHANDLER": ""}


def storm_seconds() -> float:
    """At least a minute: in less than that not all happens that must."""
    chosen = os.environ.get("MANYHANDS_STORM_SECONDS")
    return max(60, float(chosen) if chosen else stress_seconds())


def run_storm(seconds: float, threads: int) -> None:
    seed = os.environ.get("MANYHANDS_STORM_SEED") or int.from_bytes(os.urandom(4), "little")
    command = [sys.executable, str(_PROGRAM), str(seconds), str(seed), str(threads)]
    # Longer than its own watchdog takes, which has more to show.
    ended = run_command(command, seconds + 110, environment=_QUIET).check()
    print(ended.out)
    assert ended.out.endswith("all is well\n")


def test_a_storm_of_a_minute() -> None:
    run_storm(60, 4)


@pytest.mark.stress
@pytest.mark.parametrize("threads", [2, 8])
def test_a_storm(threads: int) -> None:
    run_storm(storm_seconds(), threads)
