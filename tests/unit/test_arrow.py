"""Arrow data as arguments, as results and in the store: that of pyarrow, of Polars and of pandas
with Arrow columns."""

from __future__ import annotations

import datetime
import decimal
import functools
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies

import manyhands as mh
from arrays import Sample, drop_kept, keep, kept, same
from gate import Gate, pass_through
from observing import live, until_released

pa: Any = pytest.importorskip("pyarrow")

KIB, MIB = 1 << 10, 1 << 20
# From so many bytes on a buffer of what is put goes to the store.
SMALLEST_PART = 8 * KIB
# Rows of the tables that go by the store, and at least so many bytes.
ROWS = 100_000
SIZE = 16 * ROWS


@pytest.fixture(autouse=True)
def nothing_stays(pool: mh.Pool) -> Iterator[None]:
    """Whatever a test has made goes back to the store."""
    yield
    until_released(pool)


class DegreesType(pa.ExtensionType):  # type: ignore[misc]
    """A type of the program's own."""

    def __init__(self, scale: str) -> None:
        self.scale = scale
        super().__init__(pa.float64(), "manyhands.degrees")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.scale.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> DegreesType:
        return cls(serialized.decode())


_DAY = datetime.date(2020, 1, 1)
_INSTANT = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_PERSON = pa.struct([("name", pa.string()), ("ages", pa.list_(pa.int16()))])

# By name: the type, and the value of a row.
TYPES: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "int8": (pa.int8(), lambda n: n % 100),
    "uint16": (pa.uint16(), same),
    "int32": (pa.int32(), lambda n: -n),
    "int64": (pa.int64(), lambda n: n << 40),
    "uint64": (pa.uint64(), lambda n: n + (1 << 63)),
    "half": (pa.float16(), lambda n: n / 4),
    "float": (pa.float32(), lambda n: n / 8),
    "double": (pa.float64(), lambda n: n / 7),
    "bool": (pa.bool_(), lambda n: n % 3 == 0),
    "string": (pa.string(), lambda n: f"name {n} é"),
    "large string": (pa.large_string(), lambda n: "x" * (n % 20)),
    "string view": (pa.string_view(), lambda n: f"{n}" * (n % 9)),
    "binary": (pa.binary(), lambda n: bytes([n % 256] * (n % 5))),
    "large binary": (pa.large_binary(), lambda n: bytes(n % 30)),
    "binary view": (pa.binary_view(), lambda n: b"%d" % n * (n % 9)),
    "fixed size binary": (pa.binary(3), lambda n: b"%03d" % n),
    "timestamp": (pa.timestamp("us"), lambda n: _INSTANT.replace(tzinfo=None, microsecond=n)),
    "zoned timestamp": (
        pa.timestamp("ns", "Europe/Rome"),
        lambda n: _INSTANT + datetime.timedelta(hours=n),
    ),
    "date32": (pa.date32(), lambda n: _DAY + datetime.timedelta(n)),
    "date64": (pa.date64(), lambda n: _DAY - datetime.timedelta(n)),
    "time": (pa.time64("us"), lambda n: datetime.time(n % 24, n % 60, microsecond=n)),
    "duration": (pa.duration("ms"), lambda n: datetime.timedelta(milliseconds=n)),
    "interval": (pa.month_day_nano_interval(), lambda n: (n, 2, -n)),
    "decimal128": (pa.decimal128(20, 3), lambda n: decimal.Decimal(n) / 8),
    "decimal256": (pa.decimal256(60, 2), lambda n: decimal.Decimal(n * 10**40)),
    "list": (pa.list_(pa.int32()), lambda n: [n, None] * (n % 3)),
    "large list": (pa.large_list(pa.string()), lambda n: [f"{n}"] * (n % 4)),
    "list of lists": (pa.list_(pa.list_(pa.float64())), lambda n: [[n / 3], None, []][: n % 4]),
    "fixed size list": (pa.list_(pa.int16(), 2), lambda n: [n, None]),
    "list view": (pa.list_view(pa.int64()), lambda n: [n] * (n % 3)),
    "struct": (_PERSON, lambda n: {"name": f"{n}" if n % 5 else None, "ages": [n, n + 1]}),
    "map": (pa.map_(pa.string(), pa.int64()), lambda n: [(f"key {n}", n)] * (n % 3)),
    "dictionary": (pa.dictionary(pa.int16(), pa.string()), lambda n: f"kind {n % 5}"),
    "list of dictionary": (
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
        lambda n: [f"kind {n % 5}"] * (n % 3),
    ),
    "null": (pa.null(), lambda n: None),
    "uuid": (pa.uuid(), lambda n: b"%016d" % n),
    "json": (pa.json_(), lambda n: json.dumps({"n": n})),
    "own extension": (DegreesType("Celsius"), lambda n: n / 2),
}


def values_of(name: str, count: int) -> list[Any]:
    make = TYPES[name][1]
    return [None if n % 7 == 3 else make(n) for n in range(count)]


