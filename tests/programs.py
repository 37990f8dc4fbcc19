"""Programs under test: each runs by itself, under a watchdog that ends it with all that it started.

Some are texts, run as people run them: `run` takes the arguments of the interpreter, `run_file` and
`output_of` a script.

Others must leave nothing behind, neither processes nor files: `started` and `run_command` run them
in a folder of their own. A test that is decorated with `program_test` is the text of such a
program: its body runs at the top level of a script of its own, with the imports of its file that it
names and with its parameters as globals. So what it defines is in `__main__`, as in the programs of
users, and a hang or a crash ends that program alone. `program` makes the same of a function that a
test starts itself.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import os
import pty
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import procfs

# A text that takes longer hangs. Nothing is asserted about time.
WATCHDOG_SECONDS = 90.0
# A program that takes longer hangs, or waits for a task that sleeps for a minute.
PROGRAM_SECONDS = 45.0
# How long processes may take to be gone after their program; the time is shown.
_LEAVING_SECONDS = 10.0

_HERE = Path(__file__).parent


@dataclass
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str
    seconds: float = 0.0
    # Pids that lived on for longer than they may.
    survivors: list[str] = field(default_factory=list)
    # What it left in its directory for temporary files.
    leftovers: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"exit code {self.code} after {self.seconds:.2f} s\n"
            f"--- output ---\n{self.out}\n--- errors ---\n{self.err}"
        )

    def check(self, code: int = 0) -> Ended:
        """It ended with this code and left nothing behind."""
        assert self.code == code, str(self)
        assert not self.survivors, f"processes lived on: {self.survivors}\n{self}"
        assert not self.leftovers, f"files were left: {self.leftovers}\n{self}"
        return self


@dataclass
class Running:
    """A program that runs."""

    process: subprocess.Popen[bytes]
    token: str
    directory: Path
    started: float = field(default_factory=time.monotonic)
    # Processes of the program that outlive it on purpose.
    spared: set[int] = field(default_factory=set)

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return (self.directory / "output").read_text(errors="replace")

    def errors(self) -> str:
        return (self.directory / "errors").read_text(errors="replace")

    def others(self) -> list[int]:
        """All living processes that it started."""
        return [
            pid
            for pid in procfs.marked(self.token)
            if pid != self.pid and pid not in self.spared and procfs.is_alive(pid)
        ]

    def until(self, text: str, seconds: float = PROGRAM_SECONDS) -> str:
        """Waits for a text in the output, which it gives."""
        while True:
            output = self.output()
            if text in output:
                return output
            if self.process.poll() is not None:
                raise AssertionError(f"it ended before it wrote {text!r}:\n{self._ended(0.0)}")
            if time.monotonic() - self.started > seconds:
                self._fail(f"it did not write {text!r} within {seconds} s")
            time.sleep(0.005)

    def end(self, seconds: float = PROGRAM_SECONDS, stdin: bytes | None = None) -> Ended:
        """Waits for its end, for as long as a program may take; `stdin` is for a pipe."""
        left = max(0.0, self.started + seconds - time.monotonic())
        try:
            self.process.communicate(stdin, left)
        except subprocess.TimeoutExpired:
            self._fail(f"it did not end within {seconds} s")
        return self._ended(time.monotonic() - self.started)

    def wait_until_alone(self, seconds: float = _LEAVING_SECONDS) -> tuple[list[int], float]:
        """Waits until all that it started is gone; what is not, and how long it took."""
        start = time.monotonic()
        while True:
            others = self.others()
            took = time.monotonic() - start
            if not others or took > seconds:
                return others, took
            time.sleep(0.01)

    def _ended(self, seconds: float) -> Ended:
        others, took = self.wait_until_alone()
        survivors = [procfs.describe(pid) for pid in others]
        if took > 0.5:
            print(f"all processes were gone {took:.2f} s after the program")
        temporary = self.directory / "tmp"
        leftovers = [str(path.relative_to(temporary)) for path in temporary.rglob("*")]
        code = self.process.returncode
        return Ended(code, self.output(), self.errors(), seconds, survivors, leftovers)

    def _fail(self, why: str) -> None:
        states = [procfs.describe(pid) for pid in procfs.marked(self.token)]
        # Has faulthandler show the stacks of all threads.
        self.process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.kill()
        report = "\n".join([why, *states])
        raise AssertionError(
            f"{report}\n--- output ---\n{self.output()}\n--- errors ---\n{self.errors()}"
        )

    def kill(self) -> None:
        """Ends it and all that it started."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in procfs.marked(self.token):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def _watched(
    command: Sequence[str],
    directory: Path,
    *,
    cwd: Path | None,
    variables: Mapping[str, str],
    token: str,
    stdin: Any,
) -> Iterator[Running]:
    """A program in a session of its own, ended at the latest with the block."""
    with (directory / "output").open("wb") as output, (directory / "errors").open("wb") as errors:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=variables,
            stdin=stdin,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    running = Running(process, token, directory)
    try:
        yield running
    finally:
        running.kill()


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    environment: dict[str, str] | None = None,
    stdin: str | None = None,
    files: dict[str, str] | None = None,
) -> Iterator[Running]:
    """A program in a folder of its own, with these files."""
    with (
        tempfile.TemporaryDirectory(prefix="manyhands-test-") as name,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        (directory / "tmp").mkdir()
        for file, text in (files or {}).items():
            path = directory / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        source: Any = subprocess.DEVNULL
        if stdin is not None:
            (directory / "stdin").write_text(stdin)
            source = stack.enter_context((directory / "stdin").open("rb"))
        token = uuid.uuid4().hex
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        variables |= {
            procfs.TOKEN: token,
            "PYTHONPATH": str(_HERE),
            "PYTHONFAULTHANDLER": "1",
            "TMPDIR": str(directory / "tmp"),
            **(environment or {}),
        }
        yield stack.enter_context(
            _watched(
                command, directory, cwd=directory, variables=variables, token=token, stdin=source
            )
        )


def run_command(command: Sequence[str], seconds: float = PROGRAM_SECONDS, **options: Any) -> Ended:
    """Runs a program to its end."""
    with started(command, **options) as running:
        return running.end(seconds)


def run(
    *arguments: str | Path,
    stdin: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    interpreter: str = sys.executable,
) -> Ended:
    """Runs the interpreter with these arguments; `env` adds variables, or removes those of None."""
    token = uuid.uuid4().hex
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS_")
    }
    variables[procfs.TOKEN] = token
    for name, value in (env or {}).items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    command = [interpreter, *map(str, arguments)]
    with (
        tempfile.TemporaryDirectory(prefix="manyhands-test-") as folder,
        _watched(
            command,
            Path(folder),
            cwd=cwd,
            variables=variables,
            token=token,
            stdin=subprocess.PIPE,
        ) as running,
    ):
        return running.end(WATCHDOG_SECONDS, stdin.encode())


