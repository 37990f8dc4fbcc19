"""How workers start, and what of the parent they find: each case is a program of its own."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

import procfs
from programs import output_of, run, run_file

# ---------------------------------------------------------------------------- how many workers


@pytest.mark.parametrize("text", ["3", " 3 "])
def test_the_variable_says_how_many_workers(tmp_path: Path, text: str) -> None:
    source = """
        import manyhands as mh
        with mh.Pool() as pool, mh.Pool(2) as two:
            print(pool, two)
        mh.submit(abs, 1).result()
        from manyhands import _default
        print(_default._shared())
        """
    assert output_of(tmp_path, source, env={"MANYHANDS_WORKERS": text}) == (
        "<manyhands.Pool 'pool of 3': 3 workers, 0 tasks> "
        "<manyhands.Pool 'pool of 2': 2 workers, 0 tasks>\n"
        "<manyhands.Pool 'default': 3 workers, 0 tasks>\n"
    )


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1_0", "²"])
def test_a_variable_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    ended = run_file(
        tmp_path, "import manyhands as mh\nmh.Pool()\n", env={"MANYHANDS_WORKERS": text}
    )
    assert ended.code == 1
    assert f"MANYHANDS_WORKERS must be a whole number above 0, not {text!r}" in ended.err


def test_without_the_variable_it_is_the_processors(tmp_path: Path) -> None:
    source = """
        import manyhands as mh
        with mh.Pool() as pool:
            print(f"{mh.cpu_count()} workers" in repr(pool))
        """
    assert output_of(tmp_path, source, env={"MANYHANDS_WORKERS": ""}) == "True\n"


# ------------------------------------------------------------------------- which interpreter


USES_A_POOL = """
import manyhands as mh
with mh.Pool(2) as pool:
    print(list(pool.map(lambda n: n + 1, range(3))))
    import sys
    print(pool.submit(lambda: sys.version_info[:2]).result() == sys.version_info[:2])
