"""How tests see what a map and its pool have done so far."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import manyhands as mh


class Counted:
    """An iterator that knows how many items were taken from it."""

    def __init__(self, items: Any) -> None:
        self._items = iter(items)
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = next(self._items)
        self.taken += 1
        return item


def settle(pool: mh.Pool) -> None:
    """Returns when the pool has nothing to do."""
    while pool.stats().pending:
        time.sleep(0.001)


def texts_of_warnings(file: str, make: Callable[[], Any]) -> list[str]:
    """What is told, as from this file, when something is made there and dropped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
        gc.collect()
    assert all(warning.category is RuntimeWarning for warning in caught)
    assert all(warning.filename == file for warning in caught)
    return [str(warning.message) for warning in caught]
