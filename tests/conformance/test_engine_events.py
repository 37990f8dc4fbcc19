"""What a pool's listener hears: the same kinds with the same meaning on every engine."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from capabilities import Capabilities

import manyhands as mh
from gate import Gate, pass_through

ENDS = ("ended", "cancelled")


def each(events: Iterable[mh.Event]) -> Iterator[tuple[tuple[int | None, int], mh.Event]]:
    """The events about tasks, once for each task, with which one it is."""
    for event in events:
        if event.index is not None:
            assert event.count is not None
            for index in range(event.index, event.index + event.count):
                yield (event.map, index), event


def stories(events: Iterable[mh.Event]) -> dict[tuple[int | None, int], list[str]]:
    """What was told of each task, in order; of ends the outcome, too."""
    found: dict[tuple[int | None, int], list[str]] = {}
    for task, event in each(events):
        words = event.kind if event.outcome is None else f"{event.kind} {event.outcome}"
        found.setdefault(task, []).append(words)
    return found


def fail(value: object) -> None:
    raise KeyError(value)


def test_submitted_tasks(engine: Capabilities) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(2, engine=engine.name, on_event=seen.append) as pool:
        futures = [pool.submit(abs, number) for number in range(50)]
        assert sum(future.result() for future in futures) == 1225
        with pytest.raises(KeyError):
            pool.submit(fail, 1).result()
    told = stories(seen)
    assert told.pop((None, 50)) == ["queued", "started", "ended error"]
    assert set(told) == {(None, index) for index in range(50)}
    assert all(story == ["queued", "started", "ended ok"] for story in told.values())
    assert {event.count for event in seen if event.index is not None} == {1}
    names = {event.task for event in seen if event.index == 3}
    assert names == {"abs"}
    for event in seen:
        is_run = event.kind in ("started", "ended")
        assert (event.attempt == 1) if is_run else (event.attempt is None)
        if is_run:
            assert event.pid is not None
            assert (event.slot in (0, 1)) if engine.background else (event.slot is None)
        if event.kind == "ended":
            assert event.seconds is not None
            assert 0 <= event.seconds < 600


def test_times(engine: Capabilities) -> None:
    for _ in range(20):
        seen: list[mh.Event] = []
        before, before_wall = time.monotonic(), time.time()
        with mh.Pool(1, engine=engine.name, on_event=seen.append) as pool:
            pool.submit(time.sleep, 0.02).result()
        after = time.monotonic()
        assert len(seen) >= 3
        for event in seen:
            assert before <= event.monotonic <= after
            # The clocks are set apart by people and by time servers, but not by an hour.
            assert abs((event.time - before_wall) - (event.monotonic - before)) < 3600
        [started] = [event for event in seen if event.kind == "started"]
        [ended] = [event for event in seen if event.kind == "ended"]
        assert ended.seconds is not None
        assert ended.seconds >= 0.02
        between = ended.monotonic - started.monotonic
        assert between >= ended.seconds - 0.02
        # Who reads the result may have been late.
        if between <= ended.seconds + 0.02:
            break
    assert between == pytest.approx(ended.seconds, abs=0.02)


@pytest.mark.parametrize("ordered", [True, False])
def test_items_of_a_map_add_up(engine: Capabilities, ordered: bool) -> None:
    count = 100_000
    seen: list[mh.Event] = []
    with mh.Pool(2, engine=engine.name, on_event=seen.append) as pool:
        total = sum(pool.map(abs, range(count), ordered=ordered))
    assert total == count * (count - 1) // 2
    told = stories(seen)
    assert len(told) == count
    assert {index for _, index in told} == set(range(count))
    assert len({number for number, _ in told}) == 1
    assert Counter(map(tuple, told.values())) == {("queued", "started", "ended ok"): count}
    # Short items come in runs, however busy the machine is.
    assert len(seen) < count


def test_two_maps_are_told_apart(engine: Capabilities) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(2, engine=engine.name, on_event=seen.append) as pool:
        assert list(pool.map(abs, range(10))) == list(range(10))
        assert pool.submit(abs, -3).result() == 3
        assert list(pool.map(str, range(10))) == [str(number) for number in range(10)]
    told = stories(seen)
    first, second = sorted({number for number, _ in told if number is not None})
    wanted = {(number, index) for number in (first, second) for index in range(10)}
    assert set(told) == wanted | {(None, 0)}
    names = {(event.map, event.task) for event in seen if event.index is not None}
    assert names == {(first, "abs"), (second, "str"), (None, "abs")}


def test_failing_items(engine: Capabilities) -> None:
    seen: list[mh.Event] = []

    def odd_fail(value: int) -> int:
        if value % 2:
            raise ValueError(value)
        return value

    with mh.Pool(2, engine=engine.name, on_event=seen.append) as pool:
        list(pool.map(odd_fail, range(40), on_error="return"))
    told = stories(seen)
    assert len(told) == 40
    for (_, index), story in told.items():
        assert story == ["queued", "started", "ended error" if index % 2 else "ended ok"]


def test_generators_end_once(engine: Capabilities) -> None:
    seen: list[mh.Event] = []

    def some(count: int) -> Iterator[int]:
        yield from range(count)

    with mh.Pool(2, engine=engine.name, on_event=seen.append) as pool:
        assert len(list(pool.map(some, range(20)))) == 190
    told = stories(seen)
    assert len(told) == 20
    assert set(map(tuple, told.values())) == {("queued", "started", "ended ok")}


@pytest.mark.parametrize("way", ["submit", "map"])
def test_tasks_that_run_again(engine: Capabilities, way: str, tmp_path: Any) -> None:
    seen: list[mh.Event] = []
    folder = str(tmp_path)

    def flaky(item: int) -> int:
        with open(f"{folder}/{item}", "ab", buffering=0) as file:
            file.write(b".")
            if file.tell() <= item:
                raise OSError(item)
        return item

    with mh.Pool(2, engine=engine.name, on_event=seen.append, retry=2) as pool:
        if way == "map":
            assert list(pool.map(flaky, range(3))) == [0, 1, 2]
        else:
            assert [pool.submit(flaky, item).result() for item in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            pool.submit(fail, 0).result()
    told = stories(seen)
    assert len(told) == 4
    again = ["started", "retried error"]
    for item in range(3):
        [story] = [
            told[task] for task in told if task[1] == item and (way == "map") == bool(task[0])
        ]
        assert story == ["queued", *again * item, "started", "ended ok"]
    last = told[None, 0 if way == "map" else 3]
    assert last == ["queued", *again * 2, "started", "ended error"]
    attempts = [
        event.attempt
        for event in seen
        if event.task == "fail" and event.kind in ("started", "retried", "ended")
    ]
    assert attempts == [1, 1, 2, 2, 3, 3]


def test_runs_that_follow_are_logged(
    engine: Capabilities, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "manyhands"):
        with mh.Pool(1, engine=engine.name, retry=2) as pool:
            with pytest.raises(KeyError):
                pool.submit(fail, 0).result()
    lines = [record for record in caplog.records if "runs again" in record.getMessage()]
    assert {record.levelno for record in lines} == {logging.INFO}
    texts = [record.getMessage() for record in lines]
    assert len(texts) == 2
    assert all(f"fail (task 0) failed in run {run}" in text for run, text in enumerate(texts, 1))


def test_what_is_cancelled(engine: Capabilities, gate: Gate) -> None:
    if not engine.background:
        return  # nothing waits there
    seen: list[mh.Event] = []
    with mh.Pool(1, engine=engine.name, on_event=seen.append) as pool:
        first = pool.submit(pass_through, gate.path, 1)
        gate.wait_arrivals()
        others = [pool.submit(abs, 1) for _ in range(3)]
        results = pool.map(abs, range(10))
        assert all(other.cancel() for other in others)
        results._cancel()
        gate.open()
        assert first.result() == 1
    told = stories(seen)
    assert told.pop((None, 0)) == ["queued", "started", "ended ok"]
    assert len(told) == 13
    assert set(map(tuple, told.values())) == {("queued", "cancelled")}


def test_a_block_that_is_left_by_an_exception(engine: Capabilities, gate: Gate) -> None:
    if not engine.background:
        return
    seen: list[mh.Event] = []
    with pytest.raises(KeyError), mh.Pool(1, engine=engine.name, on_event=seen.append) as pool:
        pool.submit(pass_through, gate.path)
        gate.wait_arrivals()
        for _ in range(5):
            pool.submit(abs, 1)
        if not engine.kill:
            gate.open()  # it is waited for
        raise KeyError
    told = stories(seen)
    assert len(told) == 6
    end = "cancelled" if engine.kill else "ended ok"
    assert told.pop((None, 0)) == ["queued", "started", end]
    if engine.kill:
        assert set(map(tuple, told.values())) == {("queued", "cancelled")}
    else:
        assert all(story[-1] in ("cancelled", "ended ok") for story in told.values())


def test_an_initializer_that_raises(engine: Capabilities) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(
        1, engine=engine.name, on_event=seen.append, initializer=fail, initargs=(1,)
    ) as pool:
        with pytest.raises((KeyError, mh.TaskError)):
            pool.submit(abs, 1).result()
    told = stories(seen)
    if engine.background:
        assert told == {(None, 0): ["queued", "ended not run"]}
    else:
        assert told == {}  # it was never taken


def test_workers_come_and_go(engine: Capabilities) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(2, engine=engine.name, on_event=seen.append) as pool:
        list(pool.map(time.sleep, [0.01] * 20))
    of_workers = [event for event in seen if event.index is None]
    if not engine.background:
        assert of_workers == []
        return
    assert {event.kind for event in of_workers} == {"born", "left"}
    born = [event.slot for event in of_workers if event.kind == "born"]
    left = [event.slot for event in of_workers if event.kind == "left"]
    assert sorted(born) == sorted(left)  # type: ignore[type-var]
    assert set(born) <= {0, 1}
    assert len(born) == len(set(born)) >= 1
    assert {event.generation for event in of_workers} == {1}


def test_a_slow_listener_holds_nothing_up(engine: Capabilities) -> None:
    seen: list[mh.Event] = []
    go_on = threading.Event()

    def slow(event: mh.Event) -> None:
        assert go_on.wait(60)
        seen.append(event)

    with mh.Pool(2, engine=engine.name, on_event=slow) as pool:
        assert [pool.submit(abs, -1).result() for _ in range(100)] == [1] * 100
        assert list(pool.map(abs, range(1000))) == list(range(1000))
        assert seen == []
        go_on.set()
    told = stories(seen)
    assert len(told) == 1100
    assert set(map(tuple, told.values())) == {("queued", "started", "ended ok")}


def test_a_listener_that_raises(engine: Capabilities, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[mh.Event] = []

    def listen(event: mh.Event) -> None:
        seen.append(event)
        raise (SystemExit if len(seen) == 1 else ValueError)(f"event {len(seen)}")

    with caplog.at_level(logging.INFO, "manyhands"):
        with mh.Pool(1, engine=engine.name, on_event=listen, name="mine") as pool:
            assert pool.submit(abs, -1).result() == 1
    assert stories(seen) == {(None, 0): ["queued", "started", "ended ok"]}
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    first, last = errors
    assert "on_event of 'mine' raised" in first.getMessage()
    assert first.exc_info is not None
    assert "event 1" in str(first.exc_info[1])
    assert f"raised for {len(seen)} of {len(seen)} events" in last.getMessage()


def test_a_listener_that_uses_its_pool(engine: Capabilities) -> None:
    found: list[int] = []
    made: list[mh.Pool] = []
    ready = threading.Event()

    def listen(event: mh.Event) -> None:
        if event.kind == "ended" and event.task == "str":
            found.append(made[0].submit(abs, -len(found)).result())
            found.extend(made[0].map(abs, range(3)))
            if len(found) == 8:
                ready.set()

    with mh.Pool(2, engine=engine.name, on_event=listen) as pool:
        made.append(pool)
        assert pool.submit(str, 1).result() == "1"
        assert pool.submit(str, 2).result() == "2"
        assert ready.wait(60)
    assert found == [0, 0, 1, 2, 4, 0, 1, 2]


def test_a_listener_that_ends_its_pool(engine: Capabilities) -> None:
    seen: list[str] = []
    made: list[mh.Pool] = []
    is_made = threading.Event()

    def listen(event: mh.Event) -> None:
        assert is_made.wait(60)
        if event.kind == "ended":
            made[0].shutdown()
        seen.append(event.kind)

    pool = mh.Pool(1, engine=engine.name, on_event=listen)
    made.append(pool)
    pool.submit(abs, -1)
    is_made.set()
    pool.shutdown()
    assert [kind for kind in seen if kind not in ("born", "left")] == ["queued", "started", "ended"]


def test_nothing_listens_after_the_end(engine: Capabilities) -> None:
    pool = mh.Pool(1, engine=engine.name, on_event=lambda event: None)
    assert pool.submit(abs, -1).result() == 1
    assert "manyhands-events" in {thread.name for thread in threading.enumerate()}
    pool.shutdown(wait=False)
    deadline = time.monotonic() + 60
    while "manyhands-events" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_pool_that_is_dropped_is_told_of_to_its_end(engine: Capabilities) -> None:
    seen: list[mh.Event] = []
    pool = mh.Pool(1, engine=engine.name, on_event=seen.append)
    future = pool.submit(abs, -1)
    del pool
    assert future.result() == 1
    deadline = time.monotonic() + 60
    while "manyhands-events" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert stories(seen) == {(None, 0): ["queued", "started", "ended ok"]}


def nap(value: object) -> object:
    """Takes far too long, and hears at once when it is to end."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        time.sleep(0.001)
    return value


