# ruff: noqa: PT031 - it is told with the first value, whichever that is.
"""Globals of modules that the program has set, and workers do not have: told in a warning.

Where workers were forked they had them. Programs found out that with Python 3.14, whose pools do
not fork by default, nothing worked any more (MatterBot#259), or that results were wrong in silence
(ungoogled-chromium#3866).
"""

from __future__ import annotations

import importlib
import itertools
import logging
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import manyhands as mh

_numbers = itertools.count()

Make = Callable[..., ModuleType]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes an importable module of this text; in it NAME is the name of the one made before."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["sys"]

    def make(text: str) -> ModuleType:
        name = f"settings_{next(_numbers)}"
        text = textwrap.dedent(text).replace("NAME", names[-1])
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return make


def warned(function: Callable[..., Any], *args: Any, **options: Any) -> list[str]:
    """What is told while a task runs it, in a pool of its own."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with mh.Pool(1, **options) as pool:
            for _ in range(3):
                pool.submit(function, *args).result()
    assert all(one.category is RuntimeWarning for one in told)
    return [str(one.message) for one in told]


CONFIG = """
    CONFIG = None

    def read(*_):
        return CONFIG
"""


def test_a_global_that_the_program_has_set_is_named(make: Make) -> None:
    module = make(CONFIG)
    module.CONFIG = {"url": "http://here"}
    [told] = warned(module.read)
    assert told == (
        "read reads what this program has set in a module: "
        f"'CONFIG' in module {module.__name__} is None in the workers, but "
        "{'url': 'http://here'} in this process. Workers import modules anew: pass it as an "
        "argument, or set it in an initializer="
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a partial", "call = functools.partial(functools.partial(read, 1), 2)"),
        ("a method", "call = Reader().read"),
        ("a class's method", "call = Reader.read_class"),
        ("an instance that is called", "call = Reader()"),
        ("a partial of a method", "call = functools.partial(Reader().read, 1)"),
        ("a wrapped function", "call = functools.wraps(read)(lambda *args: read(*args))"),
    ],
)
def test_what_is_not_a_plain_function(make: Make, name: str, text: str) -> None:
    module = make(f"""
        import functools

        LEVEL = 0

        def read(*_):
            return LEVEL

        class Reader:
            def read(self, *_):
                return read()

            read_class = classmethod(read)
            __call__ = read

        {text}
    """)
    module.LEVEL = 3
    with pytest.warns(RuntimeWarning, match="'LEVEL'") as told, mh.Pool(1) as pool:
        assert pool.map(module.call, range(3)).list() == [0] * 3, name
    [one] = told
    assert " is 0 in the workers, but 3 in this process" in str(one.message)


def test_a_callable_that_is_none_of_pythons_tells_nothing(make: Make) -> None:
    assert warned(len, "abc") == []
    assert warned(str, 3) == []


def test_where_the_function_stands(make: Make) -> None:
    module = make(CONFIG)
    module.CONFIG = 1
    with pytest.warns(RuntimeWarning, match="'CONFIG'") as told, mh.Pool(1) as pool:
        pool.submit(module.read).result()
    assert told[0].filename == module.__file__
    assert told[0].lineno == 4


def test_options_that_the_program_has_read(make: Make) -> None:
    """MatterBot#259: a bound method reads `options`, which the program alone has set."""
    module = make(
        """
        options = None

        def main(argument):
            global options
            options = {"debug": argument}
            return Feed()

        class Feed:
            def run(self, _):
                return "debug" in (options or ())
        """
    )
    feed = module.main(True)
    with pytest.warns(RuntimeWarning, match="'options'") as told, mh.Pool(1) as pool:
        assert pool.map(feed.run, range(3)).list() == [False] * 3
    [one] = told
    assert " is None in the workers, but {'debug': True} in this process" in str(one.message)


def test_a_list_that_the_program_has_extended(make: Make) -> None:
    """ungoogled-chromium#3866: what was added to a list of prefixes is silently not left out."""
    module = make(
        """
        PREFIXES = ["components/test/"]

        def add(prefix):
            PREFIXES.append(prefix)

        def is_left_out(path):
            return path.startswith(tuple(PREFIXES))
        """
    )
    module.add(".pc/")
    [told] = warned(module.is_left_out, ".pc/file")
    assert f"'PREFIXES' in module {module.__name__} is ['components/test/'] in the workers" in told
    assert "but ['components/test/', '.pc/'] in this process" in told


