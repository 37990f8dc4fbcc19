"""The pickler that sends by value what a worker could not find by name, with its reducers.

Functions, classes, enums, modules and the small things that they are made of reduce to calls of
`_resolve`, which makes them anew in a worker. The parent uses it for definitions and arguments; a
worker, for results that plain pickle refuses.
"""

from __future__ import annotations

import builtins
import functools
import io
import marshal
import sys
import types
from _pickle import PickleBuffer, Pickler, PicklingError
from collections.abc import Callable, Mapping

from manyhands import _reducers, _resolve
from manyhands._code import (
    HEAP_TYPE,
    MAIN_NAMES,
    MISSING,
    OWN_NAMES,
    Function,
    LruCache,
    content_of,
    global_names,
    importable,
    in_main,
    is_code,
    is_user_module,
    light_globals,
    main_dict,
    main_path,
    module_of_globals,
    module_path,
    submodules_used,
    top_of,
)
from manyhands._errors import NotPicklable
from manyhands._octets import reduce_memoryview
from manyhands._typing import Any, cast

__all__ = [
    "PROTOCOL",
    "ByValue",
    "Root",
    "Spaces",
    "Unsendable",
    "add_late_reducers",
    "cloudpickle_reducers",
    "dumps_result",
]

PROTOCOL = 5
_SPACES = 1024  # as many namespaces of dynamic modules as a worker remembers


class Unsendable(PicklingError):
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
        return (version, is_code(value), value)


class Spaces:
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


class Root:
    """A name to bind: it reduces to the call that installs it, as soon as it has been loaded.

    What is loaded after it may already need it: `__setstate__` and `__hash__` run while data is
    being unpickled, and they read globals.
    """

    __slots__ = ("_order", "_value", "_version", "name")

    def __init__(self, name: str, value: Any, version: float, index: int) -> None:
        self.name = name
        self._value = value
        self._version = version
        if isinstance(value, types.ModuleType):
            rank = 0
        elif isinstance(value, (Function, str, bytes, int, float, type(None))):
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
        value = self._value
        return (_resolve._bind, (self.name, self._version, is_code(value), value))


_Reduced = Any  # what `reducer_override` may return: NotImplemented, a string or a tuple


