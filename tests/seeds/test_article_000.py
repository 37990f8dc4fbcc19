# ruff: noqa: PT017 - these programs run without pytest.
"""The snippets of article 000, on threads, processes and PySpark for data engineers, as ports.

Each is a program of its own. It runs the original and the port, and compares what they give.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import operator
import os
import threading
import urllib.error
import urllib.request
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import Pool
from pathlib import Path

import pytest

import manyhands as mh
from local_http import local_server
from programs import program_test


@pytest.mark.parametrize("engine", ["thread", "process"])
@program_test
def test_threading(engine: str) -> None:
    """Under "THREADING": a thread for each file, all started, then all joined."""

    def download_file(url):
        print(f"Downloading {url}\n", end="")
        if meet is not None:
            meet()  # as the sleep of the article: nobody is done before all have begun
        print(f"Done {url}\n", end="")

    urls = ["file1", "file2", "file3"]
    meet = threading.Barrier(3, timeout=20).wait
    with contextlib.redirect_stdout(io.StringIO()) as original:
        threads = [threading.Thread(target=download_file, args=(url,)) for url in urls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if engine == "thread":
        with contextlib.redirect_stdout(io.StringIO()) as port:
            mh.map(download_file, urls, engine="thread", workers=3).run()
        text = port.getvalue()
    else:
        # A worker prints to the descriptor; the original's text is compared with it.
        meet = None
        own = os.dup(1)
        with open("printed", "w") as file:
            os.dup2(file.fileno(), 1)
        with mh.Pool(3) as pool:
            pool.map(download_file, urls).run()
        os.dup2(own, 1)
        text = Path("printed").read_text()
    assert sorted(text.splitlines()) == sorted(original.getvalue().splitlines())
    assert len(text.splitlines()) == 6
    if engine == "thread":
        assert [line.split()[0] for line in text.splitlines()][:3] == ["Downloading"] * 3


@program_test
def test_multiprocessing() -> None:
    """Under "MULTIPROCESSING": `Pool(4).map(square, …)`."""

    def square(n):
        return n * n

    with Pool(4) as p:
        original = p.map(square, [1, 2, 3, 4, 5])
    with mh.Pool(4) as p:
        results = p.map(square, [1, 2, 3, 4, 5]).list()
    assert results == original == [1, 4, 9, 16, 25]


@pytest.mark.parametrize("engine", ["thread", "process"])
@program_test
def test_concurrent_futures(engine: str) -> None:
    """Under "CONCURRENT.FUTURES": `executor.map` on three threads, then on processes."""

    def fetch_data(url):
        return f"Fetched from {url}"

    urls = ["u1", "u2", "u3"]
    kind = ThreadPoolExecutor if engine == "thread" else ProcessPoolExecutor
    with kind(max_workers=3) as executor:
        original = list(executor.map(fetch_data, urls))
    with mh.Pool(workers=3, engine=engine) as executor:
        port = []
        for result in executor.map(fetch_data, urls):
            port.append(result)
    assert port == original == ["Fetched from u1", "Fetched from u2", "Fetched from u3"]


@pytest.mark.parametrize("engine", ["thread", "process"])
@program_test
def test_parallel_file_ingestion(engine: str) -> None:
    """Under "Parallel file ingestion": each CSV file becomes a table, all are joined by name."""

    class Table:
        """What the snippet needs of a DataFrame."""

        def __init__(self, names, rows):
            self.names, self.rows = names, rows

        def union_by_name(self, other):
            assert set(self.names) == set(other.names)
            places = [other.names.index(name) for name in self.names]
            return Table(
                self.names, self.rows + [[row[place] for place in places] for row in other.rows]
            )

    def load(file_path):
        with open(file_path, newline="") as file:
            names, *rows = csv.reader(file)
        return Table(names, rows)

    paths = []
    for number, names in enumerate([["id", "city"], ["city", "id"], ["id", "city"]]):
        path = os.path.abspath(f"file{number}.csv")
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for n in range(200):
                row = {"id": str(1000 * number + n), "city": f"city {n}, part {number}"}
                writer.writerow([row[name] for name in names])
        paths.append(path)

    with ThreadPoolExecutor(max_workers=4) as executor:
        original = functools.reduce(Table.union_by_name, executor.map(load, paths))
    with mh.Pool(4, engine=engine) as executor:
        port = functools.reduce(Table.union_by_name, executor.map(load, paths))
    assert (port.names, port.rows) == (original.names, original.rows)
    assert [int(row[0]) for row in port.rows] == [
        1000 * f + n for f in range(3) for n in range(200)
    ]
    # A file that is not there fails as it does in one thread.
    for pool in (ThreadPoolExecutor(4), mh.Pool(4, engine=engine)):
        with pool as executor:
            try:
                list(executor.map(load, [*paths, "missing.csv"]))
            except FileNotFoundError as error:
                assert error.filename == "missing.csv"
            else:
                raise AssertionError("the file was there")


@pytest.mark.parametrize("engine", ["thread", "process"])
@program_test
def test_batch_api_calls(engine: str) -> None:
    """Under "Batch API calls": metadata for each id by HTTP, ten at a time."""

    def answer(path):
        number = int(path.rpartition("/")[2])
        if number == 404:
            return None
        return "application/json", json.dumps({"id": number, "name": f"record {number}"})

    def fetch_metadata(record_id):
        with urllib.request.urlopen(f"{address}/metadata/{record_id}") as response:
            return json.load(response)

    def check(error):
        assert "HTTP Error 404: Not Found" in str(error)
        if engine == "thread":
            assert (type(error), error.code) == (urllib.error.HTTPError, 404)
        else:  # it holds the open response, and so cannot travel
            assert (type(error), error.type_name) == (mh.RemoteError, "urllib.error.HTTPError")

    id_list = list(range(100))
    with local_server(answer) as address:
        with ThreadPoolExecutor(max_workers=10) as executor:
            original = list(executor.map(fetch_metadata, id_list))
        with mh.Pool(10, engine=engine) as executor:
            port = list(executor.map(fetch_metadata, id_list))
            assert port == original
            assert port[7] == {"id": 7, "name": "record 7"}
            # What the service refuses need not end the batch.
            results = executor.map(fetch_metadata, [403, 404, 405], on_error="skip")
            assert [record["id"] for record in results] == [403, 405]
            [failure] = results.failures
            assert failure.input == 404
            check(failure.exception)


@program_test
def test_an_exception_in_a_batch_of_api_calls() -> None:
    """The same snippet where all calls fail: the first one's exception, as by the original."""

    def fetch_metadata(record_id):
        with urllib.request.urlopen(f"{address}/{record_id}") as response:
            return json.load(response)

    with local_server(lambda path: None) as address:
        for pool in (ThreadPoolExecutor(10), mh.Pool(10, engine="thread")):
            with pool as executor:
                try:
                    list(executor.map(fetch_metadata, range(20)))
                except urllib.error.HTTPError as error:
                    assert (error.code, error.reason) == (404, "Not Found")
                    assert error.url.endswith("/0")
                else:
                    raise AssertionError("it was there")


