"""What tasks log is handled by the parent: what, when, and what is lost.

P49 (joblib#1017, joblib#190, loky#306, bcbio#2520): logging that the program has set up does not
hold in workers.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from observing import until

log = logging.getLogger("tasks")


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    log.addHandler(handler)
    before = log.level
    log.setLevel(logging.INFO)
    yield handler
    log.setLevel(before)
    log.removeHandler(handler)


def say(text: str, *args: object) -> int:
    logging.getLogger("tasks").info(text, *args)
    return os.getpid()


def fail() -> None:
    try:
        os.environ["MISSING"]
    except KeyError:
        logging.getLogger("tasks").exception("it failed", extra={"request": 7, "open": sys.stdin})


def test_a_record_is_handled_before_the_result_is_seen(kept: Kept) -> None:
    with mh.Pool(2, name="made") as pool:
        for number in range(50):
            future = pool.submit(say, "number %d of %s", number, "many")
            pid = future.result()
            record = kept.records[-1]
            assert record.getMessage() == f"number {number} of many"
            assert (record.process, record.args) == (pid, None)
            assert record.processName in ("manyhands-made-0", "manyhands-made-1")
            assert (record.name, record.funcName) == ("tasks", "say")
            assert pid != os.getpid()


def test_items_of_a_map(kept: Kept) -> None:
    with mh.Pool(2) as pool:
        for count, _ in enumerate(pool.map(say, [f"item {n}" for n in range(300)]), 1):
            messages = kept.messages()
            assert f"item {count - 1}" in messages
    assert sorted(kept.messages()) == sorted(f"item {n}" for n in range(300))


def test_an_exception_is_text_and_extra_comes_along(kept: Kept) -> None:
    with mh.Pool(1) as pool:
        pool.submit(fail).result()
    (record,) = kept.records
    assert record.exc_info is None
    assert "KeyError: 'MISSING'" in logging.Formatter().format(record)
    assert record.__dict__["request"] == 7
    assert "stdin" in record.__dict__["open"] or record.__dict__["open"] == "None"


def is_enabled(name: str, level: int) -> tuple[bool, int]:
    logger = logging.getLogger(name)
    return logger.isEnabledFor(level), len(logging.getLogger().handlers)


def test_levels_are_those_of_the_parent(kept: Kept) -> None:
    quiet = logging.getLogger("tasks.quiet")
    quiet.setLevel(logging.ERROR)
    try:
        with mh.Pool(1) as pool:
            assert pool.submit(is_enabled, "tasks", logging.INFO).result() == (True, 1)
            assert pool.submit(is_enabled, "tasks", logging.DEBUG).result() == (False, 1)
            assert pool.submit(is_enabled, "tasks.quiet", logging.WARNING).result() == (False, 1)
            # What the parent hears no more is not handled, though the worker still sends it.
            log.setLevel(logging.ERROR)
            pool.submit(say, "not heard").result()
            assert kept.messages() == []
    finally:
        quiet.setLevel(logging.NOTSET)


def test_a_pool_can_be_told_not_to(kept: Kept) -> None:
    with mh.Pool(1, logging=False) as pool:
        assert pool.submit(is_enabled, "tasks", logging.INFO).result() == (False, 0)
        pool.submit(say, "here").result()
    assert kept.messages() == []
    with pytest.raises(ValueError, match='logging=False is for engine="process"'):
        mh.Pool(1, engine="thread", logging=False)
    mh.configure(logging=False)
    try:
        mh.submit(say, "here, too").result()
        mh.Pool(1, engine="inline").shutdown()
        assert kept.messages() == []
        with mh.Pool(1, logging=True) as pool:
            pool.submit(say, "there").result()
        assert kept.messages() == ["there"]
    finally:
        mh.configure(logging=None)
    with pytest.raises(TypeError, match="logging must be True or False"):
        mh.configure(logging="yes")  # type: ignore[arg-type]


def log_in_a_thread() -> None:
    thread = threading.Thread(target=say, args=("from a thread",))
    thread.start()
    thread.join()


def test_a_thread_of_a_worker_logs_too(kept: Kept) -> None:
    with mh.Pool(1) as pool:
        pool.submit(log_in_a_thread).result()
        assert kept.messages() == ["from a thread"]


def say_and_wait(text: str, path: str) -> None:
    say(text)
    deadline = time.monotonic() + 60
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_long_task_is_heard_while_it_runs(kept: Kept, tmp_path: Path) -> None:
    """P49: not delayed until its end, and not in one heap."""
    path = tmp_path / "go on"
    with mh.Pool(1) as pool:
        future = pool.submit(say_and_wait, "it has begun", str(path))
        deadline = time.monotonic() + 60
        while not kept.records:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert not future.done()
        path.touch()
        future.result()


def log_and_die() -> None:
    say("the last words")
    os.kill(os.getpid(), 9)


def test_what_a_worker_logged_before_it_died(kept: Kept) -> None:
    with mh.Pool(1) as pool:
        with pytest.raises(mh.WorkerDied):
            pool.submit(log_and_die).result()
        assert kept.messages() == ["the last words"]


def log_in_a_child() -> None:
    pid = os.fork()
    if pid == 0:
        logging.getLogger("tasks").warning("from a child")
        os._exit(0)
    os.waitpid(pid, 0)


def test_a_child_that_a_task_forks_is_no_worker(
    kept: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    with mh.Pool(1) as pool:
        pool.submit(log_in_a_child).result()
        pool.submit(say, "and on").result()
    assert kept.messages() == ["and on"]
    assert "from a child" in capfd.readouterr().err


def nest(depth: int) -> None:
    if depth:
        with mh.Pool(1, name=f"at {depth}") as pool:
            pool.submit(nest, depth - 1).result()
    else:
        say("from below")


def test_a_pool_in_a_task(kept: Kept) -> None:
    with mh.Pool(1) as pool:
        pool.submit(nest, 1).result()
    (record,) = kept.records
    assert record.processName == "manyhands-at 1-0"


def say_many(count: int, size: int) -> None:
    for number in range(count):
        say("%d %s", number, "x" * size)


class Slow(Kept):
    """Waits at the first record until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self.go_on.wait(60)


