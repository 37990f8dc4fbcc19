"""The arrays in shared memory: what NumPy makes of a view of one knows that it is one.

NumPy pickles the contents of what is not contiguous without asking anybody, so these arrays say
themselves how they are sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from manyhands import _core, _reducers
from manyhands._shared import Memory, arrived, memories

__all__ = ["SharedArray", "memory_of", "shared", "start_of", "view"]


class SharedArray(np.ndarray[Any, Any]):
    """An array in shared memory. One that is not, a copy say, is like any other when it is sent."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        memory = memory_of(self)
        if memory is None or not _core.is_sent():
            return self.view(np.ndarray).__reduce_ex__(protocol)
        offset = _address(self) - start_of(memory)
        layout = (offset, self.shape, self.strides, self.dtype, self.flags.writeable)
        return arrived, (memory.where(), *layout)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        if array is self:  # it was asked for as the output
            return array
        plain = np.asarray(array)
        return plain if plain.shape else plain[()]

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        return _settle(super().__array_function__(function, types, args, kwargs))

    def copy(self, order: Any = "C") -> Any:
        """A plain array."""
        return _settle(super().copy(order))


def _settle(found: Any) -> Any:
    """What is not in shared memory is a plain array."""
    if type(found) is SharedArray and memory_of(found) is None:
        return found.view(np.ndarray)
    return found


def memory_of(array: np.ndarray[Any, Any]) -> Memory | None:
    """The shared memory that an array lies in: wherever it has been, its address says so."""
    if array.size == 0:
        return None
    address = _address(array)
    for memory in memories():
        if 0 <= address - start_of(memory) < len(memory):
            return memory
    return None


def shared(array: np.ndarray[Any, Any]) -> SharedArray | None:
    """An array that lies in shared memory, as one that knows it, if it is sent to a process."""
    if not _core.is_sent() or memory_of(array) is None:
        return None
    return array.view(SharedArray)


def _reduce_plain(array: np.ndarray[Any, Any]) -> Any:
    """How a plain array is sent: one that lies in shared memory is that memory in the task, too."""
    found = shared(array)
    return _reducers.contents(array) if found is None else found.__reduce_ex__(5)


_reducers.add_arrays(np.ndarray, _reduce_plain)


def view(
    memory: Memory,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dtype: np.dtype[Any],
    writable: bool,
) -> SharedArray:
    """The array that lies so in the memory."""
    made = SharedArray(shape, dtype, memory, offset, strides)
    made.flags.writeable = writable
    return made


def start_of(memory: Memory) -> int:
    """Where it is mapped."""
    if memory.start is None:
        memory.start = _address(np.ndarray(1, np.uint8, memory))
    return memory.start


def _address(array: np.ndarray[Any, Any]) -> int:
    found: int = array.__array_interface__["data"][0]
    return found
