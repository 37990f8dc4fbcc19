"""How tests see what a map and its pool have done so far."""

from __future__ import annotations

import time
from collections.abc import Iterator
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
