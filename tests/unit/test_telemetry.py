"""The context of OpenTelemetry travels with tasks, by a stand-in for the package.

P55 (sentry#111451): a thread pool loses the trace.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# As far as it is used: contexts are dicts in a variable on an instance, spans cannot be pickled.
_CONTEXT = """
import threading
from contextvars import ContextVar

class Context(dict):
    pass

class _Runtime:
    def __init__(self):
        self._current_context = ContextVar("current_context", default=Context())

_RUNTIME_CONTEXT = _Runtime()

def get_current():
    return _RUNTIME_CONTEXT._current_context.get()

def attach(context):
    return _RUNTIME_CONTEXT._current_context.set(context)

def detach(token):
    _RUNTIME_CONTEXT._current_context.reset(token)

class Span:
    def __init__(self, trace):
        self.trace = trace
        self.lock = threading.Lock()

def in_span(trace):
    return attach(Context(span=Span(trace)))

def trace():
    span = get_current().get("span")
    return None if span is None else span.trace
"""
_PROPAGATE = """
from opentelemetry.context import Context, Span, get_current

injected = 0

def inject(carrier, context=None):
    global injected
    injected += 1
    span = (get_current() if context is None else context).get("span")
    if span is not None:
        carrier["traceparent"] = span.trace

def extract(carrier, context=None):
    return Context(span=Span(carrier["traceparent"]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "opentelemetry"
    for name, text in (("", ""), ("context", _CONTEXT), ("propagate", _PROPAGATE)):
        (package / name).mkdir(parents=True, exist_ok=True)
        (package / name / "__init__.py").write_text(text)
    return tmp_path


def run(folder: Path, program: str) -> list[str]:
    path = folder / "program.py"
    path.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_task_finds_the_trace_of_its_caller(folder: Path) -> None:
    lines = run(
        folder,
        """
        import manyhands as mh
        from opentelemetry import context, propagate

        def work(_=None):
            return context.trace()

        def outer():
            return context.trace(), mh.submit(work).result()

        with mh.Pool(2) as pool:
            print(pool.submit(work).result())
            token = context.in_span("trace 1")
            before = propagate.injected
            futures = [pool.submit(work) for _ in range(50)]
            print({future.result() for future in futures}, propagate.injected - before)
            print(set(pool.map(work, range(50))), pool.submit(outer).result())
            later = pool.map(work, range(5))
            context.detach(token)
            context.in_span("trace 2")
            print(set(later), pool.submit(work).result())
        with mh.Pool(1, context=[]) as pool:
            print(pool.submit(work).result())
        """,
    )
    assert lines == [
        "None",
        "{'trace 1'} 1",
        "{'trace 1'} ('trace 1', 'trace 1')",
        "{'trace 1'} trace 2",
        "None",
    ]


def test_beside_other_variables(folder: Path) -> None:
    lines = run(
        folder,
        """
        from contextvars import ContextVar
        import manyhands as mh
        from opentelemetry import context

        user = ContextVar("user", default="nobody")

        def work():
            return user.get(), context.trace()

        user.set("me")
        with mh.Pool(1, context=["__main__:user"]) as pool:
            print(pool.submit(work).result())
            context.in_span("trace 1")
            print(pool.submit(work).result())
        """,
    )
    assert lines == ["('me', None)", "('me', 'trace 1')"]


def test_what_a_program_without_it_pays(folder: Path) -> None:
    """Nothing: it is not imported for being installed, neither here nor in workers."""
    lines = run(
        folder,
        """
        import sys
        import manyhands as mh

        def loaded():
            return [name for name in sys.modules if "telemetry" in name]

        with mh.Pool(1) as pool:
            print(loaded(), pool.submit(loaded).result())
        """,
    )
    assert lines == ["[] []"]
