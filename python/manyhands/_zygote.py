"""The process that workers are forked from: one thread, no user code but the preloaded modules.

Imports as little as it can, since its start is the start of the first pool.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys

from manyhands import _core, _worker

TYPE_CHECKING = False  # as in `typing`, whose import would cost each start milliseconds
if TYPE_CHECKING:
    from typing import Any

__all__ = ["main"]


def main(version: tuple[int, int]) -> None:
    """Serves the parent, which is of that version of Python, until it is gone."""
    socket, life_line = int(sys.argv[-2]), int(sys.argv[-1])
    zygote = _core.Zygote(socket, life_line, sys.hexversion)
    # Whatever the user has set: workers get that when they are born.
    os.environ.update(_worker.NO_THREADS)
    os.environ.setdefault(*_worker.ALLOCATOR)
    while True:
        request = zygote.next()
        if request is None:
            os._exit(0)
        if sys.version_info[:2] != version:
            _refuse(zygote, request, version)
        elif request[0] == "preload":
            _, names, content = request
            zygote.preloaded(_preload(names, marshal.loads(content)))
        elif request[0] == "fork":
            _fork(zygote, request[1])
        else:
            zygote.become_worker(request[1])
            _worker.main(request[1])
        del request  # it holds descriptors of the worker


def _refuse(zygote: _core.Zygote, request: tuple[Any, ...], version: tuple[int, int]) -> None:
    """Code that travels by value is of one version of Python alone."""
    if request[0] == "preload":
        zygote.preloaded("")
        return
    wanted = ".".join(map(str, version))
    here = ".".join(map(str, sys.version_info[:2]))
    zygote.not_forked(
        request[1],
        f"{sys.executable} is Python {here}, and this program runs on {wanted}; set "
        f"MANYHANDS_PYTHON to the path of a Python {wanted}",
    )
    if request[0] == "become":
        os._exit(1)


def _fork(zygote: _core.Zygote, birth: _core.Birth) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        zygote.not_forked(birth, f"fork failed: {error}")
        return
    if pid == 0:
        os.setpgid(0, 0)  # first of all: nothing that befalls the zygote's group is meant for it
        zygote.abandon()
        _worker.main(birth)
    zygote.forked(birth, pid)


def _preload(names: list[str], content: dict[str, Any]) -> str:
    """Imports modules as the parent would; says which could not be."""
    _worker.take_paths(content)
    os.environ.update(
        {name: value for name, value in content["environ"].items() if name not in os.environ}
    )
    failures = []
    for name in names:
        try:
            __import__(name)
        except BaseException as error:  # whatever a module does while it is imported
            failures.append(f"{name} ({type(error).__name__}: {error})")
    # What is there now is shared with all workers; collecting it there would unshare its pages.
    gc.collect()
    gc.freeze()
    return "; ".join(failures)
