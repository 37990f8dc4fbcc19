"""`pool.dump()`: what each worker does just now, whatever it is."""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
import procfs
from gate import Gate, closed_gate, pass_through, report_arrival
from observing import until

ASKED_BY = signal.SIGRTMIN + 13


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    """Two workers, that are killed in the end whatever they do."""
    pool = mh.Pool(2)
    yield pool
    pool.terminate()


def spin(path: str) -> None:
    report_arrival(path)
    while True:
        pass


def sleep(path: str) -> None:
    report_arrival(path)
    time.sleep(600)


def hold_in_c(path: str) -> int:
    """Keeps the interpreter and looks for no signal."""
    report_arrival(path)
    return sum(itertools.repeat(1))


def start(pool: mh.Pool, gate: Gate, task: Callable[..., Any], *args: Any) -> mh.Future[Any]:
    """Submits a task that has arrived at the gate when this returns."""
    future = pool.submit(task, gate.path, *args)
    gate.wait_arrivals()
    return future


# Workers have a second to answer; who waits for longer stood still itself.
LATE = 1.2


def was_late(worker: mh.WorkerDump) -> bool:
    """Whether the machine let it not run: it wanted to, or waited for a disk."""
    kernel = worker.kernel or ""
    return "has no time" in kernel or "takes no signals" in kernel


def dump_in_time(pool: mh.Pool) -> mh.PoolDump:
    """A dump for which the machine let each worker run that wanted to, and who asks."""
    while True:
        begin = time.monotonic()
        dump = pool.dump()
        if time.monotonic() - begin < LATE and not any(map(was_late, dump.workers)):
            return dump


def of_task(dump: mh.PoolDump) -> mh.WorkerDump:
    """The one worker that runs something."""
    (worker,) = [worker for worker in dump.workers if worker.task is not None]
    return worker


def stack_with(pool: mh.Pool, text: str) -> str:
    """Dumps until the stack of the one task has the text: it may have been on its way there."""
    while True:
        stack = of_task(pool.dump()).stack
        if stack is not None and text in stack:
            return stack


# ----------------------------------------------------------------------------------- what it shows


@pytest.mark.parametrize("task", [spin, sleep, hold_in_c])
def test_the_stack_of_a_task_whatever_it_does(
    pool: mh.Pool, gate: Gate, task: Callable[[str], object]
) -> None:
    start(pool, gate, task)
    line = {spin: "in spin", sleep: "time.sleep(600)", hold_in_c: "return sum(itertools"}[task]
    stack = stack_with(pool, line)
    worker = of_task(dump_in_time(pool))
    assert (worker.state, worker.task, worker.task_index) == ("busy", task.__name__, 0)
    assert worker.pid == pool.stats().workers[worker.slot].pid
    assert worker.kernel is None
    assert worker.task_age is not None
    headline, *_ = stack.splitlines()
    assert headline.startswith(f'  File "{__file__}", line ')
    assert headline.endswith(f", in {task.__name__}")
    assert "manyhands" not in stack.replace(__file__, "")


def test_idle_workers_are_not_asked(pool: mh.Pool) -> None:
    pool.submit(abs, -1).result()
    while any(worker.state != "idle" for worker in pool.stats().workers):
        time.sleep(0.001)
    dump = dump_in_time(pool)
    assert {(worker.state, worker.stack, worker.kernel) for worker in dump.workers} == {
        ("idle", None, None)
    }
    assert (dump.pending, dump.queued) == (0, 0)


def test_the_calls_of_a_task_in_their_order(pool: mh.Pool, gate: Gate) -> None:
    start(pool, gate, outer)
    stack = stack_with(pool, "fcntl.flock")
    names = [line.rsplit(" ", 1)[1] for line in stack.splitlines() if line.startswith("  File")]
    assert names == ["outer", "inner", "pass_through"]


def outer(path: str) -> object:
    return inner(path)


def inner(path: str) -> object:
    return pass_through(path)


def test_items_of_maps(pool: mh.Pool, gate: Gate) -> None:
    results = pool.map(inner, [gate.path])
    gate.wait_arrivals()
    worker = of_task(dump_in_time(pool))
    assert (worker.task, worker.task_index) == ("inner", 0)
    gate.open()
    assert list(results) == [None]


def test_other_threads_of_a_worker(pool: mh.Pool, gate: Gate) -> None:
    start(pool, gate, with_thread)
    stack = stack_with(pool, ", in the_other")
    main, *others = stack.split("Thread 0x")
    assert ", in with_thread" in main
    assert any(", in the_other" in other for other in others)
    assert ", in the_other" not in main


