"""What would have made a map much faster, from what was measured of it."""

from __future__ import annotations

import sys

from manyhands._cpu import cpu_count
from manyhands._typing import Any

__all__ = ["Hint", "hint_of"]

# Workers that were in the function for this share of the time had no more time to give.
_FULL = 0.8

# Items that compute for less of their time wait for something.
_WAITING = 0.2

# Threads of one process that compute in turns make up for about one processor, and never for more.
_IN_TURNS = (0.75, 1.1)

# An item that is computed so long is worth sending, in seconds.
_WORTH_SENDING = 0.0002

# How many more workers are named at the most: what items wait for may not bear more.
_MOST_MORE = 16


class Hint:
    """What was seen, and the options that would change it."""

    def __init__(self, seen: str, effect: str, **options: Any) -> None:
        self.seen = seen
        self.effect = effect
        self.options = options

    def __str__(self) -> str:
        options = ", ".join(
            f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
            for name, value in self.options.items()
        )
        return f"{self.seen}: {options} {self.effect}"

    def as_arguments(self) -> str:
        """As it is typed at a command line."""
        options = " ".join(f"--{name} {value}" for name, value in self.options.items())
        return f"{self.seen}: {options} {self.effect}"


def hint_of(
    *, done: int, wall: float, busy: float, cpu: float, workers: int, engine: str
) -> Hint | None:
    """The hint for a map, if another engine or number of workers were at least about twice as fast.

    The measures are those of `Summary`. Nothing is said of what they do not show: how the input or
    the consumer of the results held the workers up, or what items wait for.
    """
    if done < 2 * workers:
        return None
    cores = cpu_count()
    if engine == "thread" and _took_turns(wall, cpu, workers, cores):
        return Hint(
            f"{workers} threads computed for {cpu:.1f} s in {wall:.1f} s, one at a time",
            f"would use {min(cores, done)} processors",
            engine="process",
        )
    if busy < _FULL * wall * workers:
        return None
    if cpu < _WAITING * busy and cpu < 0.5 * wall * cores and engine != "inline":
        more = min(_MOST_MORE * workers, done, int(workers * busy / max(cpu, 1e-9)))
        if more < 2 * workers:
            return None
        options = {} if engine == "thread" else {"engine": "thread"}
        return Hint(
            f"items waited for {1 - cpu / busy:.0%} of their time, {workers} at once",
            "would have more of them wait at once",
            **options,
            workers=more,
        )
    if cpu < _FULL * busy or 2 * workers > cores or cpu / done < _WORTH_SENDING:
        return None
    if engine == "inline":
        return Hint(
            f"items computed for {cpu:.1f} s, one after the other",
            f"would use {min(cores, done)} processors",
            engine="process",
        )
    if engine == "process":
        return Hint(
            f"{workers} of {cores} processors computed, all the time",
            "would use them all",
            workers=cores,
        )
    return None


def _took_turns(wall: float, cpu: float, workers: int, cores: int) -> bool:
    least, most = _IN_TURNS
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return has_gil and min(workers, cores) >= 2 and least * wall <= cpu <= most * wall
