"""What code refers to, read from the objects themselves: nothing is run or pickled here.

Code objects: which globals and submodules their instructions name. Functions and classes: whether
they are found under a name that a worker can import, or under one of `__main__`. A survey tells
which names of `__main__` an object needs, and the checks that say whether it is still what it was.

Which globals a function needs is read from its code: the names its instructions load. A global that
is only reached through `globals()`, `eval` or a string is not found.
"""

from __future__ import annotations

import functools
import opcode
import sys
import types
from collections.abc import Iterator, Mapping

from manyhands._typing import Any

__all__ = [
    "HEAP_TYPE",
    "MAIN_NAMES",
    "MISSING",
    "OWN_NAMES",
    "Check",
    "Function",
    "LruCache",
    "Survey",
    "assigned_names",
    "attribute_names",
    "content_of",
    "global_names",
    "holds",
    "importable",
    "in_main",
    "is_code",
    "is_user_module",
    "light_globals",
    "main_dict",
    "main_path",
    "may_be_a_users",
    "module_of_globals",
    "module_path",
    "modules_named_by",
    "submodules_used",
    "top_of",
]

Check = tuple[str, Any, str, Any] | tuple[str, Any, Any]
"""What must still hold for a definition to be current, each by identity.

`("global", dict, name, value)`, `("cell", cell, value)` or `("attr", obj, attribute, value)`;
`value` is `MISSING` for a name that is not there or a cell that is empty.
"""


class _Missing:
    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()

# Set by the interpreter in every `__main__`; a worker has its own.
OWN_NAMES = frozenset({"__name__", "__builtins__", "__spec__", "__loader__"})
_MAIN = "__main__"
# Under the second name a child of multiprocessing knows the script of its parent.
MAIN_NAMES = frozenset({_MAIN, "__mp_main__"})
HEAP_TYPE = 1 << 9

LruCache = type(functools.lru_cache(lambda: None))
Function = types.FunctionType


def main_dict() -> dict[str, Any]:
    return sys.modules[_MAIN].__dict__


# -------------------------------------------------------------------------- reading code objects

_OPCODES = opcode.opmap
_EXTENDED_ARG: int = _OPCODES["EXTENDED_ARG"]
# Each operation that reads a global, with the number of low bits in its argument that are flags.
_LOADS: tuple[tuple[int, int], ...] = tuple(
    (_OPCODES[name], shift)
    for name, shift in (
        ("LOAD_GLOBAL", 1),
        ("LOAD_NAME", 0),
        ("LOAD_FROM_DICT_OR_GLOBALS", 0),
    )
    if name in _OPCODES
)
_STORES: tuple[int, ...] = tuple(
    _OPCODES[name] for name in ("STORE_GLOBAL", "DELETE_GLOBAL") if name in _OPCODES
)
# By identity: comparing code objects would compare their contents. The code is kept so that its
# address cannot be used again.
_names_cache: dict[int, tuple[types.CodeType, tuple[str, ...]]] = {}


def global_names(code: types.CodeType) -> tuple[str, ...]:
    """The names that the code, and the code nested in it, loads from its globals."""
    cached = _names_cache.get(id(code))
    if cached is not None:
        return cached[1]
    found: dict[str, None] = {}
    names = code.co_names
    if names:
        raw = code.co_code
        operations, arguments = raw[::2], raw[1::2]
        for operation, shift in _LOADS:
            at = operations.find(operation)
            while at >= 0:
                argument = arguments[at]
                before, scale = at - 1, 8
                while before >= 0 and operations[before] == _EXTENDED_ARG:
                    argument |= arguments[before] << scale
                    before, scale = before - 1, scale + 8
                found[names[argument >> shift]] = None
                at = operations.find(operation, at + 1)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(dict.fromkeys(global_names(constant)))
    result = tuple(found)
    if len(_names_cache) >= 4096:
        _names_cache.clear()
    _names_cache[id(code)] = (code, result)
    return result


