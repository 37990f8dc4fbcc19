"""How worker processes start: which interpreter, with what, and what they find at their birth."""

from __future__ import annotations

import marshal
import os
import sys

from manyhands import _core
from manyhands._typing import Any

# The path has the place of the package for as long as it takes to find it, and it imports nothing
# itself: what lies beside it is not to be found in place of other modules.
_BOOTSTRAP = """\
import sys
sys.path.insert(0, {directory!r})
import manyhands
del sys.path[0]
from manyhands._zygote import main
main({version!r})
"""

# Interpreter flags that change what code means; verbosity, isolation of sys.path and the like are
# settled by what a worker is told at its birth.
_FLAGS = {"debug": "d", "dont_write_bytecode": "B", "bytes_warning": "b", "optimize": "O"}
_X_OPTIONS = ("dev", "utf8", "faulthandler", "gil", "int_max_str_digits", "no_debug_ranges")

_launched_with: list[str] | None = None

# Whether workers that are born now find the parent's configuration of `logging`.
has_logging = False


def _looks_like_python(path: str) -> bool:
    name = os.path.basename(path).lower()
    return "python" in name or "pypy" in name


def interpreter() -> str:
    """The program that workers run: `MANYHANDS_PYTHON`, else this interpreter.

    Where `sys.executable` is another program (an embedded or frozen interpreter, a web server), the
    interpreter is looked for where this Python is installed.

    Raises:
        RuntimeError: none was found; the message says what to set.
    """
    chosen = os.environ.get("MANYHANDS_PYTHON")
    if chosen:
        return chosen
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [
        sys.executable or "",
        getattr(sys, "_base_executable", "") or "",
        os.path.join(sys.exec_prefix, "bin", version),
        os.path.join(sys.base_exec_prefix, "bin", version),
        os.path.join(sys.base_exec_prefix, "bin", "python3"),
    ]
    frozen = getattr(sys, "frozen", False)
    for index, path in enumerate(candidates):
        if frozen and index < 2:  # the program itself, whatever it is called
            continue
        if path and _looks_like_python(path) and os.access(path, os.X_OK):
            return path
    raise RuntimeError(
        f"no Python interpreter was found for the workers (sys.executable is {sys.executable!r}); "
        f"set the environment variable MANYHANDS_PYTHON to the path of a Python {version[6:]}"
    )


def _needs_site() -> bool:
    """Whether imports here depend on finders that `site` installs, as some editable installs do."""
    kinds = (finder if isinstance(finder, type) else type(finder) for finder in sys.meta_path)
    return any("editable" in kind.__module__.lower() for kind in kinds)


def command() -> list[str]:
    """Program and arguments of a zygote."""
    argv = [interpreter()]
    for flag, letter in _FLAGS.items():
        count = int(getattr(sys.flags, flag))
        if count > 0:
            argv.append("-" + letter * count)
    argv += [f"-W{option}" for option in sys.warnoptions]
    for name in _X_OPTIONS:
        value = sys._xoptions.get(name)
        if value is not None:
            argv += ["-X", name if value is True else f"{name}={value}"]
    if not _needs_site():
        argv.append("-S")  # most of the start-up time of an interpreter
    directory = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [*argv, "-c", _BOOTSTRAP.format(directory=directory, version=sys.version_info[:2])]


def _umask() -> int:
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass  # no /proc: the zygote's umask is this process's, as it was when the zygote started
    return -1


def _environ() -> dict[str, str]:
    """The environment; in a worker without what was set there for that worker alone."""
    environ = dict(os.environ)
    worker = sys.modules.get("manyhands._worker")
    if worker is not None:
        for name, value in worker.threads_here.items():
            if environ.get(name) == value:
                del environ[name]
    return environ


def birth() -> bytes:
    """What a worker finds at its birth: a marshalled dict that `_worker` reads."""
    from manyhands import _logs

    global has_logging
    main = sys.modules.get("__main__")
    settings = _logs.settings()
    has_logging = settings is not None
    path: list[Any] = sys.path  # some programs put other things than text there
    content: dict[str, Any] = {
        "path": [entry for entry in path if isinstance(entry, str)],
        "environ": _environ(),
        "argv": [str(argument) for argument in getattr(sys, "argv", [])],
        "prefixes": (sys.prefix, sys.exec_prefix),
        "executable": sys.executable or "",
        "umask": _umask(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "recursion": sys.getrecursionlimit(),
        "main_file": getattr(main, "__file__", None),
        "logging": settings,
    }
    return marshal.dumps(content)


_told: bytes | None = None


def tell_birth() -> None:
    """Says what workers find at their birth, where it is not what was said last."""
    global _told
    content = birth()
    if content != _told:
        try:
            _core.set_birth(content)
        except (OSError, RuntimeError):
            if _told is None:
                raise
            return  # no descriptor or memory is left: what was said last holds, and tasks are taken
        _told = content


def tell_birth_again() -> None:
    """As `tell_birth`, where something was told before: that stays good for want of descriptors."""
    try:
        tell_birth()
    except RuntimeError as error:
        import logging

        logging.getLogger("manyhands").info("new workers find what older ones found: %s", error)


def launch() -> None:
    """Starts the zygote, if none runs, and says what workers find at their birth."""
    global _launched_with
    argv = command()
    if argv != _launched_with:
        _core.set_launcher(argv, None)
        _launched_with = argv
    _core.warm()
    # While that interpreter starts. What defines functions and puts errors together must be there
    # before anything is short, descriptors for one.
    from manyhands import _encoding, _logs, _outcome  # noqa: F401

    tell_birth()


def prepare(function: Any) -> None:
    """Before the first task of a pool: what its function names is imported once, before any fork.

    Modules of this very process that a worker could not import are left out by the zygote, which
    says so in the log.
    """
    from manyhands._code import modules_named_by

    tell_birth()
    names = modules_named_by(function)
    if names:
        _core.preload(names)


def forget_parent() -> None:
    """In a child of fork: nothing was launched yet."""
    global _launched_with, _told
    _launched_with = _told = None
