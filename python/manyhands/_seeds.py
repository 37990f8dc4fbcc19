"""Random streams: what a task draws from, by itself or through generators that are global.

Which stream is whose is decided in `seeds.rs`. A stream is made from a seed and a path of numbers;
what comes of that is the same in each process, and can be made again without manyhands
(`docs/guides/randomness.md`).
"""

from __future__ import annotations

import sys

from manyhands import _core

TYPE_CHECKING = False  # as in `typing`, whose import would cost each worker milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from numpy.random import Generator, SeedSequence

__all__ = ["Stream", "forget", "rng", "seed_of"]

_MOST = 1 << 128

# The streams that `rng().spawn()` makes have numbers from here on at the end of their paths, and
# those of calls that a task makes have lower ones.
_FIRST_SPAWNED = 1 << 31


def rng() -> Generator:
    """The random generator of the task that runs: a NumPy `Generator`, one object for each task.

    With `seed=` it draws what belongs to the task, wherever and whenever that runs; a task that
    runs again draws the same again. Outside of a task, and in one without a seed, it is one
    generator per process with entropy of its own.

    Raises:
        ModuleNotFoundError: NumPy is not installed.

    >>> import manyhands as mh
    >>> def throw(_):
    ...     return int(mh.rng().integers(1, 7))
    >>> list(mh.map(throw, range(5), seed=7)) == list(mh.map(throw, range(5), seed=7))
    True
    """
    stream = _core.running_stream()
    if stream is not None:
        return stream.generator()  # type: ignore[no-any-return]
    return _own_generator()


# The generator of this process, and which fork of its program it is.
_own: tuple[int, Generator] | None = None


def _own_generator() -> Generator:
    global _own
    generation = _core.process_generation()
    if _own is None or _own[0] != generation:
        _own = generation, _numpy_random().default_rng()
    return _own[1]


def _numpy_random() -> Any:
    from importlib import import_module

    try:
        # By its name: `import numpy.random` would ask for an attribute of numpy, which that lacks
        # while it imports the module.
        return import_module("numpy.random")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "numpy":
            raise
        raise ModuleNotFoundError(
            "rng() gives a generator of NumPy, which is not installed; `random` of the standard "
            "library is seeded without it",
            name=error.name,
        ) from None


def seed_of(value: Any, alone: bool) -> _core.Seed:
    """What `seed=` means; `alone` if it was given to one call.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is negative, or has more than 128 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"seed must be a whole number of type int, or None, not {type(value).__name__}"
        )
    if not 0 <= value < _MOST:
        raise ValueError(f"seed must be from 0 to 2**128 - 1, not {value}")
    return _core.Seed(value, alone, _core.running_stream() is not None)


class Stream:
    """The random stream of a task."""

    __slots__ = ("_generator", "_mine", "_others", "_sequence", "path", "seed")

    def __init__(self, seed: int, path: tuple[int, ...]) -> None:
        self.seed = seed
        self.path = path
        self._sequence: SeedSequence | None = None
        self._generator: Generator | None = None
        # In a thread that is not the task's alone: how far it has come with each library, and where
        # these stood before.
        self._mine: dict[str, Any] | None = None
        self._others: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """Seed and path in words: what `random` is seeded with."""
        return f"{self.seed}/{','.join(map(str, self.path))}"

    def sequence(self) -> SeedSequence:
        """The same for NumPy."""
        if self._sequence is None:
            self._sequence = _numpy_random().SeedSequence(
                self.seed, spawn_key=self.path, n_children_spawned=_FIRST_SPAWNED
            )
        return self._sequence

    def generator(self) -> Generator:
        """What `rng` gives."""
        if self._generator is None:
            self._generator = _numpy_random().default_rng(self.sequence())
        return self._generator

    def begin(self) -> None:
        """From here on the generators that are global draw from it, in a process that runs one task
        at a time."""
        import random  # not at the top: few workers need it, and it takes milliseconds

        random.seed(self.text)
        is_complete = True
        for name, library in _LIBRARIES.items():
            module = sys.modules.get(name)
            if module is not None:
                library.seed(module, self)
            else:
                is_complete = False
        if not is_complete:
            _late.watch()

    def enter(self) -> None:
        """The same, until `leave`; or it goes on from there."""
        import random

        self._others = {"random": random.getstate(), **_states()}
        if self._mine is None:
            self.begin()
        else:
            _restore(self._mine)
            _late.watch()

    def leave(self) -> None:
        """All is as it was before `enter`, if that is not so already."""
        import random

        if not self._others:
            return
        _late.unwatch()
        self._mine = {"random": random.getstate(), **_states()}
        _restore(self._others)
        # What was imported meanwhile has no state of before.
        for name in self._mine.keys() - self._others.keys():
            _LIBRARIES[name].forget(sys.modules[name])
        self._others = {}


def forget() -> None:
    """The generators of this process that are global go on with entropy of their own."""
    import random

    random.seed()
    for name, library in _LIBRARIES.items():
        module = sys.modules.get(name)
        if module is not None:
            library.forget(module)


class _NumPy:
    """The generator behind `numpy.random.rand` and its like."""

    @staticmethod
    def seed(module: Any, stream: Stream) -> None:
        # As `stream.sequence().generate_state(8)`, for which nobody has to make that sequence.
        module.seed(_core.seed_words(stream.seed, stream.path))

    @staticmethod
    def forget(module: Any) -> None:
        module.seed()

    @staticmethod
    def state(module: Any) -> Any:
        return module.get_state(legacy=False)

    @staticmethod
    def restore(module: Any, state: Any) -> None:
        module.set_state(state)


class _Torch:
    """The generator of the processor in torch, from which those of devices are seeded."""

    @staticmethod
    def seed(module: Any, stream: Stream) -> None:
        import random

        module.manual_seed(random.Random(f"{stream.text} torch").getrandbits(63))

    @staticmethod
    def forget(module: Any) -> None:
        module.seed()

    @staticmethod
    def state(module: Any) -> Any:
        return module.get_rng_state()

    @staticmethod
    def restore(module: Any, state: Any) -> None:
        module.set_rng_state(state)


# By the name of the module that has the generator; seeded where it is loaded.
_LIBRARIES: dict[str, type[_NumPy | _Torch]] = {"numpy.random": _NumPy, "torch": _Torch}


def _states() -> dict[str, Any]:
    return {
        name: library.state(sys.modules[name])
        for name, library in _LIBRARIES.items()
        if name in sys.modules
    }


def _restore(states: dict[str, Any]) -> None:
    import random

    for name, state in states.items():
        if name == "random":
            random.setstate(state)
        else:
            _LIBRARIES[name].restore(sys.modules[name], state)


class _Late:
    """Sees to it that a library which a task imports itself is seeded for that task, too.

    It stands first in `sys.meta_path` while such a library is missing, and finds nothing by itself.
    """

    def __init__(self) -> None:
        self._looks = False

    def watch(self) -> None:
        if self in sys.meta_path:
            return
        if any(name not in sys.modules for name in _LIBRARIES):
            sys.meta_path.insert(0, self)

    def unwatch(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if name not in _LIBRARIES or self._looks:
            return None
        from importlib.util import find_spec

        self._looks = True
        try:
            spec = find_spec(name)
        finally:
            self._looks = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Seeding(spec.loader)  # type: ignore[assignment]
        return spec


class _Seeding:
    """Loads a library as its own loader does, and seeds it for the task that imports it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        stream = _core.running_stream()
        if stream is not None:
            _LIBRARIES[module.__name__].seed(module, stream)


_late = _Late()
