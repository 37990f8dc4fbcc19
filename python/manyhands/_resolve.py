"""The worker's side of definitions: makes functions, classes and globals of `__main__`.

Every worker imports this module, and both sides unpickle through it, so it imports only modules
that the interpreter has loaded anyway; what a rare path needs is imported there.

A worker has a real `__main__` module that starts empty. A *binding* puts a function, class or value
of the parent's `__main__` into it under its own name. Functions built here run in the globals they
had in the parent: those of the worker's `__main__`, those of an importable module, or a namespace
that all functions of one dynamic module share.

What installing a name does (`_install`):

- the name is absent: it is set;
- the name is there, and this module never set it: an initializer or a task did, and it stays;
- this module set it before, and a newer version of a function or class arrives: that replaces
  whatever is there;
- this module set it before, and a newer version of a plain value arrives: that replaces only the
  object this module set, not what a task has assigned since.
"""

from __future__ import annotations

import builtins
import marshal
import sys
import types
from _imp import source_hash as _source_hash
from _pickle import loads as _loads
from posix import getpid as _getpid
from posix import urandom as _urandom

TYPE_CHECKING = False  # as in `typing`, whose import would cost each worker milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

__all__ = ["MISSING_GLOBALS", "dumps", "load", "note_for"]

MISSING_GLOBALS: dict[str, str] = {}
"""Globals that could not be sent: the name, and a phrase that says what it is."""

# Names a module is born with: finding one of these in `__main__` does not mean that a task set it.
_BORN = frozenset({"__doc__", "__file__", "__package__", "__annotations__"})

# More dynamic namespaces than this are only seen where a program makes functions with `exec` in a
# loop; the oldest are then forgotten, and their functions keep the dictionaries they have.
_NAMESPACES = 1024

if TYPE_CHECKING:
    # Name -> the version and the object that were installed last. What a task has bound and then
    # submits has a version between two of the program's.
    _Book = dict[str, tuple[float, Any]]

_book: _Book = {}
_code: dict[tuple[str, float], Any] = {}  # (name, version) -> function or class, however old
_namespaces: dict[str, tuple[types.ModuleType, _Book]] = {}


# ------------------------------------------------------------------------------ loading payloads


def load(payload: bytes, stored: Sequence[Any] = ()) -> Any:
    """Carries out a definition: returns the callable, or installs a binding and returns None.

    Args:
        payload: the definition.
        stored: the large buffers that it speaks of, unless they are in it.
    """
    kind, *rest = _loads(payload)
    if kind in _NAMING:
        return _NAMING[kind](*rest)
    pickled, within, *rest = rest
    return _PICKLED[kind](pickled, within or stored, *rest)


def _load_reference(
    module_name: str,
    qualname: str,
    expected: bytes | None,
    fallback: bytes | None,
    helpers: tuple[tuple[str, str, bytes, bytes | None], ...],
) -> Any:
    for helper_module, helper_name, helper_expected, helper_fallback in helpers:
        _renew_helper(helper_module, helper_name, helper_expected, helper_fallback)
    try:
        found = resolve(module_name, qualname)
    except (ImportError, AttributeError) as error:
        if fallback is not None and not isinstance(error, ModuleNotFoundError):
            return _loads(fallback)
        raise type(error)(
            f"the worker cannot find {module_name}.{qualname}: {error}. The module must be "
            "importable in a new process with the parent's sys.path"
        ) from error
    if expected is None or fingerprint(found) == expected:
        return found
    if fallback is not None:
        return _loads(fallback)
    raise RuntimeError(
        f"{module_name}.{qualname} is not the same code here as in the parent: it was edited or "
        "patched after the import. Restart the program, or define the function in a module of "
        "your own"
    )


def _renew_helper(module_name: str, qualname: str, expected: bytes, fallback: bytes | None) -> None:
    """Replaces a function that a task's function calls if its code here is not the parent's."""
    try:
        if fingerprint(resolve(module_name, qualname)) == expected:
            return
    except (ImportError, AttributeError):
        pass
    if fallback is None:
        raise RuntimeError(
            f"{module_name}.{qualname} is not the same code here as in the parent: it was edited "
            "or patched after the import, and it cannot be sent. Restart the program"
        )
    # The qualified name has one part: the parent lists functions of a module's top level only.
    setattr(sys.modules[module_name], qualname, _loads(fallback))


def _load_value(pickled: bytes, buffers: Sequence[Any]) -> Any:
    return _loads(pickled, buffers=buffers)


def _load_main(name: str, version: float, path: str) -> Any:
    found = _code.get((name, version), _book)
    if found is _book:
        raise RuntimeError(f"version {version} of __main__.{name} was not installed in this worker")
    for part in path.split(".")[1:]:
        found = getattr(found, part)
    return found


