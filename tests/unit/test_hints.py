"""What is said of a map that another engine, or more workers, would have made much faster."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import manyhands as mh
from manyhands import _hints

has_gil = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="threads take no turns"
)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda count: monkeypatch.setattr(_hints, "cpu_count", lambda: count)


def hint(**measured: Any) -> str | None:
    found = _hints.hint_of(**{"done": 1000, "wall": 10.0, "workers": 4, **measured})
    return None if found is None else str(found)


def said_of(**measured: Any) -> str:
    """The hint that there has to be."""
    said = hint(**measured)
    assert said is not None
    return said


def test_items_that_wait(cores: Callable[[int], None]) -> None:
    cores(4)
    said = said_of(engine="process", busy=39.5, cpu=1.0)
    assert said.startswith("items waited for 97% of their time, 4 at once: ")
    assert 'engine="thread", workers=64 ' in said
    said = said_of(engine="thread", busy=39.5, cpu=1.0)
    assert ": workers=64 would" in said, "they are threads already"
    said = said_of(engine="thread", busy=39.5, cpu=7.0)
    assert ": workers=22 would" in said, "no more than have something to compute"
    said = said_of(engine="thread", busy=39.5, cpu=1.0, done=9)
    assert ": workers=9 would" in said, "no more than there are items"


@has_gil
def test_threads_that_take_turns(cores: Callable[[int], None]) -> None:
    cores(4)
    said = said_of(engine="thread", busy=30.0, cpu=9.8)
    assert said.startswith("4 threads computed for 9.8 s in 10.0 s, one at a time: ")
    assert 'engine="process" would use 4 processors' in said
    assert hint(engine="thread", busy=39.0, cpu=35.0) is None, "their C code lets go of the GIL"
    assert hint(engine="thread", busy=30.0, cpu=9.8, workers=1) is None
    cores(1)
    assert hint(engine="thread", busy=30.0, cpu=9.8) is None


def test_too_few_workers(cores: Callable[[int], None]) -> None:
    cores(16)
    said = said_of(engine="process", busy=39.0, cpu=38.0)
    assert said.startswith("4 of 16 processors computed, all the time: workers=16 would")
    said = said_of(engine="inline", busy=9.9, cpu=9.8, workers=1)
    assert said == (
        'items computed for 9.8 s, one after the other: engine="process" would use 16 processors'
    )
    assert hint(engine="inline", busy=9.9, cpu=9.8, workers=1, done=10_000_000) is None, "too small"
    cores(4)
    assert hint(engine="process", busy=39.0, cpu=38.0) is None, "all are used"


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
@pytest.mark.parametrize(
    "measured",
    [
        # The input or the consumer was slow: the workers had time left.
        {"busy": 20.0, "cpu": 0.1},
        {"busy": 5.0, "cpu": 5.0},
        # More workers than processors: they wait for these.
        {"busy": 160.0, "cpu": 20.0, "workers": 16},
        # Computes and waits.
        {"busy": 39.0, "cpu": 15.0},
        {"busy": 39.0, "cpu": 1.0, "done": 7},
        {"busy": 0.0, "cpu": 0.0, "done": 0},
    ],
)
def test_what_is_not_sure_is_not_said(
    cores: Callable[[int], None], engine: str, measured: dict[str, Any]
) -> None:
    cores(2)
    assert hint(engine=engine, **measured) is None


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_a_map_that_waits_has_the_hint(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "manyhands.hints"), mh.Pool(2, engine=engine) as pool:
        hints: tuple[str, ...] = ()
        until = time.monotonic() + 60
        while not hints:
            assert time.monotonic() < until
            results = pool.map(time.sleep, [0.05] * 50)
            assert results.summary.hints == (), "too early"
            summary = results.run()
            hints = summary.hints
            # A machine that is late has its workers wait for it, and not for what they do.
            assert bool(hints) == (summary.busy >= 0.8 * summary.wall * 2)
        (said,) = hints
        assert "workers=32 would have more of them wait at once" in said
        assert caplog.messages == [f"sleep: {said}"]
        # A machine that stands still makes it long.
        while (summary := pool.map(time.sleep, [0.001] * 8).run()).wall > 0.4:
            assert time.monotonic() < until
        assert summary.hints == (), "too short"


@has_gil
@pytest.mark.skipif(mh.cpu_count() < 2, reason="one processor has nothing to offer")
def test_a_map_on_threads_that_compute_has_the_hint() -> None:
    def count(n: int) -> int:
        return sum(range(n))

    until = time.monotonic() + 60
    said: list[str] = []
    while not said:
        if time.monotonic() > until:
            pytest.skip("the machine is so busy with other things that nothing can be seen")
        summary = mh.map(count, [3_000_000] * 30, engine="thread", workers=2).run()
        # A machine that is busy with other things gives the threads less, and this is not said.
        said = [hint for hint in summary.hints if "one at a time" in hint]
        assert bool(said) == (0.75 * summary.wall <= summary.cpu <= 1.1 * summary.wall)
    assert f'engine="process" would use {min(mh.cpu_count(), 30)} processors' in said[0]