def with_thread(path: str) -> None:
    def the_other() -> None:
        report_arrival(path)
        time.sleep(600)

    threading.Thread(target=the_other).start()
    time.sleep(600)


def test_what_is_too_deep_is_cut(pool: mh.Pool, gate: Gate) -> None:
    start(pool, gate, deep, 300)
    stack = stack_with(pool, "in sleep")
    assert "calls that are left out" in stack.splitlines()[0]
    assert stack.count(", in deep") > 90


def deep(path: str, left: int) -> None:
    if left > 0:
        deep(path, left - 1)
    else:
        sleep(path)


def test_names_that_are_not_ascii(pool: mh.Pool, gate: Gate, tmp_path: Path) -> None:
    source = tmp_path / "größe 中𝄞.py"
    source.write_text("def größe(wait, path):\n    wait(path)  # ü\n", encoding="utf-8")
    start(pool, gate, run_source, str(source))
    stack = stack_with(pool, "in sleep")
    assert f'  File "{source}", line 2, in größe\n    wait(path)  # ü\n' in stack


def run_source(path: str, source: str) -> None:
    names: dict[str, Any] = {}
    code = Path(source).read_text(encoding="utf-8")
    exec(compile(code, source, "exec"), names)
    names["größe"](sleep, path)


def test_a_dump_as_a_text(pool: mh.Pool, gate: Gate) -> None:
    start(pool, gate, sleep)
    stack_with(pool, "time.sleep")
    text = str(dump_in_time(pool))
    first, second, *_ = text.splitlines()
    assert first == "pool of 2: 1 task pending, 0 of them at no worker"
    worker = of_task(dump_in_time(pool))
    assert second.startswith(f"worker {worker.slot}, pid {worker.pid}: busy, for ")
    assert second.endswith(" s in task 0: sleep")
    assert "    time.sleep(600)" in text


def test_a_dump_is_a_value(pool: mh.Pool, gate: Gate) -> None:
    start(pool, gate, sleep)
    dump = pool.dump()
    assert pickle.loads(pickle.dumps(dump)) == dump
    with pytest.raises(AttributeError, match="snapshot"):
        dump.workers = ()


def test_a_pool_without_workers() -> None:
    pool = mh.Pool(2)
    assert pool.dump().workers == ()
    assert "no worker has been started" in str(pool.dump())
    pool.shutdown()
    assert pool.dump().workers == ()


def test_of_threads(gate: Gate) -> None:
    with mh.Pool(2, engine="thread") as pool:
        start(pool, gate, inner)
        (worker,) = pool.dump().workers
        assert (worker.state, worker.task_index, worker.kernel) == ("busy", 0, None)
        assert worker.stack is not None
        assert worker.stack.startswith(f'  File "{__file__}", line ')
        assert ", in pass_through" in worker.stack
        gate.open()
        while pool.stats().pending:
            time.sleep(0.001)
        while pool.dump().workers[0].state != "idle":
            time.sleep(0.001)
        assert pool.dump().workers[0].stack is None


def test_inline() -> None:
    with mh.Pool(engine="inline") as pool:
        dump = pool.dump()
        assert dump.workers == ()
        assert "there are no workers" in str(dump)


# ------------------------------------------------------------------------------------ who is silent


def test_who_is_stopped_is_shown_as_the_kernel_sees_it(pool: mh.Pool, gate: Gate) -> None:
    start(pool, gate, sleep)
    start(pool, gate, spin)
    by_task = {worker.task: worker for worker in dump_in_time(pool).workers}
    os.kill(by_task["sleep"].pid, signal.SIGSTOP)
    while procfs.stat(by_task["sleep"].pid)[0] != "T":
        time.sleep(0.001)
    by_task = {worker.task: worker for worker in dump_in_time(pool).workers}
    stopped, other = by_task["sleep"], by_task["spin"]
    assert (stopped.state, stopped.stack) == ("stopped", None)
    assert stopped.kernel is not None
    assert stopped.kernel.startswith("it was stopped by a signal")
    assert "did not answer within a second: it was stopped" in str(stopped)
    assert (other.state, other.kernel) == ("busy", None)
    assert other.stack is not None
    assert ", in spin" in other.stack
    os.kill(stopped.pid, signal.SIGCONT)
    # What it was asked while it was stopped, it answers now; that is not taken for another answer.
    assert ", in sleep" in stack_with_of(pool, "sleep")


def stack_with_of(pool: mh.Pool, task: str) -> str:
    while True:
        for worker in pool.dump().workers:
            if worker.task == task and worker.stack:
                return worker.stack