def test_a_setter_that_the_task_does_not_call(make: Make) -> None:
    module = make(
        """
        LEVEL = 1

        def set_level(level):
            global LEVEL
            LEVEL = level

        def read():
            return LEVEL
        """
    )
    module.set_level(3)
    [told] = warned(module.read)
    assert "'LEVEL'" in told
    assert "is 1 in the workers, but 3 in this process" in told


def test_a_script_that_sets_another_modules_global(make: Make) -> None:
    """The shape of most reports: `import settings; settings.CONFIG = ...` and then a pool."""
    settings = make("CONFIG = None\nOTHER = 1\n")
    tasks = make(
        """
        import NAME as settings

        def helper():
            return settings.CONFIG

        def task():
            return [helper() for _ in range(2)]
        """
    )
    settings.CONFIG = "set"  # type: ignore[attr-defined]
    [told] = warned(tasks.task)
    assert f"'CONFIG' in module {settings.__name__} is None in the workers, but 'set'" in told
    assert "OTHER" not in told


def test_a_function_that_is_sent_by_value(make: Make) -> None:
    module = make(
        """
        CONFIG = None

        def local():
            return lambda: CONFIG
        """
    )
    module.CONFIG = 5
    assert "'CONFIG'" in warned(module.local())[0]


@pytest.mark.parametrize(
    ("text", "value", "says"),
    [
        ("X = ''", "full", "'' in the workers, but 'full'"),
        ("X = []", [1, 2], "[] in the workers, but [1, 2]"),
        ("X = (1, 'a')", (1, "b"), "(1, 'a') in the workers, but (1, 'b')"),
        ("X = {'a': 1}", {"a": 2}, "{'a': 1} in the workers, but {'a': 2}"),
        ("X: int = 3", 4, "3 in the workers, but 4"),
        ("X = -1.5", 2.5, "-1.5 in the workers, but 2.5"),
        ("X = False", True, "False in the workers, but True"),
        ("X = None", Path("/tmp/there"), "None in the workers, but '/tmp/there'"),
        ("X = None", object(), "None in the workers, but a object"),
        ("", 7, "missing in the workers, but 7"),
        # Computed at import, and nothing came of it there.
        ("import os\nX = os.environ.get('NOT_THERE')", "x", "None in the workers, but 'x'"),
    ],
)
def test_values(make: Make, text: str, value: object, says: str) -> None:
    module = make(text + "\ndef read():\n    return str(globals()) and repr(X)[:0]\n")
    module.X = value  # type: ignore[attr-defined]
    if not text:
        # Reading what is not there fails, and what fails brings no value.
        module = make(text + "\ndef read():\n    return 'X' in globals() and X\n")
        module.X = value  # type: ignore[attr-defined]
    [told] = warned(module.read)
    assert f"'X' in module {module.__name__} is {says} in this process" in told


@pytest.mark.parametrize(
    ("text", "function", "value"),
    [
        # As it was.
        ("X = 3", "return X", 3),
        ("X = [1, (2, 'a')]", "return X", [1, (2, "a")]),
        ("X = float('nan')", "return X", float("nan")),
        # Computed at import: a process id, a stamp, a token.
        ("import os\nX = os.getpid()", "return X", 17),
        ("import time\nX = int(time.time())", "return X", 17),
        ("import uuid\nX = uuid.uuid4().hex", "return X", "17"),
        ("import os\nX = 1 if os.environ.get('NOT_THERE') else 2", "return X", 3),
        ("import random\nX = 1\nX = random.random()", "return X", 0.5),
        # Counters and caches.
        ("X = 0", "global X; X += 1; return X", 17),
        ("X = None", "global X; X = X or 'made'; return X", "made"),
        ("X = {}", "return X.setdefault('a', 1)", {"a": 1}),
        ("X = []", "X.append(1)", [1]),
        ("X = {}\ndef cached():\n    return X.setdefault(1, 2)", "return cached() and X", {1: 2}),
        ("X = None\ndef get():\n    global X\n    X = 1", "get(); return X", "made"),
        # Not there in this process, and large.
        ("X = 'default'", "return X", None),
        ("X = ''", "return X", "x" * 10_000),
        ("X = []", "return X", [0] * 1000),
        # Not read.
        ("X = 1", "return 0", 2),
    ],
)
def test_what_is_natural_is_not_told(make: Make, text: str, function: str, value: object) -> None:
    module = make(f"{text}\ndef read():\n    {function}\n")
    module.X = value  # type: ignore[attr-defined]
    assert warned(module.read) == []