def _load_bindings(pickled: bytes, buffers: Sequence[Any], missing: Mapping[str, str]) -> None:
    MISSING_GLOBALS.update(missing)
    main = sys.modules["__main__"]
    # A parent that is itself a child of multiprocessing calls its script by this name.
    sys.modules.setdefault("__mp_main__", main)
    _loads(pickled, buffers=buffers)


def _load_broadcast(pickled: bytes, buffers: Sequence[Any], token: str) -> Any:
    from manyhands import _broadcast

    return _broadcast.load(token, pickled, buffers)


def _load_context(pickled: bytes, buffers: Sequence[Any]) -> Any:
    from manyhands import _context

    return _context.load(_loads(pickled, buffers=buffers))


def _load_globals(
    module_name: str | None,
    found: Sequence[tuple[str, str, tuple[str, Any]]],
    function: tuple[str, str, int],
) -> None:
    """Compares globals of modules with those of the program: see `_module_globals`."""
    if module_name is not None and module_name not in sys.modules:
        try:
            _module(module_name)
        except Exception:
            return  # the function's own definition will say it
    differing = []
    for name, variable, (kind, value) in found:
        module = sys.modules.get(name)
        if module is None:
            continue
        here = module.__dict__.get(variable, Nothing)
        if kind == "is":
            is_same = type(here) is type(value) and (here == value or value != value)
        elif kind == "path":
            is_same = hasattr(here, "__fspath__") and str(here) == value
        else:
            is_same = here is not None and here is not Nothing
        if not is_same:
            differing.append((name, variable, (kind, value), here))
    if differing:
        from manyhands import _module_globals

        _module_globals.notice(differing, function)


def _hold() -> None:
    """There is nothing to know: it is needed for what the parent keeps with it."""


def _bind(name: str, version: float, is_code: bool, value: Any) -> None:
    """Called while bindings are unpickled, for one after the other."""
    if is_code:
        _code[name, version] = value
    MISSING_GLOBALS.pop(name, None)
    _install(sys.modules["__main__"].__dict__, _book, name, version, is_code, value)


def _install(
    namespace: dict[str, Any], book: _Book, name: str, version: float, is_code: bool, value: Any
) -> None:
    known = book.get(name)
    if known is None:
        if name in namespace and name not in _BORN:
            return
    else:
        if version <= known[0]:
            return
        if not is_code and name in namespace and namespace[name] is not known[1]:
            return
    namespace[name] = value
    book[name] = (version, value)


def installed(name: str) -> tuple[float, Any] | None:
    """The version and the object that a binding has last put under this name."""
    return _book.get(name)


def is_worker() -> bool:
    """Whether this process gets definitions."""
    return "manyhands._zygote" in sys.modules


def close_per_worker() -> None:
    """This worker leaves: what `per_worker` has made in it is closed."""
    per_worker = sys.modules.get("manyhands._per_worker")
    if per_worker is not None:
        per_worker.close_here()


def share() -> float:
    """A number from 0.25 to 0.75 that is this process's own."""
    global _share
    if _share[0] != _getpid():
        _share = (_getpid(), 0.25 + int.from_bytes(_urandom(4), "little") / 2**33)
    return _share[1]


_share = (0, 0.0)


_NAMING: dict[str, Callable[..., Any]] = {
    "reference": _load_reference,
    "main": _load_main,
    "globals": _load_globals,
    "held": _hold,
}
_PICKLED: dict[str, Callable[..., Any]] = {
    "value": _load_value,
    "bindings": _load_bindings,
    "broadcast": _load_broadcast,
    "context": _load_context,
}


# ------------------------------------------------------------------------- names and fingerprints


def resolve(module_name: str, qualname: str) -> Any:
    """Imports the module and follows the qualified name in it."""
    found: Any = _module(module_name)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def fingerprint(target: Any) -> bytes | None:
    """A digest of what a function's code does, the same in every process; None without code.

    Line numbers and file names do not count, nor do defaults. A decorated function counts with
    what it wraps.
    """
    digests: list[bytes] = []
    for _ in range(32):
        code = getattr(target, "__code__", None)
        if isinstance(code, types.CodeType):
            digests.append(_code_digest(code))
        wrapped = None if isinstance(target, type) else getattr(target, "__wrapped__", None)
        if wrapped is None:
            break
        target = wrapped
    if len(digests) < 2:
        return digests[0] if digests else None
    return _source_hash(0, b"".join(digests))


def _code_digest(code: types.CodeType) -> bytes:
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constant = _code_digest(constant)
        elif isinstance(constant, frozenset):
            constant = sorted(map(repr, constant))  # their order depends on the hash seed
        constants.append(constant)
    behaviour = (
        code.co_code,
        constants,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_flags,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_exceptiontable,
    )
    # Version 2 of the format has neither back references nor interning flags, which differ between
    # code that was compiled and code that was read from a file.
    return _source_hash(0, marshal.dumps(behaviour, 2))


