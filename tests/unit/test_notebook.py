"""Notebooks whose cells are executed in a real kernel, as Jupyter does it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import textwrap
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import procfs

# A cell that takes longer hangs, and so does what it shows.
_WATCHDOG_SECONDS = 60
# How long processes may take to be gone after their kernel; the time is shown.
_LEAVING_SECONDS = 10.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Cell:
    """A cell with what it has shown so far."""

    def __init__(self, source: str) -> None:
        self.node: Any = nbformat.v4.new_code_cell(textwrap.dedent(source))

    def printed(self, stream: str = "stdout") -> str:
        texts = [output.text for output in self.node.outputs if output.get("name") == stream]
        return "".join(texts)

    def errors(self) -> list[tuple[str, str]]:
        """Name and traceback of the exception that ended it, if one did."""
        return [
            (output.ename, _COLOURS.sub("", "\n".join(output.traceback)))
            for output in self.node.outputs
            if output.output_type == "error"
        ]


class Notebook:
    """A notebook with a kernel; each cell is executed when it is added."""

    def __init__(self, folder: Path) -> None:
        self._token = uuid.uuid4().hex
        self._runner = asyncio.Runner()
        self._notebook = nbformat.v4.new_notebook()
        self._client = NotebookClient(
            self._notebook,
            timeout=_WATCHDOG_SECONDS,
            # What has not come by then would be missing without a word.
            iopub_timeout=_WATCHDOG_SECONDS,
            raise_on_iopub_timeout=True,
            kernel_name="python3",
            allow_errors=True,
        )
        self._manager: Any = self._client.create_kernel_manager()
        self._folder = folder

    def open(self) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            # A kernel that finds pytest's does not show what other processes print.
            if not name.startswith(("MANYHANDS_", "PYTEST_"))
        }
        environment |= {procfs.TOKEN: self._token, "MANYHANDS_WORKERS": "2"}
        self._runner.run(
            self._client.async_start_new_kernel(env=environment, cwd=str(self._folder))
        )
        self._runner.run(self._client.async_start_new_kernel_client())

    def close(self) -> None:
        try:
            if self._client.kc is not None:
                self._client.kc.stop_channels()
            self._runner.run(self._manager.shutdown_kernel(now=True))
        finally:
            self._runner.close()
            for pid in procfs.marked(self._token):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def run(self, source: str) -> str:
        """What a cell prints that has to end well."""
        cell = Cell(source)
        self._runner.run(self._execute(cell))
        for _, traceback in cell.errors():
            pytest.fail(traceback)
        return cell.printed()

    def fail(self, source: str) -> tuple[str, str]:
        """Name and traceback of the exception that has to end the cell."""
        cell = Cell(source)
        self._runner.run(self._execute(cell))
        [error] = cell.errors()
        return error

    def run_until(
        self,
        source: str,
        ready: Callable[[Cell], bool],
        act: Callable[[], Awaitable[object] | None],
    ) -> Cell:
        """A cell that runs until something is done about it, which is when it is ready."""

        async def execute() -> Cell:
            cell = Cell(source)
            ending = asyncio.ensure_future(self._execute(cell))
            while not ending.done() and not ready(cell):
                await asyncio.sleep(0.005)
            assert not ending.done(), cell.node.outputs
            result = act()
            if result is not None:
                await result
            await ending
            return cell

        return self._runner.run(execute())

    async def _execute(self, cell: Cell) -> None:
        self._notebook.cells.append(cell.node)
        await self._client.async_execute_cell(cell.node, len(self._notebook.cells) - 1)

    def interrupt(self) -> Awaitable[object]:
        """As its button does."""
        return self._manager.interrupt_kernel()

    def restart(self) -> None:
        self._client.kc.stop_channels()
        self._runner.run(self._manager.restart_kernel())
        self._runner.run(self._client.async_start_new_kernel_client())

    def shut_down(self) -> None:
        self._runner.run(self._manager.shutdown_kernel())

    def kill(self) -> None:
        os.kill(self._manager.provisioner.pid, signal.SIGKILL)

    def is_waiting(self) -> bool:
        """Whether the kernel's main thread waits for something."""
        return procfs.all_sleep([self._manager.provisioner.pid])

    def started(self) -> list[int]:
        """The processes that the kernel has started."""
        return [pid for pid in procfs.marked(self._token) if pid != self._manager.provisioner.pid]


