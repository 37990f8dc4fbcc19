"""What `python -m manyhands.demo` measures, on sources small enough to count by hand."""

from __future__ import annotations

import ast
import pickle
import signal
import subprocess
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest

from manyhands import demo


def measured(source: str) -> demo.FileMeasure:
    return demo.measure_source(dedent(source).encode())


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("pass", 1),
        ("if a: pass", 2),
        ("if a: pass\nelse: pass", 2),
        ("if a: pass\nelif b: pass\nelif c: pass\nelse: pass", 4),
        ("return a if b else c", 2),
        ("for x in y: pass\nelse: pass", 2),
        ("while a: pass", 2),
        ("with a: pass", 1),
        ("assert a", 1),
        ("try: pass\nexcept A: pass\nexcept B: pass\nelse: pass\nfinally: pass", 3),
        ("return a and b", 2),
        ("return a and b and c or d", 4),
        ("return [x for x in y]", 1),
        ("return [x for x in y if x if x > 1]", 3),
        ("return {k: v for k, v in y if k for z in k if z}", 3),
        ("match a:\n    case 1: pass\n    case 2 | 3: pass\n    case _: pass", 3),
        ("match a:\n    case _ if b: pass", 2),
        ("match a:\n    case b: pass", 2),
        ("return lambda: a if b else c", 2),
    ],
)
def test_complexity_of_one_function(body: str, complexity: int) -> None:
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    file = measured(f"def f(a, b, c, d, y):\n{indented}\n")
    assert (file.functions, file.complexity) == (1, complexity)


def test_async_branches_count_as_their_plain_forms() -> None:
    file = measured(
        """\
        async def f(xs):
            async for x in xs:
                async with x:
                    pass
        """
    )
    assert (file.functions, file.complexity) == (1, 2)


def test_methods_and_inner_functions_count_for_themselves() -> None:
    file = measured(
        """\
        if __debug__:
            class A:
                def one(self):
                    def inner(x):
                        if x:
                            pass
                        while x:
                            pass
                    return inner

                async def two(self):
                    pass
        """
    )
    # one: 1, inner: 3, two: 1; the `if` outside all functions is nobody's.
    assert (file.functions, file.complexity) == (3, 5)
    assert file.longest == demo.FunctionMeasure("A.one", 3, 7, 1)
    assert file.most_complex == demo.FunctionMeasure("A.one.inner", 4, 5, 3)


def test_first_function_wins_a_tie() -> None:
    file = measured("def a(): pass\ndef b(): pass\n")
    assert file.longest is not None
    assert file.longest.name == "a"
    assert file.most_complex is not None
    assert file.most_complex.name == "a"


@pytest.mark.parametrize(
    ("source", "lines"), [(b"", 0), (b"x = 1", 1), (b"x = 1\n", 1), (b"\n\n", 2)]
)
def test_files_without_functions(source: bytes, lines: int) -> None:
    assert demo.measure_source(source, "name") == demo.FileMeasure(
        "name", lines, 0, 0, None, None, None
    )


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"def f(:\n", "SyntaxError: "),
        (b"# coding: no-such-coding\n", "SyntaxError: "),
        (b"x = '\xff'\n", "SyntaxError: "),
        (b"x = 1\0\n", ""),
    ],
)
def test_invalid_source_is_reported_not_raised(source: bytes, error: str) -> None:
    file = demo.measure_source(source)
    assert file.error is not None
    assert file.error.startswith(error)
    assert (file.functions, file.complexity, file.longest, file.most_complex) == (0, 0, None, None)


def test_encoding_declared_in_the_file_is_used() -> None:
    file = demo.measure_source("# coding: latin-1\ndef \xe9(): pass\n".encode("latin-1"))
    assert file.longest is not None
    assert file.longest.name == "\xe9"


def test_deeply_nested_expression_does_not_overflow() -> None:
    depth = 80
    source = "def f(a):\n    return " + "(a and " * depth + "a" + ")" * depth + "\n"
    assert measured(source).complexity == 1 + depth


def test_measure_reads_a_file_and_its_answer_travels(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f(x):\n    return x or 1\n")
    file = demo.measure(str(path))
    assert file == demo.FileMeasure(
        str(path),
        2,
        1,
        2,
        demo.FunctionMeasure("f", 1, 2, 2),
        demo.FunctionMeasure("f", 1, 2, 2),
        None,
    )
    assert pickle.loads(pickle.dumps(file)) == file


def test_every_function_of_a_real_module_is_found() -> None:
    path = ast.__file__
    tree = ast.parse(Path(path).read_bytes())
    expected = sum(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree)
    )
    assert expected > 0
    assert demo.measure(path).functions == expected


def test_standard_library_has_no_tests_and_no_installed_packages() -> None:
    paths = demo.standard_library()
    assert ast.__file__ in paths
    assert len(paths) > 100
    assert paths == sorted(set(paths))
    assert not [path for path in paths if demo.SKIPPED_FOLDERS & set(Path(path).parts[-3:-1])]


@pytest.mark.parametrize("count", [1, 3, 10, 11])
def test_spread_takes_as_many_as_asked_at_even_distances(count: int) -> None:
    paths = [str(number) for number in range(10)]
    taken = demo._spread(paths, count)
    assert len(taken) == min(count, 10)
    assert taken == sorted(set(taken), key=int)
    assert taken[0] == "0"


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--seconds", "-1"], ["--seconds", "nan"]])
def test_senseless_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        demo._parser().parse_args(arguments)
    assert refused.value.code == 2


class Workers:
    """What the demo sees of a pool: the pids of its workers, from one look to the next."""

    def __init__(self, *looks: tuple[int, ...]) -> None:
        self.looks = list(looks)

    def stats(self) -> SimpleNamespace:
        pids = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return SimpleNamespace(workers=[SimpleNamespace(pid=pid) for pid in pids])


@pytest.mark.parametrize("gone", ["killed", "died", "unborn"])
def test_the_demo_kills_a_worker_that_lives(gone: str) -> None:
    """The first of the list may be dead and not buried, or have no number yet."""
    with subprocess.Popen(["sleep", "600"]) as dead, subprocess.Popen(["sleep", "600"]) as alive:
        dead.kill()
        if gone != "killed":
            dead.wait()  # its number is nobody's any more
        first = None if gone == "unborn" else dead.pid
        killed = [dead.pid] if gone == "killed" else []
        pool = Workers((first,), (first, alive.pid))
        assert demo._kill_one(pool, killed, 6, 12) == alive.pid  # type: ignore[arg-type]
        assert alive.wait() == -signal.SIGKILL
