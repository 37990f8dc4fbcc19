"""The options of a map: which there are, and what is said of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from manyhands import _core
from manyhands._describe import TASK_OPTIONS, name_of
from manyhands._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyhands._retry import Retry

_ON_ERROR = ("raise", "return", "skip", "group")

# What other libraries call our options.
_FOREIGN = {
    "max_workers": "workers",
    "processes": "workers",
    "n_jobs": "workers",
    "num_workers": "workers",
    "chunk_size": "chunksize",
    "batch_size": "batch",
    "buffer_size": "buffersize",
    "prefetch": "buffersize",
    "return_exceptions": 'on_error="return"',
    "progress_bar": "progress",
    "order": "ordered",
    "capture_output": "capture",
    "redirect_stdout": "capture",
    "random_state": "seed",
    "random_seed": "seed",
}


class Unset:
    """The type of `UNSET`: what stands for an option that was not given."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()


class TaskOptions:
    """What is asked for tasks: `task_timeout=`, `seed=` and the like. It does not change."""

    __slots__ = (
        "_native",
        "capture",
        "grace",
        "priority",
        "retry",
        "seed",
        "task_memory",
        "task_timeout",
    )

    def __init__(
        self,
        task_timeout: float | None = None,
        grace: float = 0.5,
        retry: Retry | None = None,
        seed: _core.Seed | None = None,
        task_memory: int | None = None,
        priority: int | None = None,
        capture: bool = False,
    ) -> None:
        self.task_timeout = task_timeout
        self.grace = grace
        self.retry = retry
        # The same object in what is derived from it: it counts the calls of all of them.
        self.seed = seed
        self.task_memory = task_memory
        # None is that of the pool, or of the task that submits.
        self.priority = priority
        self.capture = capture
        # Once: every `submit` of a view gives it.
        plan = None if retry is None else retry._plan
        kept = True if capture else None
        self._native = task_timeout, grace, plan, seed, task_memory, priority, kept

    def but(
        self,
        task_timeout: float | Unset | None = UNSET,
        grace: float | Unset = UNSET,
        retry: int | Retry | Unset | None = UNSET,
        seed: int | Unset | None = UNSET,
        task_memory: int | str | Unset | None = UNSET,
        priority: int | Unset = UNSET,
        capture: bool | Unset = UNSET,
        *,
        alone: bool = False,
    ) -> TaskOptions:
        """The same, but for what is given; `alone` if that is for one call."""
        given = task_timeout, grace, retry, seed, task_memory, priority, capture
        if all(value is UNSET for value in given):
            return self
        if isinstance(task_timeout, Unset):
            task_timeout = self.task_timeout
        elif task_timeout is not None:
            check_seconds("task_timeout", task_timeout)
            if task_timeout == 0:
                raise ValueError("task_timeout must be above 0, in seconds; None is no limit")
        if isinstance(grace, Unset):
            grace = self.grace
        else:
            check_seconds("grace", grace)
        if isinstance(retry, Unset):
            retry = self.retry
        elif retry is not None:
            from manyhands._retry import retry_of

            retry = retry_of(retry)
        if isinstance(seed, Unset):
            own_seed = self.seed
        elif seed is None:
            own_seed = None
        else:
            from manyhands._seeds import seed_of

            own_seed = seed_of(seed, alone)
        if isinstance(task_memory, Unset):
            task_memory = self.task_memory
        elif task_memory is not None:
            from manyhands._store import parse_size

            task_memory = parse_size(task_memory, "task_memory=")
        own_priority = self.priority if isinstance(priority, Unset) else check_priority(priority)
        if isinstance(capture, Unset):
            capture = self.capture
        elif not isinstance(capture, bool):
            raise TypeError(f"capture must be True or False, not {type(capture).__name__}")
        return TaskOptions(task_timeout, grace, retry, own_seed, task_memory, own_priority, capture)

    def native(
        self,
    ) -> tuple[
        float | None,
        float,
        _core.RetryPlan | None,
        _core.Seed | None,
        int | None,
        int | None,
        Any,
    ]:
        """As the native part takes them."""
        return self._native

    def __reduce__(self) -> Any:
        return TaskOptions, (
            self.task_timeout,
            self.grace,
            self.retry,
            self.seed,
            self.task_memory,
            self.priority,
            self.capture,
        )

    def __repr__(self) -> str:
        seed = "" if self.seed is None else f", seed={self.seed.number}"
        priority = "" if self.priority is None else f", priority={self.priority}"
        capture = ", capture=True" if self.capture else ""
        return (
            f"task_timeout={self.task_timeout}, grace={self.grace}, retry={self.retry}{seed}, "
            f"task_memory={self.task_memory}{priority}{capture}"
        )


