"""Runs a program on a terminal and keeps what a person would have seen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path
from typing import NamedTuple

import pyte

# What a program calls to have the screen looked at: a window title, which nobody prints otherwise.
MARK = """
import os, sys
def mark(name):
    sys.stdout.flush()
    os.write(1, f"\\x1b]0;{name}\\x07".encode())
"""
_TITLE = re.compile(rb"\x1b\]0;(\w+)\x07")
_WATCHDOG_SECONDS = 60


class Seen(NamedTuple):
    """How the program ended, what the screen showed at each mark and at the end, and the bytes."""

    code: int
    at: dict[str, list[str]]
    raw: bytes


def lines_of(screen: pyte.Screen) -> list[str]:
    """The lines of the screen, without blanks at the end of each and empty lines at the end."""
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def run_on_terminal(
    folder: Path, source: str, *, columns: int = 80, rows: int = 12, **environment: str
) -> Seen:
    """Runs the source, which may call `mark(name)`, with all its streams on a terminal."""
    script = folder / "script.py"
    script.write_text(MARK + textwrap.dedent(source), encoding="utf-8")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MANYHANDS_")}
    variables |= {"TERM": "xterm", "PYTHONUTF8": "1", **environment}
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=theirs, stdout=theirs, stderr=theirs, env=variables
    ) as process:
        os.close(theirs)
        written = bytearray()
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # how Linux says that the last writer has gone
                break
            if not chunk:
                break
            written += chunk
        os.close(ours)
        code = process.wait(_WATCHDOG_SECONDS)
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    at = {}
    pieces = _TITLE.split(bytes(written))
    for index, piece in enumerate(pieces):
        if index % 2:
            at[piece.decode()] = lines_of(screen)
        else:
            stream.feed(piece)
    at["end"] = lines_of(screen)
    return Seen(code, at, bytes(written))
