"""Programs that belong to others, in which people use pools: web servers that fork or reload, test
runners, and the first process of a container. They are reloaded, stopped and interrupted; then no
process is left and nothing hangs (P35, P56).

gunicorn#2800, fastapi#841, httpstan#647, procrastinate#687 and datashare#132 tell of hosts that
hang or have to be killed. Notebooks are in `tests/unit/test_notebook.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pytest

import manyhands as mh
import procfs
from programs import Running, program, started, until_it_waits

_LIMIT = 60.0


class _Connection(http.client.HTTPConnection):
    """To the socket of a server in its folder."""

    def __init__(self, running: Running) -> None:
        super().__init__("localhost", timeout=_LIMIT)
        self._running = running

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        # A path has at most 108 bytes; that of the folder may be long.
        directory = os.open(self._running.directory, os.O_PATH)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/socket")
        finally:
            os.close(directory)


def ask(running: Running, path: str = "/") -> str:
    """What the server answers; it may just be starting."""
    deadline = time.monotonic() + _LIMIT
    while True:
        connection = _Connection(running)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status == 200:
                return text
            raise AssertionError(f"{answer.status}: {text}\n{running.errors()}")
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline or running.process.poll() is not None:
                raise AssertionError(f"no answer\n{running.errors()}") from None
            time.sleep(0.01)
        finally:
            connection.close()


def begin(running: Running, path: str) -> _Connection:
    """Asks, and does not wait for the answer."""
    connection = _Connection(running)
    connection.request("GET", path)
    return connection


def until(running: Running, what: str) -> None:
    """Waits for a file in the program's folder."""
    deadline = time.monotonic() + _LIMIT
    while not (running.directory / what).exists():
        assert time.monotonic() < deadline, running.errors()
        time.sleep(0.005)


# ---------------------------------------------------------------------------------------- gunicorn

_WSGI = """
import os
import time
from pathlib import Path

import manyhands as mh

VERSION = 1


def square(n):
    return n * n


def sleep():
    Path("asleep").touch()
    time.sleep(600)


def application(environ, start_response):
    if environ["PATH_INFO"] == "/long":
        mh.submit(sleep).result()
    if environ["PATH_INFO"] == "/left":
        mh.submit(sleep)
    if environ["PATH_INFO"] == "/die":
        assert isinstance(mh.submit(os._exit, 3).exception(), mh.WorkerDied)
    assert list(mh.map(square, range(100))) == [n * n for n in range(100)]
    with mh.Pool(1) as pool:
        assert pool.submit(square, 7).result() == 49
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {VERSION}".encode()]
"""
# The arbiter, which forks the servers, has a pool with workers and a supervisor.
_POOL_BEFORE_THE_FORK = """
def on_starting(_server):
    import manyhands as mh

    assert mh.submit(abs, -1).result() == 1
"""


@contextlib.contextmanager
def gunicorn(*options: str, pool_before_the_fork: bool = False) -> Iterator[Running]:
    command = [sys.executable, "-m", "gunicorn", "--bind", "unix:socket", "--workers", "2"]
    command += ["--graceful-timeout", "1", "--no-control-socket", "--worker-tmp-dir", "."]
    files = {"app.py": _WSGI}
    if pool_before_the_fork:
        files["gunicorn.conf.py"] = _POOL_BEFORE_THE_FORK
        options += ("--preload",)
    with started([*command, *options, "app:application"], files=files) as running:
        yield running


def servers(running: Running) -> set[int]:
    """The pids of the processes that serve, of which each has to answer."""
    found: set[int] = set()
    deadline = time.monotonic() + _LIMIT
    while len(found) < 2:
        assert time.monotonic() < deadline, found
        found.add(int(ask(running).split()[0]))
    return found


