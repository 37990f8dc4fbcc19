"""One object for all tasks, made once in each worker.

A `Broadcast` travels as a token. What it holds is a definition, which each worker is sent once,
with the first task that needs it: see `needs.rs`. A process knows one `Broadcast` for each token.
"""

from __future__ import annotations

from _pickle import loads
from _thread import RLock
from collections.abc import Sequence
from weakref import WeakValueDictionary

from manyhands import _core, _resolve
from manyhands._typing import Any, Generic, TypeVar

__all__ = ["Broadcast", "arrived", "broadcast", "forget_parent"]

T = TypeVar("T")

# Stands for an object that is not made.
_ABSENT: Any = object()

_known: WeakValueDictionary[str, Broadcast[Any]] = WeakValueDictionary()
# Held while an object is made anew, which may use another broadcast.
_lock = RLock()


def forget_parent() -> None:
    """In a child of fork: another thread of the parent may have held the lock."""
    global _lock
    _lock = RLock()


class Broadcast(Generic[T]):
    """An object that tasks have in common, from `mh.broadcast`: `.value` is the object.

    Pass the `Broadcast` itself to tasks: as an argument, in a structure, captured by a function, as
    a global of it. It can be pickled for tasks of this program alone, and not be stored.
    """

    __slots__ = ("__weakref__", "_definition", "_leases", "_pickled", "_token", "_value")

    _token: str
    _definition: _core.Definition | None
    # How many definitions of it this process has, and one more where it was made.
    _leases: int
    # In a worker, until the object is made: the pickle, and the large buffers that are not in it.
    _pickled: tuple[bytes, Sequence[Any]] | None
    _value: T

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise TypeError("a Broadcast is made by mh.broadcast(obj)")

    @property
    def value(self) -> T:
        """The object: where it was broadcast, that very object.

        In a worker process it is a copy, made at first use, which all its tasks share from then on:
        what a task changes in it others may see or not, so leave it as it is.
        """
        value = self._value
        if value is _ABSENT:
            with _lock:
                if self._value is _ABSENT:
                    if self._pickled is None:
                        raise RuntimeError(
                            "this worker has dropped the broadcast object, by unpersist() or since "
                            "nothing held it any more in the program, and this Broadcast was kept "
                            "from an earlier task; pass it to each task that uses it"
                        )
                    pickled, buffers = self._pickled
                    self._value = loads(pickled, buffers=buffers)
                    self._pickled = None
                value = self._value
        return value

    def unpersist(self) -> None:
        """Has the workers drop their copies, each before its next task.

        A task that uses it later has it sent once more, as it was when it was broadcast. To give
        up all of it, drop the `Broadcast`.

        Raises:
            RuntimeError: a task calls it, in a worker process.
        """
        if _core.pool_of_this_worker() is not None:
            raise RuntimeError(
                "unpersist() is called in the program that has the pool, and not in a task"
            )
        if self._definition is not None:
            self._definition.recall()

    def __reduce__(self) -> Any:
        if _core.is_heard():
            _core.say_need(self._defined())
        return arrived, (self._token,)

    def _defined(self) -> _core.Definition:
        definition = self._definition
        if definition is None or not definition.is_here():
            # In a task that passes it on to tasks of its own, or in a child that was forked. Two
            # threads may both get here, and workers take two definitions of a token for one.
            self._definition = definition = _define(self._token, self.value)
        return definition

    def __repr__(self) -> str:
        if self._value is _ABSENT:
            return "<manyhands.Broadcast, not made in this worker>"
        return f"<manyhands.Broadcast of {type(self._value).__name__}>"


def broadcast(obj: T) -> Broadcast[T]:
    """Makes an object known to tasks that is sent to each worker process once, not with each task.

    For what many tasks read, such as a large dictionary or a model: each worker makes its copy
    once, when the first of its tasks asks for `.value`, and keeps it until the `Broadcast` is
    dropped here or `unpersist` is called. What is sent is the object as it is now, whatever becomes
    of it here; so that it can be sent again, its pickle is kept. Large arrays in it are kept once,
    in memory that the workers share.

    Tasks on threads, and inline, get the object itself, as it is when they use it.

    Args:
        obj: any object that can be sent to a task.

    Raises:
        NotPicklable: the object cannot be sent; the message names the part that cannot.

    >>> import manyhands as mh
    >>> prices = mh.broadcast({"apple": 3, "pear": 4})
    >>> list(mh.map(lambda name: prices.value[name], ["pear", "apple"]))
    [4, 3]
    """
    token = _resolve.new_token()
    made: Broadcast[T] = _make(token)
    made._definition = _define(token, obj)
    made._value = obj
    made._leases = 1
    return made


def arrived(token: str) -> Broadcast[Any]:
    """What a pickled `Broadcast` is in the process that unpickles it."""
    found = _known.get(token)
    if found is None:
        raise RuntimeError(
            "this process does not know the Broadcast: it was dropped where it was made, or it did "
            "not come with a task"
        )
    return found


class _Lease:
    """A definition that this worker has loaded: the object is dropped with the last of them.

    Names of `__main__` and what tasks keep may hold the `Broadcast` itself for longer.
    """

    __slots__ = ("_broadcast",)

    def __init__(self, broadcast: Broadcast[Any]) -> None:
        self._broadcast = broadcast
        broadcast._leases += 1

    def __del__(self) -> None:
        broadcast = self._broadcast
        broadcast._leases -= 1
        if not broadcast._leases:
            broadcast._value = _ABSENT
            broadcast._pickled = broadcast._definition = None


def load(token: str, pickled: bytes, buffers: Sequence[Any]) -> object:
    """Carries out the definition: the token is known for as long as what this returns is kept."""
    found = _known.get(token)
    if found is None:
        found = _make(token)
    if found._value is _ABSENT:
        found._pickled = (pickled, buffers)
    return _Lease(found)


def _make(token: str) -> Broadcast[Any]:
    made: Broadcast[Any] = Broadcast.__new__(Broadcast)
    made._token = token
    made._definition = made._pickled = None
    made._value = _ABSENT
    made._leases = 0
    _known[token] = made
    return made


def _define(token: str, obj: Any) -> _core.Definition:
    from manyhands import _encoding

    return _encoding.define_broadcast(token, obj)
