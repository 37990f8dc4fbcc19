"""Globals of modules that differ between program and workers: noticed, and told in a warning.

Workers import modules anew, so that what the program has set in one at run time is not there. With
the first definition of a function the program sends what the globals are that the function reads,
of modules of the user's (`watch`). The worker compares them when it loads that (`_resolve`), and
what differs goes back with the next value that it returns (`notices.rs`). The program warns once
for each function and pool (`tell`).

It is a warning for people, so that it rather misses something than tells of what is meant:

- Read means named in the function's code, or in that of the functions of the user's modules that it
  calls. What such code binds or fills itself is a counter or a cache, and does not count.
- Values of plain types are compared, if they are small; of others only whether there is one.
- A value that is computed at import differs by nature, as a process id does. If the module's own
  code binds the name to anything but constants, it only counts that workers have nothing: None, or
  empty.
"""

from __future__ import annotations

import functools
import sys
import types
from _pickle import dumps as _plain_dumps
from collections.abc import Iterable, Iterator

from manyhands import _core, _resolve
from manyhands._code import (
    MISSING,
    Function,
    assigned_names,
    attribute_names,
    content_of,
    global_names,
    is_user_module,
    module_of_globals,
)
from manyhands._typing import Any

__all__ = ["notice", "tell", "watch"]

# So many functions are looked through, and globals sent, for one definition.
_FUNCTIONS = 64
_NAMES = 64
# Longer texts and containers are not compared.
_LONGEST = 1024
_MOST = 32

_PLAIN = frozenset({bool, int, float, str, bytes})

# Methods by which a container is filled.
_FILLING = frozenset(
    {
        *("add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove"),
        *("setdefault", "sort", "update"),
    }
)

# What stands for a value: ("is", value), ("path", text), or ("kind", name of its type).
_Print = tuple[str, Any]

# (pool, module and name of the function) that were told of.
_told: set[tuple[Any, ...]] = set()


def watch(called: Any) -> bytes | None:
    """A definition that has workers compare the globals which a callable reads.

    There is none where it reads none, or is no function, method or partial of Python code.
    """
    if _resolve.is_worker():
        return None  # what a task has set is its own affair
    function = _function_of(called)
    if function is None or not (found := _found(function)):
        return None
    label, code = function.__qualname__, function.__code__
    own = module_of_globals(function.__globals__)
    name = None if own is None else own.__name__
    where = (code.co_filename, code.co_firstlineno)
    return _plain_dumps(("globals", name, found, (label, *where)), 5)


def _function_of(called: Any) -> Any:
    """The function that runs when a callable is called; none if that is no code of Python's."""
    for _ in range(_FUNCTIONS):
        if isinstance(called, Function):
            return called
        if isinstance(called, functools.partial):
            called = called.func
        elif isinstance(called, types.MethodType):
            called = called.__func__
        elif isinstance(call := vars(type(called)).get("__call__"), Function):
            return call
        else:
            break
    return None


def _found(function: Any) -> list[tuple[str, str, _Print]]:
    """Modules, names of their globals, and what stands for the values."""
    seen: set[int] = set()
    pending = [function]
    read: dict[tuple[str, str], Any] = {}
    bound: set[tuple[Any, str]] = set()
    attributes: set[str] = set()
    while pending and len(seen) < _FUNCTIONS:
        target = pending.pop()
        while isinstance(wrapped := getattr(target, "__wrapped__", None), Function):
            target = wrapped
        if id(target) in seen:
            continue
        seen.add(id(target))
        code, namespace = target.__code__, target.__globals__
        module = module_of_globals(namespace)
        own = module.__name__ if module is not None and is_user_module(module) else None
        if own is None and namespace.get("__name__") != "__main__":
            continue
        named = attribute_names(code)
        attributes |= named
        bound.update((own, name) for name in assigned_names(code))
        captured = (content_of(cell) for cell in target.__closure__ or ())
        pending.extend(content for content in captured if isinstance(content, Function))
        for name in global_names(code):
            value = namespace.get(name, MISSING)
            if isinstance(value, Function):
                pending.append(value)
            elif isinstance(value, types.ModuleType):
                if is_user_module(value) and sys.modules.get(value.__name__) is value:
                    _look_into(value, named, read, pending)
            elif own is not None and value is not MISSING:
                read[own, name] = value
    fills = not _FILLING.isdisjoint(attributes)
    return list(_prints(read, bound, fills))[:_NAMES]


def _look_into(
    module: types.ModuleType,
    names: Iterable[str],
    read: dict[tuple[str, str], Any],
    pending: list[Any],
) -> None:
    """What code may read as attributes of a module."""
    for name in names:
        value = module.__dict__.get(name, MISSING)
        if isinstance(value, Function):
            pending.append(value)
        elif value is not MISSING and not isinstance(value, types.ModuleType):
            read[module.__name__, name] = value


