"""What the tests of several files run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def same(value: Any) -> Any:
    return value


def square(number: int) -> int:
    return number * number


def collect(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def fail(number: Any) -> Any:
    raise ValueError(f"item {number}")


def fail_at_3(number: int) -> int:
    return square(number) if number != 3 else fail(number)  # type: ignore[no-any-return]


def odd_fail(number: int) -> int:
    if number % 2:
        raise ValueError(f"odd {number}")
    return number


def count_to(number: int) -> Iterator[int]:
    yield from range(number)


def append(row: list[Any]) -> list[Any]:
    """Changes its argument."""
    row.append(len(row))
    return row


def leave_trace(folder: str, name: object) -> None:
    Path(folder, str(name)).touch()


def traces(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


class Unpicklable:
    """Names what the message has to name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Explodes:
    """Can be pickled, and raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise LookupError("it explodes")


class CustomError(Exception):
    """Takes other arguments than it shows, and has attributes."""

    def __init__(self, code: int, *, detail: str = "") -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail

    def __reduce__(self) -> Any:
        return _custom_error, (self.code, self.detail)


def _custom_error(code: int, detail: str) -> CustomError:
    return CustomError(code, detail=detail)


class Fatal(BaseException):
    """No `Exception`."""
