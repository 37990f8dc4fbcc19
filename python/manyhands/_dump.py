"""What the workers of a pool do just now."""

from __future__ import annotations

from manyhands._snapshot import Snapshot
from manyhands._typing import Any

__all__ = ["PoolDump", "WorkerDump", "make_dump", "worker_text"]

# What the kernel calls the states of processes.
_STATES = {
    "R": "it runs, but has no time for signals",
    "S": "it sleeps",
    "D": "it sleeps and takes no signals, as while a disk or a network file system does not answer",
    "I": "it sleeps",
    "T": "it was stopped by a signal; SIGCONT lets it go on",
    "t": "a debugger holds it",
    "Z": "it has ended",
    "X": "it has ended",
}


class WorkerDump(Snapshot):
    """One worker of a pool, and where its code is, at one moment."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "slot": "its place in the pool, from 0",
        "pid": "its process id; None while it is being started",
        "state": ("'starting', 'idle', 'busy' in a task, or 'stopped' by a signal or a debugger"),
        "task": "name of the function that it runs, or None; None for threads",
        "task_index": "number of its running task in the pool or map, or None",
        "task_age": "seconds since its running task started, or None",
        "stack": (
            "its Python stack as a traceback shows it, without what is manyhands' own; empty if no "
            "code of yours runs there; None if it was not asked or did not answer"
        ),
        "kernel": "if it did not answer: what the kernel says that it does; else None",
    }

    slot: int
    pid: int | None
    state: str
    task: str | None
    task_index: int | None
    task_age: float | None
    stack: str | None
    kernel: str | None

    def __str__(self) -> str:
        return worker_text(self)


class PoolDump(Snapshot):
    """What the workers of a pool do at one moment; `str` makes a text of it."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "pool": "the pool's name",
        "engine": "what runs its tasks",
        "workers": "its living workers",
        "queued": "tasks that no worker has yet",
        "pending": "tasks that have not ended, wherever they are",
    }

    pool: str
    engine: str
    workers: tuple[WorkerDump, ...]
    queued: int
    pending: int

    def __str__(self) -> str:
        tasks = "1 task" if self.pending == 1 else f"{self.pending:,} tasks"
        lines = [f"{self.pool}: {tasks} pending, {self.queued:,} of them at no worker"]
        if self.engine == "inline":
            lines.append("tasks run in the thread that submits them; there are no workers")
        elif not self.workers:
            lines.append("no worker has been started")
        lines += [worker_text(worker) for worker in self.workers]
        return "\n".join(lines)


def worker_text(worker: WorkerDump) -> str:
    """A worker as people read it."""
    process = "" if worker.pid is None else f", pid {worker.pid}"
    lines = [f"worker {worker.slot}{process}: {_what(worker)}"]
    if worker.kernel is not None:
        lines.append(f"  did not answer within a second: {worker.kernel}")
    elif worker.stack:
        lines.append(worker.stack.rstrip("\n"))
    elif worker.stack is not None:
        lines.append("  no Python code of yours runs there")
    return "\n".join(lines)


def _what(worker: WorkerDump) -> str:
    if worker.task_age is None:
        return worker.state
    name = "" if worker.task is None else f": {worker.task}"
    return f"{worker.state}, for {worker.task_age:.1f} s in task {worker.task_index}{name}"


def make_dump(name: str, engine: str, found: dict[str, Any]) -> PoolDump:
    """From what the engine found."""
    from manyhands._stack import current_stacks

    if engine == "thread":
        stacks = current_stacks()
        for worker in found["workers"]:
            worker["kernel"] = None
            worker["stack"] = None if worker["task_age"] is None else stacks(worker["ident"])
    workers = tuple(_make_worker(worker) for worker in found["workers"])
    return PoolDump(
        pool=name,
        engine=engine,
        workers=workers,
        queued=found["queued"],
        pending=found["pending"],
    )


def _make_worker(found: dict[str, Any]) -> WorkerDump:
    from manyhands._stack import readable

    letter, wait = found["kernel"] or (None, None)
    kernel = None
    if letter is not None and found["stack"] is None:
        kernel = _STATES.get(letter, f"it is in the state {letter!r}")
        if wait is not None:
            kernel += f" (in {wait})"
    if letter in ("T", "t"):
        state = "stopped"
    elif found["pid"] is None:
        state = "starting"
    else:
        state = "idle" if found["task_age"] is None else "busy"
    stack = found["stack"]
    return WorkerDump(
        slot=found["slot"],
        pid=found["pid"],
        state=state,
        task=found["task"] or None,
        task_index=found["task_index"],
        task_age=found["task_age"],
        stack=readable(stack) if isinstance(stack, bytes) else stack,
        kernel=kernel,
    )
