"""`manyhands doctor`: what this machine offers, and what would be slow here and why.

The facts are one nested dict, which `--json` writes as it is. The table and the advice are made
from it, so that what they say can be looked up in it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from manyhands import _core
from manyhands._config import default_workers

__all__ = ["advise", "find_facts", "run_doctor"]

Facts = dict[str, Any]

_GIB = 1 << 30
_MIB = 1 << 20
# Below this a worker that loads the usual libraries and some data is short of memory.
_WORKER_BYTES = 256 * _MIB
# What a worker needs in its parent: socket, life line, control block, pidfd, messages.
_FILES_PER_WORKER = 8
_FILES_OF_A_PROGRAM = 64
# A worker's first start takes a tenth of it on a machine that is well.
_SLOW_START = 0.5
_SMALL_SHM = 1 << 30
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_doctor(*, as_json: bool) -> int:
    """Prints what was found; 0, or 1 where no worker can be started."""
    facts = find_facts()
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print("\n".join(_table(facts)))
    return 0 if facts["workers"]["problem"] is None else 1


def find_facts() -> Facts:
    """All facts, with the advice that follows from them.

    >>> sorted(find_facts()["cpus"])
    ['affinity', 'load', 'machine', 'quota', 'quota_source', 'share', 'to_use']
    """
    from manyhands import __version__

    machine, affinity, quota, quota_source = _core.cpu_limits()
    found = _core.machine_facts()
    facts: Facts = {
        "manyhands": __version__,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
            "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
            "dev_mode": sys.flags.dev_mode,
        },
        "system": {
            "kernel": found["kernel"],
            "architecture": platform.machine(),
            "memfd_problem": found["memfd_problem"],
            "pidfd_problem": found["pidfd_problem"],
        },
        "cpus": {
            "machine": machine,
            "affinity": affinity,
            "quota": quota,
            "quota_source": quota_source,
            # Of the worker that this process is.
            "share": _core.cpu_share(),
            "to_use": _core.cpu_count(),
            "load": _load(),
        },
        "memory": {
            "machine": found["memory_total"],
            "available": found["memory_available"],
            "limit": found["memory_limit"],
            "limit_source": found["memory_limit_source"],
        },
        "cgroup": {"version": found["cgroup_version"], "path": found["cgroup_path"]},
        "shm": {"size": found["shm_size"], "free": found["shm_free"]},
        "open_files": {"now": found["open_files"], "most": found["open_files_most"]},
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("MANYHANDS_") or name in _THREADS
        },
        "workers": _start_workers(),
    }
    facts["advice"] = advise(facts)
    return facts


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _start_workers() -> Facts:
    """How many a pool has, and how long the first of a program and a later one take to start."""
    from manyhands._pool import Pool

    started: Facts = {"count": None, "interpreter": None, "first": None, "next": None}
    try:
        from manyhands._launch import interpreter

        started["count"] = default_workers("process")
        started["interpreter"] = interpreter()
        for name in ("first", "next"):
            begin = time.perf_counter()
            with Pool(1) as pool:
                pool.submit(int).result(timeout=60)
                started[name] = round(time.perf_counter() - begin, 4)
    except Exception as error:  # whatever is wrong here is what this command is asked for
        return {**started, "problem": f"{type(error).__name__}: {error}"}
    return {**started, "problem": None}


# ---------------------------------------------------------------------------------------- advice


def advise(facts: Facts) -> list[str]:
    """What does not work or would be slow, each in a sentence or two; the worst first."""
    return [sentence for check in _CHECKS if (sentence := check(facts)) is not None]


def _no_workers(facts: Facts) -> str | None:
    problem = facts["workers"]["problem"]
    return None if problem is None else f"Workers cannot be started: {problem}"


def _no_memory_files(facts: Facts) -> str | None:
    problem = facts["system"]["memfd_problem"]
    if problem is None:
        return None
    return f"Worker processes share no memory here, and so do not work: {problem}."


def _no_pidfds(facts: Facts) -> str | None:
    problem = facts["system"]["pidfd_problem"]
    if problem is None:
        return None
    return f"The kernel has no pidfds ({problem}), so the death of a worker is noticed later."


def _one_cpu(facts: Facts) -> str | None:
    if facts["cpus"]["to_use"] > 1:
        return None
    return (
        "There is one CPU to use, so computing gets no faster by processes; tasks that wait for "
        "the network or a disk do, with more workers than CPUs."
    )


def _quota(facts: Facts) -> str | None:
    cpus = facts["cpus"]
    available = min(cpus["machine"], cpus["affinity"])
    if cpus["quota"] is None or cpus["quota"] >= available:
        return None
    return (
        f"The control group gives {cpus['quota']:g} CPUs of {available}: what computes on more "
        f"than that at once is stopped for the rest of each period. {cpus['quota_source']} says so."
    )


def _affinity(facts: Facts) -> str | None:
    cpus = facts["cpus"]
    if cpus["affinity"] >= cpus["machine"]:
        return None
    return (
        f"This process may run on {cpus['affinity']} of {cpus['machine']} CPUs; taskset, a "
        "container or a batch system has set that."
    )


def _busy(facts: Facts) -> str | None:
    load, to_use = facts["cpus"]["load"], facts["cpus"]["to_use"]
    if load is None or load <= to_use:
        return None
    return f"The load is {load:g} on {to_use} CPUs: other programs compute now, and share them."


def _too_many_workers(facts: Facts) -> str | None:
    count, to_use = facts["workers"]["count"], facts["cpus"]["to_use"]
    if "MANYHANDS_WORKERS" not in facts["environment"] or count is None or count <= to_use:
        return None
    return (
        f"MANYHANDS_WORKERS asks for {count} workers on {to_use} CPUs: that helps tasks that wait, "
        "and slows down tasks that compute."
    )


def _threads_per_worker(facts: Facts) -> str | None:
    for name in _THREADS:
        text = facts["environment"].get(name, "")
        if text.isdecimal() and int(text) > 1 and (facts["workers"]["count"] or 0) > 1:
            return (
                f"{name}={text} has each worker compute on {text} threads, though there is a "
                "worker for each CPU. Unset it: workers then use one thread each."
            )
    return None


def _memory(facts: Facts) -> str | None:
    memory, count = facts["memory"], facts["workers"]["count"] or facts["cpus"]["to_use"]
    known = [size for size in (memory["available"], memory["limit"]) if size is not None]
    if not known or min(known) >= count * _WORKER_BYTES:
        return None
    return (
        f"There are {_size(min(known))} of memory for {count} workers: the kernel kills what uses "
        "more. Use fewer workers."
    )


def _open_files(facts: Facts) -> str | None:
    now, count = facts["open_files"]["now"], facts["workers"]["count"] or facts["cpus"]["to_use"]
    needed = _FILES_OF_A_PROGRAM + count * _FILES_PER_WORKER
    if now is None or now >= needed:
        return None
    return (
        f"{now} files may be open, and {count} workers may need {needed}: raise the limit with "
        "`ulimit -n`."
    )


def _slow_start(facts: Facts) -> str | None:
    first = facts["workers"]["first"]
    if first is None or first < _SLOW_START:
        return None
    return (
        f"The first worker took {_duration(first)} to start. An interpreter on a network disk, or "
        "one that a security tool watches, takes long to load."
    )


def _dev_mode(facts: Facts) -> str | None:
    if not facts["python"]["dev_mode"]:
        return None
    return "Python's development mode is on, here and in workers: its checks cost time."


def _small_shm(facts: Facts) -> str | None:
    size = facts["shm"]["size"]
    if size is None or size >= _SMALL_SHM:
        return None
    return (
        f"/dev/shm holds {_size(size)}. manyhands does not use it, but other libraries fail when "
        "it is full (in Docker: --shm-size)."
    )


_CHECKS: tuple[Callable[[Facts], str | None], ...] = (
    _no_workers,
    _no_memory_files,
    _no_pidfds,
    _one_cpu,
    _quota,
    _affinity,
    _busy,
    _too_many_workers,
    _threads_per_worker,
    _memory,
    _open_files,
    _slow_start,
    _dev_mode,
    _small_shm,
)


# ----------------------------------------------------------------------------------------- table


def _table(facts: Facts) -> Iterator[str]:
    rows = [*_rows(facts)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"{name:<{width}}  {value}".rstrip()
    yield ""
    yield "What would be slow here:"
    for sentence in facts["advice"] or ["Nothing was found."]:
        yield f"  {sentence}"


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    python, system, cpus = facts["python"], facts["system"], facts["cpus"]
    memory, cgroup, workers = facts["memory"], facts["cgroup"], facts["workers"]
    yield "manyhands", facts["manyhands"]
    yield "Python", f"{python['version']}, {python['implementation']}, {_gil(python['gil'])}"
    yield "interpreter", python["executable"] or "unknown"
    yield "system", f"Linux {system['kernel']}, {system['architecture']}"
    yield "", ""
    yield "CPUs to use", f"{cpus['to_use']}, the smallest of these, rounded up"
    yield "  machine", str(cpus["machine"])
    yield "  affinity", str(cpus["affinity"])
    yield "  quota", _limit(cpus["quota"], cpus["quota_source"], lambda quota: f"{quota:g}")
    if cpus["share"] is not None:
        yield "  worker's share", str(cpus["share"])
    yield "load", "unknown" if cpus["load"] is None else f"{cpus['load']:g}"
    yield "memory", f"{_size(memory['machine'])}, {_size(memory['available'])} available"
    yield "  limit", _limit(memory["limit"], memory["limit_source"], _size)
    yield "control group", _group(cgroup)
    yield "", ""
    yield "memfd", _works(system["memfd_problem"])
    yield "pidfd", _works(system["pidfd_problem"])
    yield "/dev/shm", f"{_size(facts['shm']['size'])}, {_size(facts['shm']['free'])} free"
    yield "open files", _files(facts["open_files"])
    yield "", ""
    yield "workers", "unknown" if workers["count"] is None else f"{workers['count']} in a pool"
    yield "  first start", _duration(workers["first"])
    yield "  later start", _duration(workers["next"])
    yield from facts["environment"].items()


def _gil(enabled: bool) -> str:
    return "with the GIL" if enabled else "without the GIL"


def _limit(value: Any, source: str | None, show: Callable[[Any], str]) -> str:
    return "none" if value is None else f"{show(value)}, by {source}"


def _group(cgroup: Facts) -> str:
    if cgroup["version"] is None:
        return "none"
    return f"version {cgroup['version']}, {cgroup['path']}"


def _works(problem: str | None) -> str:
    return "works" if problem is None else f"does not work: {problem}"


def _files(limits: Facts) -> str:
    now, most = (f"{limit:,}" if limit is not None else "no limit" for limit in limits.values())
    return now if now == most else f"{now}, up to {most} if asked for"


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.1f} ms"


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.0f} MiB"
