"""How many threads libraries have inside of a worker process.

Imported in a worker whose share of the processors is not one, or whose user has set the variables.
"""

from __future__ import annotations

import os
import sys

from manyhands import _core
from manyhands._worker import NO_THREADS

__all__ = ["set_up"]

# Libraries that read `OMP_NUM_THREADS` where their own variable is not set.
_FOLLOW_OPENMP = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# Libraries that are loaded are told by their functions in C: their kind, and which variable counts.
_IN_C = {
    "openmp": "OMP_NUM_THREADS",
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
}

# Modules that are imported are told by their functions.
_IN_PYTHON = {
    "torch": ("set_num_threads", "OMP_NUM_THREADS"),
    "pyarrow": ("set_cpu_count", "OMP_NUM_THREADS"),
    "numexpr": ("set_num_threads", "NUMEXPR_NUM_THREADS"),
}


def set_up(count: int, is_given: bool, users: dict[str, str]) -> dict[str, str]:
    """Has the libraries of this worker use so many threads, loaded already or not.

    Args:
        count: how many.
        is_given: whether that was asked for; else what the user has set counts more.
        users: the variables that the user has set.

    Returns:
        The variables as they are set here for the worker's sake.
    """
    if is_given:
        users = {}
    own = {}
    for name in NO_THREADS:
        if name in users:
            continue  # it is there already
        if name in _FOLLOW_OPENMP and "OMP_NUM_THREADS" in users:
            os.environ.pop(name, None)
        else:
            own[name] = os.environ[name] = str(count)
    for kind, name in _IN_C.items():
        number = _number(name)
        if number is not None:
            _core.set_library_threads(kind, number)
    for module, (setter, name) in _IN_PYTHON.items():
        change = getattr(sys.modules.get(module), setter, None)
        number = _number(name)
        if change is not None and number is not None:
            try:
                change(number)
            except ValueError:
                pass  # more than it can have, as by NUMEXPR_MAX_THREADS: it stays as it is
    return own


def _number(name: str) -> int | None:
    """The number of threads that the variable asks for; None where it is something else."""
    text = os.environ.get(name)
    if text is None:
        text = os.environ.get("OMP_NUM_THREADS", "")
    first = text.split(",")[0].strip()  # that of OpenMP may name one for each level
    return int(first) if first.isdecimal() and 0 < int(first) < 1 << 31 else None