def test_a_slow_handler_holds_no_worker_up(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    log.addHandler(slow)
    log.propagate = False
    try:
        with mh.Pool(1) as pool:
            future = pool.submit(say_many, 3000, 15_000)
            deadline = time.monotonic() + 60
            while not future.done():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            until(lambda: slow.records)  # its thread may come late
            assert len(slow.records) == 1
            slow.go_on.set()
    finally:
        log.propagate = True
        log.removeHandler(slow)
    # Two of them where the thread that reads comes late: by its first look some are lost already.
    warnings = [r for r in caplog.records if "were lost" in r.getMessage()]
    lost = sum(int(re.findall(r"\d+", warning.getMessage())[0]) for warning in warnings)
    assert {warning.name for warning in warnings} == {"manyhands"}
    assert len(kept.records) + lost == 3000
    assert 0 < lost < 3000
    numbers = [int(message.split()[0]) for message in kept.messages()]
    assert numbers == sorted(numbers)


def test_a_long_record_is_shortened(kept: Kept) -> None:
    with mh.Pool(1) as pool:
        pool.submit(say, "%s", "é" * 100_000).result()
    (message,) = kept.messages()
    assert message.startswith("éé")
    assert message.endswith("... (100,000 characters)")
    assert len(message) < 20_000


class Failing(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise ZeroDivisionError("the handler")


def test_a_handler_that_raises(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    failing = Failing()
    log.addHandler(failing)
    try:
        with mh.Pool(1) as pool:
            pool.submit(say, "one").result()
            pool.submit(say, "two").result()
    finally:
        log.removeHandler(failing)
    assert kept.messages() == ["one", "two"]
    assert capsys.readouterr().err.count("ZeroDivisionError: the handler") == 2


class Asking(logging.Handler):
    """Uses the pool while it handles a record."""

    pool: Any = None
    answers: list[int]

    def emit(self, record: logging.LogRecord) -> None:
        self.answers.append(self.pool.submit(abs, -3).result(timeout=60))


def test_a_handler_may_use_the_pool(kept: Kept) -> None:
    asking = Asking()
    asking.answers = []
    log.addHandler(asking)
    try:
        with mh.Pool(1) as asking.pool:
            asking.pool.submit(say, "one").result()
            assert asking.answers == [3]
    finally:
        log.removeHandler(asking)


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )


def test_a_program_that_configured_nothing() -> None:
    """Workers keep to the defaults then: no thread, no handler, warnings to standard error."""
    done = run(
        "import logging, sys, threading\n"
        "import manyhands as mh\n"
        "def work():\n"
        "    logging.getLogger('a').warning('warned')\n"
        "    logging.getLogger('a').info('silent')\n"
        "    return len(logging.getLogger().handlers), 'manyhands._forward' in sys.modules\n"
        "with mh.Pool(1) as pool:\n"
        "    print(pool.submit(work).result(), threading.active_count())\n"
    )
    assert (done.stdout, done.stderr) == ("(0, False) 1\n", "warned\n")


def test_the_end_of_a_program_loses_nothing() -> None:
    done = run(
        "import logging\n"
        "import manyhands as mh\n"
        "from manyhands import _pool\n"
        "_pool._PATIENCE = 60\n"  # on a machine that stands still it would say what it waits for
        "logging.basicConfig(level='INFO', format='%(processName)s %(name)s %(message)s')\n"
        "def work(n):\n"
        "    logging.getLogger('a').info('number %d', n)\n"
        "for n in range(200):\n"
        "    mh.submit(work, n)\n"
    )
    lines = done.stderr.splitlines()
    assert all(re.fullmatch(r"manyhands-default-\d+ a number \d+", line) for line in lines), lines
    assert sorted(int(line.split()[-1]) for line in lines) == list(range(200))


def test_what_is_configured_later_is_found_by_workers_that_are_born_later() -> None:
    done = run(
        "import logging\n"
        "import manyhands as mh\n"
        "def work():\n"
        "    logging.getLogger('a').warning('warned')\n"
        "with mh.Pool(1) as pool:\n"
        "    pool.submit(work).result()\n"
        "    logging.basicConfig(level='INFO', format='%(processName)s %(message)s')\n"
        "with mh.Pool(1, name='next') as pool:\n"
        "    pool.submit(work).result()\n"
    )
    assert done.stderr == "warned\nmanyhands-next-0 warned\n"
