"""The context of OpenTelemetry travels with tasks, by a stand-in for the package and by itself.

P55 (sentry#111451): a thread pool loses the trace.
"""

from __future__ import annotations

import importlib.util
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


# ---- the package itself -----------------------------------------------------------------------

# `seen` says what a task finds: trace, span, flags, state, what is in the baggage, and what is kept
# in the context beside that.
_PACKAGE = """
from contextvars import ContextVar
from opentelemetry import baggage, context, trace
import manyhands as mh

def enter(number):
    span = trace.SpanContext(
        trace_id=0xabc0 + number,
        span_id=0xdef0 + number,
        is_remote=False,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
        trace_state=trace.TraceState([("shop", str(number))]),
    )
    inside = trace.set_span_in_context(trace.NonRecordingSpan(span))
    inside = baggage.set_baggage("user", f"me, you & {number}", inside)
    return context.attach(context.set_value("local", number, inside))

def seen(_=None):
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return "nothing", *sorted(baggage.get_all()), context.get_value("local")
    return (
        f"{span.trace_id:x}", f"{span.span_id:x}", int(span.trace_flags), span.trace_state["shop"],
        baggage.get_baggage("user"), context.get_value("local"),
    )

def outer():
    return seen(), mh.submit(seen).result()

def spoil(number):
    found = seen()
    enter(number)
    return found
"""


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A folder for programs that find the package where it is installed."""
    if importlib.util.find_spec("opentelemetry") is None:
        pytest.skip("OpenTelemetry is not installed here")
    return tmp_path


def run_with_package(folder: Path, program: str) -> list[str]:
    return run(folder, _PACKAGE + textwrap.dedent(program))


def inside(number: int, *, engine: str = "process") -> tuple[object, ...]:
    """What a task finds that was submitted where `enter(number)` was called."""
    # What is in the context beside the trace and the baggage cannot be sent, and threads share it.
    local = number if engine == "thread" else None
    return f"abc{number}", f"def{number}", 1, str(number), f"me, you & {number}", local


NOTHING = ("nothing", None)


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_the_package_itself(real: Path, engine: str) -> None:
    lines = run_with_package(
        real,
        f"""
        with mh.Pool(2, engine={engine!r}) as pool:
            print(pool.submit(seen).result())
            token = enter(1)
            futures = [pool.submit(seen) for _ in range(50)]
            print({{future.result() for future in futures}})
            print(set(pool.map(seen, range(50))))
            print(pool.submit(outer).result()[0])
            later = pool.map(seen, range(5))
            context.detach(token)
            print(pool.submit(seen).result())
            token = enter(2)
            print(set(later))
            print(pool.submit(seen).result())
        print(seen())
        context.detach(token)
        print(seen())
        """,
    )
    first, second = inside(1, engine=engine), inside(2, engine=engine)
    assert lines == [
        str(NOTHING),
        str({first}),
        str({first}),
        str(first),
        str(NOTHING),
        str({first}),
        str(second),
        str(inside(2, engine="thread")),
        str(NOTHING),
    ]


def test_tasks_of_tasks_find_the_trace(real: Path) -> None:
    lines = run_with_package(
        real,
        """
        with mh.Pool(2) as pool:
            enter(3)
            print(pool.submit(outer).result())
        with mh.Pool(1, context=[]) as pool:
            print(pool.submit(seen).result())
        """,
    )
    assert lines == [str((inside(3), inside(3))), str(NOTHING)]


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_tasks_leave_nothing_behind(real: Path, engine: str) -> None:
    """One worker; each task enters a trace of its own and never leaves it."""
    lines = run_with_package(
        real,
        f"""
        # On threads a caller in whose context nothing is set has none that tasks get a copy of.
        ContextVar("any").set(1)
        with mh.Pool(1, engine={engine!r}) as pool:
            futures = []
            for number in range(60):
                token = enter(number % 3) if number % 3 else None
                futures.append(pool.submit(spoil, 7))
                if token is not None:
                    context.detach(token)
            found = [future.result() for future in futures]
            for number in range(3):
                print(*set(found[number::3]))
            print(set(pool.map(spoil, [8] * 20)), pool.submit(seen).result())
        with mh.Pool(1, engine={engine!r}) as pool:
            print(pool.submit(seen).result())
        print(seen())
        """,
    )
    assert lines == [
        str(NOTHING),
        str(inside(1, engine=engine)),
        str(inside(2, engine=engine)),
        f"{ {NOTHING} } {NOTHING}",
        str(NOTHING),
        str(NOTHING),
    ]


def test_the_package_is_not_imported_for_being_installed(real: Path) -> None:
    lines = run(
        real,
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
