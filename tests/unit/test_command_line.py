"""The program `manyhands`, as people run it: what it writes, where, and its exit codes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import pty
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from manyhands import _doctor
from programs import WATCHDOG_SECONDS, Ended, run, until_it_waits

WORK = """
import os
import signal
import time
from dataclasses import dataclass

print("imported")


class Bad(Exception):
    pass


@dataclass
class Point:
    x: int


class Tools:
    @staticmethod
    def twice(text):
        return 2 * text


number = 3


def same(item):
    return item


def parse(text):
    return int(text)


def refuse(text):
    raise Bad(f"not {text}")


def hello(text):
    print("hello", text)
    return None


def point(text):
    return Point(int(text))


def odd(text):
    return {"name": text, "tags": [{text}]}


def add(a, b=0):
    return a + b


def die(text):
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return text


def lengths(texts):
    return [len(text) for text in texts]


def short(texts):
    return texts[1:]


def count(text):
    yield from range(int(text))


def wait(text):
    if text == "wait":
        open("waiting", "w").close()
        time.sleep(60)
    return text
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with `work.py`."""
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    return tmp_path


def manyhands(folder: Path, *arguments: str, stdin: str = "", **env: str) -> Ended:
    return run("-m", "manyhands", *arguments, cwd=folder, stdin=stdin, env=env)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def results(ended: Ended) -> list[Any]:
    return [entry["result"] for entry in lines(ended.out)]


def told(ended: Ended) -> list[str]:
    """What was written to standard error, without what the module prints."""
    return [line for line in ended.err.splitlines() if line != "imported"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "manyhands", *arguments]


# ------------------------------------------------------------------------------------ the program


def test_version_help_and_completions(tmp_path: Path) -> None:
    ended = manyhands(tmp_path, "--version")
    assert (ended.code, ended.out, ended.err) == (0, f"manyhands {mh.__version__}\n", "")
    ended = manyhands(tmp_path, "map", "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "manyhands map work.py:parse data/*.csv" in ended.out
    ended = manyhands(tmp_path, "completions", "bash")
    assert (ended.code, ended.err) == (0, "")
    assert "--unordered" in ended.out
    if os.access("/bin/bash", os.X_OK):
        checked = subprocess.run(["bash", "-n"], input=ended.out, text=True, check=False)
        assert checked.returncode == 0


def test_what_is_no_command_line_ends_with_2_and_says_why(tmp_path: Path) -> None:
    for arguments, part in [
        ((), "Usage: manyhands <COMMAND>"),
        (("map", "work.py"), "write work.py:FUNCTION"),
        (("map", "work.py:same", "a", "--unorderd"), "--unordered"),
        (("map", "work.py:same", "a", "-j", "0"), "0 is not in 1.."),
    ]:
        ended = manyhands(tmp_path, *arguments)
        assert (ended.code, ended.out) == (2, ""), arguments
        assert part in ended.err


def test_the_package_does_not_import_the_command_line() -> None:
    source = "import sys, manyhands; print([m for m in sys.modules if '_command' in m])"
    assert run("-c", source).out == "[]\n"


def test_the_script_is_declared() -> None:
    import tomllib

    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    assert scripts == {"manyhands": "manyhands._command_line:main"}


# --------------------------------------------------------------------------------- paths to lines


def test_each_path_is_an_item_and_each_item_a_line(work: Path) -> None:
    ended = manyhands(work, "map", "work.py:same", "a.csv", "ü b", "a.csv", "-j", "2")
    assert ended.code == 0
    assert ended.out == (
        '{"index": 0, "input": "a.csv", "result": "a.csv"}\n'
        '{"index": 1, "input": "ü b", "result": "ü b"}\n'
        '{"index": 2, "input": "a.csv", "result": "a.csv"}\n'
    )
    assert told(ended) == []


def test_a_path_that_is_no_text(work: Path) -> None:
    path = os.fsdecode(b"\xff.csv")
    ended = manyhands(work, "map", "work.py:same", path)
    assert lines(ended.out) == [{"index": 0, "input": path, "result": path}]


def test_what_the_function_prints_is_no_data(work: Path) -> None:
    for engine in ("process", "inline"):
        ended = manyhands(work, "map", "work.py:hello", "a", "--engine", engine)
        assert ended.out == '{"index": 0, "input": "a", "result": null}\n'
        assert "hello a" in ended.err.splitlines()


def test_a_module_of_the_working_directory_and_one_of_python(work: Path) -> None:
    (work / "package").mkdir()
    (work / "package/__init__.py").write_text("from .inner import same")
    (work / "package/inner.py").write_text("def same(item): return item")
    for target in ("package:same", "package.inner:same", "work:Tools.twice", "os.path:basename"):
        ended = manyhands(work, "map", target, "a")
        assert ended.code == 0, ended.err
        assert results(ended) == ["aa" if target.startswith("work") else "a"]


@pytest.mark.parametrize("name", ["my-work.py", "json.py", "work", "class.py", "123.py"])
def test_a_file_whose_name_is_no_module(work: Path, name: str) -> None:
    folder = work / "inner"
    folder.mkdir()
    (folder / "beside.py").write_text("def own(text): return text + '!'")
    (folder / name).write_text(
        "import beside\n"
        "class Bad(Exception): pass\n"
        "def shout(text):\n"
        "    if text == 'bad': raise Bad(text)\n"
        "    return beside.own(text)\n"
    )
    ended = manyhands(work, "map", f"inner/{name}:shout", "a", "bad")
    assert ended.code == 1, ended.err
    good, bad = lines(ended.out)
    assert good["result"] == "a!"
    assert bad["error"]["type"].endswith(".Bad")
    assert f'inner/{name}", line 4, in shout' in bad["error"]["traceback"]


def test_results_in_the_order_they_come(work: Path) -> None:
    (work / "order.py").write_text(
        "import os, time\n"
        "def first_waits(text):\n"
        "    while text == 'first' and not os.path.exists('second'): time.sleep(0.001)\n"
        "    if text == 'second': open('second', 'w').close()\n"
        "    return text\n"
    )
    arguments = ("map", "order.py:first_waits", "first", "second", "-j", "2")
    assert results(manyhands(work, *arguments)) == ["first", "second"]
    (work / "second").unlink()
    ended = manyhands(work, *arguments, "--unordered")
    assert sorted(entry["index"] for entry in lines(ended.out)) == [0, 1]
    assert {entry["input"]: entry["result"] for entry in lines(ended.out)} == {
        "first": "first",
        "second": "second",
    }


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_engines(work: Path, engine: str) -> None:
    ended = manyhands(work, "map", "work.py:parse", "1", "x", "--engine", engine)
    assert ended.code == 1
    good, bad = lines(ended.out)
    assert good["result"] == 1
    assert bad["error"]["type"] == "ValueError"
    # The first frame is the user's.
    assert bad["error"]["traceback"].splitlines()[1].endswith("in parse")
    assert "_command" not in bad["error"]["traceback"]


# --------------------------------------------------------------------------------------- failures


def test_a_failed_item_is_a_line_with_its_error(work: Path) -> None:
    ended = manyhands(work, "map", "work.py:parse", "1", "x", "3")
    assert ended.code == 1
    assert results_or_types(ended) == [1, "ValueError", 3]
    error = lines(ended.out)[1]["error"]
    assert error["message"] == "invalid literal for int() with base 10: 'x'"
    assert error["traceback"].startswith("Traceback (most recent call last):\n")
    assert told(ended) == [
        "item 1 (x) failed: ValueError: invalid literal for int() with base 10: 'x'",
        "1 of 3 items failed",
    ]


def results_or_types(ended: Ended) -> list[Any]:
    return [
        entry["result"] if "result" in entry else entry["error"]["type"]
        for entry in lines(ended.out)
    ]


def test_failed_items_are_left_out(work: Path) -> None:
    ended = manyhands(work, "map", "work.py:refuse", "a", "b", "--on-error", "skip")
    assert (ended.code, ended.out) == (1, "")
    assert told(ended) == [
        "item 0 (a) failed: work.Bad: not a",
        "item 1 (b) failed: work.Bad: not b",
        "2 of 2 items failed",
    ]


def test_a_failed_item_ends_the_run(work: Path) -> None:
    ended = manyhands(
        work, "map", "work.py:parse", "1", "x", "3", "--on-error", "raise", "-o", "out"
    )
    assert (ended.code, ended.out) == (1, "")
    first, *traceback, last = told(ended)
    assert first == "item 1 (x) failed: ValueError: invalid literal for int() with base 10: 'x'"
    assert traceback[0] == "Traceback (most recent call last):"
    assert last == "stopped after 2 of 3 items; what is done is in out.partial"
    assert not (work / "out").exists()
    assert lines((work / "out.partial").read_text())[0]["result"] == 1


def test_many_failures_are_counted(work: Path) -> None:
    ended = manyhands(work, "map", "work.py:parse", *"abcdefgh", "--engine", "inline")
    assert len(lines(ended.out)) == 8
    assert len(told(ended)) == 7
    assert told(ended)[-2:] == [
        "more items failed; from here on they are only counted",
        "8 of 8 items failed",
    ]


def test_a_worker_that_dies_costs_one_item(work: Path) -> None:
    ended = manyhands(work, "map", "work.py:die", "a", "die", "b")
    assert ended.code == 1
    assert results_or_types(ended) == ["a", "manyhands.WorkerDied", "b"]
    assert "killed by SIGKILL while it ran" in told(ended)[0]


# ---------------------------------------------------------------------------------------- records


def test_lines(work: Path) -> None:
    (work / "in.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo \r\nd\xc3\xa9\n\xff\nlast")
    ended = manyhands(work, "map", "work.py:same", "--lines", "in.txt")
    assert ended.code == 1
    assert results_or_types(ended) == ["one", "", "two ", "dé", "MalformedRecord", "last"]
    assert [entry["input"] for entry in lines(ended.out)] == [f"in.txt:{n}" for n in range(1, 7)]
    assert told(ended) == [
        "item 4 (in.txt:5) failed: in.txt:5 is not UTF-8: byte 0xff at position 1",
        "1 of 6 items failed",
    ]


def test_json_lines(work: Path) -> None:
    text = '{"a": "é"}\n\n[1, 2\n7\n'
    ended = manyhands(work, "map", "work.py:same", "--jsonl", "-", stdin=text)
    assert ended.code == 1
    assert results_or_types(ended) == [{"a": "é"}, "MalformedRecord", 7]
    entry = lines(ended.out)[1]
    assert (entry["index"], entry["input"]) == (1, "<stdin>:3")
    assert entry["error"]["message"] == (
        "<stdin>:3 is not JSON: Expecting ',' delimiter at column 6"
    )


def test_records_as_keywords(work: Path) -> None:
    text = '{"a": 1, "b": 2}\n{"a": 3}\n[1]\n{"c": 1}\n'
    ended = manyhands(work, "map", "work.py:add", "--jsonl", "-", "--kwargs", stdin=text)
    assert results_or_types(ended) == [3, 3, "MalformedRecord", "TypeError"]
    assert "<stdin>:3 is an array, and --kwargs needs an object" in ended.err


def test_rows(work: Path) -> None:
    (work / "in.csv").write_bytes(
        b'name,text\r\na,"one\r\n""two"""\r\nb\r\nc,"open\r\nd,\xff\r\n\r\ne,"\xc3\xa9"\r\n'
        b'f,"x"y\r\ng,last'
    )
    ended = manyhands(work, "map", "work.py:same", "--csv", "in.csv")
    assert ended.code == 1
    malformed = "MalformedRecord"
    assert results_or_types(ended) == [
        {"name": "a", "text": 'one\r\n"two"'},
        malformed,
        malformed,
        malformed,
        {"name": "e", "text": "é"},
        malformed,
        {"name": "g", "text": "last"},
    ]
    assert [entry["input"] for entry in lines(ended.out)] == [
        f"in.csv:{line}" for line in (2, 4, 5, 6, 8, 9, 10)
    ]
    problems = told(ended)[:-1]
    assert problems[0] == "item 1 (in.csv:4) failed: in.csv:4 has 1 field, and the header has 2"
    assert "in.csv:5 is no row of a table" in problems[1]
    assert problems[2].endswith("in.csv:6 is not UTF-8")
    assert "in.csv:9 is no row of a table" in problems[3]


