"""What `make wheel` built, as a user gets it: installed in an empty environment, without cargo.

The checks of the files are made on the one wheel and the one source distribution in dist/.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MOST_BYTES = 5_000_000
WATCHDOG_SECONDS = 150

pytestmark = pytest.mark.wheel


def only(pattern: str) -> Path:
    """The one file of dist/ that matches."""
    [found] = (ROOT / "dist").glob(pattern)
    return found


def documentation() -> Any:
    """How tests/docs finds the programs in documents, and compares what they print."""
    path = ROOT / "tests/docs/test_examples.py"
    spec = importlib.util.spec_from_file_location("documentation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["documentation"] = module
    spec.loader.exec_module(module)
    return module


DOCUMENTATION = documentation()
TOUR = [block for block in DOCUMENTATION.blocks() if block.place.startswith("README.md:")]


class Installed:
    """An environment with the wheel and these libraries, and nothing else of this repository."""

    def __init__(self, folder: Path, *libraries: str) -> None:
        self.bin = folder / "environment/bin"
        self.home = folder / "home"
        self.home.mkdir()
        venv.create(folder / "environment", with_pip=True)
        self.variables = {"PATH": str(self.bin), "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        # pip alone may know where packages come from.
        done = subprocess.run(
            [self.bin / "python", "-m", "pip", "install", "--quiet", only("*.whl"), *libraries],
            env={**os.environ, "PATH": str(self.bin)},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=WATCHDOG_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / program, *arguments],
            env=self.variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=WATCHDOG_SECONDS,
            check=False,
        )

    def has(self, module: str) -> bool:
        source = f"import importlib.util as u; raise SystemExit(u.find_spec({module!r}) is None)"
        return self.run("python", "-c", source).returncode == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def with_numpy(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """For what the README shows of arrays: NumPy as the tests of the source tree have it."""
    requirements = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    [numpy] = [line for line in requirements if line.startswith("numpy==")]
    return Installed(tmp_path_factory.mktemp("with_numpy"), numpy)


# --------------------------------------------------------------------------------------- the files


def test_the_wheel_is_small() -> None:
    assert only("*.whl").stat().st_size <= MOST_BYTES


def test_the_readme_tells_its_size() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/wheel_size.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_runs_on_the_systems_that_it_names() -> None:
    tag = re.search(r"-abi3-.*manylinux_2_(\d+)_\w+\.whl$", only("*.whl").name)
    assert tag
    with zipfile.ZipFile(only("*.whl")) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".so")]
        module = wheel.read(name)
    needed = {int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", module)}
    assert needed
    assert max(needed) <= int(tag[1])


def test_no_path_of_this_machine_is_in_it() -> None:
    with zipfile.ZipFile(only("*.whl")) as wheel:
        for name in wheel.namelist():
            content = wheel.read(name)
            for path in (str(ROOT), str(Path.home()) + "/."):
                assert path.encode() not in content, name


def test_licences_are_in_both() -> None:
    names = {"LICENSE-MIT", "LICENSE-APACHE", "THIRD_PARTY_LICENSES"}
    with zipfile.ZipFile(only("*.whl")) as wheel:
        folder = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        for name in names:
            inside = folder.replace("METADATA", f"licenses/{name}")
            assert wheel.read(inside) == (ROOT / name).read_bytes()
    with tarfile.open(only("*.tar.gz")) as sources:
        found = {Path(name).name for name in sources.getnames() if name.count("/") == 1}
    assert found >= names | {"Cargo.lock", "Cargo.toml", "pyproject.toml", "README.md"}


def test_nothing_that_was_built_is_in_the_sources() -> None:
    with tarfile.open(only("*.tar.gz")) as sources:
        names = sources.getnames()
    assert len(names) > 50
    assert not [name for name in names if name.endswith((".so", ".pyc")) or "/target/" in name]


# ------------------------------------------------------------------------------------- installed


def test_there_is_no_compiler(installed: Installed) -> None:
    for tool in ("cargo", "rustc", "cc"):
        assert shutil.which(tool, path=installed.variables["PATH"]) is None


def test_it_is_the_wheel(installed: Installed) -> None:
    done = installed.run("python", "-c", "import manyhands; print(manyhands.__file__)")
    assert done.stdout.startswith(str(installed.bin.parent)), done.stderr


def test_there_is_a_tour() -> None:
    assert len(TOUR) >= 5


@pytest.mark.parametrize("block", TOUR, ids=lambda block: block.place)
def test_the_tour(request: pytest.FixtureRequest, block: Any, tmp_path: Path) -> None:
    needs_numpy = "import numpy" in block.source
    installed = request.getfixturevalue("with_numpy" if needs_numpy else "installed")
    script = tmp_path / "tour.py"
    script.write_text(block.source, encoding="utf-8")
    done = installed.run("python", script)
    assert done.returncode == 0, done.stderr
    if block.output is not None:
        assert DOCUMENTATION.normal(done.stdout).split() == (
            DOCUMENTATION.normal(block.output).split()
        )


def test_the_demo(installed: Installed) -> None:
    if installed.has("manyhands.__main__"):
        done = installed.run("python", "-m", "manyhands", "demo")
    else:
        done = installed.run("python", "-m", "manyhands.demo", "--seconds", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_the_command(installed: Installed) -> None:
    if not (installed.bin / "manyhands").exists():
        pytest.skip("this version has no command")
    done = installed.run("manyhands", "--version")
    assert done.returncode == 0, done.stderr
    assert only("*.whl").name.split("-")[1] in done.stdout
