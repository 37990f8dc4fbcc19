"""The context of OpenTelemetry, which travels with tasks as its propagators write it.

Its context variable holds spans, which cannot be sent, so what travels is text: what
`propagate.inject` gives for it, such as the `traceparent` of the current span. Nothing of it is
imported before the program does, or a context comes to a worker.
"""

from __future__ import annotations

import sys
from importlib import import_module

from manyhands._typing import Any

__all__ = ["NAME", "CurrentContext", "is_imported"]

# What stands in lists of context variables for it.
NAME = "opentelemetry:context"

_MODULE = "opentelemetry.context"


def is_imported() -> bool:
    """Whether the program uses OpenTelemetry."""
    return _MODULE in sys.modules


class CurrentContext:
    """Stands where a `ContextVar` does: its value is the current context as text."""

    def __init__(self) -> None:
        # The last context and its text: many tasks are submitted in one.
        self._last: tuple[Any, str | None] = (None, None)

    def get(self, missing: Any) -> Any:
        """The text; `missing` where there is nothing to tell."""
        contexts = sys.modules.get(_MODULE)
        if contexts is None:
            return missing
        current = contexts.get_current()
        last, text = self._last
        if current is not last:
            text = _written(current)
            self._last = current, text
        return missing if text is None else text

    def set(self, text: str) -> None:
        """Makes it the current context here, in a worker."""
        import json

        context: Any = import_module(_MODULE)
        context.attach(_propagate().extract(json.loads(text)))


def _written(current: Any) -> str | None:
    import json

    fields: dict[str, str] = {}
    _propagate().inject(fields, current)
    return json.dumps(fields, sort_keys=True) if fields else None


def _propagate() -> Any:
    return import_module("opentelemetry.propagate")
