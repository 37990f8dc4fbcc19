"""What is told of a test that hangs: by the watchdog, and by who shows the end of a log."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import manyhands

TESTS = Path(__file__).parent.parent
FACTS = TESTS.parent / "scripts" / "log_facts.py"

HANGS = """
import threading, time
import manyhands as mh

def sleeps():
    time.sleep(60)

def test_that_hangs():
    with mh.Pool(1, name="the pool that hangs") as pool:
        pool.submit(sleeps).result()
"""

Facts = Callable[[Iterable[str]], list[str]]


@pytest.fixture(scope="module")
def facts() -> Facts:
    found: Facts = runpy.run_path(str(FACTS))["facts"]
    return found


def test_a_hang_is_told_with_its_test_its_threads_and_its_pools(
    tmp_path: Path, facts: Facts
) -> None:
    (tmp_path / "test_it.py").write_text(HANGS)
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    package = str(Path(manyhands.__file__).parent.parent)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(TESTS), package]))
    environment.pop("PYTEST_ADDOPTS", None)
    options = ["-o", "faulthandler_timeout=6", "-o", "faulthandler_exit_on_timeout=true"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_it.py"],
        check=False,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    log = ended.stdout + ended.stderr
    assert ended.returncode != 0, log
    shown = facts(log.splitlines())
    assert shown[0] == "hang: test_it.py::test_that_hangs (call) has taken 3 s", log
    assert any(line.startswith("hang: thread ") and "MainThread" in line for line in shown), log
    assert any(line.startswith("hang: pool ") and "that hangs" in line for line in shown), log
    assert any("pending=1" in line for line in shown), log
    assert any(line.endswith(" in test_that_hangs") for line in shown), log
    assert not any("pluggy" in line or "_pytest" in line for line in shown), shown


def test_the_failures_of_a_log_are_shown_once_and_not_too_many(facts: Facts) -> None:
    log = [f"FAILED tests/unit/test_a.py::test_{n} - assert 1" for n in range(100)]
    shown = facts(["F..", *log, log[0], "= 100 failed in 3 s ="])
    assert shown[:2] == log[:2]
    assert len(shown) == 30
    assert shown[-1] == "... and 71 lines more"


def test_a_log_of_cargo_shows_what_failed(facts: Facts) -> None:
    log = [
        "test pool::tests::fine ... ok",
        "test pool::tests::bad ... FAILED",
        "thread 'pool::tests::bad' (7) panicked at src/pool.rs:3:5:",
        "error: test failed, to rerun pass `--lib`",
    ]
    assert facts(log) == log[1:]
    assert facts(["all is well"]) == []


def test_a_log_whose_writer_was_killed_shows_where(facts: Facts) -> None:
    killed = "make: *** [Makefile:7: test-python] Killed"
    assert facts(["test_a.py ....", "test_b.py .." + killed]) == ["test_b.py ..", killed]
    assert facts([killed]) == [killed]
