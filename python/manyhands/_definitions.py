"""The parent's side of definitions: how functions, classes and globals get to the workers.

Workers never run the user's script again. What lives in an importable module is sent as a
*reference*: its module, its name and a digest of its code. What lives in `__main__` is sent by
value, once per object, as a *binding* that the worker installs in its own real `__main__` under the
same name; so instances of a script's classes then travel by ordinary pickle in both directions.
Lambdas, closures and local functions are sent by value and run in the globals they have here.

Bindings that are first needed together are pickled together. One pickle keeps objects that they
share shared, and lets them refer to each other in circles. A name that is bound anew later gets a
new version, in a pickle of its own.

Here is the definer, with its records of what was defined. What code refers to is read by `_code`;
the pickler is in `_by_value`.
"""

from __future__ import annotations

import io
import types
from _pickle import dumps as _plain_dumps
from _thread import RLock
from collections.abc import Callable, Iterable, Mapping, Sequence

from manyhands import _core, _resolve
from manyhands._by_value import (
    PROTOCOL,
    ByValue,
    Root,
    Spaces,
    Unsendable,
    add_late_reducers,
    cloudpickle_reducers,
)
from manyhands._code import (
    MISSING,
    OWN_NAMES,
    Check,
    Function,
    LruCache,
    Survey,
    global_names,
    holds,
    is_user_module,
    main_dict,
    main_path,
    may_be_a_users,
    module_of_globals,
    module_path,
    top_of,
)
from manyhands._errors import NotPicklable
from manyhands._module_globals import watch
from manyhands._typing import Any, Generic, TypeVar

__all__ = ["MISSING", "Check", "Definer"]

D = TypeVar("D")

# Stands for the value of a name that may have changed inside: no name is bound to this.
_CHANGED: Any = object()

_HELPERS = 64  # functions of the user's modules that are compared along with the one submitted


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

    def __init__(self, value: Any, version: float) -> None:
        survey = Survey(value)
        self.value = value
        self.version = version
        self.needs: dict[str, None] = survey.names
        self.checks = survey.checks
        self.reason: str | None = None
        self.message: str | None = None
        self.sequence = 0
        self.definition: D | None = None

    def is_current(self, value: Any) -> bool:
        return self.value is value and all(map(holds, self.checks))


class _Pickled(Generic[D]):
    __slots__ = ("apart", "data", "needs", "references", "uses")

    def __init__(
        self,
        data: bytes,
        references: dict[str, None],
        uses: dict[str, None],
        needs: tuple[D, ...],
        apart: _core.Collector,
    ) -> None:
        self.data = data
        self.apart = apart
        self.references = references
        self.uses = uses
        self.needs = needs