@contextlib.contextmanager
def _open_notebook(folder: Path) -> Iterator[Notebook]:
    """A notebook that knows no settings and no kernels but those of this environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / name))
        patch.delenv("JUPYTER_PATH", raising=False)
        notebook = Notebook(folder)
        try:
            notebook.open()
            notebook.run("import sys, time, manyhands as mh; pool = mh.Pool(2)")
            yield notebook
        finally:
            notebook.close()


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """One that the tests share which do not touch its kernel."""
    with _open_notebook(tmp_path_factory.mktemp("notebook")) as notebook:
        yield notebook


@pytest.fixture
def own_notebook(tmp_path: Path) -> Iterator[Notebook]:
    with _open_notebook(tmp_path) as notebook:
        yield notebook


def test_functions_of_cells(notebook: Notebook) -> None:
    notebook.run(
        """
        OFFSET = 100

        def shifted(n):
            return n + OFFSET

        def adder(m):
            return lambda n: shifted(n) + m
        """
    )
    shown = notebook.run(
        """
        print(list(mh.map(shifted, range(3))), list(pool.map(shifted, range(3))))
        print(mh.submit(shifted, 5).result(), pool.submit(shifted, 6).result())
        print(list(pool.map(lambda n: -shifted(n), [1, 2])), pool.submit(lambda: OFFSET).result())
        print(list(mh.map(adder(1000), [1, 2])), pool.submit(adder(2000), 3).result())
        """
    )
    assert shown.splitlines() == [
        "[100, 101, 102] [100, 101, 102]",
        "105 106",
        "[-101, -102] 100",
        "[1101, 1102] 2103",
    ]


def test_a_dataclass_of_a_cell_travels_both_ways(notebook: Notebook) -> None:
    notebook.run(
        """
        from dataclasses import dataclass, replace

        @dataclass
        class Point:
            x: int
            y: int = 0

            def moved(self, by):
                return replace(self, x=self.x + by)
        """
    )
    shown = notebook.run(
        """
        there_and_back = pool.submit(lambda point: point.moved(1), Point(1)).result()
        print(there_and_back, type(there_and_back) is Point, there_and_back == Point(2))
        print(list(mh.map(Point.moved, [Point(1), Point(2)], [10, 20])))
        """
    )
    assert shown.splitlines() == [
        "Point(x=2, y=0) True True",
        "[Point(x=11, y=0), Point(x=22, y=0)]",
    ]


def test_cells_that_are_edited(notebook: Notebook) -> None:
    def define(helper: str, function: str) -> None:
        notebook.run(f"def helper(n): return {helper}")
        notebook.run(f"def function(n): return {function}")

    results = "print(list(mh.map(function, [1, 2])), pool.submit(function, 3).result())"
    define("n", "helper(n) * 10")
    assert notebook.run(results) == "[10, 20] 30\n"
    define("n", "helper(n) * 100")
    assert notebook.run(results) == "[100, 200] 300\n"
    notebook.run("def helper(n): return n + 1")
    assert notebook.run(results) == "[200, 300] 400\n"
    # As it was at first: IPython then calls the source file so, too.
    define("n", "helper(n) * 10")
    assert notebook.run(results) == "[10, 20] 30\n"


def test_a_class_that_is_edited(notebook: Notebook) -> None:
    source = """
        class Greeter:
            def greet(self): return "{}"
        greeter = Greeter()
        """
    notebook.run(source.format("first"))
    notebook.run("old = greeter")
    assert notebook.run("print(pool.submit(old.greet).result())") == "first\n"
    notebook.run(source.format("second"))
    shown = notebook.run(
        "print(pool.submit(greeter.greet).result(), pool.submit(old.greet).result())"
    )
    assert shown == "second first\n"


FAILING = """\
class Wrong(Exception):
    pass

def invert(n):
    if n > 10:
        raise Wrong(n)
    return 1 / n  # the culprit