def test_rows_as_keywords(work: Path) -> None:
    ended = manyhands(work, "map", "work.py:add", "--csv", "-", "--kwargs", stdin="a,b\n1,2\n")
    assert results(ended) == ["12"]


@pytest.mark.parametrize("form", ["--lines", "--jsonl", "--csv"])
def test_no_records(work: Path, form: str) -> None:
    ended = manyhands(work, "map", "work.py:same", form, "-", "-o", "out")
    assert (ended.code, ended.out, told(ended)) == (0, "", [])
    assert (work / "out").read_text() == ""


def test_batches(work: Path) -> None:
    text = '"a"\n"bb"\n[\n"ccc"\n"dddd"\n'
    ended = manyhands(work, "map", "work.py:lengths", "--jsonl", "-", "--batch", "2", stdin=text)
    assert results_or_types(ended) == [1, 2, "MalformedRecord", 3, 4]
    assert [entry["index"] for entry in lines(ended.out)] == list(range(5))
    ended = manyhands(work, "map", "work.py:lengths", "a", "bb", "--batch", "1")
    assert results(ended) == [1, 2]
    ended = manyhands(work, "map", "work.py:short", "a", "b", "c", "--batch", "2")
    assert results_or_types(ended) == ["ValueError"] * 3
    assert "short returned 1 results for a batch of 2 inputs" in told(ended)[0]


