#!/usr/bin/env python3
"""Run a test command, and fail when it succeeds without having run a test.

Usage: run_counted.py -- COMMAND [ARGUMENT...]

`cargo test` is content with zero tests: after a rename, or with the wrong `--cfg`, a check would
pass for ever on nothing. The output is passed on as it comes; every "<number> passed" in it counts.
"""

import re
import subprocess
import sys


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or arguments[0] != "--":
        print("usage: run_counted.py -- COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    command = arguments[1:]
    passed = 0
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
    except FileNotFoundError:
        print(f"{command[0]} was not found: it has to be installed first.", file=sys.stderr)
        return 127
    assert process.stdout is not None
    try:
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            passed += sum(int(count) for count in re.findall(rb"\b(\d+) passed", line))
        status = process.wait()
    except KeyboardInterrupt:  # the terminal sent it to the command too
        process.wait()
        return 130
    if status != 0:
        return status if status > 0 else 128 - status
    if passed == 0:
        print(f"No test ran in: {' '.join(command)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