"""
USED = "[1, 2, 3]\nTrue\n"


@pytest.mark.parametrize(
    "change",
    [
        "sys.executable = '/usr/sbin/uwsgi'",
        "sys.executable = '/usr/sbin/uwsgi'; sys._base_executable = '/usr/sbin/uwsgi'",
        "sys.executable = ''",
        "sys.executable = None",
        "sys.executable = sys.argv[0]",
        "sys.frozen = True; sys.executable = '/opt/program'; sys._base_executable = sys.executable",
        "sys.executable = '/nowhere/python3'",
    ],
)
def test_a_program_that_is_not_python(tmp_path: Path, change: str) -> None:
    assert output_of(tmp_path, f"import sys; {change}\n{USES_A_POOL}") == USED


def test_no_interpreter_at_all(tmp_path: Path) -> None:
    ended = run_file(
        tmp_path,
        """
        import sys
        import manyhands as mh
        sys.executable = sys._base_executable = "/usr/sbin/uwsgi"
        sys.exec_prefix = sys.base_exec_prefix = "/nowhere"
        mh.Pool(2)
        """,
    )
    assert ended.code == 1
    assert "no Python interpreter was found for the workers" in ended.err
    assert "/usr/sbin/uwsgi" in ended.err
    assert "set the environment variable MANYHANDS_PYTHON" in ended.err


def test_the_variable_names_the_interpreter(tmp_path: Path) -> None:
    source = "import sys; sys.executable = '/usr/sbin/uwsgi'\n" + USES_A_POOL
    assert output_of(tmp_path, source, env={"MANYHANDS_PYTHON": sys.executable}) == USED


def a_program(folder: Path, text: str) -> str:
    path = folder / "program"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "what",
    ["missing", "a folder", "not executable", "ends at once", "ends with an error", "talks"],
)
def test_the_variable_names_what_is_no_interpreter(tmp_path: Path, what: str) -> None:
    path = {
        "missing": lambda: "/nowhere/python3",
        "a folder": lambda: str(tmp_path),
        "not executable": lambda: str(Path(__file__)),
        "ends at once": lambda: a_program(tmp_path, "#!/bin/sh\nexit 0\n"),
        "ends with an error": lambda: a_program(tmp_path, "#!/bin/sh\nexit 3\n"),
        "talks": lambda: shutil.which("cat") or "/bin/cat",
    }[what]()
    ended = run_file(
        tmp_path,
        """
        import manyhands as mh
        try:
            with mh.Pool(2) as pool:
                pool.submit(abs, 1).result()
        except (RuntimeError, OSError) as error:
            print("refused:", error)
        """,
        env={"MANYHANDS_PYTHON": path},
    )
    assert ended.code == 0, ended.err
    assert ended.out.startswith("refused: ")
    if what in ("missing", "a folder", "not executable"):
        assert path in ended.out


def other_interpreter() -> str | None:
    for minor in (11, 12, 13, 14):
        if minor == sys.version_info.minor:
            continue
        for path in Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"):
            return str(path)
        found = shutil.which(f"python3.{minor}")
        if found and "shims" not in found:
            return found
    return None


def test_an_interpreter_of_another_version(tmp_path: Path) -> None:
    other = other_interpreter()
    if other is None:
        pytest.skip("no other CPython on this machine")
    ended = run_file(
        tmp_path,
        """
        import manyhands as mh
        try:
            with mh.Pool(1) as pool:
                pool.submit(abs, 1).result()
        except (RuntimeError, OSError) as error:
            print("refused:", error)
        """,
        env={"MANYHANDS_PYTHON": other},
    )
    assert ended.code == 0, ended.err
    assert ended.out.startswith("refused: ")
    assert "version" in ended.out or "Python" in ended.out


@pytest.mark.parametrize(
    "flags",
    [
        ["-O"],
        ["-OO"],
        ["-I"],
        ["-E"],
        ["-s"],
        ["-P"],
        ["-u"],
        ["-B"],
        ["-X", "dev"],
        ["-X", "utf8"],
        ["-X", "importtime"],
        ["-W", "error"],
        ["-q", "-b"],
        ["-v"],
        ["-X", "frozen_modules=off"],
    ],
    ids=" ".join,
)
def test_flags_of_the_interpreter(tmp_path: Path, flags: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import manyhands as mh
            def work(n):
                assert n != 1
                return n, sys.flags.optimize, sys.flags.utf8_mode, sys.flags.dev_mode
            with mh.Pool(1) as pool:
                print(pool.submit(work, 2).result() == work(2))
                try:
                    print(pool.submit(work, 1).result() == work(1))
                except AssertionError:
                    print("asserted")
            """
        )
    )
    ended = run(*flags, script)
    assert ended.code == 0, ended.err
    assert ended.out == f"True\n{'True' if flags[0].startswith('-O') else 'asserted'}\n"
    if flags[0] != "-v" and "importtime" not in flags:
        assert ended.err == ""


# --------------------------------------------------------------- what workers find of the parent


def test_environment_and_folder_are_those_of_the_first_task(tmp_path: Path) -> None:
    source = """
        import os, sys, tempfile
        import manyhands as mh
        def see():
            return os.environ.get("SEEN"), os.environ.get("GONE"), os.getcwd()
        os.environ["GONE"] = "still here"
        mh.submit(abs, 1).result()
        pool = mh.Pool(1)
        os.environ["SEEN"] = "first"
        del os.environ["GONE"]
        folder = os.path.realpath(tempfile.mkdtemp(dir=sys.argv[1]))
        os.chdir(folder)
        print(pool.submit(see).result() == ("first", None, folder))
        os.environ["SEEN"] = "second"
        print(pool.submit(see).result() == ("first", None, folder))
        with mh.Pool(1) as later:
            print(later.submit(see).result() == ("second", None, folder))
        print(os.environ["SEEN"])
        """
    assert output_of(tmp_path, source, str(tmp_path)) == "True\nTrue\nTrue\nsecond\n"