def run_file(folder: Path, source: str, *arguments: str, **options: Any) -> Ended:
    """Runs the source as a script, `script.py` in the folder."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(source), encoding="utf-8")
    return run(script, *arguments, **options)


def output_of(folder: Path, source: str, *arguments: str, **options: Any) -> str:
    """What the source prints as a script that has to end well and say nothing else."""
    ended = run_file(folder, source, *arguments, **options)
    assert (ended.code, ended.err) == (0, ""), f"ended with {ended.code}: {ended.err}"
    return ended.out


@dataclass
class Typed:
    """How a program ended on a terminal where somebody typed."""

    code: int
    shown: str
    # From the keys to its end.
    seconds: float
    survivors: list[str]


def until_it_waits(pid: int) -> None:
    """Waits until the program's main thread has waited for something of ours for some time."""
    deadline, looks = time.monotonic() + PROGRAM_SECONDS, 0
    while looks < 20:
        assert time.monotonic() < deadline, procfs.describe(pid)
        waits = "futex" in Path(f"/proc/{pid}/task/{pid}/wchan").read_text()
        looks = looks + 1 if waits else 0
        time.sleep(0.01)


def on_terminal(
    source: str,
    keys: bytes,
    *,
    name: str = "program.py",
    delay: float = 0.0,
    waiting: bool = False,
) -> Typed:
    """Runs a program on a terminal of its own, and types the keys when it has written READY, or so
    many seconds later, or, with `waiting`, when it has come to wait after it."""
    with tempfile.TemporaryDirectory(prefix="manyhands-test-") as folder:
        (Path(folder) / name).write_text(source)
        token = uuid.uuid4().hex
        variables = {
            **os.environ,
            procfs.TOKEN: token,
            "PYTHONPATH": str(_HERE),
            "PYTHON_COLORS": "0",
        }
        command = [sys.executable, name]
        pid, master = pty.fork()
        if pid == 0:
            try:
                os.chdir(folder)
                os.execve(command[0], command, variables)
            finally:
                os._exit(127)
        os.set_blocking(master, False)
        shown, begin = b"", time.monotonic()
        typed: float | None = None
        code: int | None = None
        try:
            while code is None:
                with contextlib.suppress(OSError):  # nothing there, or nobody any more
                    shown += os.read(master, 65536)
                if typed is None and b"READY" in shown:
                    time.sleep(delay)
                    if waiting:
                        until_it_waits(pid)
                    typed = time.monotonic()
                    os.write(master, keys)
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                elif time.monotonic() - begin > PROGRAM_SECONDS:
                    states = "\n".join(procfs.describe(other) for other in procfs.marked(token))
                    raise AssertionError(f"it did not end:\n{states}\n{shown.decode()}")
                else:
                    time.sleep(0.002)
            seconds = time.monotonic() - (typed or begin)
            deadline = time.monotonic() + _LEAVING_SECONDS
            while (left := procfs.marked(token)) and time.monotonic() < deadline:
                time.sleep(0.01)
            with contextlib.suppress(OSError):
                while data := os.read(master, 65536):
                    shown += data
            survivors = [procfs.describe(other) for other in left]
            return Typed(code, shown.decode(errors="replace"), seconds, survivors)
        finally:
            os.close(master)
            for other in procfs.marked(token):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
            if code is None:
                os.waitpid(pid, 0)


