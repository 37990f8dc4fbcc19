"""Objects that all tasks share, each made once in each worker."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import manyhands as mh
from programs import program_test


class Counted:
    """An object that knows how often it was pickled here, and made in this process."""

    pickled = 0
    made = 0

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getstate__(self) -> Any:
        Counted.pickled += 1
        return {"data": self.data}

    def __setstate__(self, state: Any) -> None:
        Counted.made += 1
        self.__dict__ |= state


Found = tuple[int, int, int]
Shared = mh.Broadcast[Counted]


def look(shared: Shared, number: int = 0) -> Found:
    """What a task finds: the data, how often this worker has made it, and the worker."""
    return shared.value.data[0] + number, Counted.made, os.getpid()


def made_now(_: object = None) -> tuple[int, int]:
    """How many objects of the kind live in this worker, and the worker."""
    import gc

    gc.collect()
    return sum(type(found) is Counted for found in gc.get_objects()), os.getpid()


@pytest.fixture
def shared() -> Iterator[Shared]:
    Counted.pickled = 0
    yield mh.broadcast(Counted([7] * 100_000))
    assert Counted.pickled == 1


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    with mh.Pool(2) as pool:
        yield pool


def once_in_each(found: list[Found], count: int = 2) -> None:
    assert {data for data, _, _ in found} == {7}
    assert {made for _, made, _ in found} == {1}
    assert 1 <= len({pid for _, _, pid in found}) <= count


def captured_by_a_closure(shared: Shared) -> Callable[[object], Found]:
    return lambda _: look(shared)


def in_a_partial(shared: Shared) -> Callable[[object], Found]:
    def call(shared: Shared, _: object) -> Found:
        return look(shared)

    return functools.partial(call, shared)


class Holder:
    def __init__(self, shared: Shared) -> None:
        self.shared = [{"deep": shared}]

    def look(self, _: object) -> Found:
        return look(self.shared[0]["deep"])


def in_an_object(shared: Shared) -> Callable[[object], Found]:
    return Holder(shared).look


WAYS = [captured_by_a_closure, in_a_partial, in_an_object]


def test_here_it_is_the_object_itself() -> None:
    prices = {"pear": 4}
    shared = mh.broadcast(prices)
    assert shared.value is prices
    assert isinstance(shared, mh.Broadcast)
    assert repr(shared) == "<manyhands.Broadcast of dict>"
    assert copy.deepcopy(shared) is shared
    assert pickle.loads(pickle.dumps(shared)) is shared


def test_an_argument_is_made_once_in_each_worker(pool: mh.Pool, shared: Shared) -> None:
    futures = [pool.submit(look, shared) for _ in range(200)]
    once_in_each([future.result() for future in futures])
    once_in_each([pool.submit(look, shared=shared).result() for _ in range(3)])


def test_an_item_is_made_once_in_each_worker(pool: mh.Pool, shared: Shared) -> None:
    results = pool.map(look, [shared] * 1000, [0] * 1000)
    once_in_each(list(results))
    assert results.summary.sent < 200_000, "tokens alone"
    once_in_each(list(pool.map(lambda item: look(item["b"][0]), [{"b": [shared]}] * 100)))


@pytest.mark.parametrize("way", WAYS)
def test_what_a_function_carries_is_made_once(
    pool: mh.Pool, shared: Shared, way: Callable[[Shared], Callable[[object], Found]]
) -> None:
    function = way(shared)
    found = [future.result() for future in [pool.submit(function, n) for n in range(50)]]
    found += pool.map(function, range(50))
    once_in_each(found)


@program_test
def test_a_global_of_a_script() -> None:
    class Table(dict):
        made = 0

        def __setstate__(self, state):
            Table.made += 1

        def __reduce__(self):
            return Table, (dict(self),), True

    def find(key):
        return table.value[key], Table.made, table.value is again.value

    table = again = mh.broadcast(Table(a=1))
    with mh.Pool(2) as pool:
        assert set(pool.map(find, "a" * 100)) == {(1, 1, True)}
        assert pool.submit(find, "a").result() == (1, 1, True)
        table.unpersist()
        assert {pool.submit(find, "a").result() for _ in range(20)} <= {(1, 1, True), (1, 2, True)}
        table = mh.broadcast(Table(a=2))
        assert pool.submit(find, "a").result()[0] == 2, "bound anew"


def test_it_is_made_at_first_use_alone(pool: mh.Pool, shared: Shared) -> None:
    def pass_by(shared: Shared) -> tuple[int, str]:
        return Counted.made, repr(shared)

    assert pool.submit(pass_by, shared).result() == (
        0,
        "<manyhands.Broadcast, not made in this worker>",
    )


def test_it_is_sent_as_it_was() -> None:
    names = ["a"]
    shared = mh.broadcast(names)
    names.append("b")
    assert shared.value == ["a", "b"]
    with mh.Pool(1) as pool:
        assert pool.submit(lambda: shared.value).result() == ["a"]
    with mh.Pool(1, engine="thread") as pool:
        assert pool.submit(lambda: shared.value).result() is names
    with mh.Pool(engine="inline") as pool:
        assert pool.submit(lambda found: found.value, shared).result() == ["a", "b"]


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_tasks_of_this_process_get_the_object_itself(engine: str) -> None:
    shared = mh.broadcast({"a": 1})
    with mh.Pool(2, engine=engine) as pool:
        assert pool.submit(lambda found: id(found.value), shared).result() == id(shared.value)
        assert set(pool.map(lambda found: id(found.value), [shared] * 9)) == {id(shared.value)}


@pytest.mark.parametrize("way", [None, *WAYS])
def test_unpersist_drops_it_and_use_sends_it_again(
    shared: Shared, way: Callable[[Shared], Callable[[object], Found]] | None
) -> None:
    function = functools.partial(look, shared) if way is None else way(shared)
    with mh.Pool(1) as pool:
        assert pool.submit(function, 0).result()[:2] == (7, 1)
        assert pool.submit(made_now).result()[0] == 1
        for again in (2, 3):
            shared.unpersist()
            assert pool.submit(made_now).result()[0] == 0
            assert {count for count, _ in pool.map(made_now, range(2))} == {0}
            assert pool.submit(function, 0).result()[:2] == (7, again)
        assert shared.value.data[0] == 7


def test_who_keeps_it_in_a_worker_is_told_that_it_was_dropped(shared: Shared) -> None:
    def keep(shared: Shared) -> int:
        os.kept = shared  # type: ignore[attr-defined]
        return shared.value.data[0]

    def use() -> int:
        return os.kept.value.data[0]  # type: ignore[attr-defined, no-any-return]

    with mh.Pool(1) as pool:
        assert pool.submit(keep, shared).result() == 7
        assert pool.submit(use).result() == 7
        shared.unpersist()
        with pytest.raises(RuntimeError, match="has dropped the broadcast object"):
            pool.submit(use).result()
        assert pool.submit(look, shared).result()[0] == 7
        assert pool.submit(use).result() == 7


def test_a_worker_drops_what_the_program_has_dropped() -> None:
    with mh.Pool(1) as pool:
        shared = mh.broadcast(Counted([7] * 100_000))
        assert pool.submit(look, shared).result()[0] == 7
        assert pool.submit(made_now).result()[0] == 1
        del shared
        assert pool.submit(made_now).result()[0] == 0


def test_a_task_that_waits_still_gets_what_was_dropped(pool: mh.Pool) -> None:
    futures = [pool.submit(look, mh.broadcast(Counted([7] * 10_000))) for _ in range(20)]
    assert {future.result()[0] for future in futures} == {7}


def test_several_pools(shared: Shared) -> None:
    with mh.Pool(1) as first, mh.Pool(1) as second:
        for _ in range(3):
            once_in_each([pool.submit(look, shared).result() for pool in (first, second)])
        shared.unpersist()
        assert [pool.submit(made_now).result()[0] for pool in (first, second)] == [0, 0]


def test_the_successor_of_a_worker_that_died_gets_it(shared: Shared) -> None:
    with mh.Pool(1) as pool:
        before = pool.submit(look, shared).result()
        with pytest.raises(mh.WorkerDied):
            pool.submit(os._exit, 1).result()
        after = pool.submit(look, shared).result()
        assert before[:2] == after[:2] == (7, 1)
        assert before[2] != after[2]


def test_a_task_passes_it_on_to_tasks_of_its_own(pool: mh.Pool, shared: Shared) -> None:
    def ask(shared: Shared) -> list[Found]:
        here = look(shared)
        captured = mh.map(lambda _: look(shared), range(20))
        return [here, *mh.map(look, [shared] * 20, [0] * 20), *captured]

    once_in_each(pool.submit(ask, shared).result(timeout=60), count=6)


def test_a_task_makes_one_of_its_own(pool: mh.Pool) -> None:
    def ask() -> set[int]:
        shared = mh.broadcast(Counted([7]))
        return {found[0] for found in mh.map(look, [shared] * 20, [0] * 20)}

    assert pool.submit(ask).result(timeout=60) == {7}


def test_a_result_that_names_it(pool: mh.Pool, shared: Shared) -> None:
    assert pool.submit(lambda found: [found], shared).result()[0] is shared


def test_one_in_another(pool: mh.Pool, shared: Shared) -> None:
    outer = mh.broadcast({"inner": shared})
    assert pool.submit(lambda: look(outer.value["inner"])).result()[0] == 7


def test_threads_of_a_task_make_it_once(pool: mh.Pool, shared: Shared) -> None:
    def task(shared: Shared) -> int:
        threads = [threading.Thread(target=look, args=(shared,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Counted.made

    assert pool.submit(task, shared).result() == 1


def test_what_cannot_be_sent_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyhands._diagnose._SECONDS", 60.0)  # a machine may stand still
    with pytest.raises(mh.NotPicklable, match=r"the object\['lock'\]"):
        mh.broadcast({"lock": threading.Lock()})


def test_an_object_that_cannot_be_made_fails_each_task_that_uses_it(pool: mh.Pool) -> None:
    shared = mh.broadcast(Broken())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: shared.value).result()


class Broken:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)


def test_what_it_is_not(pool: mh.Pool, shared: Shared) -> None:
    with pytest.raises(TypeError, match=r"mh\.broadcast"):
        mh.Broadcast([1])
    with pytest.raises(RuntimeError, match="not in a task"):
        pool.submit(shared.unpersist).result()
    stored = pickle.dumps(mh.broadcast([1]))
    with pytest.raises(RuntimeError, match="does not know the Broadcast"):
        pickle.loads(stored)