def test_a_generator_function_writes_a_line_for_each_value(work: Path) -> None:
    ended = manyhands(work, "map", "work.py:count", "2", "0", "1", "x")
    assert [(entry["index"], entry.get("result")) for entry in lines(ended.out)] == [
        (0, 0),
        (0, 1),
        (2, 0),
        (3, None),
    ]
    assert told(ended)[-1] == "1 of 4 items failed"


# ---------------------------------------------------------------------------------------- results


def test_a_result_that_is_no_json_is_named(work: Path) -> None:
    for function, why in [
        ("odd", "result['tags'][0] is of type set"),
        ("point", "result is of type work.Point"),
    ]:
        ended = manyhands(work, "map", f"work.py:{function}", "1")
        assert ended.code == 1
        assert lines(ended.out)[0]["error"] == {
            "type": "BadResult",
            "message": f"the result of item 0 cannot be written as JSON: {why}; "
            "return plain values, or use --pickle",
        }
        assert "--pickle" in told(ended)[0]


def test_what_json_has_no_number_for(work: Path) -> None:
    ended = manyhands(work, "map", "builtins:float", "1.5", "nan", "inf")
    assert results_or_types(ended) == [1.5, "BadResult", "BadResult"]
    assert "result is nan, and JSON has no such number" in told(ended)[0]


