"""Pickling for classes of libraries that do not say themselves what is best here.

Most libraries hand large buffers out (PEP 574), and then nothing is needed. Tensors of PyTorch,
frames of Polars, and arrays of NumPy with gaps are written into the middle of the pickle instead,
which is copied from hand to hand. And plain arrays and tensors may lie in shared memory without
knowing it. What stands here says how all these are sent. Nothing of it is imported, or asked,
before the program itself has imported the library, or made shared memory.
"""

from __future__ import annotations

import copyreg
import io
import sys
from _pickle import PickleBuffer, Pickler

from manyhands import _core

TYPE_CHECKING = False  # as in `typing`, whose import would cost each worker milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    _Reduced = Any  # what a reducer may return: a string or a tuple
    _Reducers = dict[type, Callable[[Any], _Reduced]]


def _of_torch(torch: Any) -> _Reducers:
    _core.pickle_by_table()
    return {torch.Tensor: _tensor}


def _of_polars(polars: Any) -> _Reducers:
    _core.pickle_by_table()
    return {polars.DataFrame: _frame, polars.Series: _frame}


def _of_arrow(arrow: Any) -> _Reducers:
    kinds = [arrow.Array]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    _core.pickle_these_by_table([*kinds, arrow.ChunkedArray, arrow.RecordBatch, arrow.Table])
    return dict.fromkeys(kinds, _arrow_array)


def _of_pandas(pandas: Any) -> _Reducers:
    _core.pickle_these_by_table([pandas.DataFrame, pandas.Series, pandas.Index])
    reducers: _Reducers = {}
    blocks = sys.modules.get("pandas.core.internals.blocks")
    if (block := getattr(blocks, "NumpyBlock", None)) is not None:
        reducers[block] = _block
    if "pyarrow" in sys.modules:  # pandas imports it if it is there
        arrays = pandas.arrays
        for kind in arrays.ArrowExtensionArray, arrays.ArrowStringArray:
            reducers[kind] = _arrow_column
    return reducers


_LIBRARIES: dict[str, Callable[[Any], _Reducers]] = {
    "torch": _of_torch,
    "polars": _of_polars,
    "pyarrow": _of_arrow,
    "pandas": _of_pandas,
}
_found: set[str] = set()
# By class, of the libraries that were found.
TABLE: _Reducers = {}


def find() -> None:
    """Looks for the libraries; to be asked again when more modules are there."""
    for name, reducers_of in _LIBRARIES.items():
        library = sys.modules.get(name)
        if library is None or name in _found:
            continue
        # One that is still being imported has no classes yet.
        spec = getattr(library, "__spec__", None)
        if spec is not None and not getattr(spec, "_initializing", False):
            _found.add(name)
            TABLE.update(reducers_of(library))


def add_arrays(array: type, reduce: Callable[[Any], _Reduced]) -> None:
    """From here on plain arrays may lie in shared memory."""
    TABLE[array] = reduce
    _core.pickle_by_table()


def dumps(value: Any, buffer_callback: Callable[[PickleBuffer], Any] | None = None) -> bytes:
    """As `pickle.dumps` with protocol 5, by the table."""
    if len(_found) < len(_LIBRARIES):
        find()
    file = io.BytesIO()
    pickler = Pickler(file, 5, buffer_callback=buffer_callback)
    table = {**copyreg.dispatch_table, **TABLE}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        table.setdefault(numpy.ndarray, contents)
    pickler.dispatch_table = table
    pickler.dump(value)
    return file.getvalue()


# ---- NumPy ----------------------------------------------------------------------------------


def contents(array: Any) -> _Reduced:
    """Of an array that is in no shared memory; one with gaps is sent without them, unless it is a
    part of what is in the store, where nothing is sent but where it is."""
    kind = array.dtype
    if kind.isnative and not kind.hasobject and not _is_gapless(array):
        if array.size and (memory := _memory_of(array)) is not None:
            content, start = memory
            return _view_of, (PickleBuffer(content), kind, array.shape, array.strides, start)
        array = array.copy()
    return array.__reduce_ex__(5)


def _memory_of(array: Any) -> Any:
    """The bytes from the first to the last of the array, if they are in the store, and at which of
    them it begins; or None."""
    numpy: Any = sys.modules["numpy"]
    # Where an axis runs backwards its last element is the first in memory.
    ends = [(size - 1) * step for size, step in zip(array.shape, array.strides, strict=True)]
    start = -sum(end for end in ends if end < 0)
    length = start + sum(end for end in ends if end > 0) + array.itemsize
    lowest = tuple(slice(0, 1) if end >= 0 else slice(-1, None) for end in ends)
    corner = array[lowest].reshape(1).view(numpy.uint8)
    content = numpy.lib.stride_tricks.as_strided(
        corner, (length,), (1,), writeable=array.flags.writeable
    )
    return (content, start) if _core.is_stored(content) else None