def yield_and_nap(value: object) -> Iterator[object]:
    yield value
    nap(value)


@pytest.mark.parametrize(
    ("way", "again"),
    [("submit", False), ("submit", True), ("map", False), ("map", True), ("generator", False)],
)
def test_what_takes_too_long(engine: Capabilities, way: str, again: bool) -> None:
    seen: list[mh.Event] = []
    retry = mh.Retry(1, on=mh.TaskTimeout) if again else None
    with mh.Pool(1, engine=engine.name, on_event=seen.append) as pool:
        strict = pool.options(task_timeout=0.05, grace=60, retry=retry)
        if way == "submit":
            assert isinstance(strict.submit(nap, 1).exception(), mh.TaskTimeout)
        else:
            function = nap if way == "map" else yield_and_nap
            *_, failure = strict.map(function, [1], on_error="return")
            assert isinstance(failure, mh.Failure)
        assert pool.submit(abs, -1).result() == 1
    [story] = [story for story in stories(seen).values() if story[-1] != "ended ok"]
    first = ["started", "retried timeout"] if again else []
    assert story == ["queued", *first, "started", "ended timeout"]
    [ended] = [event for event in seen if event.outcome == "timeout" and event.kind == "ended"]
    assert ended.attempt == 1 + again
    assert ended.seconds is not None
    assert ended.seconds >= 0.05