def attribute_names(code: types.CodeType) -> set[str]:
    """All names of the code and the code nested in it, among them those of attributes."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= attribute_names(constant)
    return found


def assigned_names(code: types.CodeType) -> set[str]:
    """The globals that the code, and the code nested in it, binds."""
    found: set[str] = set()
    raw = code.co_code
    operations, arguments = raw[::2], raw[1::2]
    for operation in _STORES:
        at = operations.find(operation)
        while at >= 0:
            argument = arguments[at]
            before, shift = at - 1, 8
            while before >= 0 and operations[before] == _EXTENDED_ARG:
                argument |= arguments[before] << shift
                before, shift = before - 1, shift + 8
            found.add(code.co_names[argument])
            at = operations.find(operation, at + 1)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= assigned_names(constant)
    return found


def submodules_used(code: types.CodeType, package: types.ModuleType) -> Iterator[str]:
    """Submodules that the code may reach as attributes, as after `import package.submodule`."""
    attributes = attribute_names(code)
    pending = [package.__name__]
    while pending:
        prefix = pending.pop()
        for attribute in attributes:
            name = f"{prefix}.{attribute}"
            if isinstance(sys.modules.get(name), types.ModuleType):
                yield name
                pending.append(name)


# ---------------------------------------------------------------------------- where things live


def importable(name: Any) -> types.ModuleType | None:
    """The module of that name if a worker can import it too."""
    if not isinstance(name, str) or name in MAIN_NAMES:
        return None
    module = sys.modules.get(name)
    if isinstance(module, types.ModuleType) and getattr(module, "__spec__", None) is not None:
        return module
    return None


def _follow(namespace: Mapping[str, Any], qualname: Any) -> Any:
    if not isinstance(qualname, str):
        return MISSING
    top, *rest = qualname.split(".")
    found = namespace.get(top, MISSING)
    for part in rest:
        found = getattr(found, part, MISSING)
    return found


def _qualname(obj: Any) -> Any:
    name = getattr(obj, "__qualname__", None)
    return name if name is not None else getattr(obj, "__name__", None)


def module_path(obj: Any) -> tuple[types.ModuleType, str] | None:
    """The importable module and the qualified name that lead to exactly this object."""
    module = importable(getattr(obj, "__module__", None))
    if module is None:
        return None
    qualname = _qualname(obj)
    return (module, qualname) if _follow(module.__dict__, qualname) is obj else None


def in_main(obj: Any) -> bool:
    module = getattr(obj, "__module__", None)
    return isinstance(module, str) and module in MAIN_NAMES


def main_path(obj: Any) -> str | None:
    """The qualified name in `__main__` that leads to exactly this object."""
    if not in_main(obj):
        return None
    qualname = _qualname(obj)
    return qualname if _follow(main_dict(), qualname) is obj else None


def top_of(qualname: str) -> str:
    return qualname.partition(".")[0]


def module_of_globals(namespace: dict[str, Any]) -> types.ModuleType | None:
    module = importable(namespace.get("__name__"))
    return module if module is not None and module.__dict__ is namespace else None


@functools.cache
def _installed_roots() -> tuple[str, ...]:
    import os
    import sysconfig

    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        roots.update(os.path.join(prefix, name) for name in ("lib", "lib64", "Lib"))
    return tuple(os.path.join(root, "") for root in roots if root)


@functools.lru_cache(4096)
def _is_user_file(path: str) -> bool:
    if "site-packages" in path or "dist-packages" in path or path.startswith("<frozen"):
        return False
    return not path.startswith(_installed_roots())


def light_globals(code: types.CodeType, namespace: dict[str, Any]) -> dict[str, Any]:
    """Modules and small values that the code loads: a worker's older module may lack the names."""
    found = {}
    for name in global_names(code):
        value = namespace.get(name, MISSING)
        if isinstance(value, types.ModuleType):
            if importable(value.__name__) is not None and sys.modules[value.__name__] is value:
                found[name] = value
        elif value is None or (
            type(value) in (bool, int, float, str, bytes) and sys.getsizeof(value) <= 1024
        ):
            found[name] = value
    return found