def test_what_a_task_changes_stays_in_its_worker(tmp_path: Path) -> None:
    source = """
        import os, sys
        import manyhands as mh
        def change():
            os.environ["NEW"] = "1"
            os.chdir("/")
            os.umask(0o000)
            sys.path.append("/nowhere")
        def see():
            return "NEW" in os.environ, os.getcwd() == "/", "/nowhere" in sys.path
        before = os.getcwd()
        with mh.Pool(1) as pool:
            pool.submit(change).result()
            print(pool.submit(see).result())
            try:
                pool.submit(os._exit, 1).result()
            except mh.WorkerDied:
                print(pool.submit(see).result())
        print(see(), os.getcwd() == before)
        """
    assert output_of(tmp_path, source) == (
        "(True, True, True)\n(False, False, False)\n(False, False, False) True\n"
    )


def test_umask_arguments_path_recursion_limit_and_affinity(tmp_path: Path) -> None:
    source = """
        import os, sys
        import manyhands as mh
        mh.submit(abs, 1).result()  # the zygote is there before all this changes
        def see():
            mask = os.umask(0)
            os.umask(mask)
            return (mask, sys.argv, sys.path, sys.getrecursionlimit(), os.sched_getaffinity(0),
                    sys.prefix, sys.executable)
        os.umask(0o027)
        sys.argv.append("added")
        sys.path.insert(0, "/nowhere/at/all")
        sys.setrecursionlimit(3210)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with mh.Pool(1) as pool:
            there, here = pool.submit(see).result(), see()
        print(there == here, there)
        """
    out = output_of(tmp_path, source, "given")
    assert out.startswith("True (23, [")
    assert "'given', 'added']" in out
    assert "3210" in out


def test_modules_beside_the_script_and_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def work(n): return 'beside', n\n")
    (tmp_path / "else").mkdir()
    (tmp_path / "else/far.py").write_text("def work(n): return 'far', n\n")
    source = """
        import os, sys
        import manyhands as mh
        import beside
        mh.submit(beside.work, 1).result()
        sys.path.append(os.path.join(os.path.dirname(__file__), "else"))
        import far
        with mh.Pool(2) as pool:
            print(pool.submit(beside.work, 1).result(), pool.submit(far.work, 2).result())
            def inside():
                import far, beside
                return far.work(3)
            print(pool.submit(inside).result())
        """
    assert output_of(tmp_path, source) == "('beside', 1) ('far', 2)\n('far', 3)\n"
    # The same with `-c`, where the folder on the path is the current one, written as "".
    ended = run("-c", "import beside, manyhands as mh\nprint(mh.submit(beside.work, 1).result())",
                cwd=tmp_path)  # fmt: skip
    assert (ended.out, ended.err, ended.code) == ("('beside', 1)\n", "", 0)


def test_modules_in_an_archive(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "library.zip", "w") as archive:
        archive.writestr("zipped.py", "def work(n): return 'zipped', n\n")
    source = """
        import os, sys
        sys.path.append(os.path.join(os.path.dirname(__file__), "library.zip"))
        import zipped
        import manyhands as mh
        print(mh.submit(zipped.work, 1).result())
        """
    assert output_of(tmp_path, source) == "('zipped', 1)\n"


def test_paths_that_are_not_text(tmp_path: Path) -> None:
    source = """
        import pathlib, sys
        import manyhands as mh
        sys.path.append(pathlib.Path("/nowhere"))
        sys.argv.append(pathlib.Path("/nowhere"))
        print(mh.submit(abs, -1).result())
        """
    assert output_of(tmp_path, source) == "1\n"