class Definer(Generic[D]):
    """Makes definitions of functions, classes and globals, each once per object and version.

    Args:
        make: makes the opaque definition from its payload, the definitions that must be loaded
            before it, and the buffers in the store that the payload speaks of.
        hear: calls a function with its argument, and gives the definitions that the objects which
            it pickles say they need.
    """

    def __init__(
        self,
        make: Callable[[bytes, tuple[D, ...], _core.Stored | None], D],
        hear: Callable[[Callable[[Any], object], Any], Sequence[D]],
    ) -> None:
        self._make = make
        self._hear = hear
        self._records: dict[str, _Record[D]] = {}
        self._spaces = Spaces()
        self._sequence = 0
        # Names of `__main__` whose definition is being made, for messages.
        self.pending: tuple[str, ...] = ()
        self._lock = RLock()
        # For `bindings`: names -> definitions, and what must hold for them to be current.
        self._known: dict[tuple[str, ...], tuple[tuple[D, ...], list[Check]]] = {}

    def function(self, fn: Any) -> tuple[D, list[Check]]:
        """Defines a callable, and says what must stay as it is for the definition to be current.

        Raises:
            NotPicklable: the callable cannot be sent; the message names the part that cannot.
        """
        with self._lock:
            watched = watch(fn)
            watching = () if watched is None else (self._make(watched, (), None),)
            if (place := module_path(fn)) is not None:
                return self.reference(fn, *place, watching)
            survey = Survey(fn)
            path = main_path(fn)
            if path is not None:
                top = top_of(path)
                self._refresh((top,))
                record = self._records[top]
                if record.message is not None:
                    raise NotPicklable(record.message)
                payload: tuple[Any, ...] = ("main", top, record.version, path)
                stored = None
                names: Iterable[str] = (top,)
                checks: list[Check] = []
                needs: tuple[D, ...] = ()
            else:
                pickled = self._pickle(fn, getattr(fn, "__name__", "fn"))
                self._refresh((*survey.names, *pickled.references, *pickled.uses))
                self._require(pickled.references)
                stored, within = pickled.apart.keep()
                payload = ("value", pickled.data, within)
                names = (*survey.names, *pickled.references, *pickled.uses)
                checks = survey.checks
                needs = pickled.needs
            definitions, more = self._closure(names)
            # What is compared comes last: the others may have imported the modules.
            needs = (*definitions, *needs, *watching)
            made = self._make(_plain_dumps(payload, PROTOCOL), needs, stored)
            return made, _distinct([*checks, *more])

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
            pickled = self._pickle(obj, root, is_apart=False)
            return pickled.data, self._needs_of(pickled)

    def dumps_apart(
        self, obj: Any, root: str
    ) -> tuple[bytes, tuple[bytearray, ...], _core.Stored | None, tuple[D, ...]]:
        """As `dumps`, without large buffers: they are second, or third, in the store."""
        with self._lock:
            pickled = self._pickle(obj, root)
            needs = self._needs_of(pickled)
            stored, within = pickled.apart.keep()
            return pickled.data, within, stored, needs

    def _needs_of(self, pickled: _Pickled[D]) -> tuple[D, ...]:
        names = (*pickled.references, *pickled.uses)
        self._refresh(names)
        self._require(pickled.references)
        return (*self._closure(names)[0], *pickled.needs)

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
                elif not holds(check):
                    break
            else:
                return known[0]
        with self._lock:
            tops = tuple(dict.fromkeys(top_of(name) for name in key))
            self._refresh(tops)
            self._require(tops)
            found = self._closure(tops)
            if len(self._known) >= 1024:
                self._known.clear()
            self._known[key] = found
            return found[0]

    def refresh(self, fn: Any) -> None:
        """What a callable uses of `__main__` counts as changed, though it be the same objects."""
        with self._lock:
            path = main_path(fn)
            pending = list(Survey(fn).names) if path is None else [top_of(path)]
            seen: set[str] = set()
            while pending:
                name = pending.pop()
                record = self._records.get(name)
                if name not in seen and record is not None:
                    seen.add(name)
                    record.value = _CHANGED
                    pending.extend(record.needs)
            self._known.clear()
            # The namespaces of other modules are sent anew, as new ones.
            self._spaces = Spaces()

    # -- references

    def reference(
        self, fn: Any, module: types.ModuleType, qualname: str, needs: tuple[D, ...] = ()
    ) -> tuple[D, list[Check]]:
        top = top_of(qualname)
        checks: list[Check] = [("global", module.__dict__, top, module.__dict__[top])]
        code = getattr(fn, "__code__", None)
        if isinstance(code, types.CodeType):
            checks.insert(0, ("attr", fn, "__code__", code))
        digest = _resolve.fingerprint(fn)
        fallback = None
        helpers: tuple[Any, ...] = ()
        if digest is not None and is_user_module(module):
            fallback = self._fallback(fn)
            helpers = self._helpers(fn, checks)
        payload = ("reference", module.__name__, qualname, digest, fallback, helpers)
        return self._make(_plain_dumps(payload, PROTOCOL), needs, None), checks

    def _fallback(self, fn: Any) -> bytes | None:
        """The function by value, if that is possible without any other definition."""
        try:
            file = io.BytesIO()
            pickler = ByValue(file, spaces=self._spaces, forced=fn, annotations=False)
            needs = self._hear(pickler.dump, fn)
        except Exception:
            return None
        return None if pickler.references or pickler.uses or needs else file.getvalue()

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
            if not isinstance(target, Function):
                continue
            namespace = target.__globals__
            module = module_of_globals(namespace)
            if module is None or not is_user_module(module):
                continue
            for name in global_names(target.__code__):
                value = namespace.get(name)
                if not isinstance(value, (Function, LruCache)):
                    continue
                if (module.__name__, name) in seen:
                    continue
                seen.add((module.__name__, name))
                digest = _resolve.fingerprint(value)
                if digest is not None and may_be_a_users(value):
                    found.append((module.__name__, name, digest, self._fallback(value)))
                    checks.append(("global", namespace, name, value))
                    pending.append(value)
        return tuple(found)

    # -- bindings

    def _refresh(self, names: Iterable[str]) -> None:
        """Makes sure that these names, and all they need, have current definitions."""
        main = main_dict()
        seen: set[str] = set()
        batch: dict[str, _Record[D]] = {}
        pending = list(names)
        if main.get("__package__"):
            pending.append("__package__")  # for relative imports inside functions
        while True:
            while pending:
                name = pending.pop()
                value = main.get(name, MISSING)
                if name in seen or value is MISSING or name in OWN_NAMES:
                    continue
                seen.add(name)
                record = self._records.get(name)
                if record is None or not record.is_current(value):
                    version = _next_version(name, value, record)
                    record = batch[name] = _Record(value, version)
                pending.extend(record.needs)
            if not batch:
                return
            pickled = self._pickle_batch(batch)
            pending = [
                name
                for name in (*pickled.references, *pickled.uses)
                if name not in seen and name in main and name not in OWN_NAMES
            ]
            if not pending:
                break
        self._define(batch, pickled)

    def _define(self, batch: dict[str, _Record[D]], pickled: _Pickled[D]) -> None:
        missing = {name: record.reason for name, record in batch.items() if record.reason}
        earlier = self._closure(pickled.references)[0]
        stored, within = pickled.apart.keep()
        payload = _plain_dumps(("bindings", pickled.data, within, missing), PROTOCOL)
        self.pending = tuple(batch)
        definition = self._make(payload, (*earlier, *pickled.needs), stored)
        self.pending = ()
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

    def _pickle_batch(self, batch: dict[str, _Record[D]]) -> _Pickled[D]:
        """Pickles the records that can be; the others get a reason."""
        while True:
            sendable = {n: record.value for n, record in batch.items() if record.reason is None}
            try:
                return self._pickle_names(batch, sendable)
            except Exception:
                if not self._blame(batch):
                    raise

    def _pickle_names(
        self, batch: Mapping[str, _Record[D]], names: Mapping[str, Any]
    ) -> _Pickled[D]:
        places = {name: index for index, name in enumerate(main_dict())}
        roots = [
            Root(name, value, batch[name].version, places.get(name, 0))
            for name, value in names.items()
        ]
        roots.sort(key=Root.order)
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
        main = main_dict()

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
        main = main_dict()
        found: dict[int, D] = {}
        checks: list[Check] = []
        seen: set[str] = set()
        pending = list(names)
        if "__package__" in self._records:
            pending.append("__package__")
        while pending:
            name = pending.pop()
            if name in seen or name in OWN_NAMES:
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

    def _attempt(self, obj: Any, is_apart: bool = True, **options: Any) -> _Pickled[D]:
        """Pickles with the plainest means that work; raises what the first attempt raised.

        With `is_apart` large buffers are kept out of the pickle.
        """
        add_late_reducers()
        first: BaseException | None = None
        for annotated, rare in ((True, False), (False, False), (False, True)):
            more = cloudpickle_reducers() if rare else None
            file, collector = io.BytesIO(), _core.Collector()
            pickler = ByValue(
                file,
                spaces=self._spaces,
                annotations=annotated,
                more=more,
                apart=collector if is_apart else None,
                **options,
            )
            try:
                needs = self._hear(pickler.dump, obj)
            except Unsendable as error:
                if not annotated:
                    raise
                first = error
            except RecursionError:
                raise
            except Exception as error:
                first = first or error
            else:
                data = file.getvalue()
                return _Pickled(data, pickler.references, pickler.uses, tuple(needs), collector)
        assert first is not None
        raise first

    def _pickle(self, obj: Any, root: str, is_apart: bool = True) -> _Pickled[D]:
        try:
            return self._attempt(obj, is_apart, unsendable=self._reasons({}))
        except MemoryError:
            raise
        except Exception as error:
            raise NotPicklable(self._explain(obj, root, error)) from error

    @staticmethod
    def _explain(obj: Any, root: str, error: BaseException) -> str:
        if isinstance(error, Unsendable):
            return f"{root} cannot be sent: {error}"
        from manyhands import _diagnose

        return _diagnose.explain(obj, root)

    @staticmethod
    def _describe(value: Any, name: str, error: BaseException) -> tuple[str, str]:
        """A sentence, and a phrase to follow the name: "is a sqlite3.Connection"."""
        if isinstance(error, Unsendable):
            return f"{name} cannot be sent: {error}", f"cannot be sent ({error})"
        from manyhands import _diagnose

        text = _diagnose.explain(value, name)
        if text.startswith(f"{name} is "):
            return text, text[len(name) + 1 :]
        return text, f"is {_diagnose.describe(value)} ({text})"


def _next_version(name: str, value: Any, last: _Record[Any] | None) -> float:
    """The version of a name that is bound to this now.

    The program counts from 1. What one of its workers has from it keeps its version, so that other
    workers know it again; what a task there has bound instead lies before the program's next one.
    """
    known = _resolve.installed(name)
    if known is None and not _resolve.is_worker():
        return 1 if last is None else last.version + 1
    version, installed = known or (0, MISSING)
    if installed is value and (last is None or last.version < version):
        return version
    version = max(version, 0 if last is None else last.version)
    return version + (int(version) + 1 - version) * _resolve.share()


def _distinct(checks: list[Check]) -> list[Check]:
    """The checks without repetitions; what they hold is compared by identity."""
    seen: dict[tuple[Any, ...], Check] = {}
    for check in checks:
        key = (check[0], id(check[1])) if check[0] == "cell" else (check[0], id(check[1]), check[2])
        seen.setdefault(key, check)
    return list(seen.values())