# --------------------------------------------------------- constructors that pickles refer to


class Nothing:
    """Stands for the missing content of a cell, and for a global that is not there."""


def _module(name: str) -> types.ModuleType:
    module = sys.modules.get(name)
    if module is None:
        __import__(name)
        module = sys.modules[name]
    return module


def _namespace(token: str, name: str) -> types.ModuleType:
    entry = _namespaces.get(token)
    if entry is None:
        while len(_namespaces) >= _NAMESPACES:
            del _namespaces[next(iter(_namespaces))]
        module = types.ModuleType(name)
        module.__dict__["__builtins__"] = builtins
        entry = _namespaces[token] = (module, {})
    return entry[0]


def _fill_namespace(token: str, values: Mapping[str, tuple[int, bool, Any]]) -> None:
    module, book = _namespaces[token]
    for name, (version, is_code, value) in values.items():
        _install(module.__dict__, book, name, version, is_code, value)


def _fill_module(module: types.ModuleType, state: tuple[str, dict[str, Any]]) -> None:
    _fill_namespace(*state)


def _function(
    code: bytes, space: str | tuple[str, str] | None, cells: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    """Makes a function; `space` is a module's name, a namespace's token and name, or `__main__`."""
    if space is None:
        globals_ = sys.modules["__main__"].__dict__
    elif isinstance(space, str):
        globals_ = _module(space).__dict__
    else:
        globals_ = _namespace(*space).__dict__
    if "__builtins__" not in globals_:
        globals_["__builtins__"] = builtins
    return types.FunctionType(marshal.loads(code), globals_, None, None, cells)


def _fill_function(function: Any, state: dict[str, Any]) -> None:
    for name in state.pop("imports", ()):
        # Submodules the code seems to use; where that was wrong the code itself will say more.
        try:
            _module(name)
        except ImportError:
            continue
    for cell, content in state.pop("cells", ()):
        if content is not Nothing:
            cell.cell_contents = content
    if (space := state.pop("space", None)) is not None:
        _fill_namespace(*space)
    for name, value in state.pop("extras", {}).items():
        function.__globals__.setdefault(name, value)
    attributes = state.pop("dict", None)
    for name, value in state.items():
        setattr(function, f"__{name}__", value)
    if attributes:
        function.__dict__.update(attributes)


def _cell() -> types.CellType:
    return types.CellType()


def _fill_cell(cell: types.CellType, content: Any) -> None:
    cell.cell_contents = content


def _code_object(code: bytes) -> Any:
    return marshal.loads(code)


def _lru_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    from functools import lru_cache

    return lru_cache(maxsize, typed)(function)


def _cached_property(kind: Any, function: Any, name: str | None) -> Any:
    made = kind(function)
    if name is not None:
        made.attrname = name
    return made


def _update_dict(target: Any, attributes: dict[str, Any]) -> None:
    target.__dict__.update(attributes)


def _stream(name: str) -> Any:
    return getattr(sys, name)


def _attribute(module_name: str, name: str) -> Any:
    return getattr(_module(module_name), name)


def _type_variable(kind: str, module: str, name: str, args: tuple[Any, ...], options: Any) -> Any:
    import typing

    made = getattr(typing, kind)(name, *args, **options)
    if kind != "TypeAliasType":  # the one whose module cannot be set
        made.__module__ = module
    return made


def _bare_instance(cls: type) -> Any:
    return object.__new__(cls)


# ---------------------------------------------------------------------------------- classes

# A class that travels by value carries a token, so that a process makes it once and knows its own
# class again when an instance comes back.
_class_by_token: Any = None
_token_by_class: Any = None
_token_source = ("", 0)
_unfilled: dict[int, type] = {}


def _registries() -> tuple[Any, Any]:
    global _class_by_token, _token_by_class
    if _class_by_token is None:
        import weakref

        _class_by_token = weakref.WeakValueDictionary()
        _token_by_class = weakref.WeakKeyDictionary()
    return _class_by_token, _token_by_class


def new_token() -> str:
    """A string no other process has: also not one that was forked from this one."""
    global _token_source
    import os

    pid = os.getpid()
    prefix, count = _token_source
    if not prefix.startswith(f"{pid}."):
        prefix, count = f"{pid}.{os.urandom(6).hex()}", 0
    _token_source = (prefix, count + 1)
    return f"{prefix}.{count}"


def token_of(cls: type) -> str:
    """The token of a class, the same in all processes that know the class."""
    by_token, by_class = _registries()
    token: str | None = by_class.get(cls)
    if token is None:
        token = new_token()
        by_class[cls] = token
        by_token[token] = cls
    return token


def _track(token: str, cls: type) -> type:
    by_token, by_class = _registries()
    by_token[token] = cls
    by_class[cls] = token
    _unfilled[id(cls)] = cls
    return cls


def _class(token: str, meta: Any, name: str, bases: tuple[Any, ...], body: dict[str, Any]) -> type:
    """Makes a class without its attributes, or returns the one this process has for the token."""
    known: type | None = _registries()[0].get(token)
    if known is not None:
        return known
    # The metaclass's own code ran in the parent; here only the abc machinery must be set up.
    abc = sys.modules.get("abc")
    make = (
        abc.ABCMeta.__new__ if abc is not None and issubclass(meta, abc.ABCMeta) else type.__new__
    )
    # `__init_subclass__` ran in the parent, where it had its keyword arguments and the whole class;
    # what it did to the class arrives with the class.
    hooks: dict[type, Any] = {}
    for base in bases:
        for owner in base.__mro__:
            if owner is not object and "__init_subclass__" in owner.__dict__:
                hooks[owner] = owner.__dict__["__init_subclass__"]
    try:
        for owner in hooks:
            try:
                type.__setattr__(owner, "__init_subclass__", classmethod(_no_hook))
            except TypeError:
                continue  # a class in C, as `typing.Generic` is: its hook takes no arguments
        made = make(meta, name, bases, body)
    finally:
        for owner, hook in hooks.items():
            if owner.__dict__["__init_subclass__"] is not hook:
                type.__setattr__(owner, "__init_subclass__", hook)
    return _track(token, made)


def _no_hook(cls: type, /, **kwargs: Any) -> None:
    """Stands in for `__init_subclass__` while a class is made."""


def _fill_class(cls: Any, state: tuple[dict[str, Any], tuple[type, ...]]) -> None:
    if _unfilled.pop(id(cls), None) is None:
        return
    attributes, registered = state
    for name, value in attributes.items():
        type.__setattr__(cls, name, value)
    for subclass in registered:
        cls.register(subclass)


def _enum(
    token: str,
    meta: Any,
    name: str,
    bases: tuple[Any, ...],
    body: dict[str, Any],
    members: tuple[tuple[str, Any, Any], ...],
    boundary: str | None,
) -> type:
    """Makes an Enum with its members; the class's own `__new__` and `__init__` do not run again."""
    known: type | None = _registries()[0].get(token)
    if known is not None:
        return known
    from enum import FlagBoundary

    def make_member(cls: Any, raw: Any, value: Any) -> Any:
        data_type = cls._member_type_
        member = object.__new__(cls) if data_type is object else data_type.__new__(cls, raw)
        member._value_ = value
        return member

    # Through the real `__prepare__` of the enum module, not one of the user's metaclass.
    namespace = meta.__prepare__(name, bases)
    for key, value in body.items():
        namespace[key] = value
    namespace["__new__"] = make_member
    for member_name, raw, value in members:
        namespace[member_name] = (raw, value)
    options = {} if boundary is None else {"boundary": FlagBoundary[boundary]}
    return _track(token, meta.__new__(meta, name, bases, namespace, **options))


def _fill_enum(cls: Any, state: tuple[dict[str, Any], dict[str, dict[str, Any]]]) -> None:
    if _unfilled.pop(id(cls), None) is None:
        return
    attributes, extras = state
    if "__new_member__" not in attributes and "__new_member__" in cls.__dict__:
        type.__delattr__(cls, "__new_member__")
    for name, value in attributes.items():
        type.__setattr__(cls, name, value)
    for name, values in extras.items():
        cls._member_map_[name].__dict__.update(values)


def _member(cls: Any, name: str) -> Any:
    return cls._member_map_[name]


# --------------------------------------------------------------------------------- results


def dumps(obj: Any) -> bytes:
    """Pickles a result that plain pickle refused; raises `NotPicklable` if nothing can."""
    from manyhands import _by_value

    return _by_value.dumps_result(obj)


def note_for(exc: BaseException) -> str | None:
    """What to add to an exception of a task that met a global which could not be sent."""
    if not isinstance(exc, NameError) or isinstance(exc, UnboundLocalError):
        return None
    reason = MISSING_GLOBALS.get(exc.name) if isinstance(exc.name, str) else None
    if reason is None:
        return None
    cannot = ", which cannot be sent to a worker" if reason.startswith("is ") else ""
    hint = "create it in an initializer"
    if reason.endswith("ContextVar"):
        hint = f'name it in context=["__main__:{exc.name}"] of the pool'
    return f"the global {exc.name!r} {reason}{cannot}; {hint}"
