"""The task of `pandas_ready`: like many modules of users, this one imports pandas at its top."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pandas

POLL_SECONDS = 0.002
PATIENCE_SECONDS = 60.0
EXPECTED_SUM = sum(range(100))


def use_pandas_and_meet(job: tuple[str, int]) -> tuple[int, int]:
    """Use pandas, then wait until `count` processes did: each of them runs exactly one task."""
    folder, count = job
    total = int(pandas.DataFrame({"a": range(100)})["a"].sum())
    (Path(folder) / str(os.getpid())).touch()
    give_up = time.monotonic() + PATIENCE_SECONDS
    while len(os.listdir(folder)) < count:
        if time.monotonic() > give_up:
            raise TimeoutError(f"only {len(os.listdir(folder))} of {count} workers took part")
        time.sleep(POLL_SECONDS)
    return os.getpid(), total