def is_user_module(module: types.ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    return isinstance(path, str) and _is_user_file(path)


def may_be_a_users(function: Any) -> bool:
    """Whether the function may be of the user's making: not one of an installed module."""
    module = importable(getattr(function, "__module__", None))
    return module is None or is_user_module(module)


def is_code(value: Any) -> bool:
    return isinstance(value, (Function, type, LruCache))


def holds(check: Check) -> bool:
    kind, target, name, *value = check
    if kind == "attr":
        return getattr(target, name, MISSING) is value[0]
    if kind == "cell":
        return content_of(target) is name  # a cell's check has no name
    return target.get(name, MISSING) is value[0]


def content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


# ------------------------------------------------------------------------------------ surveying


class Survey:
    """What can be told about an object without pickling it: the names it needs from `__main__`.

    Attributes:
        names: top-level names of `__main__`, in the order they were met.
        checks: what of the object's own parts must not change.
    """

    __slots__ = ("_main", "_seen", "checks", "names")

    def __init__(self, root: Any) -> None:
        self.names: dict[str, None] = {}
        self.checks: list[Check] = []
        self._seen: dict[int, Any] = {}
        self._main = main_dict()
        pending: list[tuple[Any, bool]] = [(root, True)]
        path = main_path(root) if is_code(root) else None
        own = None if path is None else top_of(path)
        first = True
        while pending:
            target, marking = pending.pop()
            if id(target) in self._seen:
                continue
            self._seen[id(target)] = target  # kept: some targets are made on the way
            if not first and is_code(target):
                path = main_path(target)
                if path is not None and top_of(path) != own:
                    self.names[top_of(path)] = None
                    continue
                if path is None and module_path(target) is not None:
                    continue
            first = False
            self._visit(target, marking, pending)

    def _visit(self, target: Any, marking: bool, pending: list[tuple[Any, bool]]) -> None:
        kind = type(target)
        if kind is Function:
            self._visit_function(target, marking, pending)
        elif isinstance(target, type):
            if target.__flags__ & HEAP_TYPE:
                # Replacing a method in place is a change inside an object, which is not noticed.
                pending.extend((value, False) for value in target.__dict__.values())
                pending.extend((base, False) for base in target.__bases__)
        elif kind in (staticmethod, classmethod):
            pending.append((target.__func__, marking))
        elif kind is property:
            pending.extend((part, marking) for part in (target.fget, target.fset, target.fdel))
        elif kind is types.MethodType:
            pending.append((target.__func__, marking))
            pending.append((target.__self__, marking))
        elif kind is functools.partial:
            pending.append((target.func, marking))
            pending.extend((value, marking) for value in target.args)
            pending.extend((value, marking) for value in target.keywords.values())
        elif kind is LruCache:
            pending.append((target.__wrapped__, marking))
        elif kind in (list, tuple, set, frozenset):
            if len(target) <= 64:
                pending.extend((value, False) for value in target)
        elif kind is dict:
            if len(target) <= 64:
                pending.extend((value, False) for value in target.values())
        elif in_main(kind):
            pending.append((kind, False))

    def _visit_function(
        self, function: types.FunctionType, marking: bool, pending: list[tuple[Any, bool]]
    ) -> None:
        code, namespace = function.__code__, function.__globals__
        if marking:
            self.checks.append(("attr", function, "__code__", code))
            self.checks.append(("attr", function, "__defaults__", function.__defaults__))
            self.checks.append(("attr", function, "__kwdefaults__", function.__kwdefaults__))
        if namespace is self._main:
            self.names.update(dict.fromkeys(global_names(code)))
        elif module_of_globals(namespace) is None:
            for name in global_names(code):
                value = namespace.get(name, MISSING)
                self.checks.append(("global", namespace, name, value))
                pending.append((value, marking))
        for cell in function.__closure__ or ():
            content = content_of(cell)
            if marking:
                self.checks.append(("cell", cell, content))
            pending.append((content, marking))
        pending.extend((value, False) for value in function.__defaults__ or ())
        pending.extend((value, False) for value in (function.__kwdefaults__ or {}).values())
        pending.extend((value, marking) for value in function.__dict__.values())


# ------------------------------------------------------------------------------------- preloading


def modules_named_by(fn: Any) -> list[str]:
    """The importable modules a callable names: worth importing once, before workers are forked."""
    found: dict[str, None] = {}
    seen: dict[int, Any] = {}
    pending: list[Any] = [fn]

    def add(name: Any) -> None:
        if name != "builtins" and importable(name) is not None:
            found[name] = None

    while pending and len(seen) < 512:
        target = pending.pop(0)
        if target is None or id(target) in seen:
            continue
        seen[id(target)] = target
        if isinstance(target, types.ModuleType):
            add(target.__name__)
            continue
        if isinstance(target, functools.partial):
            pending += [target.func, *target.args, *target.keywords.values()]
            continue
        if isinstance(target, types.MethodType):
            pending += [target.__self__, target.__func__]
            continue
        if isinstance(target, LruCache):
            pending.append(target.__wrapped__)
            continue
        if not isinstance(target, Function):
            own = isinstance(target, (type, types.BuiltinFunctionType))
            owner = target if own else type(target)
            module = getattr(owner, "__module__", None)
            add(module)
            if isinstance(owner, type) and module in MAIN_NAMES:
                pending += [value for value in vars(owner).values() if isinstance(value, Function)]
                pending += owner.__bases__
            continue
        add(target.__module__)
        namespace = target.__globals__
        add(namespace.get("__name__"))
        for name in global_names(target.__code__):
            value = namespace.get(name)
            if isinstance(value, types.ModuleType) and hasattr(value, "__path__"):
                add(value.__name__)
                for submodule in submodules_used(target.__code__, value):
                    add(submodule)
            elif module_of_globals(namespace) is None or not isinstance(value, Function):
                pending.append(value)
            else:
                add(getattr(value, "__module__", None))
        pending += [content_of(cell) for cell in target.__closure__ or ()]
        if (wrapped := target.__dict__.get("__wrapped__")) is not None:
            pending.append(wrapped)
    return list(found)
