"""Says which part of an object cannot be pickled, in words the reader can act on."""

from __future__ import annotations

import io
import sys
import types
from _pickle import Pickler
from copyreg import dispatch_table
from functools import partial
from time import monotonic
from typing import Any

__all__ = ["describe", "explain"]

_NODES = 20_000
_SECONDS = 0.3
_TRIAL_SECONDS = 0.1
_DEPTH = 60
_TEXT = 160
_ATOMS = (type(None), bool, int, float, complex, str, bytes, bytearray, range)


def explain(obj: Any, root: str) -> str:
    """Names the path from `root` to the part of `obj` that cannot be pickled, and what it is.

    Never raises, and gives up after a bounded number of steps: then it says what `obj` is.
    """
    try:
        return _Search().run(obj, root)
    except Exception:
        try:
            return f"{root} is {describe(obj)}, which cannot be pickled"
        except Exception:
            return f"{root} cannot be pickled"


def describe(obj: Any) -> str:
    """What an object is, with its article: "a thread lock", "an open file (/tmp/x)"."""
    kind = type(obj)
    module, name = kind.__module__, kind.__qualname__
    known = _WORDS.get((module, name))
    if known is not None:
        return known
    if isinstance(obj, io.IOBase):
        path = _quietly(obj, "name")
        return f"an open file ({path})" if isinstance(path, (str, int)) else "an open file"
    if isinstance(obj, types.FunctionType):
        return "a lambda" if obj.__name__ == "<lambda>" else f"the function {obj.__qualname__}"
    if isinstance(obj, type):
        return f"the class {obj.__module__}.{obj.__qualname__}"
    if isinstance(obj, types.ModuleType):
        return f"the module {obj.__name__}"
    if module == "socket" and name == "socket":
        return "a socket"
    full = name if module in ("builtins", "__main__") else f"{module}.{name}"
    return f"{'an' if full[:1].lower() in 'aeiou' else 'a'} {full}"


_WORDS = {
    ("_thread", "lock"): "a thread lock",
    ("_thread", "RLock"): "a thread lock",
    ("_thread", "_local"): "thread-local data",
    ("threading", "_RLock"): "a thread lock",
    ("builtins", "generator"): "a generator",
    ("builtins", "coroutine"): "a coroutine",
    ("builtins", "async_generator"): "an async generator",
    ("builtins", "frame"): "a frame",
    ("builtins", "traceback"): "a traceback",
    ("builtins", "PyCapsule"): "a C pointer (PyCapsule)",
    ("socket", "socket"): "a socket",
    ("_socket", "socket"): "a socket",
    ("ssl", "SSLSocket"): "a TLS socket",
    ("_queue", "SimpleQueue"): "a thread queue",
    ("weakref", "ReferenceType"): "a weak reference",
    ("builtins", "weakref"): "a weak reference",
    ("weakref", "weakref"): "a weak reference",
}


def _quietly(obj: Any, name: str) -> Any:
    try:
        return getattr(obj, name, None)
    except Exception:
        return None


class _Enough(Exception):
    """The time for a trial is over."""


class _Sink:
    """Takes what a trial writes, until its time is over."""

    def __init__(self) -> None:
        self._deadline = monotonic() + _TRIAL_SECONDS

    def write(self, data: Any) -> int:
        if monotonic() > self._deadline:
            raise _Enough
        return len(data)


class _Probe(Pickler):
    """Pickles one object without what it contains: is it the object itself that is refused?"""

    def __init__(self, root: Any) -> None:
        super().__init__(_Sink(), 5)
        self._root = root

    def persistent_id(self, obj: Any) -> Any:
        return None if obj is self._root else ""


