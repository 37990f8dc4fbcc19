"""What the tests of the API share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import manyhands as mh
from gate import Gate, closed_gate


@pytest.fixture(scope="module")
def pool() -> Iterator[mh.Pool]:
    """Two workers that the tests of a module share; each test leaves the pool idle."""
    with mh.Pool(2, name="shared") as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A closed gate for tasks to wait at; open when the test is over."""
    with closed_gate(tmp_path) as gate:
        yield gate
