"""What the documents show of a shell: each `console` block is typed, and has to print what it says.

The blocks of a document are one session, in one folder. A `python` block that begins with the
comment `# name.py` is a file of that name there. `...` in what is printed stands for anything;
errors and output are compared in whichever order the document has them.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
WATCHDOG_SECONDS = 90
FILE = re.compile(r"^```python\n# (?P<name>\w+\.py)\n(?P<source>.*?)^```", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


class Typed(NamedTuple):
    """A command of a document, and what it prints."""

    place: str
    command: str
    shown: str


def documents() -> list[Path]:
    every = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in every if "```console" in path.read_text(encoding="utf-8")]


def session(path: Path) -> list[Typed]:
    text = path.read_text(encoding="utf-8")
    found: list[Typed] = []
    for block in CONSOLE.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        for row in block["text"].splitlines(keepends=True):
            line += 1
            if row.startswith("$ "):
                found.append(Typed(f"{path.name}:{line}", row[2:], ""))
            else:
                found[-1] = found[-1]._replace(shown=found[-1].shown + row)
    return found


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_console(path: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, rest in (("manyhands", "-m manyhands "), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {rest}"$@"\n')
        program.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in FILE.finditer(path.read_text(encoding="utf-8")):
        (folder / file["name"]).write_text(file["source"], encoding="utf-8")
    commands = session(path)
    status = 0
    for place, command, shown in commands:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MANYHANDS_")}
        done = subprocess.run(
            ["sh", "-c", f"(exit {status}); {command}"],
            cwd=folder,
            env={**environment, "PATH": f"{programs}:{environment['PATH']}"},
            capture_output=True,
            text=True,
            timeout=WATCHDOG_SECONDS,
            check=False,
        )
        status = done.returncode
        checker = doctest.OutputChecker()
        printed = (done.stdout + done.stderr, done.stderr + done.stdout)
        assert any(checker.check_output(shown, text, doctest.ELLIPSIS) for text in printed), (
            f"{place}: {command}prints\n{printed[0]}\nand the document says\n{shown}"
        )


def test_there_is_a_session() -> None:
    assert documents()
    assert sum(len(session(path)) for path in documents()) >= 10