def test_a_run_that_took_too_long_is_logged(
    engine: Capabilities, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "manyhands")
    retry = mh.Retry(1, on=mh.TaskTimeout)
    with mh.Pool(1, engine=engine.name, task_timeout=0.05, grace=60, retry=retry) as pool:
        assert isinstance(pool.submit(nap, 1).exception(), mh.TaskTimeout)
    texts = [record.getMessage() for record in caplog.records if record.name == "manyhands"]
    assert [text for text in texts if "runs again" in text] == [
        "nap (task 0) took too long in run 1 and runs again"
    ]


@pytest.mark.parametrize("way", ["submit", "map"])
def test_what_runs_and_is_ended_with_its_pool(engine: Capabilities, way: str) -> None:
    if not engine.background:
        return
    seen: list[mh.Event] = []
    with pytest.raises(KeyError):
        with mh.Pool(1, engine=engine.name, on_event=seen.append, grace=60) as pool:
            kept = pool.submit(nap, 1) if way == "submit" else pool.map(nap, [1, 2])
            while not any(worker.task_age is not None for worker in pool.stats().workers):
                time.sleep(0.001)
            raise KeyError
    del kept
    first, *others = stories(seen).values()
    assert first == ["queued", "started", "cancelled"]
    assert others == ([] if way == "submit" else [["queued", "cancelled"]])


