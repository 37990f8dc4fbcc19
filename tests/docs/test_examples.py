"""What the documentation shows is run: doctests, the code of the guides, the examples.

A block marked `python` in a document of the repository's top folder or of docs/ is a program of its
own. If a block marked `text` follows it, that is what it prints; numbers, which may be process ids,
times or versions, are not compared, and `...` stands for anything.
"""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest

import manyhands

ROOT = Path(__file__).parents[2]
WATCHDOG_SECONDS = 90


def run_program(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the file as people do, in the folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MANYHANDS_")}
    return subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_SECONDS,
        check=False,
    )


# -------------------------------------------------------------------------------------- doctests


def modules() -> list[str]:
    names = [info.name for info in pkgutil.iter_modules(manyhands.__path__, "manyhands.")]
    return ["manyhands", *(name for name in names if not name.endswith(("_core", "__main__")))]


def doctests(module: types.ModuleType) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for test in doctests(module):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_there_are_doctests() -> None:
    tests = [test for name in modules() for test in doctests(importlib.import_module(name))]
    assert len(tests) >= 8
    shown = {test.name for test in tests}
    assert {"manyhands._pool.Pool", "manyhands._pool.Pool.map", "manyhands._default.map"} <= shown


# ------------------------------------------------------------------------------ code in documents


class Block(NamedTuple):
    """A program in a document, and what it prints, if the document says so."""

    place: str
    source: str
    output: str | None


BLOCK = re.compile(
    r"^```python\n(?P<source>.*?)^```[ ]*\n(?:\s*^```text\n(?P<output>.*?)^```[ ]*$)?",
    re.MULTILINE | re.DOTALL,
)


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> list[Block]:
    found = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            place = f"{path.relative_to(ROOT)}:{line}"
            found.append(Block(place, match["source"], match["output"]))
    return found


def normal(text: str) -> str:
    """Without what differs between runs, machines and versions of Python."""
    text = re.sub(r"^\s*[~^]+\s*\n", "", text, flags=re.MULTILINE)  # the marks below a source line
    # Source lines of a traceback: a document may show a program that was typed in.
    text = re.sub(
        r'^( *)File "[^"]*"(.*)\n(?:\1  .*\n)?', r'\1File "..."\2\n', text, flags=re.MULTILINE
    )
    text = re.sub(r"0x[0-9a-f]+", "0x0", text)
    return re.sub(r"\d+(\.\d+)?", "0", text)


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.place)
def test_code_of_documents(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    # The lines are where the document has them, so that an error names the right one.
    path.write_text("\n" * (int(block.place.rpartition(":")[2]) - 1) + block.source)
    done = run_program(path, tmp_path)
    assert done.returncode == 0, f"{block.place}\n{done.stderr}"
    if block.output is None:
        return
    checker = doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    wanted, got = normal(block.output), normal(done.stdout)
    assert checker.check_output(wanted, got, flags), (
        f"{block.place} prints\n{done.stdout}\nand the document says\n{block.output}"
    )


def test_there_is_code_in_documents() -> None:
    assert len(blocks()) >= 5
    assert any(block.place.startswith("README.md:") for block in blocks())
    assert any(block.output for block in blocks())
    # No block escapes because of how it is written.
    marked = sum(path.read_text(encoding="utf-8").count("```python") for path in documents())
    assert len(blocks()) == marked


# -------------------------------------------------------------------------------------- examples


def examples() -> list[Path]:
    return sorted((ROOT / "examples").rglob("*.py"))


@pytest.mark.parametrize("path", examples(), ids=lambda path: str(path.relative_to(ROOT)))
def test_examples(path: Path, tmp_path: Path) -> None:
    done = run_program(path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip()
    assert path.read_text(encoding="utf-8").startswith('"""'), "an example says what it shows"
    assert list(tmp_path.iterdir()) == []


def test_what_the_examples_print(tmp_path: Path) -> None:
    folder = ROOT / "examples/first_steps"
    (tmp_path / "a.txt").write_text("many hands make light work\nmany\n")
    done = subprocess.run(
        [sys.executable, folder / "count_words.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_SECONDS,
        check=True,
    )
    assert done.stdout.splitlines()[:2] == ["6 words in 1 files", "       2  many"]
    assert "pi is about 3.1" in run_program(folder / "estimate_pi.py", tmp_path).stdout
    # A machine that stands still may be done before the loop has come by twice.
    texts = (run_program(folder / "from_an_event_loop.py", tmp_path).stdout for _ in range(3))
    assert any("free: True" in text for text in texts)


def test_there_are_examples() -> None:
    assert len(examples()) >= 6
