"""Finds the function that `manyhands map` names, or says in one sentence why there is none."""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import os
import pkgutil
import re
import sys
import traceback
import types
import zlib
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from manyhands._command_line import UsageError
from manyhands._command_task import FileFunction, load_file

__all__ = ["find_function"]


def find_function(module: str | None, file: str | None, name: str) -> Callable[..., Any]:
    """The function of that name in a module or a file, in a form that workers can load too.

    A module is looked for in the working directory first, as `python -m` does; what a file imports
    is looked for beside it, as if it were run.

    Raises:
        UsageError: there is no such module, file or function, or it cannot be loaded or called.

    >>> find_function("math", None, "sqrt")(4)
    2.0
    """
    if module is not None:
        directory = os.getcwd()
        if directory not in sys.path[:1]:
            sys.path.insert(0, directory)
        return _member(_import_module(module), module, name)
    assert file is not None
    path = Path(file)
    _require_file(path)
    loaded = _import_by_stem(path)
    if loaded is not None:
        return _member(loaded, file, name)
    path = path.resolve()
    # Behind all others: what it is called must not stand for a module that others import.
    sys.path.append(str(path.parent))
    apart = f"{re.sub('[^0-9A-Za-z]', '_', path.stem)}_{zlib.crc32(os.fsencode(path)):08x}"
    loaded = _loaded(file, lambda: load_file(str(path), apart))
    return FileFunction(str(path), apart, name, _member(loaded, file, name))


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a file of Python code.")
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".py"]
    except OSError:
        beside = []
    near = [str(path.parent / entry) for entry in _near(path.name, beside)]
    raise UsageError(f"There is no file {path}.", _did_you_mean(near))


def _import_by_stem(path: Path) -> types.ModuleType | None:
    """The file as a module that workers find by its name; None where another one has the name."""
    name = path.stem
    usable = path.suffix == ".py" and name.isidentifier() and not keyword.iskeyword(name)
    if not usable or name in sys.modules or name in sys.stdlib_module_names:
        return None
    directory = str(path.resolve().parent)
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not os.path.samefile(spec.origin, path):
        sys.path.remove(directory)
        return None
    return _loaded(str(path), lambda: importlib.import_module(name))


def _import_module(name: str) -> types.ModuleType:
    if not all(name.split(".")):
        raise UsageError(f"{name} is no name of a module.")
    try:
        missing = importlib.util.find_spec(name) is None
    except (ModuleNotFoundError, ValueError, AttributeError) as error:
        # A package on the way to it is not there, is no package, or has no spec.
        if isinstance(error, ModuleNotFoundError) and not _leads_to(error.name, name):
            raise UsageError(_cannot_import(name, error)) from None
        missing = True
    except Exception as error:  # whatever a package on the way to it does
        raise UsageError(_cannot_import(name, error)) from None
    if missing:
        raise UsageError(f"There is no module {name}.", _did_you_mean(_modules_like(name)))
    return _loaded(name, lambda: importlib.import_module(name))


def _leads_to(missing: str | None, name: str) -> bool:
    return missing is not None and (name == missing or name.startswith(f"{missing}."))


def _modules_like(name: str) -> list[str]:
    parent, _, last = name.rpartition(".")
    path: Any = None
    try:
        if parent:
            path = getattr(importlib.import_module(parent), "__path__", [])
    except Exception:
        # It is the parent that is wrong.
        return [f"{near}.{last}" for near in _modules_like(parent)]
    names = [entry.name for entry in pkgutil.iter_modules(path)]
    if not parent:
        names += sys.stdlib_module_names
    return [f"{parent}.{near}" if parent else near for near in _near(last, names)]


def _loaded(place: str, load: Callable[[], types.ModuleType]) -> types.ModuleType:
    """Runs the user's module, and makes one sentence of what goes wrong in it."""
    try:
        return load()
    except SystemExit:
        raise UsageError(
            f"{place} ended the program while it was imported.",
            'put what only a script does behind `if __name__ == "__main__":`',
        ) from None
    except Exception as error:
        hint = ""
        if isinstance(error, ImportError) and "relative import" in str(error):
            hint = "a file of a package is named as a module, as in package.module:function"
        raise UsageError(_cannot_import(place, error), hint) from None


def _cannot_import(place: str, error: Exception) -> str:
    text = "; ".join(str(error).splitlines())
    if isinstance(error, SyntaxError):
        where, line = error.filename, error.lineno
        text = error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        where, line = frames[-1].filename, frames[-1].lineno
    if where is None or where.startswith("<frozen"):
        at = ""
    else:
        at = f" ({os.path.relpath(where) if where.startswith(os.getcwd()) else where}, line {line})"
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{place} cannot be imported: {what}{at}."


def _member(module: types.ModuleType, place: str, name: str) -> Callable[..., Any]:
    found: Any = module
    walked = place
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [own for own in vars(found) if callable(getattr(found, own, None))]
            parent = name.rpartition(".")[0]
            near = [f"{place}:{parent + '.' if parent else ''}{own}" for own in _near(part, names)]
            raise UsageError(f"{walked} has no function {part}.", _did_you_mean(near)) from None
        walked = f"{place}:{part}" if walked == place else f"{walked}.{part}"
    if not callable(found):
        raise UsageError(f"{walked} is of type {type(found).__name__}, which cannot be called.")
    return found  # type: ignore[no-any-return]


def _near(typed: str, names: Iterable[str]) -> list[str]:
    """At most three of the names, the most similar first."""
    own = [name for name in names if not name.startswith("__")]
    return get_close_matches(typed, own, cutoff=0.7)


def _did_you_mean(near: list[str]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else ""