def often_fails(number: int) -> int:
    if number % 7 == 3 or (number % 5 == 1 and random.random() < 0.5):
        raise KeyError(number)
    return number


def stays(number: int) -> int:
    if number % 50 == 20:
        while True:
            time.sleep(0.01)
    return often_fails(number)


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("function", [often_fails, stays])
def test_counts_are_those_of_what_was_told(
    engine: Capabilities, function: Any, batch: int | None
) -> None:
    """Summaries, progress and `stats()` count where events are made."""
    seen: list[mh.Event] = []
    shown: list[Any] = []
    with mh.Pool(2, engine=engine.name, on_event=seen.append) as pool:
        results = pool.map(
            (lambda numbers: [function(number) for number in numbers]) if batch else function,
            range(150),
            batch=batch,
            on_error="return",
            retry=2,
            task_timeout=0.3 if function is stays else None,
            progress=shown.append,
        )
        got = list(results)
        summary = results.summary
        done = sum(worker.done for worker in pool.stats().workers)
    told = Counter(
        event.outcome if event.kind == "ended" else event.kind
        for _, event in each(seen)
        if event.map is not None
    )
    ends = {name: told[name] for name in told if name not in ("queued", "started", "retried")}
    failures = sum(count for name, count in ends.items() if name != "ok")
    assert told["queued"] == summary.total == sum(ends.values())
    assert told["started"] == sum(ends.values()) + told["retried"]
    assert sum(ends.values()) == summary.done == shown[-1].done
    assert failures == summary.failed == shown[-1].failed == len(results.failures)
    assert failures >= 20 / (batch or 1)
    assert told["retried"] >= failures
    assert done <= sum(ends.values()) + told["retried"]
    assert len(got) == 150 - (failures * ((batch or 1) - 1))
