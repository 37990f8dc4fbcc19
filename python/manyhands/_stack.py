"""Stacks as people read them: the last call last, with lines of source, without what is ours."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from traceback import FrameSummary, format_list

__all__ = ["current_stacks", "readable"]

# As faulthandler writes them.
_HEADLINE = re.compile(r"(Current thread|Thread) (0x[0-9a-f]+)")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")

# The frames of ours in which a worker process, or a thread of a pool, calls what tasks run.
_CALLERS = (("/manyhands/_worker.py", "main"), ("/manyhands/_threads.py", "_run"))

# File, line and function; `_LEFT_OUT` stands for older calls than faulthandler writes.
_Frame = tuple[str, int, str]
_LEFT_OUT = "..."


def current_stacks() -> Callable[[int], str | None]:
    """The stacks of all threads of this process now, by `threading.get_ident`."""
    current = sys._current_frames()

    def stack_of(ident: int) -> str | None:
        frame = current.get(ident)
        if frame is None:
            return None
        frames: list[_Frame] = []
        while frame is not None:
            code = frame.f_code
            frames.append((code.co_filename, frame.f_lineno or 0, code.co_name))
            frame = frame.f_back
        return _text(_users_part(frames))

    return stack_of


def readable(written: bytes) -> str:
    """What faulthandler wrote in a worker.

    The thread that runs tasks comes first and without a headline; then any other threads.
    """
    threads = _threads(written.decode("ascii", "replace"))
    main = next((thread for thread in threads if _is_ours(thread)), None)
    if main is None:
        # So many calls that the oldest were left out. It is the one that was interrupted, then.
        main = next((thread for thread in threads if thread.is_current), None)
    text = "" if main is None else _text(_users_part(main.frames))
    for thread in threads:
        if thread is not main:
            shown = _text(thread.frames) or "  no Python code runs there\n"
            text += f"Thread {thread.number}:\n{shown}"
    return text


# How many frames of a thread faulthandler writes.
_MOST_FRAMES = 100


class _Thread:
    """A thread as faulthandler wrote it: frames with the newest first."""

    def __init__(self, number: str, is_current: bool) -> None:
        self.number = number
        self.is_current = is_current
        self.frames: list[_Frame] = []


def _is_ours(thread: _Thread) -> bool:
    return len(_users_part(thread.frames)) < len(thread.frames)


def _threads(written: str) -> list[_Thread]:
    threads: list[_Thread] = []
    for line in written.splitlines():
        headline = _HEADLINE.match(line)
        frame = _FRAME.fullmatch(line)
        if headline is not None:
            threads.append(_Thread(headline[2], headline[1] == "Current thread"))
        elif threads and frame is not None:
            number = int(frame[2]) if frame[2].isdigit() else 0
            threads[-1].frames.append((_unescaped(frame[1]), number, _unescaped(frame[3])))
        elif threads and line == "  ...":
            threads[-1].frames.append((_LEFT_OUT, 0, ""))
    for thread in threads:
        if len(thread.frames) == _MOST_FRAMES:  # CPython 3.13 does not say that there are more
            thread.frames.append((_LEFT_OUT, 0, ""))
    return threads


def _unescaped(text: str) -> str:
    """faulthandler writes ASCII alone."""
    return _ESCAPED.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), text)


def _users_part(frames: list[_Frame]) -> list[_Frame]:
    """Frames, the newest first, without those that a worker's begin with."""
    for at in range(len(frames) - 1, -1, -1):
        file, _, name = frames[at]
        if any(file.endswith(ours) and name == caller for ours, caller in _CALLERS):
            return frames[:at]
    return frames


def _text(frames: list[_Frame]) -> str:
    lines = []
    for file, number, name in reversed(frames):
        if file == _LEFT_OUT:
            lines.append("  [calls that are left out: only the newest are shown]\n")
        else:
            lines += format_list([FrameSummary(file, number, name)])
    return "".join(lines)
