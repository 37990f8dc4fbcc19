# ruff: noqa: PT017 - these programs run without pytest.
"""The snippets of article 002, a guide to multiprocessing, as ports.

Each is a program of its own. It runs the original and the port, and compares what they give.
"""

from __future__ import annotations

import html.parser
import multiprocessing
import os
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import manyhands as mh
from local_http import local_server
from programs import program_test


@program_test
def test_a_process_and_its_end() -> None:
    """Under "Creating and Managing Processes": a process that prints, and is joined."""

    def worker():
        print("Worker process executing", flush=True)

    own = os.dup(1)
    for name in ("original", "port"):
        with open(name, "w") as file:
            os.dup2(file.fileno(), 1)
        if name == "original":
            process = multiprocessing.Process(target=worker)
            process.start()
            process.join()
        else:
            with mh.Pool(1) as pool:
                pool.submit(worker).result()
        print("Main process completed", flush=True)
        os.dup2(own, 1)
    text = Path("port").read_text()
    assert text == Path("original").read_text()
    assert text.splitlines() == ["Worker process executing", "Main process completed"]


@program_test
def test_a_process_pool() -> None:
    """Under "Parallel Execution with Process Pools": `Pool().map(worker, tasks)`."""

    def worker(task):
        return task * 2

    tasks = [1, 2, 3, 4, 5]
    with multiprocessing.Pool() as pool:
        original = pool.map(worker, tasks)
    with mh.Pool() as pool:
        results = pool.map(worker, tasks).list()
    assert results == original == [2, 4, 6, 8, 10]
    # Nor is a pool needed, or a list.
    assert list(mh.map(worker, tasks)) == original


@program_test
def test_other_methods_of_a_pool() -> None:
    """Under "experiment with different pool methods like apply(), imap(), and imap_unordered()"."""

    def worker(task):
        return task * 2

    with multiprocessing.Pool(2) as pool:
        applied = pool.apply(worker, (21,))
        lazily = list(pool.imap(worker, iter(range(100))))
        anyhow = sorted(pool.imap_unordered(worker, range(100), chunksize=10))
    with mh.Pool(2) as pool:
        assert pool.submit(worker, 21).result() == applied
        assert list(pool.map(worker, iter(range(100)))) == lazily
        assert sorted(pool.map(worker, range(100), ordered=False)) == anyhow


@program_test
def test_apply_async_and_an_exception() -> None:
    """Under "apply_async() and ExceptionPool": one of five tasks fails, and `get()` raises."""

    def worker(task):
        if task == 0:
            raise ValueError("Invalid task value")
        return task * 2

    def outcomes(results):
        found = []
        for get in results:
            try:
                found.append(get())
            except ValueError as error:
                found.append(repr(error))
        return found

    tasks = [1, 2, 0, 4, 5]
    with multiprocessing.Pool() as pool:
        results = [pool.apply_async(worker, (task,)) for task in tasks]
        original = outcomes([result.get for result in results])
    with mh.Pool() as pool:
        futures = [pool.submit(worker, task) for task in tasks]
        assert outcomes([future.result for future in futures]) == original
        assert original == [2, 4, "ValueError('Invalid task value')", 8, 10]
        try:
            print([future.result() for future in futures])
        except ValueError as error:
            assert "in worker" in str(error.__cause__)
        else:
            raise AssertionError("the loop of the article raises, too")


@program_test
def test_what_the_article_says_of_exceptions() -> None:
    """Under "the results for the non-failing tasks": to get them takes `on_error`."""

    def worker(task):
        if task == 0:
            raise ValueError("Invalid task value")
        return task * 2

    def first_error(pool):
        # `map` of both raises, and gives nothing.
        try:
            return list(pool.map(worker, tasks))
        except ValueError as error:
            return repr(error)

    tasks = [1, 2, 0, 4, 5]
    with multiprocessing.Pool(2) as pool:
        original = first_error(pool)
    with mh.Pool() as pool:
        assert first_error(pool) == original == "ValueError('Invalid task value')"
        results = pool.map(worker, tasks, on_error="skip")
        assert list(results) == [2, 4, 8, 10]
        [failure] = results.failures
        assert (failure.index, failure.input) == (2, 0)
        assert repr(failure.exception) == original
        output = list(pool.map(worker, tasks, on_error="return"))
        assert [r.index if isinstance(r, mh.Failure) else r for r in output] == [2, 4, 2, 8, 10]


@program_test
def test_cpu_bound_tasks() -> None:
    """Under "CPU-Bound Tasks" and "Simulation and Modeling": Monte Carlo with given seeds."""

    def inside(seed, count):
        choose = random.Random(seed)
        return sum(choose.random() ** 2 + choose.random() ** 2 < 1 for _ in range(count))

    seeds = [(seed, 5000) for seed in range(40)]
    with multiprocessing.Pool(2) as pool:
        original = pool.starmap(inside, seeds)
    with mh.Pool(2) as pool:
        port = pool.starmap(inside, seeds).list()
    assert port == original
    assert abs(4 * sum(port) / (40 * 5000) - 3.14) < 0.05


@pytest.mark.parametrize("engine", ["process", "thread"])
@program_test
def test_web_scraping(engine: str) -> None:
    """Under "Web Scraping and Data Crawling": pages are fetched and parsed, level by level."""

    def answer(path):
        number = int(path[1:])
        links = "".join(
            f'<a href="/{n}">page {n}</a>' for n in (2 * number, 2 * number + 1) if n < 64
        )
        return "text/html", f"<html><title>page {number}</title><body>{links}</body></html>"

    class Links(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attributes):
            if tag == "a":
                self.found.append(dict(attributes)["href"])

    def scrape(path):
        with urllib.request.urlopen(address + path) as response:
            parser = Links()
            parser.feed(response.read().decode())
        return parser.found

    def crawl(executor):
        seen, level = [], ["/1"]
        while level:
            seen += level
            level = [link for found in executor.map(scrape, level) for link in found]
        return seen

    with local_server(answer) as address:
        with ThreadPoolExecutor(8) as executor:
            original = crawl(executor)
        with mh.Pool(8 if engine == "thread" else 3, engine=engine) as executor:
            assert crawl(executor) == original
    assert original == [f"/{n}" for n in range(1, 64)]


@program_test
def test_image_processing() -> None:
    """Under "Image Processing and Computer Vision": "image resizing"."""
    width, height = 64, 48

    def half(pixels):
        """Each pixel is the mean of four."""
        return bytes(
            (
                pixels[2 * y * width + 2 * x]
                + pixels[2 * y * width + 2 * x + 1]
                + pixels[(2 * y + 1) * width + 2 * x]
                + pixels[(2 * y + 1) * width + 2 * x + 1]
            )
            // 4
            for y in range(height // 2)
            for x in range(width // 2)
        )

    choose = random.Random(5)
    images = [choose.randbytes(width * height) for _ in range(30)]
    with multiprocessing.Pool(2) as pool:
        original = pool.map(half, images)
    with mh.Pool(2) as pool:
        assert pool.map(half, images).list() == original
        # As they are ready, with what they were made of.
        pairs = dict(pool.map(half, images, ordered=False).with_input())
    assert [pairs[image] for image in images] == original
    assert len(original[0]) == width * height // 4