@pytest.mark.parametrize("before", [False, True], ids=["in-requests", "before-the-fork"])
@pytest.mark.parametrize("kind", ["sync", "gthread"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=lambda end: end.name)
def test_gunicorn(before: bool, kind: str, end: signal.Signals) -> None:
    options = ["--worker-class", kind, "--threads", "1" if kind == "sync" else "4"]
    with gunicorn(*options, pool_before_the_fork=before) as running:
        first = servers(running)
        ask(running, "/die")
        # One is killed: its workers go with it, and it is replaced.
        killed = first.pop()
        below = [pid for pid in running.others() if procfs.stat(pid)[1] == killed]
        assert below, "it has a zygote"
        os.kill(killed, signal.SIGKILL)
        while any(procfs.is_alive(pid) for pid in below) or len(servers(running) - {killed}) < 2:
            time.sleep(0.01)
        # All are replaced, by a reload.
        old = servers(running)
        running.process.send_signal(signal.SIGHUP)
        while servers(running) & old:
            time.sleep(0.01)
        running.process.send_signal(end)
        ended = running.end(_LIMIT).check()
        # SIGINT ends a server at once, also one that is about to close its last response: gunicorn
        # logs that as an error of its own.
        told = ended.err
        if end == signal.SIGINT:
            told = re.sub(
                r"Traceback.*?gunicorn/workers/sync.py.*?^SystemExit: 0$",
                "",
                told,
                flags=re.S | re.M,
            )
        assert "Traceback" not in told, told


@pytest.mark.parametrize("path", ["/long", "/left"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGQUIT], ids=lambda end: end.name)
def test_gunicorn_with_a_long_task(path: str, end: signal.Signals) -> None:
    """The arbiter gives a server `graceful-timeout` to end, then kills it, with all that it has."""
    with gunicorn() as running:
        ask(running)
        connection = begin(running, path)
        until(running, "asleep")
        running.process.send_signal(end)
        running.end(_LIMIT).check()
        connection.close()


# ----------------------------------------------------------------------------------------- uvicorn

_ASGI = """
import os
import time
from pathlib import Path

import manyhands as mh

VERSION = 1


def square(n):
    return n * n


def sleep():
    Path("asleep").touch()
    time.sleep(600)


async def app(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/long":
        await mh.submit(sleep)
    if scope["path"] == "/left":
        mh.submit(sleep)
    assert await mh.submit(square, 7) == 49
    assert [n async for n in mh.map(square, range(100))] == [n * n for n in range(100)]
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    body = f"{os.getpid()} {VERSION}".encode()
    await send({"type": "http.response.body", "body": body})
"""


@contextlib.contextmanager
def uvicorn(*options: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "uvicorn", "--uds", "socket", "--lifespan", "off"]
    command += ["--timeout-graceful-shutdown", "1", *options, "app:app"]
    with started(command, files={"app.py": _ASGI}) as running:
        yield running


@pytest.mark.parametrize("path", ["/", "/long", "/left"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=lambda end: end.name)
def test_uvicorn_that_reloads(path: str, end: signal.Signals) -> None:
    """What is edited is what runs, also while a task of before the edit sleeps."""
    with uvicorn("--reload") as running:
        pid, version = ask(running).split()
        assert version == "1"
        connections = []
        if path != "/":
            connections.append(begin(running, path))
            until(running, "asleep")
        old = [
            other
            for other in running.others()
            if int(pid) in (other, procfs.stat(other)[1])
            or procfs.stat(procfs.stat(other)[1])[1] == int(pid)
        ]
        assert len(old) >= 3, "it, a zygote and workers"
        source = running.directory / "app.py"
        source.write_text(_ASGI.replace("VERSION = 1", "VERSION = 2"))
        deadline = time.monotonic() + _LIMIT
        while version == "1":
            assert time.monotonic() < deadline, running.errors()
            # Its first look, from which on it sees edits, may come after this one.
            os.utime(source)
            other, version = ask(running).split()
        assert other != pid
        while left := [procfs.describe(pid) for pid in old if procfs.is_alive(pid)]:
            assert time.monotonic() < deadline, left
        (running.directory / "asleep").unlink(missing_ok=True)
        if path != "/":
            connections.append(begin(running, path))
            until(running, "asleep")
        running.process.send_signal(end)
        ended = running.end(_LIMIT)
        for connection in connections:
            connection.close()
        ended.check(ended.code)
        assert ended.code in (0, -end), str(ended)


@pytest.mark.parametrize("path", ["/", "/long", "/left"])
def test_uvicorn_with_several_servers(path: str) -> None:
    with uvicorn("--workers", "2") as running:
        for _ in range(10):
            ask(running)
        if path != "/":
            connection = begin(running, path)
            until(running, "asleep")
        running.process.send_signal(signal.SIGTERM)
        running.end(_LIMIT).check()
        if path != "/":
            connection.close()


# ------------------------------------------------------------------------------------------ pytest

_TESTS = """
import os
import time
from pathlib import Path

import pytest

import manyhands as mh


def square(n):
    return n * n


@pytest.fixture(scope="session")
def pool():
    # Nobody closes it.
    return mh.Pool(2)


def test_default():
    assert mh.map(square, range(10)).list() == [n * n for n in range(10)]


@pytest.mark.parametrize("number", range(5))
def test_shared(pool, number):
    assert pool.submit(square, number).result() == number * number


def test_captured(pool, capfd):
    with mh.Pool(1) as own:
        own.submit(print, "from a worker", flush=True).result()
    assert "from a worker" in capfd.readouterr().out


def test_fails(pool):
    assert pool.submit(os._exit, 3).exception() is None


def sleep(_number):
    Path("asleep").touch()
    time.sleep(600)


def test_long(pool):
    if os.environ["LONG"] == "waited for":
        mh.submit(sleep, 0).result()
    elif os.environ["LONG"] == "in a block":
        with mh.Pool(2) as own:
            own.submit(sleep, 0).result()
    elif os.environ["LONG"] == "mapped":
        results = pool.map(sleep, range(4))
        Path("mapped").touch()
        list(results)
"""


def pytest_of(long: str) -> contextlib.AbstractContextManager[Running]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py"]
    return started(command, files={"test_app.py": _TESTS}, environment={"LONG": long})


def test_pytest() -> None:
    with pytest_of("not") as running:
        ended = running.end(_LIMIT).check(1)
        assert "8 passed" in ended.out, str(ended)
        assert "1 failed" in ended.out, str(ended)
        assert "exited with status 3 while it ran task 5" in ended.out, str(ended)


@pytest.mark.parametrize("long", ["waited for", "in a block", "mapped"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_pytest_that_is_stopped(long: str, end: signal.Signals) -> None:
    with pytest_of(long) as running:
        until(running, "asleep")
        if long == "mapped":
            until(running, "mapped")
        # A task may run before its program has come to wait for it.
        until_it_waits(running.pid)
        running.process.send_signal(end)
        ended = running.end(_LIMIT).check(2 if end is signal.SIGINT else -end)
        assert end is not signal.SIGINT or "KeyboardInterrupt" in ended.out


# -------------------------------------------------------------------- the first of its container


@program
def first_of_its_container() -> None:
    # There is no init: those whose parent has died become children of this program.
    assert os.getpid() == 1
    with mh.Pool(2) as pool:
        for _ in range(3):
            assert list(pool.map(abs, range(100))) == list(range(100))
            assert isinstance(pool.submit(os._exit, 3).exception(), mh.WorkerDied)
            # One that it is just starting would be nobody's.
            while [bool(worker.pid) for worker in pool.stats().workers] != [True, True]:
                assert list(pool.map(time.sleep, [0.01] * 4)) == [None] * 4
            # Its workers go on, as children of this process.
            os.kill(mh._core.zygote_pid(), signal.SIGKILL)
            assert list(pool.map(abs, range(100))) == list(range(100))
            for pid in [worker.pid for worker in pool.stats().workers if worker.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert list(pool.map(abs, range(100))) == list(range(100))
    deadline = time.monotonic() + 20
    while set(procfs.children(1)) > {mh._core.zygote_pid()} and time.monotonic() < deadline:
        time.sleep(0.005)
    left = {pid: state for pid, state in procfs.children(1).items() if pid != mh._core.zygote_pid()}
    assert not left, left
    print("fine", flush=True)


@program
def first_that_is_stopped() -> None:
    # Without a handler the kernel keeps a SIGTERM from the first process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    assert os.getpid() == 1
    with mh.Pool(2) as pool:
        futures = [pool.submit(time.sleep, 600) for _ in range(10)]
        while sum(future.running() for future in futures) < 2:
            pass
        print("READY", flush=True)
        futures[0].result()


def _first() -> Sequence[str]:
    """A command that runs others as the first process of a container, if that is permitted."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces of users and pids are not permitted here")
    return command


def test_the_first_process_of_a_container() -> None:
    ended = first_of_its_container.run(before=_first()).check()
    assert ended.out == "fine\n", str(ended)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=lambda end: end.name)
def test_the_first_process_of_a_container_is_stopped(end: signal.Signals) -> None:
    command = [*_first(), sys.executable, "program.py"]
    with started(command, files=first_that_is_stopped.files()) as running:
        running.until("READY")
        [first] = procfs.children(running.pid)
        os.kill(first, end)
        running.end(_LIMIT).check(7 if end is signal.SIGTERM else 130)
