"""What tasks print goes to the cell that submitted them (P49), by a stand-in for a kernel."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

# As far as it is used: which cell runs is a context variable, and so is where a thread writes to.
_KERNEL = """
import io, os, sys, threading, time
from contextvars import ContextVar

class Stream(io.TextIOBase):
    def __init__(self):
        self._header = ContextVar("header", default=None)
        self._global = {}
        self.written = {}
    @property
    def parent_header(self):
        header = self._header.get()
        return self._global if header is None else header
    def set_thread_parent(self, header):
        return self._header.set(header)
    def reset_thread_parent(self, token):
        self._header.reset(token)
    def begin_cell(self, name):
        self._global = {"msg_id": name}
    def write(self, text):
        cell = self.parent_header.get("msg_id")
        self.written[cell] = self.written.get(cell, "") + text
        return len(text)

real = sys.stdout
out, err = sys.stdout, sys.stderr = Stream(), Stream()
def cell(name):
    out.begin_cell(name)
    err.begin_cell(name)
def show():
    for stream in (out, err):
        for name, text in sorted(stream.written.items()):
            real.write(f"{name}: {sorted(text.splitlines())}\\n")
import manyhands as mh
"""


def run(folder: Path, program: str) -> list[str]:
    path = folder / "program.py"
    path.write_text(_KERNEL + textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_print_is_of_its_cell(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        def late(n, path):
            deadline = time.monotonic() + 60
            while not os.path.exists(path):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            print("late", n, end=" ")
            print("and whole")
            print("trouble", n, file=sys.stderr)

        def outer():
            mh.submit(print, "from below").result()

        cell("a")
        path = os.path.join(os.path.dirname(__file__), "go on")
        pool = mh.Pool(2)
        futures = [pool.submit(late, n, path) for n in range(2)]
        cell("b")
        open(path, "w").close()
        for future in futures:
            future.result()
        pool.submit(print, "of b").result()
        assert "of b" in out.written["b"]  # by the time the result is seen
        cell("c")
        pool.submit(outer).result()
        list(pool.map(print, ["x", "y"]))
        pool.shutdown()
        show()
        """,
    )
    assert lines == [
        "a: ['late 0 and whole', 'late 1 and whole']",
        "b: ['of b']",
        "c: ['from below', 'x', 'y']",
        "a: ['trouble 0', 'trouble 1']",
    ]


def test_prints_without_an_end_and_long_ones(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        def work():
            print("é" * 30_000)
            print("no end of line", end="")

        cell("a")
        with mh.Pool(1, logging=False) as pool:
            pool.submit(work).result()
        long, short = out.written["a"].splitlines()
        real.write(f"{len(long)} {short}\\n")
        """,
    )
    assert lines == ["30000 no end of line"]


def test_a_child_of_a_task(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        def work():
            pid = os.fork()
            if pid == 0:
                print("from a child", flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            print("from the task")

        cell("a")
        with mh.Pool(1) as pool:
            pool.submit(work).result()
        show()
        """,
    )
    assert lines == ["from a child", "a: ['from the task']"]


def test_what_is_captured_is_shown_in_no_cell(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        import logging

        def set_up():
            logging.basicConfig(format="%(message)s")  # to sys.stderr as it is now

        def work(n):
            print("kept", n)
            logging.warning("logged %d", n)

        cell("a")
        with mh.Pool(1, initializer=set_up, logging=False) as pool:
            future = pool.options(capture=True).submit(work, 1)
            future.result()
            pool.submit(work, 2).result()
        with mh.Pool(1, engine="thread", capture=True) as pool:
            other = pool.submit(print, "kept too")
            other.result()
        real.write(f"{future.output!r} {other.output!r}\\n")
        show()
        """,
    )
    assert lines == [
        r"'kept 1\nlogged 1\n' 'kept too\n'",
        "a: ['kept 2']",
        "a: ['logged 2']",
    ]
