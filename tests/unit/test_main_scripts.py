"""Programs as people write them: no guard, functions and classes of `__main__`, all ways to start.

Each program runs in a process of its own, so that `__main__` is the program's.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from programs import output_of, run, run_file

# Everything that a script may define and hand to workers, without a guard.
PROGRAM = """
import dataclasses
import enum
import functools
import os
import manyhands as mh

FACTOR = 3
table = {"a": 1}

def times(number):
    return number * FACTOR

def fibonacci(number):
    return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

def uses_others(number):
    return times(number) + len(table) + fibonacci(5)

def pid_and_main(number):
    import __main__
    return os.getpid() != 0 and __main__.times is times and times.__module__ == "__main__"

@dataclasses.dataclass
class Point:
    x: int
    y: int = 0
    def moved(self, by):
        return Point(self.x + by, self.y)
    @classmethod
    def origin(cls):
        return cls(0)

class Colour(enum.Enum):
    RED = 1
    BLUE = 2

class Own(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code

def swap(point, colour):
    assert type(point) is Point and isinstance(colour, Colour)
    return Point(point.y, point.x), Colour.RED if colour is Colour.BLUE else Colour.BLUE

def fail(code):
    raise Own(code)

connection = None
def connect(text):
    global connection
    connection = text
def ask():
    return connection

def outer(bound):
    def inner(number):
        return number + bound
    return inner

with mh.Pool(2, initializer=connect, initargs=("database",)) as pool:
    print(pool.submit(times, 2).result())
    print(list(pool.map(uses_others, range(3))))
    print(pool.submit(pid_and_main, 1).result())
    print(pool.submit(lambda: FACTOR + 1).result())
    print(pool.submit(outer(10), 1).result())
    print(pool.submit(functools.partial(outer(10), 2)).result())
    print(pool.submit(swap, Point(1, 2), Colour.RED).result())
    print(pool.submit(Point(1).moved, 5).result())
    print(pool.submit(Point.origin).result())
    print(pool.submit(Point, 8, y=9).result() == Point(8, 9))
    print([type(point) is Point for point in pool.map(Point, range(2))])
    try:
        pool.submit(fail, 6).result()
    except Own as error:
        print("caught", error.code)
    print(pool.submit(ask).result(), connection)
print(list(mh.map(times, [1])), __name__)
"""
EXPECTED = """\
6
[6, 9, 12]
True
4
11
12
(Point(x=2, y=1), <Colour.BLUE: 2>)
Point(x=6, y=0)
Point(x=0, y=0)
True
[True, True]
caught 6
database None
[3] __main__
"""


# ------------------------------------------------------------------------------ ways to start


def test_a_file(tmp_path: Path) -> None:
    assert output_of(tmp_path, PROGRAM) == EXPECTED


def test_a_command() -> None:
    ended = run("-c", PROGRAM)
    assert (ended.out, ended.err, ended.code) == (EXPECTED, "", 0)


def test_standard_input() -> None:
    ended = run("-", stdin=PROGRAM)
    assert (ended.out, ended.err, ended.code) == (EXPECTED, "", 0)


@pytest.mark.parametrize("name", ["module", "package.module", "package"])
def test_a_module(tmp_path: Path, name: str) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    for file in ("module.py", "package/module.py", "package/__main__.py"):
        (tmp_path / file).write_text(PROGRAM)
    ended = run("-m", name, cwd=tmp_path)
    assert (ended.out, ended.err, ended.code) == (EXPECTED, "", 0)


def test_a_module_with_relative_imports(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("NUMBER = 4\n")
    (package / "sibling.py").write_text("def double(n): return 2 * n\n")
    (package / "module.py").write_text(
        "from . import NUMBER\n"
        "from .sibling import double\n"
        "import manyhands as mh\n"
        "def work(n):\n"
        "    from .sibling import double as again\n"
        "    return double(n) + NUMBER + again(n)\n"
        "print(list(mh.map(work, range(3))))\n"
        "print(list(mh.map(double, range(3))))\n"
    )
    ended = run("-m", "package.module", cwd=tmp_path)
    assert (ended.out, ended.err, ended.code) == ("[4, 8, 12]\n[0, 2, 4]\n", "", 0)


def test_a_folder_and_an_archive(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "__main__.py").write_text(PROGRAM)
    ended = run(tmp_path)
    assert (ended.code, ended.out, ended.err) == (0, EXPECTED, "")
    archive = tmp_path / "program.pyz"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("__main__.py", PROGRAM)
    ended = run(archive)
    assert (ended.code, ended.out, ended.err) == (0, EXPECTED, "")


def test_an_interactive_session() -> None:
    # Blocks have to end with an empty line there, and lines of blocks must not be empty.
    session = """\
import manyhands as mh
pool = mh.Pool(2)
def twice(n):
    return 2 * n

list(pool.map(twice, range(3)))
pool.submit(lambda: twice(21)).result()
def twice(n):
    return 20 * n

pool.submit(twice, 3).result()
class Thing:
    def __init__(self, n):
        self.n = n

pool.submit(Thing, 7).result().n
1 / 0
list(mh.map(twice, [1]))
"""
    ended = run("-i", "-q", stdin=session)
    assert ended.code == 0
    assert ended.out == "[0, 2, 4]\n42\n60\n7\n[20]\n"
    assert "ZeroDivisionError" in ended.err


def test_a_session_that_has_seen_an_error_ends_well() -> None:
    # `sys.last_value` is set then, which elsewhere means that the program ends by an exception.
    session = (
        "import manyhands as mh\n1/0\npool = mh.Pool(1)\nfuture = pool.submit(pow, 2, 5)\n"
        "future.add_done_callback(lambda future: print('done', future.result()))\n"
    )
    ended = run("-i", "-q", stdin=session)
    assert ended.code == 0
    assert "done 32" in ended.out


def test_after_a_script_with_i(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import manyhands as mh\ndef twice(n): return 2 * n\nprint(mh.submit(twice, 1).result())\n"
    )
    ended = run("-i", "-q", script, stdin="mh.submit(twice, 4).result()\n")
    assert (ended.out, ended.code) == ("2\n8\n", 0)


NOTEBOOK = '''
import sys, types
import manyhands as mh

class Shell:
    """As IPython does: cells are compiled on their own, run in the dictionary of `__main__`."""
    def __init__(self):
        self.main = types.ModuleType("__main__")
        sys.modules["__main__"] = self.main
        self.count = 0
    def cell(self, source):
        import linecache
        self.count += 1
        name = f"<ipython-input-{self.count}>"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec"), self.main.__dict__)

shell = Shell()
shell.cell("import manyhands as mh\\npool = mh.Pool(2)")
shell.cell("N = 5\\ndef f(x):\\n    return x + N")
shell.cell("print(list(pool.map(f, range(3))))")
shell.cell("N = 100")
shell.cell("print(list(pool.map(f, range(3))))")
shell.cell("def f(x):\\n    return -x")
shell.cell("print(list(pool.map(f, range(3))))")
shell.cell("class A:\\n    def go(self): return 'first'\\nprint(pool.submit(A().go).result())")
shell.cell("old = A()\\nclass A:\\n    def go(self): return 'second'")
shell.cell("print(pool.submit(A().go).result(), pool.submit(old.go).result())")
shell.cell("def boom():\\n    raise ValueError('x')  # the line of the cell")
shell.cell("""
try:
    pool.submit(boom).result()
except ValueError as error:
    print('in boom' in str(error.__cause__))
""")
shell.cell("pool.shutdown()")
'''


def test_a_notebook(tmp_path: Path) -> None:
    assert output_of(tmp_path, NOTEBOOK) == (
        "[5, 6, 7]\n[100, 101, 102]\n[0, -1, -2]\nfirst\nsecond first\nTrue\n"
    )


def test_functions_of_a_test_module_that_pytest_has_loaded(tmp_path: Path) -> None:
    test = tmp_path / "test_inside.py"
    test.write_text(
        textwrap.dedent(
            """
            import pytest
            import manyhands as mh

            LIMIT = 3

            def work(n):
                assert n < LIMIT, "too many"
                return n

            class Thing:
                pass

            @pytest.fixture
            def pool():
                with mh.Pool(2) as pool:
                    yield pool

            def test_map(pool):
                assert list(pool.map(work, range(3))) == [0, 1, 2]
                assert type(pool.submit(Thing).result()) is Thing

            def test_rewritten_assertion(pool):
                with pytest.raises(AssertionError, match="too many"):
                    pool.submit(work, 9).result()

            def test_local(pool):
                bonus = 5
                assert pool.submit(lambda n: work(n) + bonus, 1).result() == 6

            def test_patched(pool, monkeypatch):
                assert pool.submit(work, 2).result() == 2
                monkeypatch.setattr(__import__(__name__), "LIMIT", 1)
                with pytest.raises(AssertionError):
                    work(2)
            """
        )
    )
    for mode in ("prepend", "importlib"):
        ended = run(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}",
            "-c", "/dev/null", "--rootdir", tmp_path, test, cwd=tmp_path,
        )  # fmt: skip
        assert ended.code == 0, ended.out + ended.err
        assert "4 passed" in ended.out


def test_a_program_run_by_runpy_and_exec(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = run("-c", f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == EXPECTED
    ended = run("-c", f"exec(open({str(program)!r}).read())")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == EXPECTED


def test_the_script_runs_once(tmp_path: Path) -> None:
    source = """
        import os, sys
        print("start", __name__)
        import manyhands as mh
        def work(n):
            return "sys.argv", sys.argv[1:], __name__, os.path.basename(__file__)
        for answer in mh.map(work, range(2)):
            print(answer)
        """
    expected = "('sys.argv', ['one', 'two'], '__main__', 'script.py')\n"
    assert output_of(tmp_path, source, "one", "two") == "start __main__\n" + 2 * expected


def test_a_guard_does_no_harm(tmp_path: Path) -> None:
    source = """
        import multiprocessing
        import manyhands as mh
        def work(n):
            return n + 1
        def main():
            with mh.Pool(2) as pool:
                print(list(pool.map(work, range(3))))
        if __name__ == "__main__":
            multiprocessing.freeze_support()
            main()
        """
    assert output_of(tmp_path, source) == "[1, 2, 3]\n"


def test_beside_multiprocessing(tmp_path: Path) -> None:
    source = """
        import multiprocessing
        import manyhands as mh
        def work(n):
            return n + 1
        def inside(n):
            return list(mh.map(work, range(n)))
        if __name__ == "__main__":
            for method in "fork", "spawn", "forkserver":
                with multiprocessing.get_context(method).Pool(1) as theirs:
                    print(method, theirs.map(work, [1]), list(mh.map(work, [1])),
                          theirs.map(inside, [2]))
        """
    assert output_of(tmp_path, source, interpreter=sys.executable) == (
        "fork [2] [2] [[1, 2]]\nspawn [2] [2] [[1, 2]]\nforkserver [2] [2] [[1, 2]]\n"
    )


def test_a_script_of_asyncio(tmp_path: Path) -> None:
    source = """
        import asyncio
        import manyhands as mh
        def work(n):
            return n * n
        async def main():
            with mh.Pool(2) as pool:
                print(await asyncio.gather(*[pool.submit(work, n) for n in range(4)]))
                async with asyncio.TaskGroup() as group:
                    async def one(n):
                        return await pool.submit(work, n)
                    tasks = [group.create_task(one(n)) for n in range(3)]
                print([task.result() for task in tasks])
        asyncio.run(main())
        """
    assert output_of(tmp_path, source) == "[0, 1, 4, 9]\n[0, 1, 4]\n"


# ------------------------------------------------------------------------ the end of the program


def test_what_was_submitted_runs_before_the_program_ends(tmp_path: Path) -> None:
    source = """
        import sys, pathlib
        import manyhands as mh
        pool = mh.Pool(2)
        def touch(n):
            pathlib.Path(sys.argv[1], str(n)).touch()
        futures = [pool.submit(touch, n) for n in range(100)]
        for n in range(100, 150):
            mh.submit(touch, n)
        """
    (tmp_path / "out").mkdir()
    assert output_of(tmp_path, source, str(tmp_path / "out")) == ""
    assert len(list((tmp_path / "out").iterdir())) == 150


@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        ("sys.exit(5)", 5, ""),
        ("sys.exit('message')", 1, "message"),
        ("raise ValueError('at the end')", 1, "ValueError: at the end"),
        ("pool.submit(lambda: 1 / 0).result()", 1, "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
    ],
)
def test_exit_codes(tmp_path: Path, end: str, code: int, text: str) -> None:
    ended = run_file(
        tmp_path,
        f"""
        import sys
        import manyhands as mh
        pool = mh.Pool(2)
        print(pool.submit(abs, -1).result(), flush=True)
        {end}
        """,
    )
    assert ended.out == "1\n"
    assert ended.code in (code, -2) if code == 130 else ended.code == code
    assert text in ended.err
    assert ended.err.count("Traceback (most recent call last)") == (
        0 if "sys.exit" in end else 2 if "submit" in end else 1
    )


def test_an_uncaught_error_shows_the_line_in_the_worker(tmp_path: Path) -> None:
    ended = run_file(
        tmp_path,
        """
        import manyhands as mh
        def work(n):
            return 1 / n  # the culprit
        list(mh.map(work, [2, 1, 0]))
        """,
    )
    assert ended.code == 1
    assert "return 1 / n  # the culprit" in ended.err
    assert "ZeroDivisionError: division by zero" in ended.err
    assert "manyhands: item 2: work(0), in worker " in ended.err


def test_an_error_cancels_what_waits(tmp_path: Path) -> None:
    source = """
        import pathlib, sys, time
        import manyhands as mh
        pool = mh.Pool(1)
        def touch(n):
            if n >= 1000:
                time.sleep(0.002)  # all of them take longer than any program may
            pathlib.Path(sys.argv[1], str(n)).write_text("")
            return n
        futures = [pool.submit(touch, n) for n in range(100_000)]
        futures[0].result()
        raise SystemError("end")
        """
    (tmp_path / "out").mkdir()
    ended = run_file(tmp_path, source, str(tmp_path / "out"))
    assert ended.code == 1
    assert "SystemError: end" in ended.err
    assert 1 <= len(list((tmp_path / "out").iterdir())) < 100_000


# ------------------------------------------------------------------------------------- printing


def test_prints_of_tasks_come_as_whole_lines(tmp_path: Path) -> None:
    source = """
        import sys
        import manyhands as mh
        def work(n):
            for step in range(50):
                print("line", n, step, "x" * 50)
                print("error", n, step, file=sys.stderr)
        list(mh.map(work, range(8)))
        """
    ended = run_file(tmp_path, source, env={"MANYHANDS_WORKERS": "2"})
    assert ended.code == 0
    assert sorted(ended.out.splitlines()) == sorted(
        f"line {n} {step} {'x' * 50}" for n in range(8) for step in range(50)
    )
    assert sorted(ended.err.splitlines()) == sorted(
        f"error {n} {step}" for n in range(8) for step in range(50)
    )


def test_prints_without_a_line_end_come_too(tmp_path: Path) -> None:
    source = """
        import manyhands as mh
        with mh.Pool(1) as pool:
            pool.submit(print, "no line end", end="").result()
            pool.submit(print, "|", end="").result()
        print("|parent")
        """
    assert output_of(tmp_path, source) == "no line end||parent\n"


def test_prints_of_the_parent_are_not_repeated(tmp_path: Path) -> None:
    # What a forked child finds in a buffer it would print again.
    source = """
        import manyhands as mh
        print("from the parent", end=" ")
        with mh.Pool(2) as pool:
            list(pool.map(abs, range(10)))
        print("once")
        """
    assert output_of(tmp_path, source) == "from the parent once\n"


def test_output_that_was_redirected_before_the_pool(tmp_path: Path) -> None:
    source = """
        import os, sys
        import manyhands as mh
        mh.submit(abs, 1).result()  # the zygote is there, with the old output
        target = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
        os.dup2(target, 1)
        with mh.Pool(1) as pool:
            pool.submit(print, "to the file").result()
        """
    target = tmp_path / "target"
    assert output_of(tmp_path, source, str(target)) == ""
    assert target.read_text() == "to the file\n"


def test_closed_standard_streams(tmp_path: Path) -> None:
    source = """
        import os, sys
        import manyhands as mh
        for number in (0, 1, 2):
            os.close(number)
        sys.stdin = sys.stdout = sys.stderr = None
        with mh.Pool(2) as pool:
            results = list(pool.map(abs, range(100)))
            pool.submit(print, "nowhere").result()
            data = bytes(3_000_000)
            assert pool.submit(bytes, data).result() == data
        open(sys.argv[1], "w").write(str(results == list(range(100))))
        """
    ended = run_file(tmp_path, source, str(tmp_path / "answer"))
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (tmp_path / "answer").read_text() == "True"


# ------------------------------------------------------------------- function identity (C21)


MODULE = "NUMBER = 1\ndef work():\n    return {0!r}\ndef calls():\n    return work()\n"


@pytest.mark.parametrize("what", ["work", "calls"])
def test_a_module_that_was_edited_and_reloaded(tmp_path: Path, what: str) -> None:
    (tmp_path / "edited.py").write_text(MODULE.format("old"))
    source = f"""
        import importlib, sys, pathlib
        sys.dont_write_bytecode = True
        import edited
        import manyhands as mh
        with mh.Pool(1) as pool:
            print(pool.submit(edited.{what}).result())
            path = pathlib.Path(edited.__file__)
            path.write_text(path.read_text().replace("'old'", "'newer'"))
            importlib.invalidate_caches()
            importlib.reload(edited)
            print(edited.{what}(), pool.submit(edited.{what}).result())
            with mh.Pool(1) as other:
                print(other.submit(edited.{what}).result())
        """
    assert output_of(tmp_path, source) == "old\nnewer newer\nnewer\n"


def test_a_module_that_was_edited_and_not_reloaded(tmp_path: Path) -> None:
    # What runs in a worker is what the parent has now, not what a fresh import would give.
    (tmp_path / "edited.py").write_text(MODULE.format("old"))
    source = """
        import pathlib, sys
        sys.dont_write_bytecode = True
        import edited
        path = pathlib.Path(edited.__file__)
        path.write_text(path.read_text().replace("'old'", "'newer'"))
        import manyhands as mh
        with mh.Pool(1) as pool:
            print(edited.work(), pool.submit(edited.work).result())
        """
    assert output_of(tmp_path, source) == "old old\n"


def test_a_patched_module(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(MODULE.format("real"))
    source = """
        import library
        import manyhands as mh
        real = library.work
        with mh.Pool(1) as pool:
            print(pool.submit(library.work).result())
            library.work = lambda: "patched"
            print(pool.submit(library.work).result())
            def stub():
                return "stub"
            stub.__module__, stub.__qualname__ = "library", "work"
            library.work = stub
            print(pool.submit(library.work).result())
            library.work = real
            print(pool.submit(library.work).result(), pool.submit(library.calls).result())
        """
    assert output_of(tmp_path, source) == "real\npatched\nstub\nreal real\n"


def test_a_function_whose_helper_was_patched(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(MODULE.format("real"))
    source = """
        import library, other
        import manyhands as mh
        def stub():
            return "stub"
        with mh.Pool(1) as pool:
            print(library.calls(), pool.submit(library.calls).result())
            real = library.work
            for patch in (stub, lambda: "lambda", other.fake, real):
                library.work = patch
                print(library.calls(), pool.submit(library.calls).result())
        """
    (tmp_path / "other.py").write_text("def fake():\n    return 'fake'\n")
    assert output_of(tmp_path, source) == (
        "real real\nstub stub\nlambda lambda\nfake fake\nreal real\n"
    )


def test_a_function_that_was_imported_by_name_and_reloaded(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(MODULE.format("old"))
    (tmp_path / "user.py").write_text("from library import calls\ndef go():\n    return calls()\n")
    source = """
        import importlib, sys, pathlib
        sys.dont_write_bytecode = True
        import library, user
        import manyhands as mh
        with mh.Pool(1) as pool:
            print(user.go(), pool.submit(user.go).result())
            path = pathlib.Path(library.__file__)
            path.write_text(path.read_text().replace("'old'", "'newer'"))
            importlib.invalidate_caches()
            importlib.reload(library)
            importlib.reload(user)
            print(user.go(), pool.submit(user.go).result())
        """
    assert output_of(tmp_path, source) == "old old\nnewer newer\n"


REBINDING = """
import manyhands as mh

LEVEL = 1
def helper():
    return "helper 1"
def work(step=10):
    return LEVEL, helper(), step

def make():
    inside = 1
    def closure():
        return inside
    def change(value):
        nonlocal inside
        inside = value
    return closure, change
closure, change = make()

pool = mh.Pool(1)
print(pool.submit(work).result(), pool.submit(closure).result())
LEVEL = 2
print(pool.submit(work).result())
def helper():
    return "helper 2"
print(pool.submit(work).result())
work.__defaults__ = (20,)
print(pool.submit(work).result())
change("changed")
print(pool.submit(closure).result())
def work(step=30):
    return "new", LEVEL
print(pool.submit(work).result())
work.__code__ = (lambda step=1: ("code", step)).__code__
print(pool.submit(work).result())
LEVEL = 3
print(list(pool.map(lambda: LEVEL, [])), pool.submit(lambda: LEVEL).result())
pool.shutdown()
"""


@pytest.mark.parametrize("how", ["file", "-c", "stdin", "exec"])
def test_rebinding_between_submits(tmp_path: Path, how: str) -> None:
    if how == "file":
        ended = run_file(tmp_path, REBINDING)
    elif how == "-c":
        ended = run("-c", REBINDING)
    elif how == "stdin":
        ended = run("-", stdin=REBINDING)
    else:
        ended = run("-c", "exec(" + repr(REBINDING) + ")")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        "(1, 'helper 1', 10) 1\n"
        "(2, 'helper 1', 10)\n"
        "(2, 'helper 2', 10)\n"
        "(2, 'helper 2', 20)\n"
        "changed\n"
        "('new', 2)\n"
        "('code', 30)\n"
        "[] 3\n"
    )


def test_redefinition_by_exec_in_main() -> None:
    source = """
import manyhands as mh
with mh.Pool(1) as pool:
    for number in range(5):
        exec(f"def work(): return {number}", globals())
        assert pool.submit(work).result() == number, number
        exec(f"class Thing: number = {number}", globals())
        seen = pool.submit(lambda thing: (thing.number, type(thing) is Thing), Thing()).result()
        assert seen == (number, True)
        assert type(pool.submit(lambda: Thing()).result()) is Thing
print("ok")
"""
    ended = run("-c", source)
    assert (ended.code, ended.out, ended.err) == (0, "ok\n", "")


def test_a_global_that_a_task_has_set_is_kept(tmp_path: Path) -> None:
    source = """
        import manyhands as mh
        count = 0
        def work():
            global count
            count += 1
            return count
        with mh.Pool(1) as pool:
            print([pool.submit(work).result() for _ in range(3)], count)
        """
    assert output_of(tmp_path, source) == "[1, 2, 3] 0\n"


def test_many_functions_made_in_a_loop(tmp_path: Path) -> None:
    source = """
        import manyhands as mh
        with mh.Pool(2) as pool:
            futures = []
            for number in range(3000):
                def work(number=number):
                    return number
                futures.append(pool.submit(work))
            print([future.result() for future in futures] == list(range(3000)))
            futures = [pool.submit(lambda n=n: n) for n in range(3000)]
            print([future.result() for future in futures] == list(range(3000)))
        """
    assert output_of(tmp_path, source) == "True\nTrue\n"