def check_seconds(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= 1e9:
        raise ValueError(f"{name} must be from 0 to a billion seconds, not {value!r}")


_MOST_PRIORITY = 10**9


def check_priority(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"priority must be a whole number, not {type(value).__name__}")
    if not -_MOST_PRIORITY <= value <= _MOST_PRIORITY:
        raise ValueError(f"priority must be from minus a billion to a billion, not {value}")
    return int(value)


class MapOptions:
    """What a call of `map` asks for."""

    __slots__ = (
        "batch",
        "buffersize",
        "capture",
        "grace",
        "on_error",
        "ordered",
        "priority",
        "progress",
        "retry",
        "seed",
        "task_memory",
        "task_timeout",
        "total",
    )

    def __init__(
        self,
        *,
        ordered: bool = True,
        on_error: str = "raise",
        buffersize: int | None = None,
        total: int | None = None,
        batch: int | None = None,
        progress: Any = None,
        chunksize: int | None = None,
        task_timeout: float | Unset | None = UNSET,
        grace: float | Unset = UNSET,
        retry: int | Retry | Unset | None = UNSET,
        seed: int | Unset | None = UNSET,
        task_memory: int | str | Unset | None = UNSET,
        priority: int | Unset = UNSET,
        capture: bool | Unset = UNSET,
    ) -> None:
        if on_error not in _ON_ERROR:
            choices = ", ".join(f'"{choice}"' for choice in _ON_ERROR)
            raise ValueError(f"on_error is one of {choices}; not {on_error!r}")
        for name, value in (("buffersize", buffersize), ("batch", batch), ("chunksize", chunksize)):
            if value is not None:
                _check_count(name, value)
        if total is not None:
            _check_count("total", total, least=0)
        self.ordered = bool(ordered)
        self.on_error = on_error
        self.buffersize = buffersize
        self.total = total
        self.batch = batch
        self.progress = progress
        self.task_timeout = task_timeout
        self.grace = grace
        self.retry = retry
        self.seed = seed
        self.task_memory = task_memory
        self.priority = priority
        self.capture = capture


def _check_count(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


_NAMES = (
    "ordered",
    "on_error",
    "buffersize",
    "total",
    "batch",
    "progress",
    "chunksize",
    *TASK_OPTIONS,
)
_DEFAULT = MapOptions()


def map_options(method: str, fn: Any, options: dict[str, Any]) -> MapOptions:
    """The options of a call.

    Raises:
        TypeError: there is no such option; the message says which was meant, or how to give the
            function a keyword.
    """
    if not callable(fn):
        kind = type(fn).__name__
        raise TypeError(
            f"{method}() takes the function first, then iterables; {kind} is not callable"
        )
    if not options:
        return _DEFAULT
    for name, value in options.items():
        if name not in _NAMES:
            raise TypeError(_no_such_option(method, fn, name, value))
    return MapOptions(**options)


def _no_such_option(method: str, fn: Callable[..., Any], name: str, value: Any) -> str:
    if name in _FOREIGN:
        meant = _FOREIGN[name]
        if meant == "workers":
            return (
                f"{method}() has no {name}=; workers belong to a pool: mh.Pool({value!r}), or "
                f"mh.map(..., workers={value!r})"
            )
        return f"{method}() has no {name}=; write {meant}{'' if '=' in meant else '='}"
    if name == "timeout":
        return f"{method}() has no timeout=: it exists on Pool.map alone"
    if _takes(fn, name):
        return (
            f"{name}= is an argument of {name_of(fn)}, and {method}() takes its own options alone: "
            f"write functools.partial({name_of(fn)}, {name}={value!r})"
        )
    from difflib import get_close_matches

    close = get_close_matches(name, _NAMES, 1)
    hint = f"; did you mean {close[0]}=?" if close else f"; its options are {', '.join(_NAMES)}"
    return f"{method}() got an unexpected keyword argument {name!r}{hint}"


def _takes(fn: Callable[..., Any], name: str) -> bool:
    import inspect

    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False  # a builtin without a signature
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return name in parameters and parameters[name].kind in kinds


def shortest(iterables: Iterable[Any]) -> int | None:
    """How many items there are, if one of the iterables can tell."""
    lengths = []
    for iterable in iterables:
        try:
            lengths.append(len(iterable))
        except Exception:
            pass  # a generator, or a range longer than `len` can say, or what its own code raises
    return min(lengths, default=None)
