"""Pickles bytes, bytearrays and memoryviews as what hands out their memory, or at all."""

from __future__ import annotations

from _pickle import PickleBuffer

TYPE_CHECKING = False  # as in `typing`, whose import would cost each worker milliseconds
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Apart", "apart", "reduce_memoryview"]


class Apart:
    """Stands for one of them in a pickle, where it is a buffer that can be kept out of it."""

    __slots__ = ("_reduced",)

    def __init__(self, reduced: tuple[Any, ...]) -> None:
        self._reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def apart(value: bytes | bytearray | memoryview) -> Apart:
    """What to pickle in its stead."""
    if isinstance(value, memoryview):
        return Apart(reduce_memoryview(value))
    # Copied where it arrives, so nobody writes to the buffer.
    return Apart((type(value), (PickleBuffer(memoryview(value).toreadonly()),)))


def reduce_memoryview(view: memoryview) -> tuple[Any, ...]:
    """As `__reduce__`; what is not contiguous becomes so, and what it cannot make anew is bytes."""
    try:
        memoryview(bytes(view.itemsize)).cast(view.format)  # type: ignore[call-overload]
    except ValueError:
        castable = False  # a format of NumPy's, say
    else:
        castable = view.nbytes > 0 or view.ndim == 1
    if not castable:
        return (bytes, (PickleBuffer(view.tobytes()),))
    if not view.nbytes:
        buffer: Any = bytes(view.itemsize) if view.readonly else bytearray(view.itemsize)
    elif view.c_contiguous:
        buffer = PickleBuffer(view)
    else:
        buffer = view.tobytes() if view.readonly else bytearray(view.tobytes())
    return (_memoryview, (buffer, view.format, view.shape))


def _memoryview(buffer: Any, form: str, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(buffer)
    if 0 in shape:  # what has no items cannot be cast
        return view.cast(form)[:0]  # type: ignore[call-overload, no-any-return]
    return view.cast(form, shape)  # type: ignore[call-overload, no-any-return]
