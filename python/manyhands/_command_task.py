"""What `manyhands map` runs in a worker: reads a record, calls the function, encodes its result.

Reading and encoding are done here and not in the program, so that they run in parallel too. An item
is `(index, reference, record, problem)`: a path is the reference itself, and `problem` tells of a
record that could not be read. The empty tuple is a pause: an item without work, whose result is
None; see `_command_input`.

Imports as little as it can, since each worker imports it.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
import types

TYPE_CHECKING = False  # as in `typing`, whose import would cost each worker milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Record = tuple[int, str, Any, str | None]
    Item = Record | tuple[()]

__all__ = [
    "BadResult",
    "FileFunction",
    "MalformedRecord",
    "Problem",
    "Work",
    "encode_line",
    "load_file",
    "make_task",
    "task_name",
]


class MalformedRecord(ValueError):
    """A record of the input that cannot be read."""


class BadResult(TypeError):
    """A result that cannot be written in the chosen form."""


class Problem:
    """In the results of a batch: an item that failed alone.

    Attributes:
        index: the item's number.
        reference: where it stands in the input.
        error: what befell it.
    """

    def __init__(self, index: int, reference: str, error: Exception) -> None:
        self.index = index
        self.reference = reference
        self.error = error


class FileFunction:
    """A function of a file that cannot be imported by name: each process loads the file itself."""

    def __init__(
        self, path: str, module: str, name: str, function: Callable[..., Any] | None = None
    ) -> None:
        self.__qualname__ = name
        self.__wrapped__ = function
        self._place = (path, module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.__wrapped__ is None:
            path, module, name = self._place
            found: Any = load_file(path, module)
            for part in name.split("."):
                found = getattr(found, part)
            self.__wrapped__ = found
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> Any:
        return FileFunction, self._place


def load_file(path: str, name: str) -> types.ModuleType:
    """The module of that name, made from the file unless this process has it."""
    module = sys.modules.get(name)
    if module is not None:
        return module
    from importlib.machinery import SourceFileLoader

    # Also for a file whose name does not end in .py.
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceFileLoader(name, path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class Work:
    """What is done with each record, before and after the call.

    Attributes:
        form: what a record is: `"paths"`, `"lines"`, `"jsonl"` or `"csv"`.
        header: the names of the columns, for `"csv"`.
        keywords: whether a record is passed as keywords.
        pickle: whether results are written as pickles.
    """

    __slots__ = ("form", "header", "keywords", "pickle")

    def __init__(
        self,
        form: str,
        header: tuple[str, ...] = (),
        *,
        keywords: bool = False,
        pickle: bool = False,
    ) -> None:
        self.form = form
        self.header = header
        self.keywords = keywords
        self.pickle = pickle

    def read(self, reference: str, record: Any, problem: str | None) -> Any:
        """The argument that a record is."""
        if problem is not None:
            raise MalformedRecord(f"{reference} {problem}")
        if self.form == "paths":
            return reference
        if self.form == "csv":
            return dict(zip(self.header, record, strict=True))
        try:
            text = record.decode()
        except UnicodeDecodeError as error:
            raise MalformedRecord(
                f"{reference} is not UTF-8: byte 0x{record[error.start]:02x} at position "
                f"{error.start + 1}"
            ) from None
        if self.form == "lines":
            return text
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise MalformedRecord(
                f"{reference} is not JSON: {error.msg} at column {error.colno}"
            ) from None
        except RecursionError:
            raise MalformedRecord(f"{reference} is nested too deeply") from None
        if self.keywords and not isinstance(value, dict):
            raise MalformedRecord(
                f"{reference} is {_kind_of_json(value)}, and --kwargs needs an object"
            )
        return value

    def call(self, function: Callable[..., Any], argument: Any) -> Any:
        """Calls the function."""
        return function(**argument) if self.keywords else function(argument)

    def encode(self, index: int, reference: str, result: Any) -> bytes:
        """The result as it is written."""
        what = f"the result of item {index}"
        entry = {"index": index, "input": reference, "result": result}
        if self.pickle:
            return _pickled(entry, result, what)
        try:
            return encode_line(entry)
        except (TypeError, ValueError, RecursionError):
            why = _no_json(result, "result", set()) or "result is nested too deeply"
        raise BadResult(
            f"{what} cannot be written as JSON: {why}; return plain values, or use --pickle"
        )


def make_task(
    function: Callable[..., Any], work: Work, *, batches: bool, streams: bool
) -> Callable[..., Any]:
    """What is run for each item; a function, since only functions are sent once.

    Args:
        function: the user's.
        work: what is done around it.
        batches: whether a task gets a list of items.
        streams: whether the user's is a generator function, each of whose values is a result; empty
            bytes follow them.
    """
    if batches:

        def task(items: list[Item]) -> Any:
            return _run_batch(function, work, items)
    elif streams:

        def task(item: Item) -> Any:  # type: ignore[misc]
            if not item:
                yield None
                return
            index, reference, record, problem = item
            for result in work.call(function, work.read(reference, record, problem)):
                yield work.encode(index, reference, result)
            yield b""
    else:

        def task(item: Item) -> Any:  # type: ignore[misc]
            if not item:
                return None
            index, reference, record, problem = item
            result = work.call(function, work.read(reference, record, problem))
            return work.encode(index, reference, result)

    task.__qualname__ = task_name(function)
    return task


def _run_batch(
    function: Callable[..., Any], work: Work, items: list[Item]
) -> list[bytes | Problem | None]:
    """Those that cannot be read or written fail alone."""
    ends: list[bytes | Problem | None] = [None] * len(items)
    given: list[tuple[int, Record]] = []
    arguments: list[Any] = []
    for place, item in enumerate(items):
        if not item:
            continue
        try:
            arguments.append(work.read(*item[1:]))
            given.append((place, item))
        except MalformedRecord as error:
            ends[place] = Problem(item[0], item[1], error)
    if not given:
        return ends
    results = work.call(function, arguments)  # it may do with the list as it likes
    if not isinstance(results, list):
        results = list(results)
    if len(results) != len(given):
        raise ValueError(
            f"{task_name(function)} returned {len(results)} results for a batch of {len(given)} "
            "inputs"
        )
    for (place, (index, reference, *_)), result in zip(given, results, strict=True):
        try:
            ends[place] = work.encode(index, reference, result)
        except BadResult as error:
            ends[place] = Problem(index, reference, error)
    return ends


def task_name(function: Callable[..., Any]) -> str:
    """What people call the function."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def encode_line(entry: dict[str, Any]) -> bytes:
    """A line of JSON in UTF-8; names of files that are no text are written with escapes."""
    text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _pickled(entry: dict[str, Any], result: Any, what: str) -> bytes:
    try:
        return pickle.dumps(entry)
    except Exception:  # whatever the result's own code does
        from manyhands._diagnose import explain

        why = explain(result, "result")
    raise BadResult(f"{what} cannot be pickled: {why}")


def _kind_of_json(value: Any) -> str:
    kinds: dict[type, str] = {list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _no_json(value: Any, path: str, above: set[int]) -> str | None:
    """What in a value has no form in JSON, with the path to it."""
    if value is None or isinstance(value, str | int):
        return None
    if isinstance(value, float):
        finite = value - value == 0.0
        return None if finite else f"{path} is {value}, and JSON has no such number"
    if not isinstance(value, dict | list | tuple):
        return f"{path} is of type {_name(type(value))}"
    if id(value) in above:
        return f"{path} contains itself"
    if len(above) > 500:
        return None
    above = {*above, id(value)}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if isinstance(value, dict) and not (key is None or isinstance(key, str | int | float)):
            return f"a key of {path} is of type {_name(type(key))}"
        found = _no_json(part, f"{path}[{key!r}]", above)
        if found is not None:
            return found
    return None


def _name(kind: type) -> str:
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"
