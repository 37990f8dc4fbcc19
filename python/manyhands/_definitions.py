"""The parent's side of definitions: how functions, classes and globals get to the workers.

Workers never run the user's script again. What lives in an importable module is sent as a
*reference*: its module, its name and a digest of its code. What lives in `__main__` is sent by
value, once per object, as a *binding* that the worker installs in its own real `__main__` under the
same name; so instances of a script's classes then travel by ordinary pickle in both directions.
Lambdas, closures and local functions are sent by value and run in the globals they have here.

Bindings that are first needed together are pickled together. One pickle keeps objects that they
share shared, and lets them refer to each other in circles. A name that is bound anew later gets a
new version, in a pickle of its own.

Which globals a function needs is read from its code: the names its instructions load. A global that
is only reached through `globals()`, `eval` or a string is not found.
"""

from __future__ import annotations

import builtins
import functools
import io
import marshal
import opcode
import sys
import types
from _pickle import Pickler, PicklingError
from _pickle import dumps as _plain_dumps
from _thread import RLock
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from manyhands import _resolve
from manyhands._errors import NotPicklable

__all__ = ["MISSING", "Check", "Definer", "modules_named_by"]

D = TypeVar("D")

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
_OWN_NAMES = frozenset({"__name__", "__builtins__", "__spec__", "__loader__"})
_MAIN = "__main__"
# Under the second name a child of multiprocessing knows the script of its parent.
_MAIN_NAMES = frozenset({_MAIN, "__mp_main__"})
_PROTOCOL = 5
_HEAP_TYPE = 1 << 9
_SPACES = 1024  # as many namespaces of dynamic modules as a worker remembers
_HELPERS = 64  # functions of the user's modules that are compared along with the one submitted

_LruCache = type(functools.lru_cache(lambda: None))
_Function = types.FunctionType


def _main_dict() -> dict[str, Any]:
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
# By identity: comparing code objects would compare their contents. The code is kept so that its
# address cannot be used again.
_names_cache: dict[int, tuple[types.CodeType, tuple[str, ...]]] = {}


def _global_names(code: types.CodeType) -> tuple[str, ...]:
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
            found.update(dict.fromkeys(_global_names(constant)))
    result = tuple(found)
    if len(_names_cache) >= 4096:
        _names_cache.clear()
    _names_cache[id(code)] = (code, result)
    return result


def _attribute_names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _attribute_names(constant)
    return found


def _submodules_used(code: types.CodeType, package: types.ModuleType) -> Iterator[str]:
    """Submodules that the code may reach as attributes, as after `import package.submodule`."""
    attributes = _attribute_names(code)
    pending = [package.__name__]
    while pending:
        prefix = pending.pop()
        for attribute in attributes:
            name = f"{prefix}.{attribute}"
            if isinstance(sys.modules.get(name), types.ModuleType):
                yield name
                pending.append(name)


# ---------------------------------------------------------------------------- where things live


def _importable(name: Any) -> types.ModuleType | None:
    """The module of that name if a worker can import it too."""
    if not isinstance(name, str) or name in _MAIN_NAMES:
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


def _module_path(obj: Any) -> tuple[types.ModuleType, str] | None:
    """The importable module and the qualified name that lead to exactly this object."""
    module = _importable(getattr(obj, "__module__", None))
    if module is None:
        return None
    qualname = _qualname(obj)
    return (module, qualname) if _follow(module.__dict__, qualname) is obj else None


def _in_main(obj: Any) -> bool:
    module = getattr(obj, "__module__", None)
    return isinstance(module, str) and module in _MAIN_NAMES


def _main_path(obj: Any) -> str | None:
    """The qualified name in `__main__` that leads to exactly this object."""
    if not _in_main(obj):
        return None
    qualname = _qualname(obj)
    return qualname if _follow(_main_dict(), qualname) is obj else None


def _top(qualname: str) -> str:
    return qualname.partition(".")[0]


def _module_of_globals(namespace: dict[str, Any]) -> types.ModuleType | None:
    module = _importable(namespace.get("__name__"))
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


def _light_globals(code: types.CodeType, namespace: dict[str, Any]) -> dict[str, Any]:
    """Modules and small values that the code loads: a worker's older module may lack the names."""
    found = {}
    for name in _global_names(code):
        value = namespace.get(name, MISSING)
        if isinstance(value, types.ModuleType):
            if _importable(value.__name__) is not None and sys.modules[value.__name__] is value:
                found[name] = value
        elif value is None or (
            type(value) in (bool, int, float, str, bytes) and sys.getsizeof(value) <= 1024
        ):
            found[name] = value
    return found


