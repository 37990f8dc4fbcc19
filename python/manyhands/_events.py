"""What happens in a pool, and the thread that tells of it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from manyhands import _core
from manyhands._describe import is_coroutine_function, name_of
from manyhands._follower import Follower
from manyhands._snapshot import Snapshot

__all__ = ["Event", "Listener", "check_listener"]

_log = logging.getLogger("manyhands")

# How many events wait for a listener that is slow, before some are lost.
_MOST_UNREAD = 100_000


class Event(Snapshot):
    """Something that happened in a pool: what `on_event=` of a `Pool` is called with.

    The kinds:

    - "queued": the pool has taken tasks.
    - "started": a worker runs them. A worker process does not tell of a start: it is known from the
      end, or, of what runs for longer, by a look every tenth of a second.
    - "ended": they have come to their `outcome`.
    - "retried": a run has come to its `outcome`, and another one is to follow.
    - "cancelled": somebody cancelled them: they never start, or were ended.
    - "born": a worker runs.
    - "died": a worker died, by a `cause`.
    - "stopped": a worker was killed, to end what it ran; a thread was left behind with it.
    - "left": a worker left, because its pool ends, or has no use for it.
    - "recycled": a worker left, and a fresh one is in its place; `cause` names the option.
    - "memory": a worker that runs something has quite another amount of memory than when that was
      told last, by 64 MB at least: `bytes`. Or tasks wait, because there is too little for them,
      see `memory_limit` of `Pool`: `cause` is "short", and "enough" once they wait for it no more.
      Both are looked for every tenth of a second while there are tasks, in worker processes.
    - "stuck": a task runs for much longer than others like it, see `stuck_after` of `Pool`.
    - "stalled": nothing happens any more, by a mistake of manyhands, and the pool breaks.
    - "dropped": so many events were lost here, because they came faster than they were taken.

    Short items of a map come together: such an event is about `count` neighbours, from the number
    `index` on.

    >>> import manyhands as mh
    >>> seen = []
    >>> with mh.Pool(1, on_event=seen.append) as pool:
    ...     pool.submit(pow, 2, 10).result()
    1024
    >>> [event.kind for event in seen if event.task == "pow"]
    ['queued', 'started', 'ended']
    """

    # The order is also that of `fields` in `events.rs`.
    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "kind": "what happened, as a word",
        "time": "when, as `time.time()`; of neighbours, when the first of them did",
        "monotonic": "the same moment, as `time.monotonic()`",
        "task": "name of the function that the tasks run; None for events about workers",
        "index": (
            "number of the first task in its map, or in the pool if it was submitted, or None; "
            "what a task has submitted is numbered by the worker that runs that task"
        ),
        "count": "how many neighbouring tasks it is about, or how many events were lost, or None",
        "map": "which map of this process the tasks are of, from 1; None if they were submitted",
        "attempt": "which run of the task it is about, from 1, or None",
        "outcome": (
            "of what has 'ended' or is 'retried': 'ok', 'error', 'timeout', 'memory', 'died', or "
            "'not run' if it could not be sent or the pool was broken"
        ),
        "seconds": (
            "how long the run took so far, of neighbours all together; None where nobody knows, as "
            "of items that are too short to be measured"
        ),
        "cause": (
            "how a worker died: 'was killed by SIGKILL', 'exited with status 3'; why it was "
            "recycled: 'recycle_after_tasks', 'recycle_rss', 'recycle_age'; whether memory is "
            "'short' or 'enough'; or None"
        ),
        "bytes": (
            "how much memory a worker has to itself, or the most that a task took which took too "
            "much, or None"
        ),
        "slot": "place of the worker in its pool, from 0, or None",
        "pid": "its process id, or None",
        "generation": "which worker of its place it is, from 1, or None",
    }

    kind: str
    time: float
    monotonic: float
    task: str | None
    index: int | None
    count: int | None
    map: int | None
    attempt: int | None
    outcome: str | None
    seconds: float | None
    cause: str | None
    bytes: int | None
    slot: int | None
    pid: int | None
    generation: int | None

    def __repr__(self) -> str:
        # What it has no value for says nothing.
        values = ((name, getattr(self, name)) for name in self.__slots__)
        known = (f"{name}={value!r}" for name, value in values if value is not None)
        return f"Event({', '.join(known)})"


# Twice as fast as `Event(**fields)`: they come by the thousand.
_SETTERS = [vars(Event)[name].__set__ for name in Event.__slots__]


def _event(fields: tuple[object, ...]) -> Event:
    event = object.__new__(Event)
    for set_field, value in zip(_SETTERS, fields, strict=True):
        set_field(event, value)
    return event


def check_listener(call: object) -> None:
    """Refuses what cannot be called with an event."""
    if not callable(call):
        raise TypeError(f"on_event must be callable, not {type(call).__name__}")
    if is_coroutine_function(call):
        raise TypeError(
            f"on_event must be a plain function: {name_of(call)} is asynchronous, and nobody would "
            "await it; have it put events into a queue of your event loop by call_soon_threadsafe"
        )


class Listener(Follower[_core.EventStream]):
    """Calls a function with the events of a pool."""

    def __init__(self, call: Callable[[Event], object]) -> None:
        super().__init__(_core.EventStream(_MOST_UNREAD))
        self._call = call
        self._failed = 0
        self._told = 0

    def start(self, name: str) -> None:
        """Starts the thread, for a pool of that name."""
        self._name = name
        self._start_thread("manyhands-events")

    def _follow(self) -> None:
        while (taken := self.stream.take()) is not None:
            for fields in taken:
                self._tell(_event(fields))
                if self._is_elsewhere():
                    return
        if self._failed > 1:
            _log.error(
                "on_event of %r raised for %d of %d events; the first traceback is above",
                self._name,
                self._failed,
                self._told,
            )

    def _tell(self, event: Event) -> None:
        self._told += 1
        try:
            self._call(event)
        except BaseException:  # a SystemExit would end the thread, and tell nobody of the rest
            self._failed += 1
            if self._failed == 1:
                _log.exception("on_event of %r raised, and is called on", self._name)
