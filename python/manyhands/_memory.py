"""How much memory the tasks of a pool may take together: `memory_limit=`."""

from __future__ import annotations

from manyhands import _core
from manyhands._store import parse_size

_PERCENT = r"\s*(\d+(?:\.\d+)?)\s*%\s*"


def check_limit(value: int | str, engine: str) -> int:
    """The limit in bytes."""
    if engine != "process":
        raise ValueError(
            "memory_limit= is for worker processes alone: what one thread takes cannot be told "
            'from what the others do; use engine="process"'
        )
    if isinstance(value, str):
        import re

        found = re.fullmatch(_PERCENT, value)
        if found is not None:
            return _part(float(found[1]))
    return parse_size(value, "memory_limit=")


def _part(percent: float) -> int:
    """So much of what the machine, or the control group, has."""
    if not 0 < percent <= 100:
        raise ValueError(f"memory_limit= must be above 0% and at most 100%, not {percent:g}%")
    facts = _core.machine_facts()
    known = [facts[name] for name in ("memory_limit", "memory_total") if facts[name] is not None]
    if not known:
        raise RuntimeError("memory_limit= cannot be a part: the system does not tell what it has")
    return max(int(min(known) * percent / 100), 1)
