"""Context variables that travel with tasks: which there are, and how workers take them.

They are named as "module:name". What they are set to is pickled by the parent at each `submit` and
map, unless it is what the last task had, and is a definition that the task needs; see `context.rs`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

from manyhands import _core, _resolve

if TYPE_CHECKING:
    from manyhands._cells import CurrentCell
    from manyhands._telemetry import CurrentContext

    _Variable = ContextVar[Any] | CurrentContext | CurrentCell

__all__ = ["carrier", "check_names", "load", "stream", "with_telemetry"]

# Values that cannot change inside: whether they are what they were is seen by their identity.
_FIXED = frozenset({type(None), bool, int, float, complex, str, bytes})

_carriers: dict[tuple[str, ...], _core.ContextCarrier] = {}
# What they have defined may lie in the store of the process that was forked.
os.register_at_fork(after_in_child=_carriers.clear)

# For each variable: its name, its value if it has one, and its default if workers make it anew.
_Item = tuple[str, tuple[Any, ...], tuple[Any, ...]]


def check_names(names: object) -> tuple[str, ...]:
    """The names, if each is that of a context variable.

    Raises:
        TypeError: they are no names, or something else has one of them.
        ValueError: one of them is not of the form "module:name", or there is no such thing.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f'context is a list of names like "module:name", not {names!r}')
    found = tuple(dict.fromkeys(names))
    for name in found:
        _find(name)
    return found


def carrier(names: tuple[str, ...]) -> _core.ContextCarrier:
    """What takes the values of these variables, which were checked, for tasks."""
    found = _carriers.get(names)
    if found is None:
        variables = [_find(name) for name in names]
        define = _Definer(names, variables)
        found = _core.ContextCarrier([variable.get for variable in variables], define)
        found = _carriers.setdefault(names, found)
    return found


def with_telemetry(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, and that of the context of OpenTelemetry, if the program has imported that."""
    from manyhands import _telemetry

    if _telemetry.NAME in names or not _telemetry.is_imported():
        return names
    return (*names, _telemetry.NAME)


def _find(name: object) -> _Variable:
    if not isinstance(name, str):
        raise TypeError(f'a context variable is named as "module:name", not {name!r}')
    if name == "opentelemetry:context":  # `_telemetry.NAME`; it is imported with its first use
        from manyhands._telemetry import CurrentContext

        return CurrentContext()
    if name == "manyhands:cell":  # `_cells.NAME`
        from manyhands._cells import CurrentCell

        return CurrentCell()
    module, _, path = name.partition(":")
    if not module or not path:
        raise ValueError(f'a context variable is named as "module:name", not {name!r}')
    try:
        found = _resolve.resolve(module, path)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no context variable {name!r}: {error}") from error
    if not isinstance(found, ContextVar):
        kind = type(found).__name__
        raise TypeError(f"{name!r} is no contextvars.ContextVar, but of the type {kind}")
    return found


class _Definer:
    """Makes definitions of the values of variables."""

    def __init__(self, names: tuple[str, ...], variables: list[_Variable]) -> None:
        self._names = names
        self._variables = variables
        self._last: tuple[bytes, _core.Definition] | None = None

    def __call__(self, values: list[Any]) -> tuple[_core.Definition, bool]:
        """The definition, and whether the values stay as they are."""
        from manyhands import _encoding
        from manyhands._definitions import MISSING

        items: dict[str, _Item] = {}
        for name, variable, value in zip(self._names, self._variables, values, strict=True):
            default: tuple[Any, ...] = ()
            if name.startswith("__main__:") and isinstance(variable, ContextVar):
                default = _default(variable)
            items[name] = name, () if value is MISSING else (value,), default
        known = self._last
        data, definition = _encoding.define_context(items, known)
        self._last = (data, definition) if data else None
        return definition, all(value is MISSING or type(value) in _FIXED for value in values)


def _default(variable: ContextVar[Any]) -> tuple[Any, ...]:
    try:
        return (Context().run(variable.get),)
    except LookupError:
        return ()


def load(items: dict[str, _Item]) -> _core.TaskContext:
    """Carries out the definition, in a worker: the context in which tasks that need it run."""
    context = copy_context()
    for name, value, default in items.values():
        _make_in_main(name, default)
        variable = _find(name)
        if value:
            context.run(variable.set, *value)
    return _core.TaskContext(context, carrier(tuple(items)))


def _make_in_main(name: str, default: tuple[Any, ...]) -> None:
    """A variable of the parent's `__main__` cannot be sent: the worker makes its own."""
    module, _, path = name.partition(":")
    if module == "__main__" and "." not in path:
        namespace = sys.modules["__main__"].__dict__
        if path not in namespace:
            made: ContextVar[Any] = (
                ContextVar(path, default=default[0]) if default else ContextVar(path)
            )
            namespace[path] = made


def stream(context: Context, generator: Generator[Any, Any, Any]) -> Generator[Any, None, Any]:
    """The generator, whose body runs in this context."""
    step: Any = generator.send
    sent: Any = None
    try:
        while True:
            try:
                value = context.run(step, sent)
            except StopIteration as end:
                return end.value
            try:
                step, sent = generator.send, (yield value)
            except GeneratorExit:
                raise
            except BaseException as error:
                step, sent = generator.throw, error
    finally:
        context.run(generator.close)
