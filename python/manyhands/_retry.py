"""How often, after what and after how long a task that fails runs again."""

from __future__ import annotations

from collections.abc import Callable

from manyhands import _core
from manyhands._errors import TaskMemoryExceeded, TaskTimeout
from manyhands._typing import Any

_Kinds = type[BaseException] | tuple[type[BaseException], ...]


class Retry:
    """How often a task runs again that fails. It does not change.

    Exceptions and deaths of workers are counted each by itself. The last failure is the one that
    counts; its note tells how often the task was tried. A task that has killed as many workers as
    it may is not tried again. What a generator function has yielded is out: it runs again only if
    it fails before that, and on processes alone. Processes go on with other tasks during a pause; a
    thread, and whoever runs an inline task, waits for its end. A run in a thread that does not end
    in its `grace` after its `task_timeout` is the last.

    Args:
        n: the most times that it runs again after an exception, or after it was ended for its
            `task_timeout` or its `task_memory`.
        on: the exception, or a tuple of them, after which it does. `TaskTimeout` is a
            `TimeoutError`, and that an `OSError`; `TaskMemoryExceeded` is a `MemoryError`.
        when: a function that is given the exception, in the worker, and says whether it does.
            (Of a task that was ended for a limit nobody is asked.)
        deaths: the most times that it runs again after its worker died; by default once.
        backoff: seconds before the second run; before each later one twice as long.
        longest: the most of these seconds.
        jitter: by which part each pause is shortened at most, at random; 0 to 1.

    Raises:
        ValueError: a number is out of its bounds.
        TypeError: `on` names no exceptions, or `when` cannot be called.

    >>> import manyhands as mh
    >>> mh.Retry(3, on=OSError, backoff=0.5)
    Retry(3, on=OSError, deaths=1, backoff=0.5)
    """

    __slots__ = ("_given", "_plan", "_text")

    def __init__(
        self,
        n: int,
        *,
        on: _Kinds = Exception,
        when: Callable[[BaseException], object] | None = None,
        deaths: int = 1,
        backoff: float = 0.0,
        longest: float = 60.0,
        jitter: float = 0.5,
    ) -> None:
        for name, count in (("n", n), ("deaths", deaths)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name} must be a whole number, not {type(count).__name__}")
            if not 0 <= count <= 200:
                raise ValueError(f"{name} must be from 0 to 200, not {count}")
        for name, seconds, most in (
            ("backoff", backoff, 1e9),
            ("longest", longest, 1e9),
            ("jitter", jitter, 1),
        ):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(f"{name} must be a number, not {type(seconds).__name__}")
            if not 0 <= seconds <= most:
                raise ValueError(f"{name} must be from 0 to {most:g}, not {seconds!r}")
        kinds: tuple[Any, ...] = on if isinstance(on, tuple) else (on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise TypeError("on must be an exception class, or a tuple of them")
        if when is not None and not callable(when):
            raise TypeError(f"when must be callable, not {type(when).__name__}")
        policy = None
        if on is not Exception or when is not None:
            from manyhands import _encoding

            asked = Policy(kinds, when)
            policy = (_encoding.capture(asked), asked)
        limits = issubclass(TaskTimeout, kinds), issubclass(TaskMemoryExceeded, kinds)
        self._plan = _core.RetryPlan(n, deaths, limits, backoff, longest, jitter, policy)
        self._given = (n, on, when, deaths, backoff, longest, jitter)
        names = ", ".join(kind.__name__ for kind in kinds)
        self._text = (
            f"Retry({n}, on={names if len(kinds) == 1 else f'({names})'}, "
            + ("" if when is None else f"when={getattr(when, '__name__', when)!s}, ")
            + f"deaths={deaths}, backoff={backoff:g})"
        )

    def __repr__(self) -> str:
        return self._text

    def __reduce__(self) -> Any:
        return _again, self._given


def _again(n: int, on: _Kinds, when: Any, deaths: int, *pauses: float) -> Retry:
    """What was pickled."""
    backoff, longest, jitter = pauses
    return Retry(
        n, on=on, when=when, deaths=deaths, backoff=backoff, longest=longest, jitter=jitter
    )


class Policy:
    """What a worker asks whether a failure is one after which to run again."""

    __slots__ = ("kinds", "when")

    def __init__(
        self,
        kinds: tuple[type[BaseException], ...],
        when: Callable[[BaseException], object] | None,
    ) -> None:
        self.kinds = kinds
        self.when = when

    def __call__(self, error: BaseException) -> object:
        return isinstance(error, self.kinds) and (self.when is None or self.when(error))


def retry_of(value: Any) -> Retry | None:
    """What `retry=` means: None, a number of times, or a `Retry`."""
    if value is None or isinstance(value, Retry):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"retry is a number of times or a Retry, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"retry must be at least 0, not {value}")
    return Retry(value) if value else None