class Program:
    """The body of a function as a script."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.name = function.__name__
        module = inspect.getmodule(function)
        assert module is not None
        source = inspect.getsource(module)
        lines = source.splitlines()
        tree = ast.parse(source)
        [definition] = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == function.__name__
        ]
        statement, last = definition.body[0], definition.end_lineno
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
        body = textwrap.dedent("\n".join(lines[first - 1 : last]))
        names = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
        imports = []
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom) and (
                not isinstance(node, ast.ImportFrom)
                or node.module not in ("__future__", "programs")
            ):
                wanted = [
                    alias
                    for alias in node.names
                    if (alias.asname or alias.name.partition(".")[0]) in names
                ]
                if wanted:
                    node.names = wanted
                    imports.append(ast.unparse(node))
        self._head = "; ".join(imports)
        # Its lines keep their numbers, for tracebacks.
        self._body = "\n" * (first - 2) + body

    def source(self, **parameters: object) -> str:
        values = [f"{name} = {value!r}" for name, value in parameters.items()]
        return "; ".join([self._head, *values]).strip("; ") + "\n" + self._body + "\n"

    def files(self, **parameters: object) -> dict[str, str]:
        return {"program.py": self.source(**parameters)}

    def start(self, **parameters: object) -> contextlib.AbstractContextManager[Running]:
        return started([sys.executable, "program.py"], files=self.files(**parameters))

    def run(
        self,
        *,
        seconds: float = PROGRAM_SECONDS,
        environment: dict[str, str] | None = None,
        before: Sequence[str] = (),
        **parameters: object,
    ) -> Ended:
        """Runs it to its end; `before` is a command that runs the rest of its arguments."""
        return run_command(
            [*before, sys.executable, "program.py"],
            seconds,
            environment=environment,
            files=self.files(**parameters),
        )


def program(function: Callable[..., None]) -> Program:
    return Program(function)


def program_test(function: Callable[..., None]) -> Callable[..., None]:
    """A test that is a program, which has to end well; see above."""
    text = Program(function)

    @functools.wraps(function)
    def test(**parameters: object) -> None:
        ended = text.run(**parameters).check()
        if ended.out:
            print(ended.out)
        if ended.err:
            print(ended.err, file=sys.stderr)

    return test


def seed() -> int:
    """A seed for what happens at random: MANYHANDS_TEST_SEED, else a new one; it is shown."""
    chosen = os.environ.get("MANYHANDS_TEST_SEED")
    value = int(chosen) if chosen else int.from_bytes(os.urandom(4), "little")
    print(f"MANYHANDS_TEST_SEED={value}")
    return value


def stress_seconds() -> float:
    return float(os.environ.get("MANYHANDS_STRESS_SECONDS", "60"))