def test_an_initializer_that_sets_it(make: Make) -> None:
    module = make(
        CONFIG + "\n    def set_up(value):\n        global CONFIG\n        CONFIG = value\n"
    )
    module.set_up(5)
    assert warned(module.read, initializer=module.set_up, initargs=(5,)) == []
    assert len(warned(module.read, initializer=module.set_up, initargs=(6,))) == 1


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_where_it_is_the_same_module_nothing_is_told(make: Make, engine: Any) -> None:
    module = make(CONFIG)
    module.CONFIG = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mh.Pool(None if engine == "inline" else 1, engine=engine) as pool:
            assert pool.submit(module.read).result() == 5


def test_it_is_told_once_for_each_function_and_pool(make: Make) -> None:
    module = make(CONFIG + "\n    def other():\n        return CONFIG\n")
    module.CONFIG = 5
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            with mh.Pool(2, recycle_after_tasks=20) as pool:
                assert set(pool.map(module.read, range(100))) == {None}
                pool.refresh(module.read)
                assert pool.submit(module.read).result() is None
                assert pool.submit(module.other).result() is None
    assert [str(one.message).split()[0] for one in told] == ["read", "other"] * 2


@pytest.mark.parametrize("value", [None, 5, [1, 2], b"x" * 10, b"x" * 1_000_000, {"a": {1, 2}}])
def test_values_are_what_they_are(make: Make, value: object) -> None:
    module = make("X = None\ndef identity(value):\n    return value if X is None else X\n")
    module.X = 5  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match="'X'"), mh.Pool(1) as pool:
        assert pool.submit(module.identity, value).result() == value
        assert list(pool.map(module.identity, [value] * 3)) == [value] * 3


def test_what_a_map_streams(make: Make) -> None:
    module = make("X = None\ndef twice(value):\n    yield value\n    yield X\n")
    module.X = 5  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match="'X'") as told, mh.Pool(1) as pool:
        assert list(pool.map(module.twice, [1, 2])) == [1, None, 2, None]
    assert len(told) == 1


def test_a_task_that_fails_first(make: Make) -> None:
    module = make("X = None\ndef divide(n):\n    return 1 / n, X\n")
    module.X = 5  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match="'X'"), mh.Pool(1) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.submit(module.divide, 0).result()
        assert pool.submit(module.divide, 1).result() == (1, None)


def test_what_cannot_be_sent_takes_nothing_along(make: Make) -> None:
    module = make(
        "X = None\ndef read(n):\n    return (iter(()).__class__, X, n and open('/dev/null'))[n]\n"
    )
    module.X = 5  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match="'X'"), mh.Pool(1) as pool:
        with pytest.raises(mh.NotPicklable):
            pool.submit(module.read, 2).result()
        assert pool.submit(module.read, 1).result() is None


def test_tasks_of_tasks_tell_the_program(make: Make) -> None:
    module = make(CONFIG)
    module.CONFIG = 5
    read = module.read
    with pytest.warns(RuntimeWarning, match="'CONFIG'"), mh.Pool(1) as pool:

        def ask() -> object:
            return pool.submit(read).result()

        assert pool.submit(ask).result() is None


def test_a_filter_that_makes_an_error_of_it_costs_no_result(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    module = make(CONFIG)
    module.CONFIG = 5
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "manyhands"):
        warnings.simplefilter("error")
        with mh.Pool(1) as pool:
            assert pool.submit(module.read).result() is None
    assert "'CONFIG' in module" in caplog.text


def test_a_filter_that_ignores_it(make: Make) -> None:
    module = make(CONFIG)
    module.CONFIG = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".* reads what this program has set")
        with mh.Pool(1) as pool:
            assert pool.submit(module.read).result() is None


def test_nothing_is_imported_for_it(make: Make) -> None:
    settings = make("CONFIG = None\n")
    tasks = make(
        """
        import sys

        def task(name):
            return name in sys.modules

        def task_with(name):
            import NAME as settings
            return name in sys.modules, settings.CONFIG
        """
    )
    settings.CONFIG = 5  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mh.Pool(1) as pool:
            assert pool.submit(tasks.task, settings.__name__).result() is False
    assert sys.modules[settings.__name__] is settings
