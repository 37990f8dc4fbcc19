"""Arrays in memory that all processes of the program write to.

The memory is a file that each process maps: a named one, or one that is in memory alone and is
reached through the descriptor of who has it. The kernel keeps it for as long as anybody has it
mapped. What keeps the descriptor open until a task has come to it is a definition that it needs.

What is sent is where the file is and how the array lies in it. What stands there must be the very
file, by device and inode. A process maps each file once. NumPy is imported when it is first needed.
"""

from __future__ import annotations

import errno
import math
import mmap
import operator
import os
from _pickle import dumps as _dumps
from _thread import RLock
from collections.abc import Iterator, Sequence
from weakref import WeakValueDictionary

from manyhands import _core
from manyhands._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike

__all__ = ["Memory", "arrived", "forget_parent", "memories", "share", "shared_array"]

# A path, and the device, the inode and the size of what stands there.
Where = tuple[str, int, int, int]

# By device and inode.
_known: WeakValueDictionary[tuple[int, int], Memory] = WeakValueDictionary()
# As long as all that is promised is less than this part of what is left, memory is taken when it is
# written to: then workers do it, all at a time.
_PLENTY = 4
# Held while a file is mapped, so that it is once.
_lock = RLock()


def forget_parent() -> None:
    """In a child of fork: another thread of the parent may have held the lock."""
    global _lock
    _lock = RLock()


class Memory(mmap.mmap):
    """A file as memory. Arrays in it have it as their base."""

    # Where it is mapped, once somebody has asked NumPy for it.
    start: int | None = None

    _path: str | None
    _file: int
    _status: os.stat_result
    # Owns the descriptor of a file without a name.
    _holder: _core.Definition | None

    def where(self) -> Where:
        """Where a process that this one sends something to finds it."""
        path = self._path
        if path is None:
            if _core.is_heard() and self._holder is not None:
                _core.say_need(self._holder)
            path = f"/proc/{os.getpid()}/fd/{self._file}"
        return path, self._status.st_dev, self._status.st_ino, self._status.st_size


def shared_array(
    shape: int | Sequence[int],
    dtype: DTypeLike = float,
    path: str | os.PathLike[str] | None = None,
) -> np.ndarray[Any, Any]:
    """Makes a NumPy array of zeros in memory that all tasks write to.

    Pass it, or any view of it, to tasks: as an argument, in a structure, captured by a function.
    They get the same memory and not a copy: what one writes all see at once. Nothing orders what
    several write to one place. Slices, columns, fields, `numpy.asarray` and `torch.from_numpy` of
    it are views; what is computed from it is an ordinary array.

    The memory lives as long as an array in it, in any process. Pickled for anything but a task, the
    array is pickled with its contents.

    Args:
        shape: as for `numpy.zeros`.
        dtype: the type of its elements, which may be anything but Python objects.
        path: a file to hold the contents, which may be larger than memory. It is made, or opened
            with what is in it if it has just this size; nobody removes it. Without it the memory is
            the system's: taken now if it is much of what is left, and else when it is written to.

    Raises:
        MemoryError: there is not so much memory; the message has the numbers.
        OSError: the file cannot be made, or the disk has no room for it.
        TypeError: the elements would be Python objects.
        ValueError: the file has another size.
        RuntimeError: a task calls it without a path.

    >>> import manyhands as mh
    >>> out = mh.shared_array((4, 3))
    >>> def fill(row, value):
    ...     row[:] = value
    >>> for _ in mh.map(fill, out, range(4)):
    ...     pass
    >>> print(out.sum(axis=1))
    [0. 3. 6. 9.]
    """
    import numpy as np

    from manyhands import _shared_view

    sizes = (
        tuple(map(operator.index, shape))
        if isinstance(shape, Sequence)
        else (operator.index(shape),)
    )
    if any(size < 0 for size in sizes):
        raise ValueError(f"no array has the shape {sizes}")
    kind = np.dtype(dtype)
    _check(kind)
    size = math.prod(sizes) * kind.itemsize
    memory = _make(size) if path is None else _open(os.path.abspath(path), size)
    return _shared_view.view(memory, 0, sizes, None, kind, True)


def share(array: ArrayLike) -> np.ndarray[Any, Any]:
    """Copies an array into memory that all tasks write to: see `shared_array`.

    Type and order of the elements stay. An array that is in such memory is returned as it is.

    Raises:
        MemoryError: there is not so much memory; the message has the numbers.
        TypeError: the elements are Python objects, or it is a masked array.
        RuntimeError: a task calls it.

    >>> import manyhands as mh
    >>> import numpy as np
    >>> numbers = mh.share(np.arange(4))
    >>> def double(part):
    ...     part *= 2
    >>> for part in (numbers[:2], numbers[2:]):
    ...     mh.submit(double, part).result()
    >>> print(numbers)
    [0 2 4 6]
    """
    import numpy as np

    from manyhands import _shared_view

    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array is two arrays: share its data and its mask")
    given = np.asanyarray(array)
    if _shared_view.memory_of(given) is not None:
        return given.view(_shared_view.SharedArray) if type(given) is np.ndarray else given
    _check(given.dtype)
    # Takes no memory as long as nobody writes to it, and lies as a copy would.
    like = np.empty_like(given, subok=False)
    made = _shared_view.view(_make(like.nbytes), 0, like.shape, like.strides, like.dtype, True)
    made[...] = given
    return made


