"""Tasks that do not end when they are asked to: their workers have to be killed.

Each makes a file `NAME.PID` in the folder that it is given, so that others know that it runs.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import manyhands as mh
from observing import until


def hold_in_c(folder: str) -> None:
    Path(folder, f"hold_in_c.{os.getpid()}").touch()
    sum(itertools.repeat(1))  # keeps the interpreter


def stubborn(folder: str) -> None:
    while True:
        try:
            Path(folder, f"stubborn.{os.getpid()}").touch()
            time.sleep(600)
        except BaseException:
            pass


def submit_both(pool: mh.Pool, times: int, folder: str = ".") -> list[mh.Future[None]]:
    """Submits each of them so often, in turns; returns when one of each runs."""
    futures = [pool.submit(task, folder) for _ in range(times) for task in (hold_in_c, stubborn)]
    until(lambda: {path.stem for path in Path(folder).glob("*.*")} >= {"hold_in_c", "stubborn"})
    return futures
