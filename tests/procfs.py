"""What /proc says of processes, for programs under test and for the tests that watch them."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Iterable

TOKEN = "MANYHANDS_TEST_TOKEN"


def marked(token: str) -> list[int]:
    """The living processes whose environment carries the token: a program and all it started."""
    wanted = f"{TOKEN}={token}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    environment = file.read()
            except OSError:
                continue  # ended meanwhile, or another user's
            if wanted in environment.split(b"\0"):
                found.append(int(name))
    return sorted(found)


def stat(pid: int) -> tuple[str, int]:
    """State letter and parent of a process; ("", 0) if there is none."""
    return stat_of(f"/proc/{pid}")


def stat_of(path: str) -> tuple[str, int]:
    """The same of a process or thread by its folder."""
    try:
        with open(f"{path}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])


def children(pid: int) -> dict[int, str]:
    """The children of a process with their state letters; "Z" is a zombie."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            state, parent = stat(int(name))
            if parent == pid and state:
                found[int(name)] = state
    return found


def descendants(pid: int) -> set[int]:
    """The living processes below this one."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            state, parent = stat(int(name))
            if state and state not in "ZX":
                below.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    unvisited = [pid]
    while unvisited:
        children = below.get(unvisited.pop(), [])
        found.update(children)
        unvisited += children
    return found


def threads(pid: int) -> list[tuple[str, int]]:
    """The threads of a process: state letter, and processor time used, in ticks."""
    found = []
    for name in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile, before it was opened or after
        found.append((fields[0], int(fields[11]) + int(fields[12])))
    return found


def zombies(pid: int) -> list[int]:
    return [child for child, state in children(pid).items() if state == "Z"]


def is_alive(pid: int) -> bool:
    return stat(pid)[0] not in ("", "Z", "X")


def descriptors(pid: int | str = "self") -> dict[str, str]:
    """Open descriptors and what they are; for this process without the one that lists them."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[number] = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            pass  # closed meanwhile: the listing's own
    return found


def watched() -> collections.Counter[int]:
    """The processes that descriptors of this process watch, and how many each."""
    found: collections.Counter[int] = collections.Counter()
    for number, name in descriptors().items():
        if name == "anon_inode:[pidfd]":
            try:
                with open(f"/proc/self/fdinfo/{number}") as file:
                    pids = [int(line[4:]) for line in file if line.startswith("Pid:")]
            except OSError:
                continue  # closed meanwhile
            found.update(pids)  # none if the number is something else's by now
    return found


def _switches() -> dict[str, list[str]]:
    """State and number of switches of each thread of this process, its children and theirs."""
    pids = [os.getpid(), *children(os.getpid())]
    for child in pids[1:]:
        pids += children(child)
    found = {}
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            if int(thread) != threading.get_native_id():
                with open(f"/proc/{pid}/task/{thread}/status") as file:
                    found[thread] = [
                        line for line in file if line.startswith(("State:", "vol", "nonvol"))
                    ]
    return found


def is_quiet() -> bool:
    """Whether nothing goes on in this process and below it, unless this thread or a clock acts.

    True only if there was an instant at which all of their other threads slept: who slept through
    the time from its line in one list to its line in the next has slept when the first one ended.
    """
    try:
        before = _switches()
        return (
            all(lines[0].startswith("State:\tS") for lines in before.values())
            and _switches() == before
        )
    except OSError:
        return False  # one of them ended


def all_sleep(pids: Iterable[int]) -> bool:
    """Whether the first thread of each of these processes waits for something."""
    return all(stat(pid)[0] == "S" for pid in pids)


def thread_count(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def resident_bytes(pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def anonymous_bytes(pid: int | str = "self") -> int:
    """The resident memory that belongs to no file, neither a real one nor one in memory."""
    with open(f"/proc/{pid}/status") as file:
        [kilobytes] = [int(line.split()[1]) for line in file if line.startswith("RssAnon:")]
    return kilobytes * 1024


def describe(pid: int) -> str:
    """One line on what a process does, for the report of a hang."""
    parts = [str(pid)]
    for name in ("cmdline", "wchan", "syscall"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                parts.append(f"{name}={file.read(160)!r}")
        except OSError:
            pass
    state, parent = stat(pid)
    return " ".join([*parts, f"state={state} parent={parent}"])
