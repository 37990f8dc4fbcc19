"""What workers print arrives as whole lines, also on a pipe, and however long they are (P49)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gate import Gate

LIMIT = 60.0

PROGRAM = """
import sys
import manyhands as mh

def work(number):
    for size in (10, 3_000, 5_000, 9_000, 70_000, 300_000):
        stream = (sys.stdout, sys.stderr)[number % 2]
        print(f"{number:5}", "abcdefghij"[number % 10] * size, file=stream)
    return number

with mh.Pool(4) as pool:
    assert pool.map(work, range(40)).list() == list(range(40))
"""

SIZES = (10, 3_000, 5_000, 9_000, 70_000, 300_000)


def check(text: str) -> None:
    expected = sorted(
        f"{number:5} {'abcdefghij'[number % 10] * size}" for number in range(40) for size in SIZES
    )
    assert sorted(text.splitlines()) == expected


@pytest.mark.parametrize("is_slow", [False, True])
def test_long_lines_to_a_pipe_come_whole(is_slow: bool) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert program.stdout is not None
    killer = threading.Timer(LIMIT, program.kill)
    killer.start()
    parts = []
    while part := os.read(program.stdout.fileno(), 1 << 14):
        parts.append(part)
        if is_slow and len(parts) % 100 == 0:
            time.sleep(0.01)
    program.stdout.close()
    assert program.wait(LIMIT) == 0
    killer.cancel()
    check(b"".join(parts).decode())


def test_long_lines_to_a_file_come_whole(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with path.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=LIMIT,
        )
    check(path.read_text())


EARLY = """
import sys
sys.path.insert(0, sys.argv[1])
import manyhands as mh
from gate import pass_through

def work(number, path):
    print("it has begun:", number, "x" * 5_000)
    print(number, "no end", end="")
    pass_through(path)
    return number

with mh.Pool(2) as pool:
    assert pool.map(work, range(2), [sys.argv[2]] * 2).list() == [0, 1]
"""


@pytest.mark.parametrize("where", ["pipe", "file"])
def test_a_line_comes_while_its_task_runs(gate: Gate, tmp_path: Path, where: str) -> None:
    """P49 (joblib#1017, loky#372): prints are shown late, in one heap."""
    path = tmp_path / "output"
    command = [sys.executable, "-c", EARLY, str(Path(__file__).parents[1]), gate.path]
    with path.open("wb") as file:
        program = subprocess.Popen(command, stdout=subprocess.PIPE if where == "pipe" else file)
    killer = threading.Timer(100, program.kill)
    killer.start()
    try:
        gate.wait_arrivals(2)
        # The tasks stand at the gate: what is there now was not held back for their ends.
        expected = [f"it has begun: {number} {'x' * 5_000}" for number in range(2)]
        if program.stdout is not None:
            lines = [program.stdout.readline().decode() for _ in range(2)]
            assert sorted(lines) == [f"{line}\n" for line in expected]
        else:
            assert sorted(path.read_text().splitlines()) == expected
        assert program.poll() is None
        gate.open()
        rest = program.communicate(timeout=100)[0]
        assert program.returncode == 0
        if rest is None:
            rest = path.read_bytes()[sum(len(line) + 1 for line in expected) :]
        assert sorted(rest.split(b" no end")) == [b"", b"0", b"1"]
    finally:
        killer.cancel()
        program.kill()
        program.communicate()


STOPPED = """
import os, sys, time
import manyhands as mh

def hold(path):
    import fcntl
    fcntl.lockf(1, fcntl.LOCK_EX)
    open(path, "w").close()
    os.write(1, f"{os.getpid()}\\n".encode())  # from here on it may be stopped
    time.sleep(3600)

def write():
    print("x" * 10_000)

with mh.Pool(2) as pool:
    held = pool.submit(hold, sys.argv[1])
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.001)
    pool.submit(write).result(60)
    held.cancel()
"""


def test_nobody_waits_for_ever_for_one_that_stands_still(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "held")]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    killer = threading.Timer(LIMIT, program.kill)
    killer.start()
    os.kill(int(program.stdout.readline()), signal.SIGSTOP)
    assert program.stdout.readline() == "x" * 10_000 + "\n"
    program.stdout.close()
    assert program.wait(LIMIT) == 0
    killer.cancel()


KEEPS = """
import sys

kept = sys.stdout

def say(number):
    print("kept", number, file=kept)
    print("own", number)
"""

PRELOADS = """
import keeps
import manyhands as mh

with mh.Pool(2, preload=["keeps"]) as pool:
    pool.map(keeps.say, range(20)).run()
"""


def test_a_stream_that_a_preloaded_module_has_kept(tmp_path: Path) -> None:
    (tmp_path / "keeps.py").write_text(KEEPS)
    (tmp_path / "program.py").write_text(PRELOADS)
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    expected = [f"{who} {number}" for who in ("kept", "own") for number in range(20)]
    assert sorted(ended.stdout.splitlines()) == sorted(expected)
