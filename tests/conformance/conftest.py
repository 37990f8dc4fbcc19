"""Every test that asks for `engine`, `pool` or `mapping` runs on every engine."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from capabilities import ENGINES, Capabilities

import manyhands as mh
from gate import Gate, closed_gate


@dataclass(frozen=True)
class Mapping:
    """`map` and `starmap` of a pool, or of the module for the same engine and number of workers."""

    engine: Capabilities
    map: Callable[..., mh.Results[Any]]
    starmap: Callable[..., mh.Results[Any]]


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
    yield
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("manyhands-")
        and not thread.name.startswith(("manyhands-default", "manyhands-teller"))
    ]
    assert left == []