def _check(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise TypeError(
            f"{dtype!r} has Python objects in it, which cannot lie in memory that processes share"
        )


def memories() -> Iterator[Memory]:
    """The shared memory that this process has mapped."""
    for known in _known.valuerefs():
        memory = known()
        if memory is not None:
            yield memory


def arrived(where: Where, *layout: Any) -> np.ndarray[Any, Any]:
    """What a shared array is in the process that unpickles it."""
    from manyhands import _shared_view

    return _shared_view.view(_find(where), *layout)


def _find(where: Where) -> Memory:
    path, device, inode, size = where
    with _lock:
        known = _known.get((device, inode))
        if known is not None:
            return known
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise RuntimeError(
                f"the memory of a shared array cannot be opened ({error}): nobody holds it any "
                "more, its file was removed, or the system lets no process see its parent's files"
            ) from error
        status = os.fstat(file)
        if (status.st_dev, status.st_ino, status.st_size) != (device, inode, size):
            os.close(file)
            raise RuntimeError(
                f"{path} is not the file any more that the shared array was made with"
            )
        return _map(file, None if path.startswith("/proc/") else path)


def _make(size: int) -> Memory:
    """Takes so many bytes of memory, all zero."""
    size = max(size, 1)  # nothing maps a file without bytes
    if _core.pool_of_this_worker() is not None:
        raise RuntimeError(
            "shared memory is made in the program that has the pool, and not in a task; with a "
            "path a task can make some, too"
        )
    promised = _promised()
    left = max(_core.memory_to_take() - promised, 0)
    if size > left:
        raise _no_memory(size, left)
    file = os.memfd_create("manyhands-shared", os.MFD_CLOEXEC)
    try:
        if promised + size <= (left + promised) // _PLENTY and not _is_strict():
            os.truncate(file, size)
        else:
            # To write where there is no memory left would end the process, and is no error.
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.close(file)
        raise _no_memory(size, left) from error
    with _lock:
        return _map(file, None)


def _is_strict() -> bool:
    """Whether the system gives no more memory than it has: then a write to what was not taken may
    find none, however much is free."""
    try:
        with open("/proc/sys/vm/overcommit_memory") as file:
            return file.read().strip() == "2"
    except OSError:
        return True  # not known


def _promised() -> int:
    """How many bytes of shared memory are not taken yet: nobody has written there."""
    promised = 0
    for memory in memories():
        if memory._path is None:
            status = os.fstat(memory._file)
            promised += max(status.st_size - 512 * status.st_blocks, 0)
    return promised


def _no_memory(size: int, left: int) -> MemoryError:
    return MemoryError(
        f"there is no room for {size} bytes of shared memory: the machine or the control group "
        f"has {left} bytes to give. With a path the array may be larger than memory"
    )


def _open(path: str, size: int) -> Memory:
    """Opens a file of this size, or makes one of zeros."""
    size = max(size, 1)
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o666)
        is_new = True
    except FileExistsError:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        is_new = False
    try:
        if is_new:
            _take_room(file, path, size)
        found = os.fstat(file)
        if found.st_size != size:
            raise ValueError(
                f"{path} has {found.st_size} bytes, and the array has {size}: give the shape and "
                "dtype that it was made with, or remove the file"
            )
    except BaseException:
        os.close(file)
        if is_new:
            os.unlink(path)
        raise
    with _lock:
        known = _known.get((found.st_dev, found.st_ino))
        if known is None:
            return _map(file, path)
    os.close(file)
    return known


def _take_room(file: int, path: str, size: int) -> None:
    try:
        # To write where the disk has no room would end the process, and is no error.
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        why = f"there is no room for the {size} bytes of a shared array: {error.strerror}"
        raise OSError(error.errno, why, path) from error


def _map(file: int, path: str | None) -> Memory:
    """Maps the file, whose descriptor is the memory's from here on."""
    try:
        status = os.fstat(file)
        made = Memory(file, status.st_size)
    except OSError as error:
        os.close(file)
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError("there are not enough addresses left to map shared memory") from error
    made._path, made._file, made._status, made._holder = path, file, status, None
    if path is None:
        made._holder = _core.Definition(_dumps(("held",)), (), "shared memory", file)
    else:
        os.close(file)  # the mapping has one of its own
    _known[status.st_dev, status.st_ino] = made
    return made