def test_pickles(work: Path) -> None:
    arguments = ("map", "work.py:point", "1", "x", "--pickle", "-o", "out")
    assert manyhands(work, *arguments).code == 1
    source = (
        "import pickle\n"
        "with open('out', 'rb') as file:\n"
        "    print(pickle.load(file))\n"
        "    print(pickle.load(file)['error']['type'])\n"
        "    print(file.read())\n"
    )
    read = run("-c", source, cwd=work)
    assert told(Ended(0, "", read.out)) == [
        "{'index': 0, 'input': '1', 'result': Point(x=1)}",
        "ValueError",
        "b''",
    ]


def test_a_result_that_cannot_be_pickled_is_named(work: Path) -> None:
    # It is looked for in a time that a machine which stands still would use up.
    (work / "open_file.py").write_text(
        "import manyhands._diagnose\nmanyhands._diagnose._SECONDS = 60.0\n"
        "def lock(text):\n import threading\n return [open(text)]"
    )
    ended = manyhands(work, "map", "open_file.py:lock", "work.py", "--pickle", "-o", "out")
    assert ended.code == 1
    assert "the result of item 0 cannot be pickled: result[0] is an open file" in told(ended)[0]


def test_a_file_has_its_name_when_it_is_complete(work: Path) -> None:
    (work / "out").write_text("old")
    with start(work, "map", "work.py:wait", "a", "wait", "-o", "out") as process:
        until(lambda: (work / "waiting").exists() and (work / "out.partial").read_text() != "")
        assert (work / "out").read_text() == "old"
        assert lines((work / "out.partial").read_text())[0]["result"] == "a"
        until_it_waits(process.pid)  # what another thread has written is counted by then
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143
    assert b"stopped after 1 of 2 items; what is done is in out.partial" in errors
    ended = manyhands(work, "map", "work.py:same", "a", "-o", "out")
    assert ended.code == 0
    assert lines((work / "out").read_text()) == [{"index": 0, "input": "a", "result": "a"}]
    assert not (work / "out.partial").exists()