def _prints(
    read: dict[tuple[str, str], Any], bound: set[tuple[Any, str]], fills: bool
) -> Iterator[tuple[str, str, _Print]]:
    for (module, name), value in read.items():
        if (module, name) in bound or (name.startswith("__") and name.endswith("__")):
            continue
        if isinstance(value, type) or value is None:
            continue  # a class is there; who has None here misses nothing there
        if isinstance(value, list | dict | set) and fills:
            continue
        stands = _print(value)
        if stands is not None:
            yield module, name, stands


def _print(value: Any) -> _Print | None:
    if type(value).__module__.partition(".")[0] == "pathlib":
        return "path", str(value)
    if type(value) in _PLAIN or type(value) in (tuple, frozenset, list, dict, set):
        return ("is", value) if _is_plain(value, 2) else None
    return "kind", type(value).__name__


def _is_plain(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind in (str, bytes):
        return len(value) <= _LONGEST
    if value is None or kind in _PLAIN:
        return True
    if depth == 0 or kind not in (tuple, frozenset, list, dict, set) or len(value) > _MOST:
        return False
    parts = [*value, *value.values()] if kind is dict else value
    return all(_is_plain(part, depth - 1) for part in parts)


# ------------------------------------------------------------------------------ in the worker


def notice(differing: list[tuple[str, str, _Print, Any]], function: tuple[str, str, int]) -> None:
    """Has the program told of globals that are something else here, unless that is natural."""
    told = [
        (module, name, _said(stands), _shown(here))
        for module, name, stands, here in differing
        if here is _resolve.Nothing or _is_empty(here) or _is_constant(sys.modules[module], name)
    ]
    if told:
        pool = _core.pool_of_this_worker()
        _core.notice((None if pool is None else pool[0], function, told))


def _is_empty(value: Any) -> bool:
    return value is None or (
        isinstance(value, str | bytes | tuple | list | dict | set | frozenset) and not value
    )


# What puts a constant on the stack, or makes one of those that are there.
_CONSTANT = frozenset(
    {
        *("LOAD_CONST", "BUILD_LIST", "BUILD_TUPLE", "BUILD_SET", "BUILD_MAP", "LIST_EXTEND"),
        *(
            "LOAD_SMALL_INT",
            "BUILD_CONST_KEY_MAP",
            "SET_UPDATE",
            "DICT_UPDATE",
            "UNARY_NEGATIVE",
            "NOP",
        ),
        "EXTENDED_ARG",
    }
)


def _is_constant(module: types.ModuleType, name: str) -> bool:
    """Whether the module's own code binds the name to constants alone, or not at all."""
    import dis

    spec = module.__spec__
    try:
        code = spec.loader.get_code(module.__name__)  # type: ignore[union-attr]
        operations = [
            operation for operation in dis.get_instructions(code) if operation.opname != "CACHE"
        ]
    except Exception:  # a loader of any kind; without code nothing is known of the value
        return False
    for place, operation in enumerate(operations):
        if operation.argval != name or operation.opname not in ("STORE_NAME", "STORE_GLOBAL"):
            continue
        start = place
        while start > 0 and operations[start - 1].opname in _CONSTANT:
            start -= 1
        before = operations[start - 1].opname if start > 0 else "RESUME"
        if start == place or not (
            before.startswith("STORE_") or before in ("RESUME", "POP_TOP", "SETUP_ANNOTATIONS")
        ):
            return False
    return True


def _said(stands: _Print) -> str:
    kind, value = stands
    if kind == "kind":
        return f"a {value}"
    return _shown(value) if kind == "is" else repr(value)


def _shown(value: Any) -> str:
    from manyhands._describe import short

    return "missing" if value is _resolve.Nothing else short(value)


# ----------------------------------------------------------------------------- in the program


def tell(notices: list[tuple[Any, tuple[str, str, int], list[tuple[str, str, str, str]]]]) -> None:
    """Warns of what workers have noticed, once for each function and pool."""
    if _resolve.is_worker():
        # They came with what a task of a task has returned: they go on upwards.
        for came in notices:
            _core.notice(came)
        return
    for pool, (label, file, line), differing in notices:
        key = (pool, label, file, line)
        if key not in _told:
            if len(_told) >= 4096:
                _told.clear()
            _told.add(key)
            _warn(label, file, line, differing)


def _warn(label: str, file: str, line: int, differing: list[tuple[str, str, str, str]]) -> None:
    import warnings

    parts = [
        f"{name!r} in module {module} is {there} in the workers, but {here} in this process"
        for module, name, here, there in differing[:3]
    ]
    more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
    message = (
        f"{label} reads what this program has set in a module: {'; '.join(parts)}{more}. Workers "
        "import modules anew: pass it as an argument, or set it in an initializer="
    )
    try:
        warnings.warn_explicit(message, RuntimeWarning, file, line)
    except RuntimeWarning:
        # A filter makes an error of it. It is none of the task whose result this came with.
        import logging

        logging.getLogger("manyhands").warning("%s", message)


def forget_parent() -> None:
    """In a child of fork: pools have their numbers anew."""
    _told.clear()