class _Search:
    def __init__(self) -> None:
        self._deadline = monotonic() + _SECONDS
        self._nodes = 0
        self._seen: dict[int, Any] = {}
        self._too_deep: str | None = None
        self._root = ""

    def run(self, obj: Any, root: str) -> str:
        self._root = root
        if _is_too_deep(obj):
            return f"{root} is nested too deeply to be pickled"
        found = self._visit(obj, root, 0)
        if found is not None:
            return found
        if self._too_deep is not None:
            return self._too_deep
        failure = self._failure(obj)
        because = f": {failure}" if failure else ""
        return f"{root} is {describe(obj)}, which cannot be pickled{because}"

    def _failure(self, obj: Any) -> str:
        try:
            _plain(obj)
        except _Enough:
            return ""
        except Exception as error:
            return _shorten(error)
        return ""

    def _spent(self) -> bool:
        self._nodes += 1
        return self._nodes > _NODES or monotonic() > self._deadline

    def _visit(self, obj: Any, path: str, depth: int) -> str | None:
        """The sentence for the first culprit in or under `obj`, deepest first; else None."""
        if isinstance(obj, _ATOMS) or id(obj) in self._seen or self._spent():
            return None
        if depth > _DEPTH:
            self._too_deep = self._too_deep or f"{self._root} is nested too deeply to be pickled"
            return None
        self._seen[id(obj)] = obj
        if isinstance(obj, memoryview):
            return f"{path} is a memoryview that was released" if _is_released(obj) else None
        if _is_leaf(obj):
            return f"{path} is {describe(obj)}"
        if isinstance(obj, types.FunctionType):
            return self._visit_function(obj, path, depth)
        if isinstance(obj, type):
            return self._visit_class(obj, path, depth)
        if isinstance(obj, types.ModuleType):
            return None
        for part, part_path in _parts(obj, path):
            found = self._visit(part, part_path, depth + 1)
            if found is not None:
                return found
        return self._own_failure(obj, path, depth)

    def _visit_function(self, fn: types.FunctionType, path: str, depth: int) -> str | None:
        if _found_by_name(fn):
            return None
        names = fn.__code__.co_freevars
        captured: list[tuple[str, Any]] = []
        for name, cell in zip(names, fn.__closure__ or (), strict=False):
            try:
                captured.append((name, cell.cell_contents))
            except ValueError:
                continue
        for index, value in enumerate(fn.__defaults__ or ()):
            captured.append((f"default {index}", value))
        captured.extend((fn.__kwdefaults__ or {}).items())
        for name, value in captured:
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            if _is_leaf(value):
                return f"{path} captures `{name}`, {describe(value)}"
            found = self._visit(value, name, depth + 1)
            if found is not None:
                if found.startswith(f"{name} is "):
                    return f"{path} captures `{name}`, {found[len(name) + 4 :]}"
                return f"{path} captures `{name}`: {found}"
        for name, value in list(vars(fn).items()):
            found = self._visit(value, f"{path}.{name}", depth + 1)
            if found is not None:
                return found
        return None

    def _visit_class(self, cls: type, path: str, depth: int) -> str | None:
        if not cls.__flags__ & (1 << 9) or _found_by_name(cls):
            return None
        for name, value in list(cls.__dict__.items()):
            if name in ("__dict__", "__weakref__", "_abc_impl"):
                continue
            found = self._visit(value, f"{path}.{name}", depth + 1)
            if found is not None:
                return found
        return None

    def _own_failure(self, obj: Any, path: str, depth: int) -> str | None:
        """Whether the object itself refuses, its parts being fine."""
        if type(obj) in (list, tuple, dict, set, frozenset):
            return None
        method = _reduce_name(type(obj))
        try:
            registered = dispatch_table.get(type(obj))
            reduced = registered(obj) if registered is not None else obj.__reduce_ex__(5)
        except RecursionError:
            return f"{path} is nested too deeply to be pickled"
        except Exception as error:
            if method is None:
                return f"{path} is {describe(obj)}"
            return f"{path} is {describe(obj)}, and its {method} raised {_shorten(error)}"
        if isinstance(reduced, str):
            module = sys.modules.get(getattr(obj, "__module__", None) or "")
            found: Any = module
            for part in reduced.split("."):
                found = getattr(found, part, None)
            if found is not obj and not isinstance(obj, (types.FunctionType, type)):
                return f"{path} is {describe(obj)}, which is not found under its name {reduced!r}"
            return None
        for index, part in enumerate(reduced):
            if index == 0 or part is None:
                continue
            found_part = self._visit_reduced(part, path, depth)
            if found_part is not None:
                return found_part
        try:
            _Probe(obj).dump(obj)
        except Exception as error:
            return f"{path} is {describe(obj)}, which cannot be pickled: {_shorten(error)}"
        return None

    def _visit_reduced(self, part: Any, path: str, depth: int) -> str | None:
        """Looks into what `__reduce__` or `__getstate__` gave."""
        if isinstance(part, dict):
            for key, value in list(part.items()):
                name = f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]"
                found = self._visit(value, name, depth + 1)
                if found is not None:
                    return found
            return None
        if isinstance(part, tuple):
            for value in part:
                found = (
                    self._visit_reduced(value, path, depth + 1)
                    if isinstance(value, (dict, tuple))
                    else self._visit(value, path, depth + 1)
                )
                if found is not None:
                    return found
            return None
        if isinstance(part, (list, set, frozenset)):
            return self._visit(part, path, depth + 1)
        return None


def _plain(obj: Any) -> None:
    Pickler(_Sink(), 5).dump(obj)