def test_standard_input_is_left_to_the_parent(tmp_path: Path) -> None:
    source = """
        import sys
        import manyhands as mh
        print(mh.submit(lambda: sys.stdin.read() if sys.stdin else "").result() == "")
        print(sys.stdin.read())
        """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source))
    ended = run(script, stdin="for the parent")
    assert (ended.code, ended.out, ended.err) == (0, "True\nfor the parent\n", "")


@pytest.mark.parametrize("way", ["option", "variable"])
def test_warning_filters_are_those_of_the_interpreter(tmp_path: Path, way: str) -> None:
    """What `-W` and PYTHONWARNINGS say holds in workers; what the program says by itself does not,
    but an initializer may say it there."""
    source = """
        import os, warnings
        import manyhands as mh
        def forbid(start):
            warnings.filterwarnings("error", message=start)
        def is_forbidden(text):
            try:
                warnings.warn(text)
            except UserWarning:
                return True
            return False
        def look():
            return is_forbidden("outside"), is_forbidden("program"), is_forbidden("initializer")
        forbid("program")
        print(look())
        with mh.Pool(1) as pool:
            print(pool.submit(look).result())
            try:
                pool.submit(os._exit, 1).result()
            except mh.WorkerDied:
                print(pool.submit(look).result())
        with mh.Pool(1, initializer=forbid, initargs=("initializer",)) as pool:
            print(pool.submit(look).result())
        """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source))
    if way == "option":
        ended = run("-W", "error:outside", script, env={"PYTHONWARNINGS": None})
    else:
        ended = run(script, env={"PYTHONWARNINGS": "error:outside"})
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        "(True, True, False)",
        "(True, False, False)",
        "(True, False, False)",
        "(True, False, True)",
    ]


def test_signal_handlers_stay_with_the_program(tmp_path: Path) -> None:
    source = """
        import os, signal
        import manyhands as mh
        def handle(number, frame):
            pass
        NUMBERS = signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD
        def set_up():
            for number in NUMBERS:
                signal.signal(number, handle)
        def look():
            kinds = {signal.SIG_DFL: "default"}
            found = [signal.getsignal(number) for number in NUMBERS]
            return [kinds.get(one) or getattr(one, "__name__", "another") for one in found]
        def send():
            os.kill(os.getpid(), signal.SIGUSR1)
        set_up()
        send()
        pool = mh.Pool(1)
        print(look(), pool.submit(look).result())
        error = pool.submit(send).exception()
        print(error.cause, error.code == signal.SIGUSR1)
        print(pool.submit(look).result())
        with mh.Pool(1, initializer=set_up) as other:
            print(other.submit(look).result(), other.submit(send).exception())
        print(look())
        pool.shutdown()
        """
    handled, default = ["handle"] * 4, ["default"] * 4
    assert output_of(tmp_path, source).splitlines() == [
        f"{handled} {default}",
        "signal True",
        f"{default}",
        f"{handled} None",
        f"{handled}",
    ]


def test_files_and_sockets_stay_with_the_program(tmp_path: Path) -> None:
    source = """
        import os, socket, sys
        import manyhands as mh
        def opened():
            # What has a descriptor here: its device, its number there, and its kind.
            found = set()
            for descriptor in os.listdir("/proc/self/fd"):
                try:
                    status = os.stat(int(descriptor))
                except OSError:
                    continue  # that of the directory itself
                found.add((status.st_dev, status.st_ino, status.st_mode))
            return found
        def make():
            first, second = socket.socketpair()
            listening = socket.create_server(("127.0.0.1", 0))
            file = open(os.path.join(sys.argv[1], f"file {len(kept)}"), "w")
            kept.extend((first, second, listening, file, *os.pipe()))
            for one in kept[-6:]:
                status = os.stat(one if isinstance(one, int) else one.fileno())
                own.add((status.st_dev, status.st_ino, status.st_mode))
        kept, own = [], set()
        make()
        with mh.Pool(1) as pool:
            print(len(own), own <= opened(), own & pool.submit(opened).result())
            make()
            try:
                pool.submit(os._exit, 1).result()
            except mh.WorkerDied:
                print(len(own), own <= opened(), own & pool.submit(opened).result())
        with mh.Pool(1) as pool:
            print(len(own), own <= opened(), own & pool.submit(opened).result())
        """
    # Both ends of a pipe are one file.
    assert output_of(tmp_path, source, str(tmp_path)) == "5 True set()\n" + "10 True set()\n" * 2


