"""`capture=`: what a task writes is kept on its future (P49; loky#306 asks for it)."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from observing import until

LIMIT = 60.0
ENGINES = ("process", "thread", "inline")
KEPT = 512 << 10


@pytest.fixture(params=ENGINES)
def pool(request: pytest.FixtureRequest) -> Iterator[mh.Pool]:
    """A pool of each engine, whose tasks' output is kept."""
    with mh.Pool(2, engine=request.param, capture=True) as pool:
        yield pool


@pytest.fixture
def processes() -> Iterator[mh.Pool]:
    with mh.Pool(2, capture=True) as pool:
        yield pool


def speak(text: str) -> int:
    print("out", text)
    print("err", text, file=sys.stderr)
    sys.stdout.write("no end")
    return os.getpid()


def spoken(text: object) -> str:
    return f"out {text}\nerr {text}\nno end"


# ---- What is kept, and where ----------------------------------------------------------------


def test_it_is_on_the_future_in_its_order_and_shown_nowhere(
    pool: mh.Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    futures = [pool.submit(speak, f"{n}") for n in range(20)]
    for number, future in enumerate(futures):
        future.result(LIMIT)
        assert future.output == spoken(number)
    assert capfd.readouterr() == ("", "")


def test_without_it_there_is_none(pool: mh.Pool, capfd: pytest.CaptureFixture[str]) -> None:
    assert pool.submit(len, "abc").output in ("", None)  # it may not have begun
    quiet = pool.submit(len, "abc")
    assert (quiet.result(LIMIT), quiet.output) == (3, "")
    shown = pool.options(capture=False).submit(speak, "shown")
    shown.result(LIMIT)
    assert shown.output is None
    pool.shutdown()
    out, err = capfd.readouterr()
    assert "out shown" in out
    assert "err shown" in err


def test_every_way_to_ask_for_it() -> None:
    for engine in ENGINES:
        with mh.Pool(1, engine=engine) as pool:
            view = pool.options(capture=True)
            assert "capture=True" in repr(view)
            future = view.submit(speak, "view")
            future.result(LIMIT)
            assert future.output == spoken("view")
            for results in (
                pool.map(speak, ["a"], capture=True),
                view.map(speak, ["a"]),
                pool.starmap(speak, [("a",)], capture=True),
                mh.map(speak, ["a"], engine=engine, workers=1, capture=True),
            ):
                assert len(results.list()) == 1
                assert results.outputs == {0: spoken("a")}
            assert pool.map(len, ["a"]).outputs == {}
    future = mh.options(capture=True).submit(speak, "shared")
    future.result(LIMIT)
    assert future.output == spoken("shared")


def test_what_is_no_bool_is_refused() -> None:
    with pytest.raises(TypeError, match="capture must be True or False, not str"):
        mh.Pool(1, capture="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="map\\(\\) has no capture_output=; write capture="):
        mh.map(abs, [1], capture_output=True)  # type: ignore[call-overload]


def test_a_view_that_travels_keeps_the_option() -> None:
    with mh.Pool(1) as pool:
        view = pickle.loads(pickle.dumps(pool.options(capture=True)))
        future = view.submit(speak, "there and back")
        future.result(LIMIT)
        assert future.output == spoken("there and back")


def bytes_and_lines() -> None:
    sys.stdout.buffer.write(b"bytes\n")
    sys.stdout.writelines(["one\n", "two\n"])
    sys.stdout.flush()
    assert not sys.stdout.isatty()
    print("grün", "\udc80")


def test_bytes_lines_and_text_that_is_no_utf8(pool: mh.Pool) -> None:
    future = pool.submit(bytes_and_lines)
    future.result(LIMIT)
    assert future.output == "bytes\none\ntwo\ngrün \\udc80\n"


def redirected() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        print("inside")
    print("outside")
    return text.getvalue()


def test_a_task_that_redirects_its_output_itself(pool: mh.Pool) -> None:
    future = pool.submit(redirected)
    assert future.result(LIMIT) == "inside\n"
    assert future.output == "outside\n"


def close_output() -> None:
    print("before")
    sys.stdout.close()


def test_a_stream_that_a_task_has_closed_is_there_for_the_next(processes: mh.Pool) -> None:
    closing = [processes.submit(close_output) for _ in range(4)]
    for future in closing:
        future.result(LIMIT)
        assert future.output == "before\n"
    future = processes.submit(speak, "after")
    future.result(LIMIT)
    assert future.output == spoken("after")


def log_here() -> None:
    logger = logging.getLogger("capture.tests")
    logger.propagate = False
    handler = logging.StreamHandler()  # to sys.stderr as it is now
    logger.addHandler(handler)
    try:
        logger.warning("logged")
    finally:
        logger.removeHandler(handler)


def test_handlers_of_the_task_that_write_to_errors(pool: mh.Pool) -> None:
    future = pool.submit(log_here)
    future.result(LIMIT)
    assert future.output == "logged\n"


def other_programs() -> None:
    print("first")
    subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    os.write(2, b"descriptor\n")
    library = ctypes.CDLL(None)
    library.puts(b"library")
    library.fflush(None)
    subprocess.run("echo shell >&2", shell=True, check=True)
    print("last")


def test_c_code_and_other_programs_in_their_order(
    processes: mh.Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    future = processes.submit(other_programs)
    future.result(LIMIT)
    assert future.output == "first\nchild\ndescriptor\nlibrary\nshell\nlast\n"
    assert capfd.readouterr() == ("", "")


def in_a_thread() -> None:
    print("of the task")
    thread = threading.Thread(target=print, args=("of its thread",))
    thread.start()
    thread.join()


def test_threads_of_a_task(pool: mh.Pool, capfd: pytest.CaptureFixture[str]) -> None:
    future = pool.submit(in_a_thread)
    future.result(LIMIT)
    is_whole_process = pool.submit(os.getpid).result(LIMIT) != os.getpid()
    kept = "of the task\n" + ("of its thread\n" if is_whole_process else "")
    assert future.output == kept
    assert ("of its thread" in capfd.readouterr().out) is not is_whole_process


def bring_streams() -> tuple[bool, bool]:
    return sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__


def test_the_streams_are_afterwards_what_they_were() -> None:
    for engine in ENGINES:
        before = sys.stdout, sys.stderr
        with mh.Pool(1, engine=engine) as pool:
            was = pool.submit(bring_streams).result(LIMIT)
            pool.options(capture=True).submit(speak, "x").result(LIMIT)
            assert pool.submit(bring_streams).result(LIMIT) == was
        assert (sys.stdout, sys.stderr) == before


# ---- How tasks end --------------------------------------------------------------------------


def fail(text: str) -> None:
    print("before", text)
    raise ValueError(text)


def test_a_task_that_fails(pool: mh.Pool) -> None:
    future = pool.submit(fail, "it")
    assert isinstance(future.exception(LIMIT), ValueError)
    assert future.output == "before it\n"


def exit_there() -> None:
    print("leaves")
    sys.exit(3)


def test_a_task_that_exits(pool: mh.Pool) -> None:
    future = pool.submit(exit_there)
    assert isinstance(future.exception(LIMIT), mh.RemoteError)
    assert future.output == "leaves\n"


def die(flush: bool, number: int) -> None:
    print("a line")
    print("a part", end="", flush=flush)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_task_whose_worker_dies(flush: bool, number: int) -> None:
    # Its first task: nothing was set up before.
    with mh.Pool(1, capture=True) as pool:
        future = pool.submit(die, flush, number)
        assert isinstance(future.exception(LIMIT), mh.WorkerDied)
        assert future.output == "a line\na part"
        # And what others write afterwards, at the same place.
        later = pool.submit(speak, "later")
        later.result(LIMIT)
        assert later.output == spoken("later")
        assert future.output == "a line\na part"


def crash() -> None:
    import faulthandler

    faulthandler.enable()
    print("here it was")
    ctypes.string_at(0)


def test_the_stack_of_a_crash_is_among_it(processes: mh.Pool) -> None:
    future = processes.submit(crash)
    assert isinstance(future.exception(LIMIT), mh.WorkerDied)
    output = future.output
    assert output is not None
    assert output.startswith("here it was\n")
    assert "Segmentation fault" in output
    assert "in crash" in output


def wait_long(path: str) -> None:
    print("begun")
    Path(path).touch()
    while True:
        time.sleep(0.01)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_task_that_takes_too_long(pool: mh.Pool, tmp_path: Path) -> None:
    for turn in range(10):
        path = tmp_path / f"begun {turn}"
        future = pool.options(task_timeout=1, grace=0.1).submit(wait_long, str(path))
        assert isinstance(future.exception(LIMIT), mh.TaskTimeout)
        if path.exists():  # else the machine was too late for it
            break
    assert future.output == "begun\n"


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_a_task_that_is_cancelled_and_one_that_runs(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "begun"
    with mh.Pool(1, engine=engine, capture=True) as pool:
        future = pool.submit(wait_long, str(path))
        wait_for(path)
        assert future.output == "begun\n"  # so far
        assert future.cancel()
        assert future.output == "begun\n"
        with pytest.raises(CancelledError):
            future.result(LIMIT)
        later = pool.submit(speak, "later")
        later.result(LIMIT)
        assert later.output == spoken("later")
        assert future.output == "begun\n"
        waiting = [pool.submit(wait_long, str(path)) for _ in range(2)]
        assert waiting[1].cancel()
        assert waiting[1].output == ""
        assert waiting[0].cancel()


def fail_twice(path: str, dies: bool) -> str:
    attempt = len(Path(path).read_bytes()) if Path(path).exists() else 0
    with Path(path).open("ab") as file:
        file.write(b".")
    print("attempt", attempt)
    if attempt < 2:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("not yet")
    return "done"


def test_what_all_attempts_have_written(pool: mh.Pool, tmp_path: Path) -> None:
    future = pool.options(retry=2).submit(fail_twice, str(tmp_path / "attempts"), False)
    assert future.result(LIMIT) == "done"
    assert future.output == "attempt 0\nattempt 1\nattempt 2\n"


def test_what_attempts_have_written_whose_workers_died(processes: mh.Pool, tmp_path: Path) -> None:
    retry = mh.Retry(0, deaths=2)
    future = processes.options(retry=retry).submit(fail_twice, str(tmp_path / "attempts"), True)
    assert future.result(LIMIT) == "done"
    assert future.output == "attempt 0\nattempt 1\nattempt 2\n"


async def awaited(pool: mh.Pool) -> str | None:
    future = pool.submit(speak, "awaited")
    await future
    return future.output


def test_futures_that_are_awaited(pool: mh.Pool) -> None:
    import asyncio

    assert asyncio.run(awaited(pool)) == spoken("awaited")


def test_callbacks_see_it(pool: mh.Pool) -> None:
    seen: list[str | None] = []
    told = threading.Event()

    def tell(future: mh.Future[Any]) -> None:
        seen.append(future.output)
        told.set()

    pool.submit(speak, "told").add_done_callback(tell)
    assert told.wait(LIMIT)
    assert seen == [spoken("told")]


# ---- Much of it -----------------------------------------------------------------------------


def write_lines(count: int) -> None:
    for number in range(count):
        print(f"line {number:7} of {count:7}")


def test_up_to_a_bound_all_is_kept(pool: mh.Pool) -> None:
    future = pool.submit(write_lines, 20_000)
    future.result(LIMIT)
    lines = (future.output or "").splitlines()
    assert lines == [f"line {number:7} of   20000" for number in range(20_000)]


def test_of_more_the_beginning_and_the_end(pool: mh.Pool) -> None:
    count = 100_000
    future = pool.submit(write_lines, count)
    future.result(LIMIT)
    output = future.output
    assert output is not None
    assert len(output) <= 2 * KEPT + 100
    lines = output.splitlines()
    (middle,) = [at for at, line in enumerate(lines) if "left out" in line]
    assert lines[:middle] == [f"line {n:7} of {count:7}" for n in range(middle)]
    rest = lines[middle + 1 :]
    first = count - len(rest)
    assert rest == [f"line {n:7} of {count:7}" for n in range(first, count)]
    width = len(lines[0]) + 1
    assert lines[middle] == f"... {(first - middle) * width:,} bytes are left out ..."


def write_one(size: int) -> None:
    sys.stdout.write("x" * size)


def test_one_line_of_more(pool: mh.Pool) -> None:
    future = pool.submit(write_one, 5 << 20)
    future.result(LIMIT)
    half = "x" * KEPT
    assert future.output == f"{half}\n... {4 << 20:,} bytes are left out ...\n{half}"


def test_the_memory_is_given_back(processes: mh.Pool) -> None:
    with mh.Pool(1, capture=True) as pool:
        for _ in range(4):
            pool.submit(write_one, 8 << 20).result(LIMIT)
        future = pool.submit(write_one, 10)
        future.result(LIMIT)
        assert future.output == "x" * 10
        assert pool._reader is not None
        (file,) = pool._reader.captures()._files
        assert os.fstat(file.number).st_size > 32 << 20
        assert os.fstat(file.number).st_blocks * 512 < 1 << 20


def write_for_long(path: str) -> None:
    print("begun")
    Path(path).touch()
    line = b"x" * 99 + b"\n"
    # By a descriptor, and at once: no stream knows of it.
    while not Path(f"{path}.end").exists():
        os.write(1, line * 10_000)
    print("ended")


def given_back(descriptor: int) -> int:
    """Of the bytes that were written to a file, how many have no memory any more."""
    found = os.fstat(descriptor)
    return found.st_size - found.st_blocks * 512


def test_the_memory_of_a_task_that_runs_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "begun"
    with mh.Pool(1, capture=True) as pool:
        future = pool.submit(write_for_long, str(path))
        wait_for(path)
        assert pool._reader is not None
        (file,) = pool._reader.captures()._files
        until(lambda: given_back(file.number) > 3 * KEPT)
        Path(f"{path}.end").touch()
        future.result(LIMIT)
        output = future.output
        assert output is not None
        lines = output.splitlines()
        assert (lines[0], lines[-1]) == ("begun", "ended")
        assert len(output) < 2 * KEPT + 100
        (middle,) = [line for line in lines[1:-1] if line != "x" * 99]
        assert "bytes are left out" in middle
        left_out = int(middle.split()[1].replace(",", ""))
        assert (left_out + len(output) - len(middle) - 1 - len("begun\nended\n")) % 100 == 0


def cut_off() -> None:
    print("before")
    subprocess.run("echo shell > /dev/stderr; echo more", shell=True, check=True)
    print("after")


def test_a_program_that_cuts_its_output_off(processes: mh.Pool) -> None:
    # As it does with any file that it writes to.
    for _ in range(3):
        future = processes.submit(cut_off)
        future.result(LIMIT)
        lost = "... what was written here is lost: a program has begun the output anew ...\n"
        assert future.output == f"{lost}shell\nmore\nafter\n"


# ---- Maps -----------------------------------------------------------------------------------


def odd(number: int) -> int:
    if number % 2:
        print("item", number)
    if number % 10 == 7:
        raise ValueError(number)
    return number


def test_items_of_a_map(pool: mh.Pool, capfd: pytest.CaptureFixture[str]) -> None:
    results = pool.map(odd, range(200), on_error="return")
    ends = results.list()
    expected = {number: f"item {number}\n" for number in range(1, 200, 2)}
    assert results.outputs == expected
    failures = [end for end in ends if isinstance(end, mh.Failure)]
    assert len(failures) == 20
    for failure in failures:
        assert failure.output == expected[failure.index]
        assert failure.to_dict()["output"] == failure.output
    assert capfd.readouterr() == ("", "")


def test_failures_without_it_have_none() -> None:
    for engine in ENGINES:
        (failure,) = mh.map(int, ["x"], engine=engine, on_error="return")
        assert isinstance(failure, mh.Failure)
        assert failure.output is None


def yields(number: int) -> Iterator[int]:
    print("begin", number)
    for part in range(2):
        print("part", part)
        yield part
    print("end", number)


def test_functions_that_yield(pool: mh.Pool) -> None:
    results = pool.map(yields, range(5))
    assert results.list() == [0, 1] * 5
    assert results.outputs == {n: f"begin {n}\npart 0\npart 1\nend {n}\n" for n in range(5)}


def die_at_five(number: int) -> int:
    print("item", number)
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_an_item_whose_worker_dies(processes: mh.Pool) -> None:
    results = processes.map(die_at_five, range(20), on_error="return")
    (failure,) = [end for end in results.list() if isinstance(end, mh.Failure)]
    assert (failure.index, failure.output) == (5, "item 5\n")
    assert results.outputs == {number: f"item {number}\n" for number in range(20)}


def write_much(number: int) -> None:
    sys.stdout.write(f"{number:8}" * 8192)


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_of_long_maps_the_newest_is_kept(engine: str) -> None:
    with mh.Pool(1, engine=engine, capture=True) as pool:  # of several, one may be far behind
        results = pool.map(write_much, range(1200))
        results.run()
    outputs = results.outputs
    assert sum(map(len, outputs.values())) <= 64 << 20
    assert len(outputs) >= 900
    assert all(text == f"{number:8}" * 8192 for number, text in outputs.items())
    assert set(outputs) == set(range(1200 - len(outputs), 1200))


# ---- Side by side, and within ---------------------------------------------------------------


def write_slowly(name: str) -> None:
    for number in range(50):
        print(name, number)
        time.sleep(0.0001)


def test_tasks_side_by_side_do_not_mix(pool: mh.Pool) -> None:
    with mh.Pool(2, engine="thread", capture=True) as others:
        pools = (pool, others)
        futures = [pools[n % 2].submit(write_slowly, f"task {n}") for n in range(20)]
        for number, future in enumerate(futures):
            future.result(LIMIT)
            expected = "".join(f"task {number} {line}\n" for line in range(50))
            assert future.output == expected


def ask_inside(engine: str) -> tuple[str | None, str | None]:
    print("outer begins")
    with mh.Pool(1, engine=engine, capture=True) as inner:
        future = inner.submit(speak, "inner")
        future.result(LIMIT)
        none = inner.options(capture=False).submit(len, "abc")
        none.result(LIMIT)
    print("outer ends")
    return future.output, none.output


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pool_that_a_task_makes(pool: mh.Pool, engine: str) -> None:
    future = pool.submit(ask_inside, engine)
    assert future.result(LIMIT) == (spoken("inner"), None)
    assert future.output == "outer begins\nouter ends\n"


def ask_own_pool(pool: mh.Pool, capture: bool) -> tuple[int, str | None]:
    print("asks")
    future = pool.options(capture=capture).submit(len, "abc")
    return future.result(LIMIT), future.output


def test_tasks_of_tasks_on_threads(pool: mh.Pool) -> None:
    if pool._engine == "thread":
        future = pool.submit(ask_own_pool, pool, True)
        assert future.result(LIMIT) == (3, "")
        assert future.output == "asks\n"


def test_tasks_of_tasks_on_processes_are_refused(processes: mh.Pool) -> None:
    future = processes.submit(ask_own_pool, processes, True)
    error = future.exception(LIMIT)
    assert isinstance(error, ValueError)
    assert "capture= is for tasks that the program submits" in str(error)
    assert future.output == "asks\n"
    future = processes.submit(ask_own_pool, processes, False)
    assert future.result(LIMIT) == (3, None)
    assert future.output == "asks\n"


def speak_in_a_task(pool: mh.Pool, depth: int) -> int:
    print("depth", depth)
    if depth:
        pool.submit(speak_in_a_task, pool, depth - 1).result(LIMIT)
    return depth


def test_spares_of_tasks_that_wait(capfd: pytest.CaptureFixture[str]) -> None:
    # While a task waits for its own, another worker runs what else there is.
    with mh.Pool(1) as pool:
        futures = [
            pool.options(capture=True).submit(speak_in_a_task, pool, depth)
            for depth in (3, 2, 1, 0) * 3
        ]
        for future in futures:
            depth = future.result(LIMIT)
            assert future.output == f"depth {depth}\n"
    # What tasks of tasks write is shown, as it is without the option.
    shown = [f"depth {depth}" for most in (3, 2, 1, 0) for depth in range(most)] * 3
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(shown)


def test_a_worker_that_cannot_open_the_parents_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from manyhands import _capture

    keys = _capture.Captures.key

    def wrong_key(self: _capture.Captures, number: int) -> bytes:
        import marshal

        number, pid, files = marshal.loads(keys(self, number))
        return marshal.dumps((number, pid, (1,) * len(files)))

    monkeypatch.setattr(_capture.Captures, "key", wrong_key)
    with mh.Pool(1, capture=True) as pool:
        for _ in range(2):
            future = pool.submit(speak, "elsewhere")
            future.result(LIMIT)
            assert future.output == spoken("elsewhere")
        future = pool.submit(write_one, 2 << 20)
        future.result(LIMIT)
        assert "bytes are left out" in (future.output or "")
        future = pool.submit(die, True, signal.SIGKILL)
        assert isinstance(future.exception(LIMIT), mh.WorkerDied)
        assert "is lost: the worker has died" in (future.output or "")
        future = pool.submit(speak, "later")
        future.result(LIMIT)
        assert future.output == spoken("later")


def test_more_workers_than_at_the_beginning() -> None:
    with mh.Pool(1, capture=True) as pool:
        pool.submit(speak, "one").result(LIMIT)
        pool.resize(4)
        futures = [pool.submit(write_slowly, f"{n}") for n in range(20)]
        for number, future in enumerate(futures):
            future.result(LIMIT)
            assert future.output == "".join(f"{number} {line}\n" for line in range(50))


def test_workers_that_are_recycled_and_logging_is_off() -> None:
    with mh.Pool(2, capture=True, recycle_after_tasks=3, logging=False) as pool:
        futures = [pool.submit(speak, f"{n}") for n in range(40)]
        for number, future in enumerate(futures):
            future.result(LIMIT)
            assert future.output == spoken(number)


def test_it_is_there_when_the_pool_has_ended() -> None:
    with mh.Pool(1, capture=True) as pool:
        future = pool.submit(speak, "kept")
        died = pool.submit(die, False, signal.SIGKILL)
    del pool
    assert future.output == spoken("kept")
    assert died.output == "a line\na part"


def test_descriptors_go_with_the_pool() -> None:
    def count() -> int:
        names = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"/proc/self/fd/{name}"))
        return sum("manyhands-output" in name for name in names)

    import gc

    gc.collect()
    before = count()
    with mh.Pool(2, capture=True) as pool:
        future = pool.submit(speak, "x")
        future.result(LIMIT)
        assert count() == before + 2
    del pool, future
    deadline = time.monotonic() + LIMIT
    while count() != before:
        gc.collect()
        assert time.monotonic() < deadline