@functools.cache
def of_type(name: str, size: int) -> Any:
    """An array with nulls, of about so many bytes, but of at least 1000 rows."""
    kind = TYPES[name][0]
    values = values_of(name, 1000)
    if isinstance(kind, pa.BaseExtensionType):
        part = pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    else:
        part = pa.array(values, kind)
    repeats = size // max(part.nbytes, 16)
    return pa.concat_arrays([part] * repeats) if repeats > 1 else part


def mixed(rows: int = ROWS) -> Any:
    """A table with nulls, of numbers and strings."""
    numbers = np.arange(rows)
    is_null = numbers % 7 == 3
    return pa.table(
        {
            "number": pa.array(numbers, mask=is_null),
            "share": pa.array(numbers / 7),
            "text": pa.array(numbers + 10**9, mask=is_null).cast(pa.string()),
            "kind": pa.array(numbers % 5 + 100).cast(pa.string()),
        },
        metadata={"source": "a test"},
    )


def lengths(column: Any) -> list[int]:
    return [len(chunk) for chunk in column.chunks]


def assert_same(result: Any, value: Any) -> None:
    """The same type, schema, chunks and contents; and what it says of itself is right."""
    assert type(result) is type(value)
    if not isinstance(value, pa.Buffer):
        result.validate(full=True)
    if isinstance(value, pa.Table | pa.RecordBatch):
        assert result.schema.equals(value.schema, check_metadata=True)
        assert result.num_rows == value.num_rows
    elif isinstance(value, pa.Array | pa.ChunkedArray):
        assert result.type == value.type
        assert result.null_count == value.null_count
    if isinstance(value, pa.Table):
        assert list(map(lengths, result.columns)) == list(map(lengths, value.columns))
    elif isinstance(value, pa.ChunkedArray):
        assert lengths(result) == lengths(value)
    assert result.equals(value)


def check(pool: mh.Pool, *values: Any) -> None:
    """They come back as they were sent, by map and by submit, and are so when all have come."""
    results = [*pool.map(same, values), pool.submit(same, values[0]).result()]
    for result, value in zip(results, [*values, values[0]], strict=True):
        assert_same(result, value)


def arrays_of(value: Any) -> list[Any]:
    if isinstance(value, pa.Array):
        return [value]
    if isinstance(value, pa.ChunkedArray):
        return list(value.chunks)
    return [array for column in value.columns for array in arrays_of(column)]


def buffers_of(value: Any) -> list[Any]:
    """Those that go to the store."""
    if isinstance(value, pa.Buffer):
        found = [value]
    else:
        found = [buffer for array in arrays_of(value) for buffer in array.buffers()]
    return [buffer for buffer in found if buffer is not None and buffer.size >= SMALLEST_PART]


def addresses(value: Any) -> list[int]:
    return [buffer.address for buffer in buffers_of(value)]


def scribble(value: Any) -> int:
    """Writes over all of its memory that may be written; how many buffers those are."""
    writable = [buffer for buffer in buffers_of(value) if buffer.is_mutable]
    for buffer in writable:
        np.frombuffer(buffer, np.uint8)[:] = 0
    return len(writable)


# --------------------------------------------------------------------------- arguments and results