@pytest.mark.parametrize("engine", ["thread", "process"])
@program_test
def test_enrich_partitions(engine: str) -> None:
    """Under "Use .foreachPartition() for API calls": a generator gets rows, and yields rows."""

    def call_api(row):
        return {**row, "length": len(row["name"])}

    def enrich_partition(iterator):
        for row in iterator:
            if row["id"] % 10:  # a partition gives as many rows as it likes
                yield call_api(row)

    rows = [{"id": n, "name": "x" * (n % 17)} for n in range(1000)]
    partitions = [rows[start : start + 64] for start in range(0, 1000, 64)]
    original = [row for partition in partitions for row in enrich_partition(partition)]
    with mh.Pool(3, engine=engine) as pool:
        assert list(pool.map(enrich_partition, rows, batch=64)) == original
        by_itself = pool.map(enrich_partition, rows, batch=64, ordered=False)
        assert sorted(by_itself, key=operator.itemgetter("id")) == original


@pytest.mark.parametrize("engine", ["thread", "process"])
@program_test
def test_a_lookup_that_all_tasks_use(engine: str) -> None:
    """Under "Broadcast variables": a dictionary, which the function captures here."""
    lookup = {"A": 1, "B": 2}
    keys = [*"ABCAB"] * 2000
    original = [lookup.get(x) for x in keys]
    with mh.Pool(2, engine=engine) as pool:
        assert list(pool.map(lambda x: lookup.get(x), keys)) == original  # noqa: PLW0108
        # Bound anew it is another one.
        lookup = {"C": 3}
        assert set(pool.map(lambda x: lookup.get(x), keys)) == {None, 3}  # noqa: PLW0108
