"""The program `manyhands`: what was typed is parsed in Rust, and run here.

Data goes to standard output, all else to standard error. Each command is imported when it is run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from manyhands import _core

__all__ = ["BROKEN_PIPE", "INTERRUPTED", "USAGE", "UsageError", "main", "tell"]

USAGE = 2
INTERRUPTED = 130
# What a shell reports of a program that SIGPIPE ended.
BROKEN_PIPE = 141


class UsageError(Exception):
    """What was typed cannot be run; `str()` is a sentence about it.

    Attributes:
        hint: what to type instead, or an empty string.
    """

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments, by default those it was started with; its exit code.

    >>> main(["--version"])
    manyhands 0.1.0
    0
    """
    command, values = _core.parse_command_line(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(command, values)
    except UsageError as error:
        tell(f"error: {error}")
        if error.hint:
            tell(f"hint: {error.hint}")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on; nor shall Python try once more when it flushes its streams.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE


def _run(command: str, values: dict[str, Any]) -> int:
    if command == "map":
        from manyhands._command_map import MapArguments, run_map

        return run_map(MapArguments(**values))
    if command == "demo":
        from manyhands.demo import run_demo

        return run_demo(**values)
    if command == "doctor":
        from manyhands._doctor import run_doctor

        return run_doctor(**values)
    if command == "refuse":
        sys.stderr.write(values["text"])
        return USAGE
    sys.stdout.write(values["text"])
    sys.stdout.flush()
    return 0


def tell(line: str) -> None:
    """Writes a line for people to standard error, which shows it above a progress bar."""
    if sys.stderr is None:
        return
    try:
        # What cannot be encoded is a name that is no text: it is shown with escapes.
        sys.stderr.write(f"{line}\n")
    except OSError:
        return  # nobody reads it, and there is no other place for it
