"""The public names: each once, documented, and nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh

ROOT = Path(__file__).parents[2]
PUBLIC_MODULES = ["manyhands", "manyhands.demo"]


def test_all_names_exist_once() -> None:
    assert len(mh.__all__) == len(set(mh.__all__))
    assert len(mh.__all__) > 10
    assert mh.__all__ == sorted(mh.__all__)
    for name in mh.__all__:
        assert not name.startswith("_")
        assert hasattr(mh, name)


def test_everything_public_is_in_all() -> None:
    public = {
        name
        for name in dir(mh)
        if not name.startswith("_") and not isinstance(getattr(mh, name), types.ModuleType)
    }
    assert public - {"TYPE_CHECKING"} == set(mh.__all__)


def test_the_import_alone_loads_nothing() -> None:
    """Names are there when they are used, and are what type checkers are told they are."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import manyhands\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert eval(done.stdout) == ["manyhands"]
    source = ast.parse(Path(mh.__file__).read_text())
    told = {
        alias.name: node.module
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("manyhands.")
        for alias in node.names
    }
    assert told == {name: f"manyhands.{home}" for name, home in mh._HOMES.items()}
    assert set(told) == set(mh.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(mh, "nothing")  # noqa: B009 - it is looked up as a program does


def test_no_object_has_two_public_names() -> None:
    seen: dict[int, str] = {}
    for name in mh.__all__:
        value = getattr(mh, name)
        assert id(value) not in seen, f"{name} is {seen.get(id(value))}"
        seen[id(value)] = name


def test_star_import_gives_what_all_says() -> None:
    namespace: dict[str, Any] = {}
    exec("from manyhands import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(mh.__all__)


def test_modules_are_private_or_known() -> None:
    found = [module.name for module in pkgutil.iter_modules(mh.__path__, "manyhands.")]
    public = [name for name in found if not name.split(".")[-1].startswith("_")]
    assert set(public) <= set(PUBLIC_MODULES) | {"manyhands.__main__"}
    assert len(found) > 10


def test_all_of_each_module_is_right() -> None:
    checked = 0
    for info in pkgutil.iter_modules(mh.__path__, "manyhands."):
        module = importlib.import_module(info.name)
        names = getattr(module, "__all__", None)
        if names is None:
            continue
        checked += 1
        assert len(names) == len(set(names)), info.name
        for name in names:
            assert hasattr(module, name), f"{info.name}.{name}"
    assert checked >= 3


def members(kind: type) -> list[tuple[str, Any]]:
    """What a class of ours defines in public, with what its native base defines."""
    return [
        (name, inspect.getattr_static(kind, name))
        for name in dir(kind)
        if not name.startswith("_")
        and any(name in vars(base) for base in kind.__mro__ if "manyhands" in base.__module__)
    ]


@pytest.mark.parametrize("name", mh.__all__)
def test_docstrings(name: str) -> None:
    value = getattr(mh, name)
    text = inspect.getdoc(value)
    assert text, name
    # Inherited from `Exception` and the like, it would say nothing of ours.
    if isinstance(value, type):
        assert "__doc__" in vars(value)
        assert vars(value)["__doc__"]
        for member, _ in members(value):
            documentation = inspect.getdoc(getattr(value, member))
            assert documentation, f"{name}.{member}"
            assert not documentation.startswith(f"See `manyhands.{name}.{member}`"), (
                f"{name}.{member} is documented by a reference to itself"
            )
    assert text.splitlines()[0].endswith((".", ":")) or text.startswith(f"{name}("), text


def test_names_of_public_things_lead_to_them() -> None:
    for name in mh.__all__:
        value = getattr(mh, name)
        assert value.__name__ == name
        module = sys.modules[value.__module__]
        assert getattr(module, value.__qualname__) is value


def test_version() -> None:
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert mh.__version__ == project["version"]


def test_the_package_is_typed() -> None:
    assert (Path(mh.__file__).parent / "py.typed").exists()
    assert (Path(mh.__file__).parent / "_core.pyi").exists()


def test_what_is_needed_is_declared() -> None:
    # Only the standard library, cloudpickle and the package itself, whatever is installed here.
    source = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import manyhands\n"
        "with manyhands.Pool(1) as pool: pool.submit(abs, 1).result()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert set(eval(done.stdout)) <= {"manyhands", "cloudpickle"}


def test_signatures_can_be_read() -> None:
    checked = 0
    for name in mh.__all__:
        value = getattr(mh, name)
        if callable(value) and not (
            isinstance(value, type) and issubclass(value, (BaseException, mh.Future))
        ):
            inspect.signature(value)
            checked += 1
    assert checked >= 5
    assert list(inspect.signature(mh.Pool).parameters) == [
        "workers",
        "engine",
        "copy",
        "initializer",
        "initargs",
        "preload",
        "name",
        "show_args",
        "task_timeout",
        "grace",
        "retry",
        "seed",
        "task_memory",
        "priority",
        "capture",
        "exit_grace",
        "stuck_after",
        "on_event",
        "store",
        "context",
        "memory_limit",
        "recycle_after_tasks",
        "recycle_rss",
        "recycle_age",
        "idle_timeout",
        "inner_threads",
        "logging",
        "unknown",
    ]
    assert inspect.signature(mh.Pool).parameters["stuck_after"].default == 60
    assert str(inspect.signature(mh.Pool.submit)) == "(self, function, /, *args, **kwargs)"


def test_subclasses_of_the_pool() -> None:
    class Named(mh.Pool):
        def double(self, value: int) -> int:
            return self.submit(int.__mul__, value, 2).result()

    with Named(1, name="mine") as pool:
        assert pool.double(4) == 8
        assert isinstance(pool, Named)