"""


@pytest.mark.parametrize(
    ("source", "name", "line"),
    [
        ("list(mh.map(invert, [1, 0, 2]))", "ZeroDivisionError", 7),
        ("list(mh.map(invert, [1, 11]))", "Wrong", 6),
        ("pool.submit(invert, 0).result()", "ZeroDivisionError", 7),
        ("pool.submit(invert, 11).result()", "Wrong", 6),
    ],
)
def test_an_exception_of_a_task(notebook: Notebook, source: str, name: str, line: int) -> None:
    notebook.run(FAILING)
    ended_by, traceback = notebook.fail(source)
    assert ended_by == name
    assert f", line {line}, in invert\n" in traceback
    # The cell that asked comes after it, and the sentence on the task last.
    after = traceback.partition(f", line {line}, in invert\n")[2]
    assert source in after
    assert "manyhands: " in after.splitlines()[-1]
    assert "in worker" in after.splitlines()[-1]
    assert "manyhands/" not in traceback, "frames of the library say nothing to the user"


def test_the_line_of_the_cell_that_failed_is_shown(notebook: Notebook) -> None:
    notebook.run(FAILING)
    _, traceback = notebook.fail("pool.submit(invert, 0).result()")
    assert "return 1 / n  # the culprit" in traceback


def test_what_workers_print_is_shown_in_the_cell(notebook: Notebook, tmp_path: Path) -> None:
    """P49 (loky#372): in notebooks nothing is shown of what workers print."""
    go = tmp_path / "go"
    cell = notebook.run_until(
        f"""
        from pathlib import Path

        def speak(n):
            print("task", n)
            print("trouble", n, file=sys.stderr)
            return n

        total = sum(pool.map(speak, range(20))) + sum(mh.map(speak, range(20, 40)))
        while not Path({str(go)!r}).exists():
            time.sleep(0.005)
        print("total", total)
        """,
        lambda cell: cell.printed().count("\n") == cell.printed("stderr").count("\n") == 40,
        go.touch,
    )
    assert sorted(cell.printed().splitlines()[:-1]) == sorted(f"task {n}" for n in range(40))
    assert cell.printed().splitlines()[-1] == "total 780"
    spoken = sorted(f"trouble {n}" for n in range(40))
    assert sorted(cell.printed("stderr").splitlines()) == spoken


def test_prints_are_of_the_cell_that_submitted(notebook: Notebook, tmp_path: Path) -> None:
    """What comes for a cell that has ended is not kept here, but it is not of the running one."""
    path = tmp_path / "go on"
    notebook.run(
        f"""
        import os

        def late(n):
            deadline = time.monotonic() + {_WATCHDOG_SECONDS}
            while not os.path.exists({str(path)!r}):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            print("late", n)
            print("trouble", n, file=sys.stderr)

        futures = [pool.submit(late, n) for n in range(2)]
        """
    )
    printed = notebook.run(
        f"""
        open({str(path)!r}, "w").close()
        print([future.result() for future in futures])
        pool.submit(print, "of the", "second").result()
        print("the end")
        """
    )
    assert printed.splitlines() == ["[None, None]", "of the second", "the end"]


def test_workers_that_print_much(notebook: Notebook) -> None:
    """More than pipes hold, while the cell shows nothing itself."""
    notebook.run(
        """
        def flood(n):
            print("x" * 1000)
            return n

        total = sum(pool.map(flood, range(200))) + sum(mh.map(flood, range(200)))
        """
    )
    assert "39800" in notebook.run("print(total, pool.stats().deaths)")


def interrupt_a_long_map(notebook: Notebook, folder: Path, call: str) -> Cell:
    """Interrupts a map when all workers of its pool are at work, and its loop waits for them."""
    notebook.run(
        """
        import os
        from pathlib import Path

        def hold(folder):
            Path(folder, str(os.getpid())).touch()
            time.sleep(600)
        """
    )
    folder.mkdir()
    start = 0.0

    def interrupt() -> Awaitable[object]:
        nonlocal start
        start = time.monotonic()
        return notebook.interrupt()

    cell = notebook.run_until(
        f"list({call}(hold, [{str(folder)!r}] * 8))",
        lambda cell: len(list(folder.iterdir())) == 2 and notebook.is_waiting(),
        interrupt,
    )
    print(f"the cell had ended {time.monotonic() - start:.2f} s after the interrupt")
    return cell


@pytest.mark.parametrize("call", ["mh.map", "pool.map"])
def test_an_interrupt_ends_a_map(own_notebook: Notebook, tmp_path: Path, call: str) -> None:
    cell = interrupt_a_long_map(own_notebook, tmp_path / "held", call)
    [(name, traceback)] = cell.errors()
    assert name == "KeyboardInterrupt"
    assert traceback.count("Traceback") == 1
    assert not cell.printed("stderr")
    shown = own_notebook.run("with mh.Pool(2) as fresh: print(list(fresh.map(abs, [-1, -2])))")
    assert shown == "[1, 2]\n"


@pytest.mark.parametrize("call", ["mh.map", "pool.map"])
def test_an_interrupted_map_lets_go_of_its_pool(
    own_notebook: Notebook, tmp_path: Path, call: str
) -> None:
    interrupt_a_long_map(own_notebook, tmp_path / "held", call)
    assert own_notebook.run(f"print(list({call}(abs, [-1, -2])))") == "[1, 2]\n"
    # Nobody can ask for what it ran any more.
    assert own_notebook.run("while pool.stats().pending: time.sleep(0.005)") == ""


def use_all(notebook: Notebook, *, busy: bool) -> list[int]:
    """Uses both pools; the processes that they have then."""
    shown = notebook.run("print(list(mh.map(abs, [-1, -2])), list(pool.map(abs, [-3, -4])))")
    assert shown == "[1, 2] [3, 4]\n"
    if busy:
        notebook.run(
            """
            futures = [where.submit(time.sleep, 600) for where in (mh, pool) for _ in range(4)]
            while sum(future.running() for future in futures) < 4:
                time.sleep(0.005)
            """
        )
    started = notebook.started()
    assert len(started) == 5 if busy else len(started) >= 3, "a zygote, and workers of both"
    return started


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("end", [Notebook.restart, Notebook.shut_down, Notebook.kill])
def test_the_end_of_a_kernel_leaves_nothing(
    own_notebook: Notebook, end: Callable[[Notebook], None], busy: bool
) -> None:
    started = use_all(own_notebook, busy=busy)
    end(own_notebook)
    start = time.monotonic()
    while left := [pid for pid in started if procfs.is_alive(pid)]:
        took = time.monotonic() - start
        assert took < _LEAVING_SECONDS, [procfs.describe(pid) for pid in left]
        time.sleep(0.005)
    print(f"all processes were gone {time.monotonic() - start:.2f} s after the kernel")
    if end is Notebook.restart:
        own_notebook.run("import manyhands as mh; assert mh.submit(abs, -5).result() == 5")
