"""Tasks that change what they are given: the answer does not depend on engine, workers or blocks.

It is the answer of a loop that gives the function a deep copy of each item.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from capabilities import ENGINES, Capabilities

import manyhands as mh

COPYING = [engine for engine in ENGINES if engine.copies]


@dataclass
class Node:
    """Something that is pickled, and refers to others."""

    name: str
    links: list[Any] = field(default_factory=list)


def bytes_of(value: Any) -> bytes:
    """All there is to see of a value: its parts, their types, and which of them are one object."""
    seen: dict[int, int] = {}

    def text(part: Any) -> str:
        if isinstance(part, list | dict | set | bytearray | Node):
            if id(part) in seen:
                return f"#{seen[id(part)]}"
            seen[id(part)] = len(seen)
        number = seen.get(id(part))
        name = type(part).__name__
        if isinstance(part, list | tuple):
            return f"{name}{number}({', '.join(map(text, part))})"
        if isinstance(part, dict):
            return f"{name}{number}({', '.join(f'{k!r}: {text(v)}' for k, v in part.items())})"
        if isinstance(part, Node):
            return f"{name}{number}({part.name!r}, {text(part.links)})"
        return f"{name}{number}({part!r})"

    return text(value).encode()


def change(item: Any) -> Any:
    """Changes all that can be changed in an item, and gives it back with a part of it."""
    stack, seen = [item], set()
    last: Any = None
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        if isinstance(part, list):
            seen.add(id(part))
            stack.extend(part)
            part.append(len(part))
            last = part
        elif isinstance(part, dict):
            seen.add(id(part))
            stack.extend(part.values())
            part["changed"] = len(part)
            last = part
        elif isinstance(part, tuple):
            seen.add(id(part))
            stack.extend(part)
        elif isinstance(part, bytearray):
            part.append(65)
        elif isinstance(part, Node):
            seen.add(id(part))
            stack.append(part.links)
            part.name += "!"
    return item, last


def items_of(kind: str, count: int) -> list[Any]:
    """Items that share parts with one another, and have parts twice."""
    chance = random.Random(7)
    everywhere: list[Any] = ["everywhere"]

    def part(depth: int) -> Any:
        if depth == 0 or chance.random() < 0.3:
            return chance.choice([None, True, 5, -(2**70), 0.5, "text", b"bytes", "é" * 50])
        twice = part(depth - 1)
        others = [part(depth - 1), twice, part(depth - 1), twice]
        if chance.random() < 0.2:
            others.append(everywhere)
        return chance.choice([list, tuple, lambda parts: dict(zip("abcde", parts, strict=False))])(
            others
        )

    items: list[Any] = []
    for number in range(count):
        item = [number, part(3)]
        if kind == "cycles" and number % 3 == 0:
            item.append(item)
        if kind == "objects" or (kind == "mixed" and number % 5 == 0):
            node = Node(str(number), [everywhere, item])
            item += [node, node, bytearray(b"x")]
        items.append(item)
        if number % 7 == 0 and items:
            items.append(items[-1])  # the same object twice in the input
    return items[:count]


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("kind", ["plain", "mixed", "objects", "cycles"])
@pytest.mark.parametrize("engine", COPYING, ids=lambda engine: engine.name)
def test_what_tasks_change_is_their_own(engine: Capabilities, kind: str, workers: int) -> None:
    items = items_of(kind, 2000)
    before = bytes_of(items)
    expected = [bytes_of(change(copy.deepcopy(item))) for item in items]
    with mh.Pool(None if engine.name == "inline" else workers, engine=engine.name) as pool:
        for ordered in (True, False):
            results = pool.map(change, items, ordered=ordered)
            found = [(item[0], bytes_of((item, last))) for item, last in results]
            assert sorted(found) == sorted(
                (item[0], answer) for item, answer in zip(items, expected, strict=True)
            )
            assert not ordered or [answer for _, answer in found] == expected
        batches = [items[at : at + 10] for at in range(0, len(items), 10)]
        batched = [bytes_of(change_all(copy.deepcopy(batch))) for batch in batches]
        assert list(pool.map(seen_of_all, items, batch=10)) == [
            answer for answer in batched for _ in range(10)
        ]
        futures = [pool.submit(change, item) for item in items[:300]]
        assert [bytes_of(future.result()) for future in futures] == expected[:300]
    assert bytes_of(items) == before, "what the caller has is as it was"


def change_all(batch: list[Any]) -> list[Any]:
    return [change(item) for item in batch]


def seen_of_all(batch: list[Any]) -> list[bytes]:
    """Seen where they ran, before results are copied: items of a batch share what they shared."""
    return [bytes_of(change_all(batch))] * len(batch)


def test_one_object_in_all_items(pool: mh.Pool, engine: Capabilities) -> None:
    """It is one object for threads; where items are copied each has its own."""
    shared: list[int] = []
    lengths = sorted(pool.map(appended, [[shared, number] for number in range(9)]))
    assert lengths == ([1] * 9 if engine.copies else list(range(1, 10)))
    assert len(shared) == (0 if engine.copies else 9)


def appended(item: list[Any]) -> int:
    item[0].append(0)
    return len(item[0])