def _view_of(memory: Any, kind: Any, shape: Any, strides: Any, start: int) -> Any:
    import numpy

    return numpy.ndarray(shape, kind, memory, start, strides)


def _is_gapless(array: Any) -> bool:
    """Whether it is contiguous in some order of its axes, which NumPy sends as it is."""
    if array.flags.forc:
        return True
    axes = sorted(range(array.ndim), key=array.strides.__getitem__, reverse=True)
    gapless: bool = array.transpose(axes).flags.c_contiguous
    return gapless


# ---- PyTorch --------------------------------------------------------------------------------


def _tensor(tensor: Any) -> _Reduced:
    import torch  # type: ignore[import-not-found, unused-ignore]

    is_plain = (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.is_leaf
        and tensor.numel() > 0
        and not tensor.__dict__
    )
    if not is_plain:
        return tensor.__reduce_ex__(5)
    if (shared := _in_shared_memory(tensor)) is not None:
        return torch.from_numpy, (shared,)
    # As it lies in memory: the axis with the longest step first.
    axes = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    ordered = tensor.detach().permute(axes).contiguous()
    # NumPy does not have all of the types, but it has bytes.
    content = PickleBuffer(ordered.view(-1).view(torch.uint8).numpy())
    layout = tuple(ordered.shape), axes
    return _tensor_of, (content, tensor.dtype, layout, tensor.requires_grad)


def _in_shared_memory(tensor: Any) -> Any:
    """The shared array that such a tensor is, or None."""
    view = sys.modules.get("manyhands._shared_view")
    if view is None or tensor.requires_grad:
        return None
    try:
        array = tensor.numpy()
    except TypeError:  # NumPy has no such type, so it was not made of an array
        return None
    return view.shared(array)


def _tensor_of(
    content: Any, dtype: Any, layout: tuple[tuple[int, ...], list[int]], requires_grad: bool
) -> Any:
    import torch  # type: ignore[import-not-found, unused-ignore]

    shape, axes = layout
    # A tensor cannot be read-only: of memory that is, it gets a copy.
    memory = bytearray(content) if memoryview(content).readonly else content
    places = [axes.index(axis) for axis in range(len(axes))]
    tensor = torch.frombuffer(memory, dtype=dtype).view(shape).permute(places)
    return tensor.requires_grad_() if requires_grad else tensor


# ---- Polars ---------------------------------------------------------------------------------


def _frame(frame: Any) -> _Reduced:
    return _frame_of, (type(frame), PickleBuffer(frame.__getstate__()))


def _frame_of(kind: Any, state: Any) -> Any:
    frame = kind.__new__(kind)
    frame.__setstate__(bytes(state))
    return frame


# ---- Arrow ----------------------------------------------------------------------------------

# A column of so many pieces is sent as one.
_MOST_CHUNKS = 16


def _arrow_array(array: Any) -> _Reduced:
    """Arrow sends all of the memory that an array is a part of (apache/arrow#26685)."""
    size = array.nbytes
    if array.get_total_buffer_size() > size + size // 8 + 4096 and not _is_in_store(array):
        import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]

        array = pyarrow.concat_arrays([array])
    return array.__reduce_ex__(5)


def _is_in_store(array: Any) -> bool:
    return any(buffer is not None and _core.is_stored(buffer) for buffer in array.buffers())


# ---- pandas ---------------------------------------------------------------------------------


def _block(block: Any) -> _Reduced:
    """Of the columns of one type. Some rows of them have gaps, and with protocol 5 pandas copies
    them; `contents` knows whether that is needed."""
    reduced: _Reduced = block.__reduce__()
    return reduced


def _arrow_column(column: Any) -> _Reduced:
    """Of an Arrow column, which pandas would copy into one piece first."""
    state = column.__dict__.copy()
    chunks = state["_pa_array"].chunks if "_pa_array" in state else ()
    if not 0 < len(chunks) <= _MOST_CHUNKS:
        return column.__reduce_ex__(5)
    state.pop("_cache", None)
    # What takes it back is `__setstate__` of pandas itself, which takes a list of pieces.
    return _new, (type(column),), state | {"_pa_array": chunks}


def _new(kind: Any) -> Any:
    return kind.__new__(kind)