def _is_too_deep(obj: Any) -> bool:
    """Whether pickling ends in a RecursionError of its own, not in one that user code raises."""
    try:
        _plain(obj)
    except RecursionError as error:
        return (
            error.__traceback__ is None
            or error.__traceback__.tb_next is None
            or (error.__traceback__.tb_next.tb_next is None)
        )
    except Exception:
        return False
    return False


_LEAVES = frozenset(_WORDS)


def _is_leaf(obj: Any) -> bool:
    kind = type(obj)
    if (kind.__module__, kind.__qualname__) in _LEAVES:
        return True
    if isinstance(obj, io.IOBase) and not isinstance(obj, (io.StringIO, io.BytesIO)):
        return not _is_standard_stream(obj)
    return False


def _is_released(view: memoryview) -> bool:
    try:
        _ = view.nbytes
    except ValueError:
        return True
    return False


def _is_standard_stream(obj: Any) -> bool:
    return obj in (sys.stdin, sys.stdout, sys.stderr)


def _found_by_name(obj: Any) -> bool:
    found: Any = sys.modules.get(_quietly(obj, "__module__") or "")
    if found is None or found.__name__ == "__main__":
        return False
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _reduce_name(kind: type) -> str | None:
    """What of the class's own takes part in pickling, if anything does."""
    if kind in dispatch_table:
        return "reducer in copyreg"
    for name in ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__"):
        for owner in kind.__mro__:
            if owner is object:
                break
            if name in owner.__dict__:
                return name
    return None


def _parts(obj: Any, path: str) -> list[tuple[Any, str]]:
    """What an object contains, with the path to each; nothing that runs the object's own code."""
    kind = type(obj)
    if isinstance(obj, dict):
        parts: list[tuple[Any, str]] = []
        for key, value in list(dict.items(obj)):
            if not isinstance(key, _ATOMS):
                parts.append((key, f"a key of {path}"))
            parts.append((value, f"{path}[{_key(key)}]"))
        return parts + (_attributes(obj, path) if kind is not dict else [])
    if isinstance(obj, (list, tuple)):
        fields = getattr(kind, "_fields", None)
        named = isinstance(obj, tuple) and isinstance(fields, tuple) and len(fields) == len(obj)
        elements = list.__iter__(obj) if isinstance(obj, list) else tuple.__iter__(obj)
        parts = [
            (value, f"{path}.{fields[index]}" if named and fields else f"{path}[{index}]")
            for index, value in enumerate(elements)
        ]
        return parts + (_attributes(obj, path) if kind not in (list, tuple) else [])
    if isinstance(obj, (set, frozenset)):
        return [(value, f"an element of {path}") for value in list(obj)]
    if isinstance(obj, partial):
        return [
            (obj.func, f"{path}.func"),
            *((value, f"{path}.args[{index}]") for index, value in enumerate(obj.args)),
            *((value, f"{path}.keywords[{key!r}]") for key, value in obj.keywords.items()),
        ]
    if isinstance(obj, types.MethodType):
        return [(obj.__self__, f"{path}.__self__"), (obj.__func__, f"{path}.__func__")]
    if isinstance(obj, (staticmethod, classmethod)):
        return [(obj.__func__, path)]
    if isinstance(obj, property):
        return [(part, path) for part in (obj.fget, obj.fset, obj.fdel) if part is not None]
    if isinstance(obj, types.CellType):
        try:
            return [(obj.cell_contents, path)]
        except ValueError:
            return []
    if isinstance(obj, types.MappingProxyType):
        return _parts(dict(obj), path)
    # With reduction code of its own the attributes may never be pickled: `_own_failure` asks it.
    return [] if _reduce_name(kind) is not None else _attributes(obj, path)


def _attributes(obj: Any, path: str) -> list[tuple[Any, str]]:
    parts: list[tuple[Any, str]] = []
    try:
        own = object.__getattribute__(obj, "__dict__")
    except Exception:
        own = None
    if isinstance(own, dict):
        parts.extend((value, f"{path}.{name}") for name, value in list(own.items()))
    for owner in type(obj).__mro__:
        for name, member in owner.__dict__.items():
            if isinstance(member, types.MemberDescriptorType) and not name.startswith("__"):
                try:
                    parts.append((member.__get__(obj), f"{path}.{name}"))
                except Exception:
                    continue
    return parts


def _key(key: Any) -> str:
    if isinstance(key, _ATOMS):
        return _clip(repr(key), 40)
    return f"<{type(key).__qualname__}>"


def _clip(text: str, limit: int = _TEXT) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _shorten(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    name = type(error).__qualname__
    return f"{name}: {_clip(text)}" if text else name
