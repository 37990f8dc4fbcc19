#!/usr/bin/env python3
"""Show what a long log of tests says of its failures, in at most 40 lines.

Usage: log_facts.py LOG...

Where only the end of a log can be read, these lines are to be its end: which tests failed, and of
one that hung its name, what `tests/watchdog.py` knew of it, and where the threads were, without the
frames of pytest.
"""

import re
import sys
from collections.abc import Iterable

MOST_LINES = 40
MOST_FAILURES = 30
MOST_OF_HANG = 16
# Frames of each thread, the innermost first.
MOST_FRAMES = 6

# Failures of pytest and of cargo, and errors of compilers and tools.
_FAILURE = re.compile(
    r"(FAILED|ERROR) \S|test .* \.\.\. FAILED$|thread '.*' .*panicked at"
    r"|error(\[E\d+\])?: "
)
_ENDED = "make: *** "
_FRAME = re.compile(r' +File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
_THREAD = re.compile(r"(Current thread|Thread) (?P<number>0x[0-9a-f]+).*most recent call first")
# What runs tests, and what every thread has below its own.
_RUNS_TESTS = re.compile(r"/(_pytest|pluggy|pytest)/|/watchdog\.py$|<frozen runpy>|/threading\.py$")
_LONGEST_LINE = 160


def facts(lines: Iterable[str]) -> list[str]:
    """The lines to show of a log, its failures first."""
    failures: dict[str, None] = {}
    hang: list[str] = []
    threads: list[list[str]] = []
    for line in lines:
        line = line.rstrip("\n")
        if line.startswith("hang: "):
            hang.append(line)
        elif match := _THREAD.match(line):
            threads.append([f"thread {match['number']}"])
        elif (match := _FRAME.fullmatch(line)) and threads:
            if not _RUNS_TESTS.search(match["file"]) and len(threads[-1]) <= MOST_FRAMES:
                place = "/".join(match["file"].split("/")[-2:])
                threads[-1].append(f"  {place}:{match['line']} in {match['function']}")
        elif _ENDED in line:  # maybe behind what was being written when it was killed
            before, mark, rest = line.partition(_ENDED)
            failures.update(dict.fromkeys(filter(None, [before, mark + rest])))
        elif _FAILURE.match(line):
            failures.setdefault(line)
    shown = [*_first(list(failures), MOST_FAILURES), *_first(hang, MOST_OF_HANG)]
    # The main thread is the last that faulthandler shows.
    stacks = [line for thread in reversed(threads) if len(thread) > 1 for line in thread]
    shown += _first(stacks, MOST_LINES - len(shown))
    return [line[:_LONGEST_LINE] for line in shown[:MOST_LINES]]


def _first(lines: list[str], most: int) -> list[str]:
    """So many of them, the last of which says how many more there are."""
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"... and {len(lines) - most + 1} lines more"] if most > 0 else []


def main(names: list[str]) -> int:
    if not names:
        print("usage: log_facts.py LOG...", file=sys.stderr)
        return 2
    for name in names:
        with open(name, encoding="utf-8", errors="replace") as log:
            for line in facts(log):
                print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