CUTS: dict[str, Callable[[Any], Any]] = {
    "whole": same,
    "start": lambda array: array[: len(array) // 2],
    "middle": lambda array: array[13:-13],
    "end": lambda array: array[-21:],
    "empty": lambda array: array[5:5],
    "cut twice": lambda array: array[9:-3][2:-100],
}


@pytest.mark.parametrize("size", [KIB, MIB // 2])
@pytest.mark.parametrize("name", TYPES)
def test_each_type(pool: mh.Pool, name: str, size: int) -> None:
    array = of_type(name, size)
    assert array.null_count
    check(pool, *(cut(array) for cut in CUTS.values()))
    chunked = pa.chunked_array([array[3:-500], array[:0], array[:100]])
    batch = pa.record_batch({"a": array, "b": array})
    check(pool, chunked, chunked[5:-5], batch, batch[7:-7])
    table = pa.table({"a": chunked, "b": pa.concat_arrays(chunked.chunks)})
    check(pool, table, table[11:-11])


@pytest.mark.parametrize("name", TYPES)
def test_tasks_see_what_was_sent(pool: mh.Pool, name: str) -> None:
    """Without Arrow for a judge of equality."""

    def listed(array: Any) -> Any:
        return str(array.to_pylist())

    array = of_type(name, 0)
    rows = array.to_pylist()
    assert len(rows) == 1000
    for value in (array, mh.put(array), pa.chunked_array([array])):
        assert pool.submit(listed, value).result() == str(rows)
        assert pool.submit(listed, value[77:-7]).result() == str(rows[77:-7])
    assert listed(pool.submit(same, array).result()) == str(rows)


def test_tasks_make_each_type(pool: mh.Pool) -> None:
    def make(name: str) -> Any:
        return of_type(name, 256 * KIB)

    for name, result in zip(TYPES, pool.map(make, TYPES), strict=True):
        assert_same(result, make(name))


CHUNKED: dict[str, Callable[[], Any]] = {
    "no chunks": lambda: pa.chunked_array([], pa.int64()),
    "empty chunks": lambda: pa.chunked_array([[], [], []], pa.string()),
    "one chunk": lambda: pa.chunked_array([range(100_000)]),
    "many small chunks": lambda: pa.chunked_array([[n, None] for n in range(200)]),
    "many large chunks": lambda: pa.chunked_array([np.full(20_000, n) for n in range(20)]),
    "parts of one": lambda: pa.chunked_array(
        [of_type("string", MIB)[start : start + 1000] for start in range(0, 20_000, 999)]
    ),
    "one many times": lambda: pa.chunked_array([of_type("list", MIB)] * 5),
}


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_stay_as_they_are(pool: mh.Pool, name: str) -> None:
    chunked = CHUNKED[name]()
    table = pa.table({"a": chunked, "b": chunked})
    for value in (chunked, table):
        assert_same(mh.put(value), value)
        check(pool, value, value[1:-1], value[:0], mh.put(value), mh.put(value)[1:-1])


def test_tables_without_rows_or_columns(pool: mh.Pool) -> None:
    schema = mixed(10).schema
    check(
        pool,
        pa.table({}),
        schema.empty_table(),
        pa.Table.from_batches([], schema),
        mh.put(schema.empty_table()),
        pa.record_batch([[]], ["nothing"]),
        mixed(10)[10:],
    )


@pytest.mark.parametrize("rows", [10, ROWS])
def test_metadata_is_kept(pool: mh.Pool, rows: int) -> None:
    number = pa.field("number", pa.int64(), nullable=False, metadata={"unit": "m", b"\xff": b"\0"})
    inner = pa.field("inner", pa.string(), metadata={"language": "de"})
    schema = pa.schema([number, pa.field("both", pa.struct([inner]))], metadata={"by": "é" * 1000})
    table = pa.table([range(rows), [{"inner": "text"}] * rows], schema=schema)
    batch = table.to_batches()[0]
    check(pool, table, batch, table[3:-3], mh.put(table), mh.put(batch))
    result = pool.submit(same, mh.put(table)).result()
    assert result.schema.metadata == {b"by": "é".encode() * 1000}
    assert result.field("number").metadata == {b"unit": b"m", b"\xff": b"\0"}
    assert not result.field("number").nullable
    assert result.field("both").type.field("inner").metadata == {b"language": b"de"}
    sent = pool.submit(same, schema).result()
    assert sent.equals(schema, check_metadata=True)


@pytest.mark.parametrize("size", [0, 100, 20_000, 5 * MIB])
def test_buffers(pool: mh.Pool, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    own = pa.allocate_buffer(size, resizable=True)
    np.frombuffer(own, np.uint8)[:] = np.frombuffer(content, np.uint8, size)
    for buffer in (pa.py_buffer(content), pa.py_buffer(bytearray(content)), own):
        whole = buffer.slice(0, size)
        check(pool, whole, whole.slice(size // 3), mh.put(whole), mh.put(whole).slice(size // 3))
        assert pool.submit(same, whole).result().to_pybytes() == content[:size]


def test_large_tables(pool: mh.Pool) -> None:
    table = mixed(120_000)
    assert 3 * MIB < table.nbytes < 5 * MIB
    check(pool, table, table[1001:-1001], table.select(["text"]), table.combine_chunks())
    check(pool, *table.to_batches(max_chunksize=7001))
    joined = pa.concat_tables([table, table[5:50], table])
    check(pool, joined, joined[119_000:121_000])


def test_in_whatever_holds_them(pool: mh.Pool) -> None:
    table = mixed(20_000)
    held = {"table": table, "deep": [(1, Sample("one", table["text"]))], "again": table}
    for value in (held, mh.put(held)):
        result = pool.submit(same, value).result()
        assert list(result) == list(held)
        assert_same(result["table"], table)
        assert result["again"] is result["table"]
        assert_same(result["deep"][0][1].data, table["text"])


def test_several_arguments(pool: mh.Pool) -> None:
    def total(first: Any, *others: Any, last: Any) -> int:
        return sum(value.num_rows for value in (first, *others, last))

    table = mixed(20_000)
    future = pool.submit(total, table, table[:300], mh.put(table), last=mh.put(table)[:7])
    assert future.result() == 40_307
    assert list(pool.starmap(same_number, [(table, n) for n in range(20)])) == list(range(20))


def same_number(table: Any, number: int) -> int:
    found: int = table["share"].chunk(0)[number * 7].as_py()
    return int(found)


def test_a_captured_table(pool: mh.Pool) -> None:
    table = mixed()
    part = mh.put(table)[500:700]
    expected = table["text"][500:700].to_pylist()
    assert pool.submit(lambda: table["text"].to_pylist()[500:700]).result() == expected
    assert pool.submit(lambda: list(part["text"].to_pylist())).result() == expected


# The same examples each time. Nothing is said of their time.
steady = hypothesis.settings(derandomize=True, database=None, deadline=None, max_examples=60)


@steady
@hypothesis.given(data=strategies.data())
def test_random_tables(pool: mh.Pool, data: strategies.DataObject) -> None:
    """Columns of all types in chunks of all sizes, of which rows are taken."""
    rows = data.draw(strategies.sampled_from([0, 1, 7, 8, 9, 64, 500]), "rows")
    columns = {}
    for name in data.draw(
        strategies.lists(strategies.sampled_from(sorted(TYPES)), min_size=1, max_size=4)
    ):
        array = of_type(name, data.draw(strategies.sampled_from([KIB, MIB // 2])))
        first = data.draw(strategies.integers(0, len(array) - rows))
        ends = sorted(data.draw(strategies.lists(strategies.integers(0, rows), max_size=4)))
        bounds = zip([0, *ends], [*ends, rows], strict=True)
        pieces = [array[first + start : first + end] for start, end in bounds]
        columns[name] = pa.chunked_array(pieces, array.type)
    table = pa.table(columns)
    start, length = data.draw(strategies.integers(0, rows)), data.draw(strategies.integers(0, rows))
    put = mh.put(table)
    assert_same(put, table)
    check(pool, table, table.slice(start, length), put, put.slice(start, length))


# ----------------------------------------------------------------------------- whose memory it is


def test_arguments_are_the_task_s_own(pool: mh.Pool) -> None:
    table, expected = mixed(), mixed()
    for _ in range(3):
        assert pool.submit(scribble, table).result() > 0
        assert pool.submit(scribble, table[10:-10]).result() > 0
        assert_same(table, expected)
    assert sum(pool.map(scribble, [table, table])) > 0
    check(pool, table)
    assert_same(table, expected)


def test_arguments_are_taken_as_they_are(pool: mh.Pool, gate: Gate) -> None:
    """What is written to their memory after `submit` the task does not see."""
    numbers = np.arange(ROWS)
    table = pa.table({"a": numbers})
    assert addresses(table) == [numbers.ctypes.data]
    blocked = [pool.submit(pass_through, gate.path) for _ in range(2)]
    gate.wait_arrivals(2)
    future, put = pool.submit(same, table), mh.put(table)
    numbers[:] = -1
    gate.open()
    assert_same(future.result(), pa.table({"a": np.arange(ROWS)}))
    assert_same(put, pa.table({"a": np.arange(ROWS)}))
    assert table["a"].to_pylist()[:2] == [-1, -1]
    assert [future.result() for future in blocked] == [None, None]


PUT: dict[str, Callable[[], Any]] = {
    "table": mixed,
    "part of a table": lambda: mixed()[100:-100],
    "batch": lambda: mixed().to_batches()[0],
    "column": lambda: mixed()["text"],
    "array": lambda: mixed()["number"].chunk(0),
    "lists": lambda: of_type("list", MIB),
    "structs": lambda: of_type("struct", MIB),
    "dictionary": lambda: of_type("dictionary", MIB),
    "string views": lambda: of_type("string view", MIB),
    "bools": lambda: of_type("bool", MIB),
    "many chunks": lambda: pa.table({"a": CHUNKED["many large chunks"]()}),
    "buffer": lambda: pa.py_buffer(bytes(range(256)) * 4 * KIB),
    "bytearray's buffer": lambda: pa.py_buffer(bytearray(range(256)) * 4 * KIB),
}


@pytest.mark.parametrize("name", PUT)
def test_what_is_put_is_equal_and_nobody_writes_to_it(pool: mh.Pool, name: str) -> None:
    value, expected = PUT[name](), PUT[name]()
    put = mh.put(value)
    assert_same(put, expected)
    assert buffers_of(put)
    assert not any(buffer.is_mutable for buffer in buffers_of(put))
    part = put.slice(10, 70_000)
    for one in (put, part):
        assert pool.submit(scribble, one).result() == 0
        returned = pool.submit(same, one).result()
        assert_same(returned, one)
        assert scribble(returned) == 0
    assert_same(put, expected)
    # What it was made of is as it was.
    assert_same(value, expected)
    check(pool, put, part)


def test_numpy_views_of_what_is_put_are_read_only(pool: mh.Pool) -> None:
    def write(table: Any) -> None:
        view = table["share"].chunk(0).to_numpy()
        assert view.ctypes.data in addresses(table)
        view[0] = 1

    put = mh.put(mixed())
    with pytest.raises(ValueError, match="read-only"):
        write(put)
    error = pool.submit(write, put).exception()
    assert isinstance(error, ValueError)
    assert "read-only" in str(error)
    assert_same(put, mixed())


PASSED: dict[str, Callable[[Any], Any]] = {
    "itself": same,
    "rows": lambda table: table[1000:-1000],
    "half of the rows": lambda table: table[: ROWS // 2],
    "few rows": lambda table: table[50_000:50_003],
    "some columns": lambda table: table.select(["text", "share"]),
    "renamed": lambda table: table.rename_columns(list("abcd")),
    "batch": lambda table: table.to_batches()[0],
    "rows of a batch": lambda table: table.to_batches()[0][7:-7],
    "column": lambda table: table["text"],
    "rows of a column": lambda table: table["number"][3:],
    "array": lambda table: table["text"].chunk(0),
    "half of an array": lambda table: table["text"].chunk(0)[ROWS // 2 :],
    "part of an array": lambda table: table["text"].chunk(0)[99:-99],
    "buffer": lambda table: table["share"].chunk(0).buffers()[1],
    "part of a buffer": lambda table: table["share"].chunk(0).buffers()[1].slice(8_000, 400_000),
    "twice in one": lambda table: pa.concat_tables([table, table[5:]]),
    "another column": lambda table: table.append_column("again", table["text"]),
    "of the arrays": lambda table: pa.table({"a": table["number"], "b": table["text"]}),
}


def size_of(value: Any) -> tuple[str, int]:
    return type(value).__name__, value.size if isinstance(value, pa.Buffer) else len(value)


def moved(pool: mh.Pool, gate: Gate, *values: Any) -> int:
    """How many bytes more the store has, with the workers held up, after ten tasks with each."""
    blocked = [pool.submit(pass_through, gate.path) for _ in range(2)]
    gate.wait_arrivals(2)
    before = live(pool)
    futures = [pool.submit(size_of, value) for value in values for _ in range(10)]
    grown = live(pool) - before
    gate.open()
    expected = [size_of(value) for value in values for _ in range(10)]
    assert [future.result() for future in futures] == expected
    assert [future.result() for future in blocked] == [None, None]
    return grown


@pytest.mark.parametrize("name", PASSED)
def test_what_is_put_is_passed_by_reference(pool: mh.Pool, gate: Gate, name: str) -> None:
    put = mh.put(mixed())
    assert live(pool) >= SIZE
    value = PASSED[name](put)
    assert moved(pool, gate, value, [value], {"a": (1, value)}) <= 0
    assert_same(pool.submit(same, value).result(), PASSED[name](mixed()))


def test_what_is_not_put_is_copied(pool: mh.Pool, gate: Gate) -> None:
    """Without which the tests around this one would say nothing."""
    assert moved(pool, gate, mixed()) >= 10 * SIZE


@pytest.mark.parametrize("name", PASSED)
def test_results_are_passed_by_reference(pool: mh.Pool, gate: Gate, name: str) -> None:
    result = pool.submit(mixed).result()
    assert live(pool) >= SIZE
    assert moved(pool, gate, PASSED[name](result)) <= 0
    assert_same(pool.submit(same, PASSED[name](result)).result(), PASSED[name](mixed()))
    assert_same(result, mixed())


def test_results_that_are_parts_of_what_is_put(pool: mh.Pool) -> None:
    def middle(table: Any) -> Any:
        return table[1000:-1000]

    put = mh.put(mixed())
    before = live(pool)
    results = [pool.submit(middle, put).result() for _ in range(10)]
    assert live(pool) < before + SIZE // 2
    for result in results:
        assert_same(result, middle(mixed()))


def test_to_put_a_result_moves_nothing(pool: mh.Pool) -> None:
    result = pool.submit(mixed).result()
    before = live(pool)
    put = mh.put(result)
    # But what was too short for the store when it was a result.
    after = live(pool)
    assert after <= before + 64 * KIB
    again = mh.put(put)
    assert live(pool) <= after
    assert scribble(put) == scribble(again) == 0
    # A result belongs to its owner, who may write to it after that.
    assert scribble(result) > 0
    assert_same(put, mixed())
    assert_same(again, mixed())


def test_tasks_of_a_worker_look_at_one_memory() -> None:
    def keep_it(table: Any) -> list[int]:
        keep(table)
        return addresses(table)

    with mh.Pool(1) as single:
        put = mh.put(mixed())
        found = [single.submit(keep_it, put).result() for _ in range(3)]
        # A slice has the buffers of the whole.
        found += [single.submit(keep_it, put[start:]).result() for start in (0, 5, 5000)]
        assert len(set(found[0])) == len(buffers_of(put)) > 4
        assert found == [found[0]] * 6
        single.submit(drop_kept).result()


# ----------------------------------------------------------------------------- how long it is kept


def churn(pool: mh.Pool) -> None:
    """Takes and gives back more memory than the test has in use."""
    for number in range(8):
        assert pool.submit(np.max, np.full(2 * ROWS, number)).result() == number


@pytest.mark.parametrize("way", ["argument", "put"])
def test_tasks_keep_parts(way: str) -> None:
    def keep_part(table: Any) -> None:
        keep(table["text"].chunk(0)[500:510])
        keep(table["share"].chunk(0).to_numpy()[70:80])

    def kept_parts() -> tuple[Any, Any]:
        return kept[0].to_pylist(), kept[1].tolist()

    table = mixed()
    expected = table["text"][500:510].to_pylist(), table["share"][70:80].to_pylist()
    with mh.Pool(1) as single:
        single.submit(keep_part, mh.put(table) if way == "put" else table).result()
        until_released(single, "in_flight")
        gc.collect()
        churn(single)
        assert single.submit(kept_parts).result() == expected
        assert live(single) > 0
        single.submit(drop_kept).result()
        until_released(single)


def test_parts_of_results_hold_them(pool: mh.Pool) -> None:
    expected = mixed()
    result = pool.submit(mixed).result()
    text = result["text"].chunk(0)[500:510]
    view = result["share"].chunk(0).to_numpy()[70:80]
    del result
    gc.collect()
    churn(pool)
    assert text.to_pylist() == expected["text"][500:510].to_pylist()
    assert view.tolist() == expected["share"][70:80].to_pylist()
    del text, view
    until_released(pool)


def test_they_outlive_their_pool(pool: mh.Pool) -> None:
    put = mh.put(mixed())
    for engine in ("process", "thread", "inline"):
        with mh.Pool(1, engine=engine) as other:
            result = other.submit(same, put[9:]).result()
            own = other.submit(mixed).result()
        assert_same(result, mixed()[9:])
        assert_same(own, mixed())
    check(pool, result, own)


MADE: dict[str, Callable[[Any], Any]] = {
    "table": same,
    "batch": lambda table: table.to_batches()[0],
    "column": lambda table: table["text"],
    "array": lambda table: table["text"].chunk(0),
    "buffer": lambda table: table["share"].chunk(0).buffers()[1],
    "pandas": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
    "NumPy view": lambda table: table["share"].chunk(0).to_numpy(),
}


@pytest.mark.parametrize("name", MADE)
def test_memory_goes_back(pool: mh.Pool, name: str) -> None:
    make = MADE[name]
    until_released(pool)
    for _ in range(5):
        put = mh.put(make(mixed()))
        assert live(pool) >= 8 * ROWS
        part = put[100:200]
        result = pool.submit(same, put).result()
        passed = pool.submit(same, result).result()
        made = pool.submit(lambda: make(mixed())).result()
        del put, result, passed, made
        gc.collect()
        assert len(part) == 100
        del part
        until_released(pool)


def test_memory_goes_back_after_errors(pool: mh.Pool) -> None:
    def fail(table: Any) -> None:
        raise ValueError(f"{table.num_rows} rows are too many")

    table, put = mixed(), mh.put(mixed())
    for value in (table, table[5:], put, put[5:]):
        assert "rows are too many" in str(pool.submit(fail, value).exception())
    del put, value
    until_released(pool)


# ------------------------------------------------------------------------------------------ Polars


def test_polars_frames_and_arrow_tables(pool: mh.Pool) -> None:
    pl: Any = pytest.importorskip("polars")

    def to_arrow(frame: Any) -> Any:
        return frame.to_arrow()

    def from_arrow(table: Any) -> Any:
        import polars

        return polars.from_arrow(table)

    for rows in (0, 10, ROWS):
        table = mixed(rows)
        frame = pl.from_arrow(table)
        for value in (table, mh.put(table)):
            result = pool.submit(from_arrow, value).result()
            assert result.schema == frame.schema
            assert result.equals(frame)
            assert pool.submit(from_arrow, value[3:-3]).result().equals(frame[3:-3])
        for value in (frame, mh.put(frame)):
            assert_same(pool.submit(to_arrow, value).result(), frame.to_arrow())
            assert_same(pool.submit(to_arrow, value[3:-3]).result(), frame[3:-3].to_arrow())
        back = pool.submit(to_arrow, pool.submit(from_arrow, table).result()).result()
        assert pl.from_arrow(back).equals(frame)


def test_polars_looks_at_what_was_sent() -> None:
    """A frame made of an Arrow table holds its memory, in a task and in the program."""
    pl: Any = pytest.importorskip("polars")

    def keep_frame(table: Any) -> None:
        import polars

        keep(polars.from_arrow(table))

    def kept_total() -> tuple[float, str]:
        return kept[0]["share"].sum(), kept[0]["text"][-1]

    expected = pl.from_arrow(mixed())
    with mh.Pool(1) as single:
        frame = pl.from_arrow(single.submit(mixed).result())
        single.submit(keep_frame, mh.put(mixed())).result()
        until_released(single, "in_flight")
        churn(single)
        total = expected["share"].sum(), str(10**9 + ROWS - 1)
        assert single.submit(kept_total).result() == total
        assert frame.equals(expected)
        single.submit(drop_kept).result()
        del frame
        until_released(single)


# ------------------------------------------------------------------------------------------ pandas


def arrow_frame(rows: int) -> pd.DataFrame:
    """Columns of Arrow types, with nulls."""
    names = (
        *("int64", "double", "bool", "string", "large string", "binary", "zoned timestamp"),
        *("date32", "duration", "decimal128", "list", "struct", "dictionary"),
    )
    columns = {}
    for name in names:
        kind = TYPES[name][0]
        values = pa.array(values_of(name, 1000), kind).take(pa.array(np.arange(rows) % 1000))
        columns[name] = pd.Series(pd.arrays.ArrowExtensionArray(values))
    return pd.DataFrame(columns)


def text_frame(rows: int) -> pd.DataFrame:
    """Columns of strings of all kinds, and others among them."""
    text = [None if n % 7 == 3 else f"text of row {n}" for n in range(rows)]
    frame = pd.DataFrame(
        {
            "text": pd.Series(text, dtype="str"),
            "number": np.arange(rows),
            "arrow": pd.Series(text, dtype="string[pyarrow]"),
            "kind": pd.Series([f"kind {n % 5}" for n in range(rows)], dtype="str"),
            "typed": pd.Series(text, dtype=pd.ArrowDtype(pa.string())),
            "category": pd.Categorical([f"kind {n % 5}" if n % 9 else None for n in range(rows)]),
        }
    )
    frame.attrs["source"] = "a test"
    return frame


def by_text(rows: int) -> pd.DataFrame:
    frame = text_frame(rows)
    frame.index = pd.Index([f"label {n}" for n in range(rows)], dtype="str", name="label")
    return frame


def by_two(rows: int) -> pd.DataFrame:
    index = pd.MultiIndex.from_arrays(
        [pd.array([f"{n % 5}" for n in range(rows)], "str"), np.arange(rows)], names=["a", "b"]
    )
    return text_frame(rows).set_index(index)


def wide(rows: int) -> pd.DataFrame:
    columns = pd.Index([f"column {n}" for n in range(20)], dtype="string[pyarrow]", name="column")
    return pd.DataFrame(np.arange(20.0 * rows).reshape(rows, 20), columns=columns)


def mixed_frame(rows: int) -> pd.DataFrame:
    frame: pd.DataFrame = mixed(rows).to_pandas(types_mapper=pd.ArrowDtype)
    return frame


FRAMES: dict[str, Callable[[int], Any]] = {
    "Arrow types": arrow_frame,
    "of a table": mixed_frame,
    "strings": text_frame,
    "labels": by_text,
    "two labels": by_two,
    "names of columns": wide,
    "many chunks": lambda rows: pd.concat([text_frame(rows // 30 + 1)] * 30)[["text", "typed"]],
    "few chunks": lambda rows: pd.concat([arrow_frame(rows // 3 + 1)] * 3),
    "categories": lambda rows: text_frame(rows)[["category"]].astype("category"),
    "Arrow labels": lambda rows: text_frame(rows).set_index("typed"),
    "column of strings": lambda rows: text_frame(rows)["text"],
    "column of an Arrow type": lambda rows: arrow_frame(rows)["struct"],
    "index of strings": lambda rows: by_text(rows).index,
    "array of strings": lambda rows: text_frame(rows)["arrow"].array,
}


def rows_at(value: Any, at: Any) -> Any:
    return value.iloc[at] if isinstance(value, pd.DataFrame | pd.Series) else value[at]


def assert_same_column(result: Any, value: Any) -> None:
    assert type(result) is type(value)
    assert result.dtype == value.dtype
    if isinstance(value, pd.arrays.ArrowExtensionArray):
        # pandas would compare lists and the like as Python objects.
        result, value = (pa.chunked_array(pa.array(one)) for one in (result, value))
        result.validate(full=True)
        assert result.equals(value)
    else:
        pd.testing.assert_extension_array_equal(result, value, check_exact=True)


def assert_same_frame(result: Any, value: Any) -> None:
    assert type(result) is type(value)
    if isinstance(value, pd.Index):
        pd.testing.assert_index_equal(result, value, exact=True)
    elif isinstance(value, pd.Series):
        assert_same_frame(result.index, value.index)
        assert_same_column(result.array, value.array)
        assert result.name == value.name
    elif isinstance(value, pd.DataFrame):
        assert_same_frame(result.columns, value.columns)
        assert result.attrs == value.attrs
        assert_same_frame(result.index, value.index)
        for at in range(len(value.columns)):
            assert_same_column(result.iloc[:, at].array, value.iloc[:, at].array)
    else:
        assert_same_column(result, value)


@pytest.mark.parametrize("rows", [30, 10_000])
@pytest.mark.parametrize("name", FRAMES)
def test_pandas_frames(pool: mh.Pool, name: str, rows: int) -> None:
    frame = FRAMES[name](rows)
    put = mh.put(frame)
    assert_same_frame(put, frame)
    is_taken = np.arange(len(frame)) % 4 == 1
    cuts = [slice(None), slice(5, -5), slice(None, None, 3), slice(0, 0), is_taken]
    for cut in cuts:
        expected = rows_at(frame, cut)
        parts = [expected, rows_at(put, cut)]
        results = [*pool.map(same, parts), *(pool.submit(same, part).result() for part in parts)]
        for result in results:
            assert_same_frame(result, expected)
        # Results are as good as arguments, and what was put has lost nothing.
        assert_same_frame(pool.submit(same, results[0]).result(), expected)
    assert_same_frame(put, FRAMES[name](rows))
    assert_same_frame(frame, FRAMES[name](rows))


@pytest.mark.parametrize("is_put", [False, True], ids=["argument", "put"])
def test_nobody_sees_what_a_task_writes(pool: mh.Pool, is_put: bool) -> None:
    def write(frame: pd.DataFrame) -> pd.DataFrame:
        for name in ("text", "arrow", "typed"):
            frame.loc[frame.index[1], name] = "written"
            frame.loc[frame.index[5:900], name] = None
        frame["kind"] = frame["kind"].str.upper()
        frame["new"] = 5
        frame.index = frame.index[::-1]
        return frame

    frame, expected = by_text(20_000), by_text(20_000)
    value = mh.put(frame) if is_put else frame
    for part in (value, value.iloc[100:10_000]):
        changed = write(part.copy())
        assert changed["text"].iloc[1] == "written"
        for _ in range(3):
            assert_same_frame(pool.submit(write, part).result(), changed)
    assert_same_frame(frame, expected)
    assert_same_frame(value, expected)
    assert_same_frame(pool.submit(same, value).result(), expected)


def test_a_result_is_written_by_its_owner_alone(pool: mh.Pool) -> None:
    result = pool.submit(mixed_frame, ROWS).result()
    put, view = mh.put(result), result.iloc[10:]
    result.loc[20, "text"] = "written"
    result.loc[21, "share"] = -1.0
    assert (result.loc[20, "text"], result.loc[21, "share"]) == ("written", -1.0)
    expected = mixed_frame(ROWS)
    assert_same_frame(put, expected)
    assert_same_frame(view, expected.iloc[10:])
    assert_same_frame(pool.submit(same, result).result(), result)


@pytest.mark.parametrize("key", ["kind", "category", "text", "typed", "label"])
def test_frames_are_grouped_in_tasks(pool: mh.Pool, key: str) -> None:
    def totals(frame: pd.DataFrame) -> pd.DataFrame:
        groups = frame.groupby(key, observed=True, dropna=False)
        return groups.agg(total=("number", "sum"), least=("arrow", "min"), count=("typed", "count"))

    frame = by_text(5000)
    expected = totals(frame)
    assert expected["total"].sum() == sum(range(5000))
    put = mh.put(frame)
    for result in pool.map(totals, [frame, put, put]):
        assert_same_frame(result, expected)
    part = put.iloc[1000:3000]
    assert_same_frame(pool.submit(totals, part).result(), totals(frame.iloc[1000:3000]))
    # Groups that are tasks' arguments.
    numbers = pool.map(
        lambda group: int(group["number"].sum()), [g for _, g in put.groupby("kind")]
    )
    assert sum(numbers) == sum(range(5000))
    assert_same_frame(put, frame)


def test_frames_are_joined_in_tasks(pool: mh.Pool) -> None:
    def join(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
        return first.join(second, suffixes=("", " again")).reset_index().sort_values("text")

    first, second = by_text(5000), by_text(5000).iloc[::-2]
    expected = join(first, second)
    for one, other in ((first, second), (mh.put(first), mh.put(second)), (first, mh.put(second))):
        assert_same_frame(pool.submit(join, one, other).result(), expected)


def test_between_pandas_and_arrow_in_tasks(pool: mh.Pool) -> None:
    def to_pandas(table: Any) -> Any:
        return table.to_pandas(types_mapper=pd.ArrowDtype)

    def to_arrow(frame: pd.DataFrame) -> Any:
        return pa.Table.from_pandas(frame)

    table = mixed()
    frame = to_pandas(table)
    for value in (table, mh.put(table), pool.submit(same, table).result()):
        assert_same_frame(pool.submit(to_pandas, value).result(), frame)
        assert_same_frame(pool.submit(to_pandas, value[5:-5]).result(), to_pandas(table[5:-5]))
    for value in (frame, mh.put(frame), pool.submit(same, frame).result()):
        assert_same(pool.submit(to_arrow, value).result(), to_arrow(frame))
        part = value.iloc[7:-7]
        assert_same(pool.submit(to_arrow, part).result(), to_arrow(frame.iloc[7:-7]))


def test_arrow_columns_outlive_the_frame(pool: mh.Pool) -> None:
    result = pool.submit(mixed_frame, ROWS).result()
    put = mh.put(mixed_frame(ROWS))
    columns = [frame["text"].iloc[40:50] for frame in (result, put)]
    del result, put
    gc.collect()
    churn(pool)
    for column in columns:
        assert_same_frame(column, mixed_frame(ROWS)["text"].iloc[40:50])
