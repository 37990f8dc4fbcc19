"""What there is to see of large data, in words, and tasks that look at it, spoil it and keep it."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pandas as pd

# What tasks keep in their worker.
kept: list[Any] = []


@dataclasses.dataclass
class Sample:
    """Something that holds an array."""

    name: str
    data: Any


class Tagged(np.ndarray[Any, Any]):
    """A subclass, which NumPy pickles in its own way."""


def describe(*values: Any) -> str:
    """All there is to see: types, contents, layouts, flags, and which objects are met again."""
    words: list[str] = []
    met: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, list | tuple | dict | bytearray | np.ndarray | Sample):
            if id(value) in met:
                words.append(f"#{met[id(value)]}")
                return
            met[id(value)] = len(met)
        if isinstance(value, list | tuple):
            words.append(f"{type(value).__qualname__} of {len(value)}:")
            for part in value:
                walk(part)
        elif isinstance(value, dict):
            words.append(f"dict of {list(value)}:")
            for part in value.values():
                walk(part)
        elif isinstance(value, Sample):
            words.append(f"Sample {value.name}:")
            walk(value.data)
        elif isinstance(value, bytes | bytearray):
            words.append(f"{type(value).__qualname__} {len(value)} {_digest(value)}")
        elif isinstance(value, np.ma.MaskedArray):
            mask, fill = np.ma.getmaskarray(value), value.fill_value
            words.append(f"masked {_array(value.data)} by {_array(mask)} else {fill!r}")
        elif isinstance(value, np.ndarray):
            words.append(_array(value))
            if value.dtype == object:
                for part in value.flat:
                    walk(part)
        elif isinstance(value, pd.DataFrame | pd.Series | pd.Index):
            words.append(_table(value))
        else:
            words.append(f"{type(value).__qualname__} {value!r}")

    for value in values:
        walk(value)
    return "\n".join(words)


def _digest(data: Any) -> str:
    return hashlib.sha1(data).hexdigest()


def _array(array: np.ndarray[Any, Any]) -> str:
    flags = {
        "C": array.flags.c_contiguous,
        "F": array.flags.f_contiguous,
        "aligned": array.flags.aligned,
        "writeable": array.flags.writeable,
    }
    return (
        f"{type(array).__qualname__} {array.dtype!r} {array.shape} {array.strides} "
        f"{[name for name in flags if flags[name]]} {_contents(array)}"
    )


def _contents(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.names is not None:  # what lies between the fields belongs to nobody
        return " ".join(_contents(array[name]) for name in array.dtype.names)
    return "objects" if array.dtype.hasobject else _digest(array.tobytes())


def _table(table: pd.DataFrame | pd.Series | pd.Index) -> str:
    hashes = pd.util.hash_pandas_object(table).to_numpy()
    if isinstance(table, pd.Index):
        return f"{table.dtype!r} {table.names} {_array(hashes)}"
    if isinstance(table, pd.Series):
        types, labels = repr(table.dtype), repr(table.name)
    else:
        types, labels = repr(list(table.dtypes)), repr(list(table.columns))
    return f"{types} {labels} {table.attrs} {_table(table.index)} {_array(hashes)}"


def spoil(value: Any) -> None:
    """Writes over all memory of it that may be written."""
    if isinstance(value, list | tuple):
        for part in value:
            spoil(part)
    elif isinstance(value, dict):
        spoil(list(value.values()))
    elif isinstance(value, Sample):
        spoil(value.data)
    elif isinstance(value, bytearray):
        value[:] = bytes(len(value))
    elif isinstance(value, np.ndarray) and value.flags.writeable:
        value[...] = np.zeros((), value.dtype)


def look(*values: Any) -> str:
    """In a task: what it sees of its arguments, which it then writes over."""
    seen = describe(*values)
    spoil(values)
    return seen


def same(value: Any) -> Any:
    return value


def keep(value: Any) -> None:
    kept.append(value)


def drop_kept() -> None:
    kept.clear()