def _is_user_module(module: types.ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    return isinstance(path, str) and _is_user_file(path)


def _may_be_a_users(function: Any) -> bool:
    """Whether the function may be of the user's making: not one of an installed module."""
    module = _importable(getattr(function, "__module__", None))
    return module is None or _is_user_module(module)


def _is_code(value: Any) -> bool:
    return isinstance(value, (_Function, type, _LruCache))


def _holds(check: Check) -> bool:
    kind, target, name, *value = check
    if kind == "attr":
        return getattr(target, name, MISSING) is value[0]
    if kind == "cell":
        return _content(target) is name  # a cell's check has no name
    return target.get(name, MISSING) is value[0]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


# ------------------------------------------------------------------------------------ surveying


class _Survey:
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
        self._main = _main_dict()
        pending: list[tuple[Any, bool]] = [(root, True)]
        path = _main_path(root) if _is_code(root) else None
        own = None if path is None else _top(path)
        first = True
        while pending:
            target, marking = pending.pop()
            if id(target) in self._seen:
                continue
            self._seen[id(target)] = target  # kept: some targets are made on the way
            if not first and _is_code(target):
                path = _main_path(target)
                if path is not None and _top(path) != own:
                    self.names[_top(path)] = None
                    continue
                if path is None and _module_path(target) is not None:
                    continue
            first = False
            self._visit(target, marking, pending)

    def _visit(self, target: Any, marking: bool, pending: list[tuple[Any, bool]]) -> None:
        kind = type(target)
        if kind is _Function:
            self._visit_function(target, marking, pending)
        elif isinstance(target, type):
            if target.__flags__ & _HEAP_TYPE:
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
        elif kind is _LruCache:
            pending.append((target.__wrapped__, marking))
        elif kind in (list, tuple, set, frozenset):
            if len(target) <= 64:
                pending.extend((value, False) for value in target)
        elif kind is dict:
            if len(target) <= 64:
                pending.extend((value, False) for value in target.values())
        elif _in_main(kind):
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
            self.names.update(dict.fromkeys(_global_names(code)))
        elif _module_of_globals(namespace) is None:
            for name in _global_names(code):
                value = namespace.get(name, MISSING)
                self.checks.append(("global", namespace, name, value))
                pending.append((value, marking))
        for cell in function.__closure__ or ():
            content = _content(cell)
            if marking:
                self.checks.append(("cell", cell, content))
            pending.append((content, marking))
        pending.extend((value, False) for value in function.__defaults__ or ())
        pending.extend((value, False) for value in (function.__kwdefaults__ or {}).values())
        pending.extend((value, marking) for value in function.__dict__.values())


# ------------------------------------------------------------------------------------- pickling


class _Unsendable(PicklingError):
    """A by-value object refers to a name of `__main__` that is known not to be picklable."""


class _Space:
    """The globals of functions whose module cannot be imported: one namespace in each worker."""

    __slots__ = ("namespace", "token", "versions")

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.token = _resolve.new_token()
        self.versions: dict[str, tuple[int, Any]] = {}

    def versioned(self, name: str, value: Any) -> tuple[int, bool, Any]:
        version, known = self.versions.get(name, (0, MISSING))
        if known is not value:
            version += 1
            self.versions[name] = (version, value)
        return (version, _is_code(value), value)


class _Spaces:
    """The namespaces met so far, by identity; the oldest are forgotten."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, _Space] = {}

    def of(self, namespace: dict[str, Any]) -> _Space:
        space = self._known.get(id(namespace))
        if space is None:
            while len(self._known) >= _SPACES:
                del self._known[next(iter(self._known))]
            space = self._known[id(namespace)] = _Space(namespace)
        return space


class _Root:
    """A name to bind: it reduces to the call that installs it, as soon as it has been loaded.

    What is loaded after it may already need it: `__setstate__` and `__hash__` run while data is
    being unpickled, and they read globals.
    """

    __slots__ = ("_order", "_record", "name")

    def __init__(self, name: str, record: _Record[Any], index: int) -> None:
        self.name = name
        self._record = record
        value = record.value
        if isinstance(value, types.ModuleType):
            rank = 0
        elif isinstance(value, (_Function, str, bytes, int, float, type(None))):
            rank = 1
        elif isinstance(value, type):
            rank = 2
        else:
            rank = 3
        self._order = (rank, index)

    def order(self) -> tuple[int, int]:
        """Modules, functions, classes, data; each in the order in which the script made them."""
        return self._order

    def call(self) -> tuple[Any, ...]:
        """What installs the name in the worker."""
        value = self._record.value
        return (_resolve._bind, (self.name, self._record.version, _is_code(value), value))


_Reduced = Any  # what `reducer_override` may return: NotImplemented, a string or a tuple


class _ByValue(Pickler):
    """A pickler that sends by value what a worker could not find by name.

    Attributes:
        references: top-level names of `__main__` that must be installed before the pickle is
            loaded.
        uses: top-level names of `__main__` that functions in the pickle load when they run.
    """

    def __init__(
        self,
        file: io.BytesIO,
        *,
        spaces: _Spaces,
        inline: Mapping[str, Any] = {},  # never written to
        unsendable: Callable[[str], str | None] = lambda name: None,
        forced: Any = MISSING,
        in_worker: bool = False,
        annotations: bool = True,
        more: Mapping[type, Callable[[Any], Any]] | None = None,
    ) -> None:
        super().__init__(file, _PROTOCOL)
        self.references: dict[str, None] = {}
        self.uses: dict[str, None] = {}
        self._main = _main_dict()
        self._spaces = spaces
        self._inline = inline
        self._unsendable = unsendable
        self._forced = forced
        self._in_worker = in_worker
        self._annotations = annotations
        self._more = more or {}
        # Cells whose content is, or will be, in the state of a function met before.
        self._claimed: dict[int, types.CellType] = {}
        self._sentinels = _dataclass_sentinels()

    def reducer_override(self, obj: Any, /) -> _Reduced:
        """Called by the pickler for every object that is not one of the plain built-in types."""
        kind = type(obj)
        reduce = _REDUCERS.get(kind)
        if reduce is not None:
            return reduce(self, obj)
        if isinstance(obj, type):
            return self._class(obj)
        if (sentinel := self._sentinels.get(id(obj))) is not None:
            return (_resolve._attribute, ("dataclasses", sentinel))
        if (more := self._more.get(kind)) is not None:
            return more(obj)
        if "_member_map_" in kind.__dict__ and (member := self._member(obj)) is not None:
            return member
        if _in_main(kind):
            return self._instance_of_main(obj)
        return NotImplemented

    def _root(self, root: _Root) -> _Reduced:
        return root.call()

    # -- by name or by value

    def _by_name(self, obj: Any) -> bool:
        """Whether the object can be named; notes the name if it is one of `__main__`."""
        if obj is self._forced:
            return False
        if _module_path(obj) is not None:
            return True
        path = _main_path(obj)
        return path is not None and self._refer(_top(path), obj)

    def _refer(self, top: str, obj: Any) -> bool:
        if top in self._inline:
            return False
        if self._in_worker:
            # The parent has the name only if it came from there.
            known = _resolve._book.get(top)
            return known is not None and known[1] is self._main.get(top, MISSING)
        if (reason := self._unsendable(top)) is not None:
            raise _Unsendable(f"it needs {top} of __main__, and {reason}")
        self.references[top] = None
        return True

    # -- functions

    def _function(self, function: types.FunctionType) -> _Reduced:
        if self._by_name(function):
            return NotImplemented
        code, namespace = function.__code__, function.__globals__
        state: dict[str, Any] = {
            "name": function.__name__,
            "qualname": function.__qualname__,
            "module": function.__module__,
            "doc": function.__doc__,
            "defaults": function.__defaults__,
            "kwdefaults": function.__kwdefaults__,
        }
        space: str | tuple[str, str] | None = None
        if namespace is self._main:
            if not self._in_worker:
                self.uses.update(dict.fromkeys(_global_names(code)))
        elif (module := _module_of_globals(namespace)) is not None:
            space = module.__name__
            if _is_user_module(module) and (extras := _light_globals(code, namespace)):
                state["extras"] = extras
        else:
            known = self._spaces.of(namespace)
            space = (known.token, str(namespace.get("__name__", "")))
            values = {
                name: known.versioned(name, namespace[name])
                for name in _global_names(code)
                if name in namespace and name not in _OWN_NAMES
            }
            state["space"] = (known.token, values)
        imports = [
            submodule
            for name in _global_names(code)
            if isinstance(value := namespace.get(name), types.ModuleType)
            and hasattr(value, "__path__")
            and _importable(value.__name__) is not None
            for submodule in _submodules_used(code, value)
        ]
        if imports:
            state["imports"] = imports
        cells = function.__closure__
        if cells:
            contents = []
            for cell in cells:
                if id(cell) not in self._claimed:
                    self._claimed[id(cell)] = cell
                    if (content := _content(cell)) is not MISSING:
                        contents.append((cell, content))
            state["cells"] = contents
        if function.__dict__:
            state["dict"] = dict(function.__dict__)
        annotations = function.__annotations__
        if annotations and self._may_send_annotations(annotations):
            state["annotations"] = annotations
        if parameters := getattr(function, "__type_params__", ()):
            state["type_params"] = parameters
        return (
            _resolve._function,
            (marshal.dumps(code), space, cells),
            state,
            None,
            None,
            _resolve._fill_function,
        )

    def _may_send_annotations(self, annotations: Mapping[str, Any]) -> bool:
        """Whether annotations can be sent. They are no reason for a function to fail."""
        doubtful = [
            value
            for value in annotations.values()
            if not (
                value is None
                or isinstance(value, str)
                or (isinstance(value, type) and _module_path(value) is not None)
            )
        ]
        if not doubtful:
            return True
        if not self._annotations:
            return False
        trial = _ByValue(
            io.BytesIO(),
            spaces=self._spaces,
            unsendable=self._unsendable,
            in_worker=self._in_worker,
            annotations=False,
            more=self._more,
        )
        try:
            trial.dump(doubtful)
        except Exception:
            return False
        return True

    def _cell(self, cell: types.CellType) -> _Reduced:
        if id(cell) in self._claimed:
            return (_resolve._cell, ())
        self._claimed[id(cell)] = cell
        content = _content(cell)
        if content is MISSING:
            return (_resolve._cell, ())
        # In a tuple: a state of None would mean that there is no state.
        return (_resolve._cell, (), (content,), None, None, _resolve._fill_cell)

    def _code(self, code: types.CodeType) -> _Reduced:
        return (_resolve._code_object, (marshal.dumps(code),))

    def _method(self, method: types.MethodType) -> _Reduced:
        name = getattr(method.__func__, "__name__", None)
        try:
            found = getattr(method.__self__, name, MISSING) if isinstance(name, str) else MISSING
        except Exception:
            found = MISSING
        if isinstance(found, types.MethodType) and found.__func__ is method.__func__:
            return NotImplemented
        return (types.MethodType, (method.__func__, method.__self__))

    def _lru_cache(self, cached: Any) -> _Reduced:
        if self._by_name(cached):
            return NotImplemented
        options = cached.cache_parameters()
        attributes = {k: v for k, v in vars(cached).items() if k not in _LRU_ATTRIBUTES}
        return (
            _resolve._lru_cache,
            (cached.__wrapped__, options["maxsize"], options["typed"]),
            attributes,
            None,
            None,
            _resolve._update_dict,
        )

    def _wrapper(self, wrapper: Any) -> _Reduced:
        return (type(wrapper), (wrapper.__func__,))

    def _property(self, prop: property) -> _Reduced:
        return (property, (prop.fget, prop.fset, prop.fdel, prop.__doc__))

    def _cached_property(self, prop: Any) -> _Reduced:
        return (_resolve._cached_property, (type(prop), prop.func, prop.attrname))

    # -- modules, types and small things

    def _module(self, module: types.ModuleType) -> _Reduced:
        name = module.__name__
        if name in _MAIN_NAMES or (_importable(name) is not None and sys.modules[name] is module):
            return (_resolve._module, (name,))
        space = self._spaces.of(module.__dict__)
        values = {
            key: space.versioned(key, value)
            for key, value in list(module.__dict__.items())
            if key not in _OWN_NAMES
        }
        return (
            _resolve._namespace,
            (space.token, name),
            (space.token, values),
            None,
            None,
            _resolve._fill_module,
        )

    def _proxy(self, proxy: types.MappingProxyType[Any, Any]) -> _Reduced:
        return (types.MappingProxyType, (dict(proxy),))

    def _stream(self, stream: Any) -> _Reduced:
        for name in ("stdin", "stdout", "stderr"):
            if stream is getattr(sys, name, None):
                return (_resolve._stream, (name,))
        return NotImplemented

    def _type_variable(self, variable: Any) -> _Reduced:
        if self._by_name(variable):
            return NotImplemented
        kind = type(variable).__name__
        name, module = variable.__name__, variable.__module__
        args: tuple[Any, ...] = ()
        options: dict[str, Any] = {}
        if kind == "NewType":
            args = (variable.__supertype__,)
        elif kind == "TypeAliasType":
            args, options = (variable.__value__,), {"type_params": variable.__type_params__}
        elif kind != "TypeVarTuple":
            args = getattr(variable, "__constraints__", ())
            options = {
                "bound": variable.__bound__,
                "covariant": variable.__covariant__,
                "contravariant": variable.__contravariant__,
            }
        return (_resolve._type_variable, (kind, module, name, args, options))

    def _weak_dictionary(self, mapping: Any) -> _Reduced:
        return (type(mapping), (dict(mapping),))

    def _weak_set(self, values: Any) -> _Reduced:
        return (type(values), (list(values),))

    def _instance_of_main(self, obj: Any) -> _Reduced:
        """An object that reduces to a global name: the name must be there, or not be used."""
        kind: Any = type(obj)
        if kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
            return NotImplemented
        reduced = obj.__reduce_ex__(_PROTOCOL)
        if not isinstance(reduced, str):
            return reduced
        if _in_main(obj) and not self._refer(_top(reduced), obj):
            state = vars(obj) if hasattr(obj, "__dict__") else None
            return (_resolve._bare_instance, (kind,), state)
        return reduced

    # -- classes

    def _class(self, cls: type) -> _Reduced:
        if cls in _BUILTIN_TYPES:
            return (_resolve._attribute, ("types", _BUILTIN_TYPES[cls]))
        if not cls.__flags__ & _HEAP_TYPE or self._by_name(cls):
            return NotImplemented
        if isinstance(cls.__dict__.get("_member_map_"), dict) and "_member_names_" in cls.__dict__:
            return self._enum(cls)
        attributes = {}
        for name, value in cls.__dict__.items():
            if name in _CLASS_OWN or _is_slot(cls, value):
                continue
            if name == "__annotations__" and not self._may_send_annotations(value):
                continue
            attributes[name] = value
        body: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        if (originals := attributes.pop("__orig_bases__", None)) is not None:
            body["__orig_bases__"] = originals  # read when `typing.Generic` is subclassed
        slots = cls.__dict__.get("__slots__")
        if slots is not None:
            body["__slots__"] = (
                slots
                if isinstance(slots, (str, tuple, list, dict))
                else [name for name, value in cls.__dict__.items() if _is_slot(cls, value)]
            )
        return (
            _resolve._class,
            (_resolve.token_of(cls), type(cls), cls.__name__, cls.__bases__, body),
            (attributes, _registered(cls)),
            None,
            None,
            _resolve._fill_class,
        )

    def _enum(self, cls: Any) -> _Reduced:
        members = cls._member_map_
        attributes = {
            name: value
            for name, value in cls.__dict__.items()
            if name not in members
            and name not in _CLASS_OWN
            and name not in _ENUM_OWN
            and not _is_slot(cls, value)
            and (name != "__annotations__" or self._may_send_annotations(value))
        }
        extras = {}
        for name, member in members.items():
            extra = {k: v for k, v in vars(member).items() if k not in _MEMBER_OWN}
            if extra:
                extras[name] = extra
        boundary = getattr(cls, "_boundary_", None)
        return (
            _resolve._enum,
            (
                _resolve.token_of(cls),
                type(cls),
                cls.__name__,
                cls.__bases__,
                {"__module__": cls.__module__, "__qualname__": cls.__qualname__},
                tuple(
                    (name, _raw(cls, member), member._value_) for name, member in members.items()
                ),
                getattr(boundary, "name", None),
            ),
            (attributes, extras),
            None,
            None,
            _resolve._fill_enum,
        )

    def _member(self, obj: Any) -> _Reduced:
        """A member of an Enum that goes by value: by its name, once the class is there."""
        kind = type(obj)
        name = getattr(obj, "_name_", None)
        if kind._member_map_.get(name) is not obj or _module_path(kind) is not None:
            return None
        return (_resolve._member, (kind, name))


_REDUCERS: dict[type, Callable[[Any, Any], _Reduced]] = {
    _Root: _ByValue._root,
    _Function: _ByValue._function,
    types.CellType: _ByValue._cell,
    types.CodeType: _ByValue._code,
    types.MethodType: _ByValue._method,
    types.ModuleType: _ByValue._module,
    types.MappingProxyType: _ByValue._proxy,
    staticmethod: _ByValue._wrapper,
    classmethod: _ByValue._wrapper,
    property: _ByValue._property,
    functools.cached_property: _ByValue._cached_property,
    _LruCache: _ByValue._lru_cache,
    io.TextIOWrapper: _ByValue._stream,
}
_LRU_ATTRIBUTES = frozenset({"cache_parameters", "__wrapped__"})
# Made by the interpreter or the metaclass when the class is created.
_CLASS_OWN = frozenset(
    {"__dict__", "__weakref__", "__module__", "__slots__", "_abc_impl", "__subclasses__"}
)
_ENUM_OWN = frozenset(
    {
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_value2member_map_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_hashable_values_",
    }
)
_MEMBER_OWN = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})
# Types that have no name of their own outside the module `types`.
_BUILTIN_TYPES: dict[type, str] = {
    value: name
    for name, value in vars(types).items()
    if isinstance(value, type)
    and value.__module__ == "builtins"
    and not hasattr(builtins, value.__name__)
}


def _late_reducers() -> None:
    """Adds reducers for types of modules that not every program imports."""
    typing = sys.modules.get("typing")
    if typing is not None:
        for name in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "TypeAliasType"):
            if (kind := getattr(typing, name, None)) is not None:
                _REDUCERS.setdefault(kind, _ByValue._type_variable)
    weakref = sys.modules.get("weakref")
    if weakref is not None:
        _REDUCERS.setdefault(weakref.WeakKeyDictionary, _ByValue._weak_dictionary)
        _REDUCERS.setdefault(weakref.WeakValueDictionary, _ByValue._weak_dictionary)
        _REDUCERS.setdefault(weakref.WeakSet, _ByValue._weak_set)


# Objects that the module compares by identity, and that a class made by it therefore shares.
_SENTINEL_NAMES = (
    "MISSING",
    "KW_ONLY",
    "_HAS_DEFAULT_FACTORY",
    "_FIELD",
    "_FIELD_CLASSVAR",
    "_FIELD_INITVAR",
)
_sentinels: dict[int, str] = {}


def _dataclass_sentinels() -> dict[int, str]:
    if not _sentinels and (module := sys.modules.get("dataclasses")) is not None:
        for name in _SENTINEL_NAMES:
            sentinel = getattr(module, name, None)
            if sentinel is not None:
                _sentinels[id(sentinel)] = name
    return _sentinels


def _is_slot(cls: type, value: Any) -> bool:
    return (
        isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType))
        and value.__objclass__ is cls
    )


def _registered(cls: type) -> tuple[type, ...]:
    """The virtual subclasses of an abstract base class."""
    if "_abc_impl" not in cls.__dict__:
        return ()
    dump = getattr(sys.modules.get("_abc"), "_get_dump", None)
    if dump is None:
        return ()
    found = (reference() for reference in dump(cls)[0])
    return tuple(subclass for subclass in found if subclass is not None)


def _raw(cls: Any, member: Any) -> Any:
    """The value of a member as its data type holds it, which its own methods may disguise."""
    for kind, plain in (
        (str, str.__str__),
        (bool, bool),
        (int, int.__int__),
        (float, float.__float__),
        (bytes, bytes.__bytes__),
        (tuple, lambda value: tuple.__getitem__(value, slice(None))),
    ):
        if issubclass(cls._member_type_, kind):
            return cast(Any, plain)(member)
    return None


# ------------------------------------------------------------------------------------- definer


class _Record(Generic[D]):
    """A name of `__main__` as the workers know it, or the reason why they cannot."""

    __slots__ = (
        "checks",
        "definition",
        "message",
        "needs",
        "reason",
        "sequence",
        "value",
        "version",
    )

    def __init__(self, value: Any, version: int) -> None:
        survey = _Survey(value)
        self.value = value
        self.version = version
        self.needs: dict[str, None] = survey.names
        self.checks = survey.checks
        self.reason: str | None = None
        self.message: str | None = None
        self.sequence = 0
        self.definition: D | None = None

    def is_current(self, value: Any) -> bool:
        return self.value is value and all(map(_holds, self.checks))


class _Pickled:
    __slots__ = ("data", "references", "uses")

    def __init__(self, data: bytes, references: dict[str, None], uses: dict[str, None]) -> None:
        self.data = data
        self.references = references
        self.uses = uses


class Definer(Generic[D]):
    """Makes definitions of functions, classes and globals, each once per object and version.

    Args:
        make: makes the opaque definition from its payload and the definitions that must be loaded
            before it.
    """

    def __init__(self, make: Callable[[bytes, tuple[D, ...]], D]) -> None:
        self._make = make
        self._records: dict[str, _Record[D]] = {}
        self._spaces = _Spaces()
        self._sequence = 0
        self._lock = RLock()
        # For `bindings`: names -> definitions, and what must hold for them to be current.
        self._known: dict[tuple[str, ...], tuple[tuple[D, ...], list[Check]]] = {}

    def function(self, fn: Any) -> tuple[D, list[Check]]:
        """Defines a callable, and says what must stay as it is for the definition to be current.

        Raises:
            NotPicklable: the callable cannot be sent; the message names the part that cannot.
        """
        with self._lock:
            if (place := _module_path(fn)) is not None:
                return self.reference(fn, *place)
            survey = _Survey(fn)
            path = _main_path(fn)
            if path is not None:
                top = _top(path)
                self._refresh((top,))
                record = self._records[top]
                if record.message is not None:
                    raise NotPicklable(record.message)
                payload = ("main", top, record.version, path)
                names: Iterable[str] = (top,)
                checks: list[Check] = []
            else:
                pickled = self._pickle(fn, getattr(fn, "__name__", "fn"))
                self._refresh((*survey.names, *pickled.references, *pickled.uses))
                self._require(pickled.references)
                payload = ("value", pickled.data)  # type: ignore[assignment]
                names = (*survey.names, *pickled.references, *pickled.uses)
                checks = survey.checks
            definitions, more = self._closure(names)
            return self._make(_plain_dumps(payload, _PROTOCOL), definitions), _distinct(
                [*checks, *more]
            )

    def dumps(self, obj: Any, root: str = "the object") -> tuple[bytes, tuple[D, ...]]:
        """Pickles an object that plain pickle cannot send, or would send as a wrong name.

        Args:
            obj: the object.
            root: what the message of an error calls it, such as `args[1]`.

        Returns:
            Bytes for plain `pickle.loads` in a worker, and what must be loaded there before.

        Raises:
            NotPicklable: the message names the part that cannot be sent.
        """
        with self._lock:
            pickled = self._pickle(obj, root)
            names = (*pickled.references, *pickled.uses)
            self._refresh(names)
            self._require(pickled.references)
            return pickled.data, self._closure(names)[0]

    def bindings(self, names: Iterable[str]) -> tuple[D, ...]:
        """The current bindings for names of `__main__` that a plain pickle refers to.

        Of a dotted name the first part counts.

        Raises:
            NotPicklable: a name is bound to something that cannot be sent.
        """
        key = tuple(names)
        known = self._known.get(key)
        if known is not None:
            check: Any
            for check in known[1]:
                if check[0] == "global":
                    if check[1].get(check[2], MISSING) is not check[3]:
                        break
                elif not _holds(check):
                    break
            else:
                return known[0]
        with self._lock:
            tops = tuple(dict.fromkeys(_top(name) for name in key))
            self._refresh(tops)
            self._require(tops)
            found = self._closure(tops)
            if len(self._known) >= 1024:
                self._known.clear()
            self._known[key] = found
            return found[0]

    # -- references

    def reference(self, fn: Any, module: types.ModuleType, qualname: str) -> tuple[D, list[Check]]:
        top = _top(qualname)
        checks: list[Check] = [("global", module.__dict__, top, module.__dict__[top])]
        code = getattr(fn, "__code__", None)
        if isinstance(code, types.CodeType):
            checks.insert(0, ("attr", fn, "__code__", code))
        digest = _resolve.fingerprint(fn)
        fallback = None
        helpers: tuple[Any, ...] = ()
        if digest is not None and _is_user_module(module):
            fallback = self._fallback(fn)
            helpers = self._helpers(fn, checks)
        payload = ("reference", module.__name__, qualname, digest, fallback, helpers)
        return self._make(_plain_dumps(payload, _PROTOCOL), ()), checks

    def _fallback(self, fn: Any) -> bytes | None:
        """The function by value, if that is possible without anything of `__main__`."""
        try:
            file = io.BytesIO()
            pickler = _ByValue(file, spaces=self._spaces, forced=fn, annotations=False)
            pickler.dump(fn)
        except Exception:
            return None
        return None if pickler.references or pickler.uses else file.getvalue()

    def _helpers(
        self, fn: Any, checks: list[Check]
    ) -> tuple[tuple[str, str, bytes, bytes | None], ...]:
        """The functions that this one calls in the user's modules, with digests of their code.

        A worker may have imported a module before it was edited and reloaded, or patched, here.
        Each is compared under the name by which it is called, whatever it calls itself.
        """
        found: list[tuple[str, str, bytes, bytes | None]] = []
        seen: set[tuple[str, str]] = set()
        pending = [fn]
        while pending and len(found) < _HELPERS:
            target = pending.pop()
            while (wrapped := getattr(target, "__wrapped__", None)) is not None:
                target = wrapped
            if not isinstance(target, _Function):
                continue
            namespace = target.__globals__
            module = _module_of_globals(namespace)
            if module is None or not _is_user_module(module):
                continue
            for name in _global_names(target.__code__):
                value = namespace.get(name)
                if not isinstance(value, (_Function, _LruCache)):
                    continue
                if (module.__name__, name) in seen:
                    continue
                seen.add((module.__name__, name))
                digest = _resolve.fingerprint(value)
                if digest is not None and _may_be_a_users(value):
                    found.append((module.__name__, name, digest, self._fallback(value)))
                    checks.append(("global", namespace, name, value))
                    pending.append(value)
        return tuple(found)

    # -- bindings

    def _refresh(self, names: Iterable[str]) -> None:
        """Makes sure that these names, and all they need, have current definitions."""
        main = _main_dict()
        seen: set[str] = set()
        batch: dict[str, _Record[D]] = {}
        pending = list(names)
        if main.get("__package__"):
            pending.append("__package__")  # for relative imports inside functions
        pickled: _Pickled | None = None
        while True:
            while pending:
                name = pending.pop()
                value = main.get(name, MISSING)
                if name in seen or value is MISSING or name in _OWN_NAMES:
                    continue
                seen.add(name)
                record = self._records.get(name)
                if record is None or not record.is_current(value):
                    version = 1 if record is None else record.version + 1
                    record = batch[name] = _Record(value, version)
                pending.extend(record.needs)
            if not batch:
                return
            pickled = self._pickle_batch(batch)
            pending = [
                name
                for name in (*pickled.references, *pickled.uses)
                if name not in seen and name in main and name not in _OWN_NAMES
            ]
            if not pending:
                break
        self._define(batch, pickled)

    def _define(self, batch: dict[str, _Record[D]], pickled: _Pickled) -> None:
        missing = {name: record.reason for name, record in batch.items() if record.reason}
        earlier = self._closure(pickled.references)[0]
        payload = _plain_dumps(("bindings", pickled.data, missing), _PROTOCOL)
        definition = self._make(payload, earlier)
        self._sequence += 1
        # Names that only pickling found, inside data, may belong to any record of the batch.
        found = {**pickled.references, **pickled.uses}
        for record in batch.values():
            for name in record.needs:
                found.pop(name, None)
        for name, record in batch.items():
            record.definition = definition
            record.sequence = self._sequence
            record.needs.update(found)
            self._records[name] = record

    def _pickle_batch(self, batch: dict[str, _Record[D]]) -> _Pickled:
        """Pickles the records that can be; the others get a reason."""
        while True:
            sendable = {n: record.value for n, record in batch.items() if record.reason is None}
            try:
                return self._pickle_names(batch, sendable)
            except Exception:
                if not self._blame(batch):
                    raise

    def _pickle_names(self, batch: Mapping[str, _Record[D]], names: Mapping[str, Any]) -> _Pickled:
        places = {name: index for index, name in enumerate(_main_dict())}
        roots = [_Root(name, batch[name], places.get(name, 0)) for name in names]
        roots.sort(key=_Root.order)
        return self._attempt(roots, inline=names, unsendable=self._reasons(batch))

    def _blame(self, batch: dict[str, _Record[D]]) -> bool:
        """Gives a reason to each record that cannot be pickled by itself; says whether any did."""
        blamed = False
        again = True
        while again:
            again = False
            for name, record in batch.items():
                if record.reason is not None:
                    continue
                try:
                    self._pickle_names(batch, {name: record.value})
                except Exception as error:
                    record.message, record.reason = self._describe(record.value, name, error)
                    blamed = again = True
        return blamed

    def _reasons(self, batch: Mapping[str, _Record[D]]) -> Callable[[str], str | None]:
        main = _main_dict()

        def reason(name: str) -> str | None:
            record = batch.get(name)
            if record is None:
                record = self._records.get(name)
                if record is None or record.value is not main.get(name, MISSING):
                    return None
            return record.message

        return reason

    def _closure(self, names: Iterable[str]) -> tuple[tuple[D, ...], list[Check]]:
        """The definitions of the names and all they need, in loading order, and their checks."""
        main = _main_dict()
        found: dict[int, D] = {}
        checks: list[Check] = []
        seen: set[str] = set()
        pending = list(names)
        if "__package__" in self._records:
            pending.append("__package__")
        while pending:
            name = pending.pop()
            if name in seen or name in _OWN_NAMES:
                continue
            seen.add(name)
            checks.append(("global", main, name, main.get(name, MISSING)))
            record = self._records.get(name)
            if record is None or record.value is not main.get(name, MISSING):
                continue
            if record.definition is not None:
                found[record.sequence] = record.definition
            checks.extend(record.checks)
            pending.extend(record.needs)
        return tuple(found[sequence] for sequence in sorted(found)), _distinct(checks)

    def _require(self, names: Iterable[str]) -> None:
        for name in names:
            record = self._records.get(name)
            if record is not None and record.message is not None:
                raise NotPicklable(record.message)

    # -- pickling

    def _attempt(self, obj: Any, **options: Any) -> _Pickled:
        """Pickles with the plainest means that work; raises what the first attempt raised."""
        _late_reducers()
        first: BaseException | None = None
        for annotated, rare in ((True, False), (False, False), (False, True)):
            more = _cloudpickle_reducers() if rare else None
            file = io.BytesIO()
            pickler = _ByValue(
                file, spaces=self._spaces, annotations=annotated, more=more, **options
            )
            try:
                pickler.dump(obj)
            except _Unsendable as error:
                if not annotated:
                    raise
                first = error
            except RecursionError:
                raise
            except Exception as error:
                first = first or error
            else:
                return _Pickled(file.getvalue(), pickler.references, pickler.uses)
        assert first is not None
        raise first

    def _pickle(self, obj: Any, root: str) -> _Pickled:
        try:
            return self._attempt(obj, unsendable=self._reasons({}))
        except MemoryError:
            raise
        except Exception as error:
            raise NotPicklable(self._explain(obj, root, error)) from error

    @staticmethod
    def _explain(obj: Any, root: str, error: BaseException) -> str:
        if isinstance(error, _Unsendable):
            return f"{root} cannot be sent: {error}"
        from manyhands import _diagnose

        return _diagnose.explain(obj, root)

    @staticmethod
    def _describe(value: Any, name: str, error: BaseException) -> tuple[str, str]:
        """A sentence, and a phrase to follow the name: "is a sqlite3.Connection"."""
        if isinstance(error, _Unsendable):
            return f"{name} cannot be sent: {error}", f"cannot be sent ({error})"
        from manyhands import _diagnose

        text = _diagnose.explain(value, name)
        if text.startswith(f"{name} is "):
            return text, text[len(name) + 1 :]
        return text, f"is {_diagnose.describe(value)} ({text})"


def _distinct(checks: list[Check]) -> list[Check]:
    """The checks without repetitions; what they hold is compared by identity."""
    seen: dict[tuple[Any, ...], Check] = {}
    for check in checks:
        key = (check[0], id(check[1])) if check[0] == "cell" else (check[0], id(check[1]), check[2])
        seen.setdefault(key, check)
    return list(seen.values())


def _cloudpickle_reducers() -> Mapping[type, Callable[[Any], Any]]:
    """Reducers of cloudpickle for rare types. Open files stay refused: it would copy their text."""
    try:
        import cloudpickle  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return {}
    table = getattr(getattr(cloudpickle, "CloudPickler", None), "dispatch_table", {})
    return {
        kind: reduce
        for kind, reduce in table.items()
        if kind not in _REDUCERS and isinstance(kind, type) and not issubclass(kind, io.IOBase)
    }


_result_spaces = _Spaces()


def dumps_result(obj: Any) -> bytes:
    """Pickles a result in a worker: names that came from the parent by name, the rest by value.

    Raises:
        NotPicklable: the message names the part that cannot be sent.
    """
    _late_reducers()
    failure: Exception | None = None
    for rare in (False, True):
        more = _cloudpickle_reducers() if rare else None
        file = io.BytesIO()
        try:
            _ByValue(file, spaces=_result_spaces, in_worker=True, more=more).dump(obj)
            return file.getvalue()
        except MemoryError:
            raise
        except Exception as error:
            failure = failure or error
    from manyhands import _diagnose

    raise NotPicklable(_diagnose.explain(obj, "the result")) from failure


# ------------------------------------------------------------------------------------- preloading


def modules_named_by(fn: Any) -> list[str]:
    """The importable modules a callable names: worth importing once, before workers are forked."""
    found: dict[str, None] = {}
    seen: dict[int, Any] = {}
    pending: list[Any] = [fn]

    def add(name: Any) -> None:
        if name != "builtins" and _importable(name) is not None:
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
        if isinstance(target, _LruCache):
            pending.append(target.__wrapped__)
            continue
        if not isinstance(target, _Function):
            own = isinstance(target, (type, types.BuiltinFunctionType))
            owner = target if own else type(target)
            module = getattr(owner, "__module__", None)
            add(module)
            if isinstance(owner, type) and module in _MAIN_NAMES:
                pending += [value for value in vars(owner).values() if isinstance(value, _Function)]
                pending += owner.__bases__
            continue
        add(target.__module__)
        namespace = target.__globals__
        add(namespace.get("__name__"))
        for name in _global_names(target.__code__):
            value = namespace.get(name)
            if isinstance(value, types.ModuleType) and hasattr(value, "__path__"):
                add(value.__name__)
                for submodule in _submodules_used(target.__code__, value):
                    add(submodule)
            elif _module_of_globals(namespace) is None or not isinstance(value, _Function):
                pending.append(value)
            else:
                add(getattr(value, "__module__", None))
        pending += [_content(cell) for cell in target.__closure__ or ()]
        if (wrapped := target.__dict__.get("__wrapped__")) is not None:
            pending.append(wrapped)
    return list(found)