class ByValue(Pickler):
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
        spaces: Spaces,
        inline: Mapping[str, Any] = {},  # never written to
        unsendable: Callable[[str], str | None] = lambda name: None,
        forced: Any = MISSING,
        in_worker: bool = False,
        annotations: bool = True,
        more: Mapping[type, Callable[[Any], Any]] | None = None,
        apart: Callable[[PickleBuffer], Any] | None = None,
    ) -> None:
        super().__init__(file, PROTOCOL, buffer_callback=apart)
        self.references: dict[str, None] = {}
        self.uses: dict[str, None] = {}
        self._main = main_dict()
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
        if in_main(kind):
            return self._instance_of_main(obj)
        return NotImplemented

    def _of_library(self, obj: Any) -> _Reduced:
        return _reducers.TABLE[type(obj)](obj)

    def _root(self, root: Root) -> _Reduced:
        return root.call()

    def _memoryview(self, view: memoryview) -> _Reduced:
        return reduce_memoryview(view)

    # -- by name or by value

    def _by_name(self, obj: Any) -> bool:
        """Whether the object can be named; notes the name if it is one of `__main__`."""
        if obj is self._forced:
            return False
        if module_path(obj) is not None:
            return True
        path = main_path(obj)
        return path is not None and self._refer(top_of(path), obj)

    def _refer(self, top: str, obj: Any) -> bool:
        if top in self._inline:
            return False
        if self._in_worker:
            # The parent has the name only if it came from there.
            known = _resolve._book.get(top)
            return known is not None and known[1] is self._main.get(top, MISSING)
        if (reason := self._unsendable(top)) is not None:
            raise Unsendable(f"it needs {top} of __main__, and {reason}")
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
                self.uses.update(dict.fromkeys(global_names(code)))
        elif (module := module_of_globals(namespace)) is not None:
            space = module.__name__
            if is_user_module(module) and (extras := light_globals(code, namespace)):
                state["extras"] = extras
        else:
            known = self._spaces.of(namespace)
            space = (known.token, str(namespace.get("__name__", "")))
            values = {
                name: known.versioned(name, namespace[name])
                for name in global_names(code)
                if name in namespace and name not in OWN_NAMES
            }
            state["space"] = (known.token, values)
        imports = [
            submodule
            for name in global_names(code)
            if isinstance(value := namespace.get(name), types.ModuleType)
            and hasattr(value, "__path__")
            and importable(value.__name__) is not None
            for submodule in submodules_used(code, value)
        ]
        if imports:
            state["imports"] = imports
        cells = function.__closure__
        if cells:
            contents = []
            for cell in cells:
                if id(cell) not in self._claimed:
                    self._claimed[id(cell)] = cell
                    if (content := content_of(cell)) is not MISSING:
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
                or (isinstance(value, type) and module_path(value) is not None)
            )
        ]
        if not doubtful:
            return True
        if not self._annotations:
            return False
        trial = ByValue(
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
        content = content_of(cell)
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
        if name in MAIN_NAMES or (importable(name) is not None and sys.modules[name] is module):
            return (_resolve._module, (name,))
        space = self._spaces.of(module.__dict__)
        values = {
            key: space.versioned(key, value)
            for key, value in list(module.__dict__.items())
            if key not in OWN_NAMES
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
        reduced = obj.__reduce_ex__(PROTOCOL)
        if not isinstance(reduced, str):
            return reduced
        if in_main(obj) and not self._refer(top_of(reduced), obj):
            state = vars(obj) if hasattr(obj, "__dict__") else None
            return (_resolve._bare_instance, (kind,), state)
        return reduced

    # -- classes

    def _class(self, cls: type) -> _Reduced:
        if cls in _BUILTIN_TYPES:
            return (_resolve._attribute, ("types", _BUILTIN_TYPES[cls]))
        if not cls.__flags__ & HEAP_TYPE or self._by_name(cls):
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
        if kind._member_map_.get(name) is not obj or module_path(kind) is not None:
            return None
        return (_resolve._member, (kind, name))


_REDUCERS: dict[type, Callable[[Any, Any], _Reduced]] = {
    Root: ByValue._root,
    Function: ByValue._function,
    types.CellType: ByValue._cell,
    types.CodeType: ByValue._code,
    types.MethodType: ByValue._method,
    types.ModuleType: ByValue._module,
    types.MappingProxyType: ByValue._proxy,
    staticmethod: ByValue._wrapper,
    classmethod: ByValue._wrapper,
    property: ByValue._property,
    functools.cached_property: ByValue._cached_property,
    LruCache: ByValue._lru_cache,
    io.TextIOWrapper: ByValue._stream,
    memoryview: ByValue._memoryview,
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


def add_late_reducers() -> None:
    """Adds reducers for types of modules that not every program imports."""
    typing = sys.modules.get("typing")
    if typing is not None:
        for name in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "TypeAliasType"):
            if (kind := getattr(typing, name, None)) is not None:
                _REDUCERS.setdefault(kind, ByValue._type_variable)
    weakref = sys.modules.get("weakref")
    if weakref is not None:
        _REDUCERS.setdefault(weakref.WeakKeyDictionary, ByValue._weak_dictionary)
        _REDUCERS.setdefault(weakref.WeakValueDictionary, ByValue._weak_dictionary)
        _REDUCERS.setdefault(weakref.WeakSet, ByValue._weak_set)
    _reducers.find()
    for kind in _reducers.TABLE:
        _REDUCERS.setdefault(kind, ByValue._of_library)


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


def cloudpickle_reducers() -> Mapping[type, Callable[[Any], Any]]:
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


# -------------------------------------------------------------------------------------- results

_result_spaces = Spaces()


def dumps_result(obj: Any) -> bytes:
    """Pickles a result in a worker: names that came from the parent by name, the rest by value.

    Raises:
        NotPicklable: the message names the part that cannot be sent.
    """
    add_late_reducers()
    failure: Exception | None = None
    for rare in (False, True):
        more = cloudpickle_reducers() if rare else None
        file = io.BytesIO()
        try:
            ByValue(file, spaces=_result_spaces, in_worker=True, more=more).dump(obj)
            return file.getvalue()
        except MemoryError:
            raise
        except Exception as error:
            failure = failure or error
    from manyhands import _diagnose

    raise NotPicklable(_diagnose.explain(obj, "the result")) from failure