def test_unusual_environments(tmp_path: Path) -> None:
    source = """
        import os
        import manyhands as mh
        os.environ["NOT_TEXT"] = os.fsdecode(b"\\xff\\xfe")
        os.environ["EMPTY"] = ""
        os.environ["LONG"] = "x" * 100_000
        def see():
            return {name: os.environ[name] for name in ("NOT_TEXT", "EMPTY", "LONG")}
        with mh.Pool(1) as pool:
            print(pool.submit(see).result() == see())
            print(pool.submit(lambda: sorted(set(os.environ))).result())
        """
    out = output_of(tmp_path, source, env={"LC_ALL": "C", "LANG": None})
    assert out.startswith("True\n")
    nothing = dict.fromkeys([*os.environ, procfs.TOKEN])
    ended = run("-c", textwrap.dedent(source), env=nothing)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("True\n")


# ------------------------------------------------------------------------------------- preloading


TELLS = """
import os
with open(os.environ["TOLD"], "a") as stream:
    print(os.getpid(), file=stream)
def work(n):
    return n, os.getpid()
"""


@pytest.mark.parametrize("how", ["preload", "named by the function", "named by a global"])
def test_modules_are_imported_once_before_any_fork(tmp_path: Path, how: str) -> None:
    (tmp_path / "tells.py").write_text(TELLS)
    source = f"""
        import os, sys
        os.environ["TOLD"] = sys.argv[1]
        import manyhands as mh
        how = {how!r}
        if how == "preload":
            pool = mh.Pool(2, preload=["tells", "json"])
            def work(n):
                import tells
                return tells.work(n)
        else:
            import tells
            pool = mh.Pool(2)
            work = tells.work
            if how == "named by a global":
                def work(n):
                    return tells.work(n)
        results = list(pool.map(work, range(500)))
        print([n for n, pid in results] == list(range(500)))
        for worker in pool.stats().workers:
            if worker.pid is not None:
                try:
                    os.kill(worker.pid, 9)
                except ProcessLookupError:
                    pass
        print(pool.submit(work, 1).result()[0])
        pids = [int(line) for line in open(sys.argv[1])]
        if how != "preload":
            pids.remove(os.getpid())
        print(len(pids), pids[0] not in {{pid for n, pid in results}})
        """
    assert output_of(tmp_path, source, str(tmp_path / "told")) == "True\n1\n1 True\n"