def test_where_output_goes(work: Path) -> None:
    (work / "real").touch()
    (work / "link").symlink_to("real")
    assert manyhands(work, "map", "work.py:same", "a", "-o", "link").code == 0
    assert (work / "link").is_symlink()
    assert "result" in (work / "real").read_text()
    # What is no file is never replaced by one.
    assert manyhands(work, "map", "work.py:same", "a", "-o", "/dev/null").code == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    ended = manyhands(work, "map", "work.py:same", "a", "-o", "/dev/full")
    assert ended.code == 1
    assert "No space left on device" in ended.err


# ------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("target", "sentence", "hint"),
    [
        ("work.py:pars", "work.py has no function pars.", "did you mean work.py:parse?"),
        (
            "work:Tools.twic",
            "work:Tools has no function twic.",
            "did you mean work:Tools.twice?",
        ),
        ("work.py:number", "work.py:number is of type int, which cannot be called.", None),
        ("wrok.py:same", "There is no file wrok.py.", "work.py"),
        ("./:same", ". is a directory, not a file of Python code.", None),
        ("wrok:same", "There is no module wrok.", "did you mean work"),
        ("email.mesage:f", "There is no module email.mesage.", "did you mean email.message?"),
        ("jsn.decoder:f", "There is no module jsn.decoder.", "did you mean json.decoder"),
        ("json.x.y:f", "There is no module json.x.y.", None),
        (
            "broken.py:f",
            "broken.py cannot be imported: NameError: name 'x' is not defined (broken.py, line 2).",
            None,
        ),
        ("syntax.py:f", "syntax.py cannot be imported: SyntaxError: ", None),
        (
            "missing:f",
            "missing cannot be imported: ModuleNotFoundError: No module named 'nowhere' "
            "(missing.py, line 1).",
            None,
        ),
        (
            "script.py:f",
            "script.py ended the program while it was imported.",
            'put what only a script does behind `if __name__ == "__main__":`',
        ),
    ],
)
def test_a_function_that_is_not_there(
    work: Path, target: str, sentence: str, hint: str | None
) -> None:
    (work / "broken.py").write_text("\nx + 1\n")
    (work / "syntax.py").write_text("def f(:\n")
    (work / "missing.py").write_text("import nowhere\n")
    (work / "script.py").write_text("import sys\nsys.exit(0)\n")
    ended = manyhands(work, "map", target, "a")
    assert (ended.code, ended.out) == (2, "")
    first, *others = told(ended)
    assert first.startswith(f"error: {sentence}")
    assert len(others) <= 1
    if hint is not None:
        assert hint in others[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--lines", "none.txt"), "none.txt cannot be read: No such file or directory."),
        (("--csv", "."), ". cannot be read: Is a directory."),
        (("--csv", "twice.csv"), "twice.csv:1: the header has the name 'a' twice."),
        (("a", "-o", "none/out"), "none/out cannot be written: No such file or directory."),
        (("a", "-o", "."), ". cannot be written: Is a directory."),
        (("a", "-j", "5000"), "workers must be at most 4000, not 5000."),
        (("a", "--config", "wrkers=2"), "There is no setting wrkers."),
        (("a", "--config", "workers=few"), "--config workers=few is refused: workers must be"),
    ],
)
def test_what_cannot_be_run(work: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (work / "twice.csv").write_text("a,a\n1,2\n")
    ended = manyhands(work, "map", "work.py:same", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert told(ended)[0].startswith(f"error: {sentence}")
    if "--config" in arguments:
        assert "the settings are workers, " in told(ended)[1]
    assert not list(work.glob("*.partial"))


def test_settings(work: Path) -> None:
    settings = ("--config", "workers=1", "--config", "show_args=false")
    assert results(manyhands(work, "map", "work.py:same", "a", *settings)) == ["a"]


# ----------------------------------------------------------------------------- pipes and terminals


class start:
    """A program that runs, ended at the latest with the block."""

    def __init__(self, folder: Path, *arguments: str, stdin: Any = subprocess.PIPE) -> None:
        variables = {k: v for k, v in os.environ.items() if not k.startswith("MANYHANDS_")}
        self.process = subprocess.Popen(
            command(*arguments),
            cwd=folder,
            env=variables,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def until(holds: Any) -> None:
    deadline = time.monotonic() + WATCHDOG_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.005)


def until_it_awaits_input(pid: int) -> None:
    """Waits until the main thread has waited for input for longer than between two pauses."""
    folder, before, looks = Path(f"/proc/{pid}/task/{pid}"), "", 0

    def has_waited() -> bool:
        nonlocal before, looks
        is_waiting = "poll" in (folder / "wchan").read_text()
        now = (folder / "status").read_text().partition("\nvoluntary_ctxt_switches")[2]
        looks = looks + 1 if is_waiting and now == before else 0
        before = now
        return looks == 60

    until(has_waited)


def test_results_flow_while_input_is_awaited(work: Path) -> None:
    with start(work, "map", "work.py:parse", "--lines", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(b"%d\n" % number)
            process.stdin.flush()
            # The next line is written only when this one has its result.
            assert json.loads(process.stdout.readline())["result"] == number
        process.stdin.close()
        assert process.wait(WATCHDOG_SECONDS) == 0


def test_a_batch_does_not_wait_for_input(work: Path) -> None:
    with start(work, "map", "work.py:lengths", "--lines", "-", "--batch", "100") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\nbb\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["result"] == 1
        assert json.loads(process.stdout.readline())["result"] == 2
        process.stdin.close()
        assert process.wait(WATCHDOG_SECONDS) == 0


def memory(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


# Writes some lines, and the rest when it is told to; it ends when it is told once more.
GENERATOR = """
import sys
line = b"x" * 1500 + b"\\n"
for count in (1_000, 99_000):
    for _ in range(count // 100):
        sys.stdout.buffer.write(100 * line)
    sys.stdout.flush()
    sys.stdin.readline()
"""


def test_a_long_stream_takes_no_memory(work: Path) -> None:
    def read(count: int) -> None:
        while count > 0:
            data = os.read(output, 1 << 16)
            assert data
            count -= data.count(b"\n")

    with subprocess.Popen(
        [sys.executable, "-c", GENERATOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as generator:
        arguments = ("map", "builtins:len", "--lines", "-")
        with start(work, *arguments, stdin=generator.stdout) as process:
            assert generator.stdin is not None
            assert process.stdout is not None
            output = process.stdout.fileno()
            read(1_000)
            before = memory(process.pid, "VmRSS")
            generator.stdin.write(b"\n")
            generator.stdin.flush()
            read(99_000)
            grown = memory(process.pid, "VmHWM") - before
            generator.stdin.close()
            assert process.wait(WATCHDOG_SECONDS) == 0
    # All of the input is 150 MB; the window holds up to 64 MB of it.
    assert grown < 100e6, f"{grown:,} bytes"


def test_a_reader_that_leaves_ends_it_quietly(work: Path) -> None:
    with start(work, "map", "builtins:len", "--lines", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        stdin = process.stdin

        def write() -> None:
            try:
                while True:
                    stdin.write(b"line\n" * 1000)
            except BrokenPipeError:
                pass

        writer = threading.Thread(target=write)
        writer.start()
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(WATCHDOG_SECONDS) == 141
        writer.join()
        assert process.stderr.read() == b""
    with start(work, "--help") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(WATCHDOG_SECONDS) in (0, 141)


def on_terminal(
    folder: Path, *arguments: str, keys: bytes, when: Path | None, waiting: bool = False
) -> tuple[int, str]:
    """Runs it on a terminal; the keys are typed when the file is there and three items are done,
    and, with `waiting`, its main thread has come to wait after them."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.chdir(folder)
            os.execv(sys.executable, command(*arguments))
        finally:
            os._exit(127)
    os.set_blocking(master, False)
    shown = b""
    typed = False
    deadline = time.monotonic() + WATCHDOG_SECONDS
    try:
        while True:
            try:
                shown += os.read(master, 65536)
            except OSError:  # nothing there, or nobody any more
                time.sleep(0.002)
            if not typed and when is not None and when.exists():
                written = folder / "out.partial"
                if written.exists() and written.read_bytes().count(b"\n") >= 3:
                    if waiting:
                        until_it_waits(pid)
                    typed = True
                    os.write(master, keys)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pid = 0
                break
            assert time.monotonic() < deadline, shown.decode(errors="replace")
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:
            pass
        text = shown.decode().replace("\r\n", "\n")
        return os.waitstatus_to_exitcode(status), text
    finally:
        os.close(master)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_ctrl_c_while_input_is_awaited(work: Path) -> None:
    with start(work, "map", "work.py:same", "--lines", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout.readline()
        until_it_awaits_input(process.pid)  # by then it has counted what another thread has written
        process.send_signal(signal.SIGINT)
        assert process.wait(WATCHDOG_SECONDS) == 130
        assert process.stderr is not None
        assert process.stderr.read().decode().splitlines()[-1] == "stopped after 1 item"


def test_a_signal_that_another_thread_gets_while_input_is_awaited(work: Path) -> None:
    """It interrupts no call, as one that comes just before the wait; that cannot be had at will."""

    def others() -> list[int]:
        """The other threads that a signal may be handed to."""
        threads = []
        for folder in Path(f"/proc/{process.pid}/task").iterdir():
            [blocked] = re.findall(r"SigBlk:\s*(\w+)", (folder / "status").read_text())
            if int(folder.name) != process.pid and not int(blocked, 16) & 1 << signal.SIGINT - 1:
                threads.append(int(folder.name))
        return threads

    with start(work, "map", "work.py:same", "--lines", "-", "--engine", "thread") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout.readline()
        until_it_awaits_input(process.pid)  # without a limit
        assert ctypes.CDLL(None).tgkill(process.pid, others()[0], signal.SIGINT) == 0
        assert process.wait(WATCHDOG_SECONDS / 2) == 130
        assert process.stderr is not None
        assert process.stderr.read().decode().splitlines()[-1] == "stopped after 1 item"


def test_ctrl_c_while_input_is_awaited_and_an_item_runs(work: Path) -> None:
    with start(work, "map", "work.py:wait", "--lines", "-") as process:
        assert process.stdin is not None
        process.stdin.write(b"wait\n")
        process.stdin.flush()
        until((work / "waiting").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(WATCHDOG_SECONDS / 2) == 130  # the item takes a minute


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_ctrl_c(work: Path, engine: str) -> None:
    paths = ["a", "b", "c", "wait", *map(str, range(2000))]
    arguments = ["map", "work.py:wait", *paths, "-o", "out", "--engine", engine, "-j", "1"]
    # With one worker, nothing behind the item that waits is done. What another thread has written
    # the main thread has counted when it waits; inline it runs the item.
    code, shown = on_terminal(
        work, *arguments, keys=b"\x03", when=work / "waiting", waiting=engine != "inline"
    )
    assert code == 130
    assert "stopped after 3 of 2,004 items; what is done is in out.partial" in shown
    assert "Traceback" not in shown
    assert [entry["result"] for entry in lines((work / "out.partial").read_text())] == list("abc")
    assert not (work / "out").exists()


def test_a_hint_is_shown_on_a_terminal(work: Path) -> None:
    # Whether workers were busy enough for it is not the question here, and a machine may be late.
    (work / "slow.py").write_text(
        "import time\nimport manyhands._hints\nmanyhands._hints._FULL = 0.05\n"
        "def wait(text): time.sleep(0.1)\n"
    )
    items = map(str, range(40))
    arguments = ["map", "slow.py:wait", *items, "-o", "out", "-j", "2", "--no-progress"]
    code, shown = on_terminal(work, *arguments, keys=b"", when=None)
    assert code == 0
    assert shown.startswith("hint: items waited for ")
    assert ": --engine thread --workers 32 would have more of them wait at once\n" in shown
    ended = manyhands(work, *arguments)
    assert (ended.code, ended.err) == (0, "")


def test_pickles_are_not_shown_on_a_terminal(work: Path) -> None:
    code, shown = on_terminal(work, "map", "work.py:same", "a", "--pickle", keys=b"", when=None)
    assert code == 2
    assert "error: Pickles are not written to a terminal." in shown
    ended = manyhands(work, "map", "os.path:basename", "a", "--pickle", "-o", "out")
    assert ended.code == 0
    assert pickle.loads((work / "out").read_bytes())["result"] == "a"


# ---------------------------------------------------------------------------------- other commands


def test_doctor(tmp_path: Path) -> None:
    ended = manyhands(tmp_path, "doctor")
    assert (ended.code, ended.err) == (0, "")
    for part in ("CPUs to use", "affinity", "quota", "memfd", "/dev/shm", "later start"):
        assert part in ended.out
    assert "What would be slow here:" in ended.out
    facts = json.loads(manyhands(tmp_path, "doctor", "--json", MANYHANDS_WORKERS="64").out)
    assert facts["cpus"]["to_use"] == mh.cpu_count()
    assert facts["workers"]["count"] == 64
    assert facts["workers"]["first"] > 0
    assert facts["environment"]["MANYHANDS_WORKERS"] == "64"
    if mh.cpu_count() < 64:
        assert any("asks for 64 workers" in sentence for sentence in facts["advice"])


def test_doctor_says_that_nothing_works(tmp_path: Path) -> None:
    ended = manyhands(tmp_path, "doctor", MANYHANDS_WORKERS="many")
    assert ended.code == 1
    assert "Workers cannot be started: ValueError: MANYHANDS_WORKERS must be" in ended.out


@pytest.mark.parametrize(
    ("section", "name", "value", "part"),
    [
        ("cpus", "to_use", 1, "There is one CPU to use"),
        ("cpus", "quota", 0.5, "gives 0.5 CPUs of 4"),
        ("cpus", "affinity", 2, "may run on 2 of 4 CPUs"),
        ("cpus", "load", 9.5, "The load is 9.5 on 4 CPUs"),
        ("workers", "count", 5, "asks for 5 workers on 4 CPUs"),
        ("workers", "problem", "it is raining", "cannot be started: it is raining"),
        ("workers", "first", 2.0, "took 2000.0 ms to start"),
        ("environment", "OMP_NUM_THREADS", "8", "compute on 8 threads"),
        ("memory", "available", 1 << 29, "512 MiB of memory for 4 workers"),
        ("memory", "limit", 1 << 28, "256 MiB of memory for 4 workers"),
        ("open_files", "now", 50, "`ulimit -n`"),
        ("system", "memfd_problem", "no", "do not work: no"),
        ("system", "pidfd_problem", "no", "noticed later"),
        ("python", "dev_mode", True, "development mode"),
        ("shm", "size", 64 << 20, "/dev/shm holds 64 MiB"),
    ],
)
def test_advice(section: str, name: str, value: Any, part: str) -> None:
    facts: dict[str, Any] = {
        "python": {"dev_mode": False},
        "system": {"memfd_problem": None, "pidfd_problem": None},
        "cpus": {
            "machine": 4,
            "affinity": 4,
            "quota": None,
            "quota_source": None,
            "to_use": 4,
            "load": 0.5,
        },
        "memory": {"available": 8 << 30, "limit": None},
        "shm": {"size": 8 << 30},
        "open_files": {"now": 1024},
        "environment": {"MANYHANDS_WORKERS": "4"},
        "workers": {"count": 4, "first": 0.03, "problem": None},
    }
    assert _doctor.advise(facts) == []
    facts[section][name] = value
    assert part in "\n".join(_doctor.advise(facts))


def test_the_demo_is_a_command(tmp_path: Path) -> None:
    ended = manyhands(tmp_path, "demo", "--limit", "12", "-j", "2")
    assert "12 of " in ended.out
    assert "The answer is the same as before" in ended.out
