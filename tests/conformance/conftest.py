"""Every test that asks for `engine`, `pool` or `mapping` runs on every engine."""

from __future__ import annotations

import functools
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from capabilities import ENGINES, Capabilities, Mapping

import manyhands as mh
from gate import Gate, closed_gate


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest) -> Capabilities:
    """What the engine can do; its name is for `mh.Pool(2, engine=engine.name)`."""
    found = request.param
    assert isinstance(found, Capabilities)
    return found


@pytest.fixture
def pool(engine: Capabilities) -> Iterator[mh.Pool]:
    """Two workers, for one test."""
    with mh.Pool(2, engine=engine.name) as pool:
        yield pool


@pytest.fixture(params=["Pool.map", "mh.map"])
def mapping(request: pytest.FixtureRequest, engine: Capabilities) -> Iterator[Mapping]:
    """The two ways to a map."""
    if request.param == "Pool.map":
        with mh.Pool(2, engine=engine.name) as pool:
            yield Mapping(engine, pool.map, pool.starmap)
    else:
        yield Mapping(
            engine,
            functools.partial(mh.map, engine=engine.name, workers=2),
            functools.partial(mh.starmap, engine=engine.name, workers=2),
        )


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A closed gate for tasks to wait at; open when the test is over."""
    with closed_gate(tmp_path) as gate:
        yield gate


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """No thread of a pool outlives its block."""
    before = _threads_of_pools()
    yield
    gc.collect()
    deadline = time.monotonic() + 10
    while left := _threads_of_pools() - before:
        # The thread of an event loop's results ends by itself when these are dropped.
        assert time.monotonic() < deadline, left
        time.sleep(0.001)


def _threads_of_pools() -> set[threading.Thread]:
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("manyhands-")
        and not thread.name.startswith(("manyhands-default", "manyhands-teller"))
        # one each, for all maps and all pools
        and thread.name not in ("manyhands-progress", "manyhands-clock")
    }