def test_a_task_that_takes_the_handler_away_is_not_ended_by_the_question(
    pool: mh.Pool, gate: Gate
) -> None:
    future = start(pool, gate, without_handler)
    worker = of_task(pool.dump())
    assert (worker.state, worker.stack) == ("busy", None)
    assert worker.kernel is not None
    gate.open()
    assert future.result() == worker.pid


def without_handler(path: str) -> int:
    signal.signal(ASKED_BY, signal.SIG_DFL)
    pass_through(path)
    return os.getpid()


def test_a_worker_that_ends_instead(pool: mh.Pool, gate: Gate) -> None:
    while True:
        future = start(pool, gate, ends_when_asked)
        worker = of_task(pool.dump())
        if not was_late(worker):
            break
        assert isinstance(future.exception(), mh.WorkerDied)  # it ended after its second
    assert (worker.stack, worker.kernel) == (None, "it has ended")
    assert "did not answer within a second: it has ended" in str(worker)


def ends_when_asked(path: str) -> None:
    signal.signal(ASKED_BY, lambda _number, _frame: os._exit(3))
    sleep(path)


def test_nothing_is_written_to_a_file_that_took_the_place_of_ours(
    pool: mh.Pool, gate: Gate, tmp_path: Path
) -> None:
    users = tmp_path / "users"
    start(pool, gate, take_descriptors, str(users))
    worker = of_task(pool.dump())
    assert worker.stack is None
    assert worker.kernel is not None
    assert users.read_bytes() == b""


def take_descriptors(path: str, users: str) -> None:
    file = os.open(users, os.O_RDWR | os.O_CREAT)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2:
            try:
                os.dup2(file, number)
            except OSError:
                pass  # the descriptor of the listing itself
    sleep(path)


def test_a_child_of_a_task_writes_nothing(pool: mh.Pool, gate: Gate, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    start(pool, gate, fork_and_sleep, str(pids))
    child = int(pids.read_text())
    worker = of_task(dump_in_time(pool))
    os.kill(child, ASKED_BY)
    again = of_task(dump_in_time(pool))
    assert worker.stack is not None
    assert again.stack is not None
    assert procfs.is_alive(child)
    os.kill(child, signal.SIGKILL)


def fork_and_sleep(path: str, pids: str) -> None:
    child = os.fork()
    if child == 0:
        while True:
            time.sleep(600)
    Path(pids).write_text(str(child))
    sleep(path)


# ------------------------------------------------------------------------------ what it disturbs


def test_what_a_task_waits_for_is_not_interrupted(pool: mh.Pool, gate: Gate) -> None:
    """C code that has never heard of signals reads on."""
    future = start(pool, gate, read_in_c)
    for _ in range(20):
        assert "in read_in_c" in stack_with(pool, "in read_in_c")
    gate.open()
    assert future.result() == (1, 0)


def read_in_c(path: str) -> tuple[int, int]:
    reading, writing = os.pipe()

    def write_in_the_end() -> None:
        pass_through(path)
        os.write(writing, b"x")

    threading.Thread(target=write_in_the_end, daemon=True).start()
    library = ctypes.CDLL(None, use_errno=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [ASKED_BY])
    count = library.read(reading, ctypes.create_string_buffer(1), 1)
    return count, ctypes.get_errno()


def test_threads_that_dump_at_once(pool: mh.Pool, gate: Gate) -> None:
    start(pool, gate, sleep)
    start(pool, gate, spin)
    stack_with_of(pool, "sleep")
    stack_with_of(pool, "spin")
    failures: list[str] = []
    dumped = 0

    def dump_often() -> None:
        nonlocal dumped
        for _ in range(25):
            begin = time.monotonic()
            dump = pool.dump()
            is_late = time.monotonic() - begin > LATE
            for worker in dump.workers:
                if was_late(worker) or (is_late and worker.kernel is not None):
                    continue  # a busy machine
                if worker.stack is None or f", in {worker.task}\n" not in worker.stack:
                    failures.append(str(worker))
                dumped += 1

    threads = [threading.Thread(target=dump_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert dumped > 0


def test_results_come_right_while_workers_are_asked(pool: mh.Pool) -> None:
    over = threading.Event()
    dumps = 0

    def dump_often() -> None:
        nonlocal dumps
        while not over.is_set():
            pool.dump()
            dumps += 1

    thread = threading.Thread(target=dump_often)
    thread.start()
    results = list(pool.map(str, range(50_000)))
    futures = [pool.submit(pow, 2, number) for number in range(500)]
    values = [future.result() for future in futures]
    until(lambda: dumps > 0 or not thread.is_alive())  # its thread may have come late
    over.set()
    thread.join()
    assert results == [str(number) for number in range(50_000)]
    assert values == [2**number for number in range(500)]
    assert dumps > 0
    assert pool.stats().deaths == 0