def test_a_module_that_cannot_be_preloaded_is_logged(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise LookupError('while it is imported')\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    source = """
        import logging
        import manyhands as mh
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.INFO)
        with mh.Pool(2, preload=["fails", "nowhere_at_all", "leaves", "json"]) as pool:
            print(pool.submit(abs, -1).result())
        """
    ended = run_file(tmp_path, source)
    assert (ended.code, ended.out) == (0, "1\n")
    assert "manyhands INFO modules that could not be preloaded: " in ended.err
    assert "fails (LookupError: while it is imported)" in ended.err
    assert "nowhere_at_all (ModuleNotFoundError" in ended.err
    assert "leaves (SystemExit: 3)" in ended.err
    assert "json (" not in ended.err


def test_a_task_whose_module_cannot_be_imported_there(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(
        "import os\n"
        "if os.environ.get('MANYHANDS_DEPTH') or 'PARENT' not in globals():\n"
        "    import sys\n"
        "    if sys.argv[-1] != 'parent':\n"
        "        raise LookupError('only in the parent')\n"
        "def work(n): return n\n"
    )
    source = """
        import sys
        sys.argv.append("parent")
        import picky
        sys.argv[-1] = "worker"
        import manyhands as mh
        with mh.Pool(1) as pool:
            try:
                pool.submit(picky.work, 1).result()
            except Exception as error:
                print(type(error).__name__, error)
            print(pool.submit(abs, -2).result())
        """
    ended = run_file(tmp_path, source)
    assert ended.code == 0, ended.err
    assert "only in the parent" in ended.out
    assert ended.out.endswith("\n2\n")


def test_modules_that_start_threads_lead_to_spawning(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading\n"
        "stop = threading.Event()\n"
        "threading.Thread(target=stop.wait, daemon=True).start()\n"
        "def work(n): return n, threading.active_count()\n"
    )
    source = """
        import logging, os
        import threaded
        import manyhands as mh
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.INFO)
        with mh.Pool(2) as pool:
            print(list(pool.map(threaded.work, range(3))))
            try:
                pool.submit(os._exit, 1).result()
            except mh.WorkerDied as error:
                print(error.cause)
            print(list(pool.map(threaded.work, range(3))))
        with mh.Pool(2) as pool:
            print(list(pool.map(threaded.work, range(3))))
        """
    ended = run_file(tmp_path, source)
    assert ended.code == 0, ended.err
    results = "[(0, 2), (1, 2), (2, 2)]\n"
    assert ended.out == f"{results}exit\n{results}{results}"
    assert "manyhands" in ended.err
    assert "thread" in ended.err


def test_numpy_streams_differ_between_workers(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    source = """
        import os, sys
        sys.path.insert(0, sys.argv[1])
        import numpy as np
        import random
        from gate import pass_through, closed_gate
        import pathlib
        import manyhands as mh
        np.random.seed(1)
        random.seed(1)
        def draw(path):
            pass_through(path)
            return os.getpid(), np.random.random(), random.random()
        with mh.Pool(4) as pool, closed_gate(pathlib.Path(sys.argv[2])) as gate:
            futures = [pool.submit(draw, gate.path) for _ in range(4)]
            gate.wait_arrivals(4)
            gate.open()
            drawn = [future.result() for future in futures]
            with mh.Pool(1) as other:
                drawn.append(other.submit(draw, gate.path).result())
        print([len({row[column] for row in drawn}) for column in range(3)])
        print(np.__name__)
        """
    out = output_of(tmp_path, source, str(Path(__file__).parents[1]), str(tmp_path))
    assert out == "[5, 5, 5]\nnumpy\n"


def test_pandas_and_numpy_are_forked(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    source = """
        import logging
        logging.basicConfig(level=logging.DEBUG)
        import numpy as np
        import pandas as pd
        import manyhands as mh
        def work(n):
            frame = pd.DataFrame({"a": np.arange(n), "b": 1.5})
            return frame.groupby("a").sum()
        with mh.Pool(2) as pool:
            frames = list(pool.map(work, range(1, 6)))
            square = pool.submit(lambda a: a @ a, np.ones((200, 200))).result()
        print([len(frame) for frame in frames], square[0, 0])
        """
    # Quiet: nothing was logged, so workers were forked and not spawned.
    assert output_of(tmp_path, source) == "[1, 2, 3, 4, 5] 200.0\n"


def test_the_allocator_of_arrow_starts_no_thread(tmp_path: Path) -> None:
    """pandas imports Arrow, and a process with threads cannot be forked."""
    source = """
        import os
        import manyhands as mh
        with mh.Pool(1) as pool:
            print(pool.submit(lambda: os.environ.get("JE_ARROW_MALLOC_CONF")).result())
        print(os.environ.get("JE_ARROW_MALLOC_CONF"))
        """
    assert output_of(tmp_path, source) == "background_thread:false\nNone\n"


def test_numpy_is_not_imported_for_nothing(tmp_path: Path) -> None:
    source = """
        import sys
        import manyhands as mh
        heavy = {"numpy", "pandas", "asyncio", "multiprocessing", "cloudpickle", "unittest"}
        with mh.Pool(1) as pool:
            print(pool.submit(lambda: sorted(heavy & set(sys.modules))).result())
        print(sorted((heavy - {"asyncio"}) & set(sys.modules)))
        """
    assert output_of(tmp_path, source) == "[]\n[]\n"


def test_workers_see_the_whole_package(tmp_path: Path) -> None:
    # A worker begins with a part of manyhands, which must not show.
    source = """
        import manyhands as mh
        def look():
            import manyhands
            from manyhands import Pool, WorkerDied
            return (manyhands.__version__, sorted(manyhands.__all__) == sorted(mh.__all__),
                    manyhands.Pool is Pool, manyhands.__doc__ == mh.__doc__, manyhands.__file__,
                    issubclass(WorkerDied, manyhands.TaskError))
        def plain():
            import manyhands._errors
            return manyhands._errors.WorkerDied("x")
        with mh.Pool(1) as pool:
            print(type(pool.submit(plain).result()) is mh.WorkerDied)
            expected = mh.__version__, True, True, True, mh.__file__, True
            print(pool.submit(look).result() == expected)
            print(type(pool.submit(mh.TaskError, "x").result()) is mh.TaskError)
        """
    assert output_of(tmp_path, source) == "True\nTrue\nTrue\n"


def test_a_task_may_be_stopped_while_it_first_uses_manyhands(tmp_path: Path) -> None:
    # Wherever in what that imports, the next task of the worker finds all of it.
    source = """
        import sys
        import manyhands as mh

        def stop_at(at):
            # At the import of that number, or at that line of the package's own.
            from manyhands._stopped import TaskStopped
            left = at

            def step(*_):
                nonlocal left
                left -= 1
                if left == 0:
                    raise TaskStopped

            class Finder:
                find_spec = staticmethod(step)

            def trace(frame, event, _):
                if not frame.f_code.co_filename.endswith(("s/__init__.py", "s/_zygote.py")):
                    return None
                if event == "line":
                    step()
                return trace

            sys.meta_path.insert(0, Finder)
            sys.settrace(trace)

        def stopped(at):
            import manyhands
            stop_at(at)
            try:
                manyhands.submit(abs, -1).result()
            except BaseException as error:
                return type(error).__name__
            finally:
                sys.settrace(None)
                del sys.meta_path[0]

        def used():
            import manyhands
            return manyhands.submit(abs, -1).result()

        at, seen = 0, "TaskStopped"
        while seen == "TaskStopped":
            at += 1 if at < 20 else 9
            with mh.Pool(1) as pool:
                seen = pool.submit(stopped, at).result()
                assert pool.submit(used).result() == 1, at
        print(seen, at > 20)
        """
    assert output_of(tmp_path, source) == "None True\n"


def test_tasks_may_register_exit_handlers(tmp_path: Path) -> None:
    source = """
        import atexit, pathlib, sys
        import manyhands as mh
        def handler():
            pathlib.Path(sys.argv[1]).write_text("left")
            print("bye")
        with mh.Pool(1) as pool:
            pool.submit(lambda: atexit.register(handler) and None).result()
        print(pathlib.Path(sys.argv[1]).read_text())
        """
    assert output_of(tmp_path, source, str(tmp_path / "trace")) == "bye\nleft\n"


def test_builtins_of_site(tmp_path: Path) -> None:
    source = """
        import manyhands as mh
        def use():
            try:
                exit(3)
            except SystemExit as error:
                return error.code, callable(quit), callable(help)
        print(mh.submit(use).result(), use())
        """
    assert output_of(tmp_path, source) == "(3, True, True) (3, True, True)\n"
