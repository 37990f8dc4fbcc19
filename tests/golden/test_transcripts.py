"""What newcomers see, word for word: each program beside what it prints.

Numbers that differ from run to run are written as N. `MANYHANDS_GOLDEN=update` writes the
transcripts anew; read the difference before it is committed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent / "transcripts"
_PROGRAMS = sorted(path.stem for path in _HERE.glob("*.py"))

_VARYING = (
    (r"\bworker \d+", "worker N"),
    (r"stopped after [\d,]+ of", "stopped after N of"),
    # The marks under a line differ between versions of Python.
    (r"\n *[\^~]+(?=\n)", ""),
)


def _shown(name: str) -> tuple[str, int]:
    program = subprocess.Popen(
        [sys.executable, f"{name}.py"],
        cwd=_HERE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "PYTHON_COLORS": "0"},
    )
    assert program.stdout is not None
    first = ""
    if "interrupt" in name:
        first = program.stdout.readline()
        os.killpg(program.pid, signal.SIGINT)
    rest, _ = program.communicate(timeout=60)
    text = first + rest
    text = text.replace(f"{_HERE}{os.sep}", "").replace(str(_HERE), "")
    for pattern, replacement in _VARYING:
        text = re.sub(pattern, replacement, text)
    return text, program.returncode


@pytest.mark.parametrize("name", _PROGRAMS)
def test_transcript(name: str) -> None:
    text, code = _shown(name)
    transcript = f"{text}[exit code {code}]\n"
    path = _HERE / f"{name}.txt"
    if os.environ.get("MANYHANDS_GOLDEN") == "update":
        path.write_text(transcript)
    assert transcript == path.read_text()


def test_one_note_and_the_users_frame_last() -> None:
    text, _ = _shown("first_error")
    assert text.count("manyhands: ") == 1
    frames = re.findall(r'File "([^"]+)"', text)
    assert set(frames) == {"first_error.py"}
