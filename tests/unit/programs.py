"""Runs Python programs as people run them: a file, `-c`, `-m`, standard input."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# A hang ends here instead of in the watchdog of the whole run. Nothing is asserted about time.
WATCHDOG_SECONDS = 90


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str


def run(
    *arguments: str | Path,
    stdin: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    interpreter: str = sys.executable,
) -> Ended:
    """Runs the interpreter with these arguments; `env` adds variables, or removes those of None."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS_")
    }
    for name, value in (env or {}).items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    done = subprocess.run(
        [interpreter, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=variables,
        timeout=WATCHDOG_SECONDS,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def run_file(folder: Path, source: str, *arguments: str, **options: object) -> Ended:
    """Runs the source as a script, `script.py` in the folder."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(source), encoding="utf-8")
    return run(script, *arguments, **options)  # type: ignore[arg-type]


def output_of(folder: Path, source: str, *arguments: str, **options: object) -> str:
    """What the source prints as a script that has to end well and say nothing else."""
    ended = run_file(folder, source, *arguments, **options)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    return ended.out
