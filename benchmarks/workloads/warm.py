"""Around the clock: start every worker before it, check the results after it."""

from __future__ import annotations

from benchmarks.model import DEFAULT_WORKERS
from benchmarks.tasks import nap

# A function and its items: while each worker naps, a pool that starts workers one by one starts the
# next. Twice as many as workers, so that all have also taken a second task.
NAPS = (nap, [0.05] * (2 * DEFAULT_WORKERS))


class WrongResult(Exception):
    """The peer gave results other than the ones asked for."""


def expect(results: object, expected: object) -> None:
    if results != expected:
        raise WrongResult("the results are not the ones expected")
