"""Tasks that run again: after which failures, how often, and what is told of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, pass_through
from manyhands import _outcome


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    with mh.Pool(2) as pool:
        yield pool


@pytest.fixture(params=["process", "thread", "inline"])
def any_pool(request: pytest.FixtureRequest) -> Iterator[mh.Pool]:
    with mh.Pool(2, engine=request.param) as pool:
        yield pool


def tries(path: Path | str) -> int:
    """Counts a run; how many there were."""
    with open(path, "ab", buffering=0) as file:
        file.write(b".")
    return os.path.getsize(path)


class Flaky(OSError):
    """What goes away by itself."""


def flaky(folder: str, item: int, failures: int) -> int:
    if tries(Path(folder, str(item))) <= failures:
        raise Flaky(f"item {item}")
    return item


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("way", ["submit", "map", "unordered", "long"])
def test_a_task_runs_again(any_pool: mh.Pool, tmp_path: Path, way: str) -> None:
    pool, folder = any_pool, str(tmp_path)

    def work(item: tuple[int, bytes]) -> int:
        return flaky(folder, item[0], item[0] % 3)

    items = [(number, b"x" * 20_000 if way == "long" else b"") for number in range(60)]
    if way == "submit":
        again = pool.options(retry=2)
        assert [again.submit(work, item).result() for item in items] == list(range(60))
    else:
        results = pool.map(work, items, retry=2, ordered=way != "unordered")
        got = results.list()
        assert got == list(range(60)) if way != "unordered" else sorted(got) == list(range(60))
        assert results.summary.failed == 0
    assert [(tmp_path / str(number)).stat().st_size for number in range(60)] == [
        1 + number % 3 for number in range(60)
    ]
    assert pool.stats().pending == 0


def test_the_last_failure_counts(any_pool: mh.Pool, tmp_path: Path) -> None:
    pool = any_pool
    results = pool.map(
        flaky, [str(tmp_path)] * 4, range(4), [0, 2, 9, 1], retry=2, on_error="return"
    )
    got: list[Any] = list(results)
    assert got[0] == 0
    assert got[1] == 1
    assert got[3] == 3
    assert (got[2].attempts, got[2].index, got[2].cause) == (3, 2, "exception")
    assert isinstance(got[2].exception, Flaky)
    assert "attempt 3" in got[2].exception.__notes__[-1]
    error = pool.options(retry=1).submit(flaky, str(tmp_path), 7, 9).exception()
    assert error is not None
    assert "attempt 2" in error.__notes__[-1]
    assert (tmp_path / "7").stat().st_size == 2


def test_without_it_nothing_runs_again(any_pool: mh.Pool, tmp_path: Path) -> None:
    pool = any_pool
    assert isinstance(pool.submit(flaky, str(tmp_path), 1, 1).exception(), Flaky)
    for number, none in ((2, 0), (3, None)):
        view = pool.options(retry=none)
        assert isinstance(view.submit(flaky, str(tmp_path), number, 1).exception(), Flaky)
    assert [(tmp_path / name).stat().st_size for name in "123"] == [1, 1, 1]


def test_on_and_when(any_pool: mh.Pool, tmp_path: Path) -> None:
    pool = any_pool

    def fail(name: str, kind: type[BaseException], text: str = "") -> None:
        tries(tmp_path / name)
        raise kind(text)

    def is_transient(error: BaseException) -> bool:
        return "transient" in str(error)

    only_os = pool.options(retry=mh.Retry(2, on=OSError))
    both = pool.options(retry=mh.Retry(2, on=(KeyError, ValueError)))
    some = pool.options(retry=mh.Retry(2, when=is_transient))
    for number, (view, kind, text, runs) in enumerate(
        [
            (only_os, Flaky, "", 3),
            (only_os, ValueError, "", 1),
            (both, KeyError, "", 3),
            (both, OSError, "", 1),
            (some, ValueError, "transient", 3),
            (some, ValueError, "for ever", 1),
            (pool.options(retry=2), SystemExit, "", 1),
        ]
    ):
        assert view.submit(fail, str(number), kind, text).exception() is not None
        assert (tmp_path / str(number)).stat().st_size == runs, number


def test_a_predicate_that_raises(any_pool: mh.Pool) -> None:
    def broken(_error: BaseException) -> bool:
        raise LookupError("no such thing")

    view = any_pool.options(retry=mh.Retry(2, when=broken))
    error = view.submit(int, "x").exception()
    assert isinstance(error, ValueError)
    assert any("its retry's predicate raised LookupError" in note for note in error.__notes__)


def test_pauses(pool: mh.Pool, tmp_path: Path) -> None:
    retry = mh.Retry(3, backoff=0.05, jitter=0)
    start = time.monotonic()
    future = pool.options(retry=retry).submit(flaky, str(tmp_path), 1, 3)
    # Nobody waits for a pause but the task itself.
    assert [pool.submit(abs, -1).result() for _ in range(20)] == [1] * 20
    assert future.result() == 1
    assert time.monotonic() - start >= 0.05 + 0.1 + 0.2
    shortened = mh.Retry(3, backoff=600, longest=0.01)
    assert pool.options(retry=shortened).submit(flaky, str(tmp_path), 2, 3).result() == 2


def test_a_task_that_waits_for_its_pause_is_cancelled(pool: mh.Pool, tmp_path: Path) -> None:
    view = pool.options(retry=mh.Retry(3, backoff=600, jitter=0))
    future = view.submit(flaky, str(tmp_path), 1, 9)
    while not (tmp_path / "1").exists() or future.running():
        time.sleep(0.001)
    assert future.cancel()
    results = pool.map(
        flaky, [str(tmp_path)] * 3, range(2, 5), [9] * 3, retry=mh.Retry(3, backoff=600, jitter=0)
    )
    while not all((tmp_path / str(number)).exists() for number in range(2, 5)):
        time.sleep(0.001)
    results.close()
    while pool.stats().pending:
        time.sleep(0.001)


def test_a_pool_that_is_left_waits_for_its_retries(tmp_path: Path) -> None:
    with mh.Pool(1) as pool:
        future = pool.options(retry=mh.Retry(2, backoff=0.05)).submit(flaky, str(tmp_path), 1, 2)
    assert future.result() == 1
    with pytest.raises(RuntimeError), mh.Pool(1) as pool:
        future = pool.options(retry=mh.Retry(2, backoff=600)).submit(flaky, str(tmp_path), 2, 2)
        while not (tmp_path / "2").exists() or future.running():
            time.sleep(0.001)
        raise RuntimeError
    assert future.cancelled()


@pytest.mark.parametrize("way", ["submit", "map"])
def test_deaths_are_counted_by_themselves(pool: mh.Pool, tmp_path: Path, way: str) -> None:
    """P2: a task that kills workers is not tried for ever."""

    def work(deaths: int, failures: int) -> int:
        count = tries(tmp_path / f"{deaths} {failures}")
        if count <= deaths:
            kill_self()
        if count <= deaths + failures:
            raise Flaky
        return count

    calls = [(0, 0), (1, 0), (2, 0), (1, 2), (0, 3), (1, 3)]
    if way == "submit":
        futures = [pool.options(retry=2).submit(work, *call) for call in calls]
        ends: list[Any] = [future.exception() or future.result() for future in futures]
    else:
        found = pool.starmap(work, calls, retry=2, on_error="return")
        ends = [end.exception if isinstance(end, mh.Failure) else end for end in found]
    assert ends[0] == 1
    assert ends[1] == 2
    assert isinstance(ends[2], mh.WorkerDied)
    assert "attempt 2: it has killed 2 workers, and is not tried again" in str(ends[2])
    assert ends[3] == 4
    assert isinstance(ends[4], Flaky)
    assert isinstance(ends[5], Flaky)
    assert (tmp_path / "2 0").stat().st_size == 2, "it killed two, and was left alone then"
    assert pool.stats().deaths == 5
    patient = mh.Retry(0, deaths=3)
    assert pool.options(retry=patient).submit(work, 3, 0).result() == 4


@pytest.mark.parametrize("way", ["submit", "map", "unordered", "below", "map below"])
def test_each_death_is_told(pool: mh.Pool, tmp_path: Path, way: str) -> None:
    """P2: what is known of all the workers that a task has killed, and not of the last alone."""

    def work(item: int) -> int:
        if item != 1:
            return item
        with open(tmp_path / "pids", "a") as file:
            file.write(f"{os.getpid()}\n")
        if tries(tmp_path / "tries") == 1:
            kill_self()
        os._exit(3)

    def failed() -> BaseException | None:
        if way in ("submit", "below"):
            return pool.options(retry=1).submit(work, 1).exception()
        results = pool.map(work, range(3), retry=1, on_error="return", ordered=way != "unordered")
        (failure,) = [result for result in results if isinstance(result, mh.Failure)]
        return failure.exception

    error = pool.submit(failed).result() if way.endswith("below") else failed()
    assert isinstance(error, mh.WorkerDied)
    first, second = map(int, (tmp_path / "pids").read_text().split())
    assert error.deaths == ((first, "was killed by SIGKILL"), (second, "exited with status 3"))
    assert (error.pid, error.cause, error.code) == (second, "exit", 3)
    assert str(error).startswith(f"worker {second} exited with status 3 while it ran task ")
    assert str(error).endswith(
        ", attempt 2: it has killed 2 workers, and is not tried again "
        f"(earlier, worker {first} was killed by SIGKILL); other tasks go on"
    )
    assert pool.stats().deaths == 2


def test_deaths_are_told_past_other_failures(pool: mh.Pool, tmp_path: Path) -> None:
    def work() -> None:
        count = tries(tmp_path / "tries")
        if count == 2:
            raise Flaky
        os._exit(count)

    patient = pool.options(retry=mh.Retry(1, deaths=2))
    error = patient.submit(work).exception()
    assert isinstance(error, mh.WorkerDied)
    told = [how for _, how in error.deaths]
    assert told == [f"exited with status {status}" for status in (1, 3, 4)]
    assert len({pid for pid, _ in error.deaths}) == 3
    assert "attempt 4: it has killed 3 workers" in str(error)
    # With no more than one death the message is that of a task that is not tried again.
    once = pool.options(retry=mh.Retry(1, deaths=0)).submit(os._exit, 5).exception()
    assert isinstance(once, mh.WorkerDied)
    assert once.deaths == ((once.pid, "exited with status 5"),)
    assert str(once).endswith("(_exit(5)); other tasks go on")


def test_a_message_names_a_few_of_many_deaths() -> None:
    died = [(number, "exit", 1) for number in range(1, 10)]
    error = _outcome.death("f", 7, died, None, 9)
    assert isinstance(error, mh.WorkerDied)
    assert error.deaths == tuple((pid, "exited with status 1") for pid in range(1, 10))
    earlier = ", ".join(f"worker {pid} exited with status 1" for pid in range(1, 5))
    assert str(error) == (
        "worker 9 exited with status 1 while it ran task 7 (f), attempt 9: it has killed 9 "
        f"workers, and is not tried again (earlier, {earlier}, and 4 more); other tasks go on"
    )


def test_time_outs_count_as_failures(pool: mh.Pool, tmp_path: Path) -> None:
    def work(name: str, slow: int) -> int:
        count = tries(tmp_path / name)
        if count <= slow:
            time.sleep(600)
        return count

    view = pool.options(task_timeout=0.5, retry=2)  # each attempt has to be counted
    assert view.submit(work, "a", 2).result() == 3
    error = view.submit(work, "b", 9).exception()
    assert isinstance(error, mh.TaskTimeout)
    assert "attempt 3" in str(error)
    assert list(pool.map(work, ["c", "d"], [1, 0], task_timeout=0.5, retry=1)) == [2, 1]
    strict = view.options(retry=mh.Retry(2, on=ValueError))
    assert isinstance(strict.submit(work, "e", 1).exception(), mh.TaskTimeout)
    assert (tmp_path / "e").stat().st_size == 1


def test_generators(pool: mh.Pool, tmp_path: Path) -> None:
    """What was yielded is out: after that it does not run again."""

    def before(name: str) -> Iterator[int]:
        count = tries(tmp_path / name)
        if count < 3:
            raise Flaky
        yield count

    def after(name: str) -> Iterator[int]:
        yield tries(tmp_path / name)
        raise Flaky

    assert list(pool.map(before, ["a"], retry=2)) == [3]
    found: list[Any] = list(pool.map(after, ["b"], retry=2, on_error="return"))
    assert found[0] == 1
    assert isinstance(found[1].exception, Flaky)


def test_what_cannot_be_sent_is_not_tried_again(pool: mh.Pool, tmp_path: Path) -> None:
    def work() -> Any:
        tries(tmp_path / "ran")
        return iter([open(os.devnull)])

    assert isinstance(pool.options(retry=3).submit(work).exception(), mh.NotPicklable)
    assert (tmp_path / "ran").stat().st_size == 1


def test_bad_values(pool: mh.Pool) -> None:
    assert repr(mh.Retry(2, on=(OSError, KeyError))) == (
        "Retry(2, on=(OSError, KeyError), deaths=1, backoff=0)"
    )
    bad: Any
    for bad in ("2", 1.5, True):
        with pytest.raises(TypeError, match="retry is a number of times or a Retry"):
            pool.options(retry=bad)
        with pytest.raises(TypeError, match="n must be a whole number"):
            mh.Retry(bad)
    for bad in (-1, 201):
        with pytest.raises(ValueError, match="n must be from 0 to 200"):
            mh.Retry(bad)
    with pytest.raises(ValueError, match="retry must be at least 0"):
        pool.map(abs, [1], retry=-1)
    for name in ("backoff", "longest", "jitter"):
        with pytest.raises(ValueError, match=f"{name} must be from 0 to"):
            mh.Retry(1, **{name: -1})
    with pytest.raises(TypeError, match="on must be an exception class"):
        mh.Retry(1, on=int)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="when must be callable"):
        mh.Retry(1, when=3)  # type: ignore[arg-type]


def test_each_run_gets_its_own_copy() -> None:
    def grow(items: list[int]) -> list[int]:
        items.append(len(items))
        runs.append(1)
        if len(runs) < 3:
            raise Flaky
        return items

    runs: list[int] = []
    with mh.Pool(engine="inline", retry=5) as pool:
        assert pool.submit(grow, [7]).result() == [7, 1]
        runs.clear()
        assert pool.map(grow, [[7]]).list() == [[7, 1]]


@pytest.mark.parametrize("way", ["submit", "map"])
def test_a_thread_pool_that_is_left_by_an_exception_waits_for_no_pause(
    tmp_path: Path, way: str
) -> None:
    start = time.monotonic()
    with pytest.raises(KeyError), mh.Pool(2, engine="thread") as pool:
        retry = mh.Retry(3, backoff=600, jitter=0)
        if way == "submit":
            future = pool.options(retry=retry).submit(flaky, str(tmp_path), 1, 9)
        else:
            pool.map(flaky, [str(tmp_path)], [1], [9], retry=retry)
        while not (tmp_path / "1").exists() or not (tmp_path / "1").stat().st_size:
            time.sleep(0.001)
        # What runs would be asked to end: a task has ended its run first, and by now it waits.
        while way == "submit" and any(worker.task for worker in pool.stats().workers):
            time.sleep(0.001)
        time.sleep(0.2)
        raise KeyError
    assert time.monotonic() - start < 60
    assert (tmp_path / "1").stat().st_size == 1
    if way == "submit":
        assert isinstance(future.exception(), Flaky)


def test_a_map_on_threads_that_is_closed_tries_nothing_again(tmp_path: Path) -> None:
    with mh.Pool(1, engine="thread") as pool:
        retry = mh.Retry(3, backoff=600, jitter=0)
        results = pool.map(flaky, [str(tmp_path)], [1], [9], retry=retry)
        while not (tmp_path / "1").exists():
            time.sleep(0.001)
        results.close()
        assert pool.submit(abs, -1).result() == 1
    assert (tmp_path / "1").stat().st_size == 1


def test_a_signal_ends_an_inline_pause() -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            mh.map(int, ["x"], engine="inline", retry=mh.Retry(1, backoff=600)).run()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_task_is_cancelled_whose_failure_nobody_has_taken(tmp_path: Path, gate: Gate) -> None:
    """It may run again, and is about to be queued for that."""
    runs = tmp_path / "runs"

    def fail() -> None:
        tries(runs)
        raise Flaky("again")

    with mh.Pool(1) as pool:
        pool.submit(abs, 1).result()
        future = pool.options(retry=5).submit(fail)
        # The worker comes to it when it is through with the other.
        held = pool.submit(pass_through, gate.path)
        gate.wait_arrivals(1)
        assert future.cancel()
        assert future.cancelled()
        gate.open()
        held.result()
        assert pool.submit(abs, -2).result() == 2
    assert os.path.getsize(runs) == 1
