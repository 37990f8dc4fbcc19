"""Context variables: tasks find what their caller had, on every engine.

P55 (sentry#111451, skypilot#10561, temporalio/sdk-python#263, ragflow#16247, cpython#9688): in the
threads and processes of other pools they are lost, or those of somebody else. Here processes are
told which; threads and inline have them all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar, copy_context

import pytest
from capabilities import Capabilities

import manyhands as mh

request: ContextVar[str] = ContextVar("request")
options: ContextVar[dict[str, int]] = ContextVar("options")
level: ContextVar[int] = ContextVar("level", default=7)

NAMES = [f"{__name__}:request", f"{__name__}:options", f"{__name__}:level"]


@pytest.fixture
def carrying(engine: Capabilities) -> Iterator[mh.Pool]:
    with mh.Pool(2, engine=engine.name, context=NAMES) as pool:
        yield pool


def find(_: object = None) -> tuple[str, int]:
    return request.get("unset"), level.get()


def set_both(_: object = None) -> tuple[str, int]:
    before = find()
    request.set("a task's")
    level.set(-1)
    return before


def yield_twice(_: object = None) -> Iterator[tuple[str, int]]:
    yield find()
    request.set("the generator's")
    yield find()


def test_a_task_finds_what_was_set_when_it_was_submitted(carrying: mh.Pool) -> None:
    def submit(name: str) -> mh.Future[tuple[str, int]]:
        request.set(name)
        level.set(len(name))
        return carrying.submit(find)

    names = ["one", "three", "three", "four", "one"] * 10
    futures = [copy_context().run(submit, name) for name in names]
    assert [future.result() for future in futures] == [(name, len(name)) for name in names]


def test_a_map_finds_what_was_set_when_it_was_called(carrying: mh.Pool) -> None:
    def start() -> mh.Results[tuple[str, int]]:
        request.set("the call's")
        results = carrying.map(find, range(500))
        request.set("later")
        return results

    assert set(copy_context().run(start)) == {("the call's", 7)}


def test_unset_stays_unset(carrying: mh.Pool) -> None:
    def submit() -> mh.Future[tuple[str, int]]:
        request.set("set")
        return carrying.submit(find)

    assert carrying.submit(find).result() == ("unset", 7)
    assert copy_context().run(submit).result() == ("set", 7)
    assert carrying.submit(find).result() == ("unset", 7)


def test_what_a_task_sets_no_other_finds(carrying: mh.Pool) -> None:
    def ask() -> None:
        level.set(1)
        assert {carrying.submit(set_both).result() for _ in range(10)} == {("unset", 1)}
        assert set(carrying.map(set_both, range(100))) == {("unset", 1)}
        assert find() == ("unset", 1)

    copy_context().run(ask)


def test_what_changes_inside_a_value_counts(carrying: mh.Pool) -> None:
    def ask() -> None:
        chosen = {"a": 1}
        options.set(chosen)
        assert carrying.submit(lambda: options.get()["a"]).result() == 1
        chosen["a"] = 2
        assert carrying.submit(lambda: options.get()["a"]).result() == 2

    copy_context().run(ask)


def test_generators_run_in_their_context(carrying: mh.Pool) -> None:
    def ask() -> None:
        request.set("the call's")
        found = list(carrying.map(yield_twice, range(20)))
        assert found == [("the call's", 7), ("the generator's", 7)] * 20
        assert find() == ("the call's", 7)

    copy_context().run(ask)


def test_views_and_retries_have_it_too(carrying: mh.Pool) -> None:
    def fail_unless_set(_: object) -> str:
        if request.get("unset") == "unset":
            raise RuntimeError("unset")
        request.set("by the first run")
        raise KeyError(request.get())

    def ask() -> None:
        request.set("ours")
        view = carrying.options(retry=2, task_timeout=60)
        assert view.submit(find).result() == ("ours", 7)
        assert list(view.map(find, [1])) == [("ours", 7)]
        with pytest.raises(KeyError):
            view.submit(fail_unless_set, 1).result()

    copy_context().run(ask)


def test_errors_name_the_function(carrying: mh.Pool) -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    def ask() -> None:
        request.set("ours")
        for future in (carrying.submit(fail, 3), carrying.submit(fail, number=3)):
            error = future.exception()
            assert isinstance(error, ValueError)
            assert "test_errors_name_the_function.fail(" in error.__notes__[-1]
        [failure] = carrying.map(fail, [3], on_error="return")
        assert "test_errors_name_the_function.fail(3)" in failure.exception.__notes__[-1]

    copy_context().run(ask)


def test_tasks_of_tasks_have_the_tasks_values(engine: Capabilities, carrying: mh.Pool) -> None:
    def ask() -> list[tuple[str, int]]:
        level.set(2)
        found = [carrying.submit(find).result(), *carrying.map(find, range(2))]
        if engine.name == "process":
            found += mh.map(find, range(2))
        return found

    def start() -> mh.Future[list[tuple[str, int]]]:
        request.set("ours")
        return carrying.submit(ask)

    assert set(copy_context().run(start).result()) == {("ours", 2)}


def test_many_threads_submit_at_once(carrying: mh.Pool) -> None:
    wrong: list[object] = []

    def submit(number: int) -> None:
        request.set(str(number))
        level.set(number)
        for _ in range(50):
            found = carrying.submit(find).result()
            if found != (str(number), number):
                wrong.append(found)
        wrong.extend(
            found for found in carrying.map(find, range(50)) if found != (str(number), number)
        )

    threads = [
        threading.Thread(target=copy_context().run, args=(submit, number)) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
