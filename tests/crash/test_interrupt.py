"""One Ctrl-C ends a program: all of it, with one traceback (P9, cpython#125886)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
import time
import traceback
from pathlib import Path

import pytest

import manyhands as mh
from deaf import submit_both
from gate import closed_gate, pass_through
from programs import Program, on_terminal, program, program_test, run

# Everything that is typed here is typed at a terminal, and so goes to the whole foreground group.
_CTRL_C = b"\x03"


@program
def in_result() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(10)]
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)
    futures[0].result()


@program
def in_result_in_a_with_block() -> None:
    with mh.Pool(2) as pool:
        futures = [pool.submit(time.sleep, 60) for _ in range(10)]
        while sum(future.running() for future in futures) < 2:
            pass
        print("READY", flush=True)
        futures[0].result()


@program
def in_the_end_of_a_with_block() -> None:
    with mh.Pool(2) as pool:
        futures = [pool.submit(time.sleep, 60) for _ in range(10)]
        while sum(future.running() for future in futures) < 2:
            pass
        print("READY", flush=True)


@program
def in_result_on_the_default_pool() -> None:
    future = mh.submit(time.sleep, 60)
    while not future.running():
        pass
    print("READY", flush=True)
    future.result()


@program
def in_result_of_a_task_that_waits_for_its_worker() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(10)]
    print("READY", flush=True)
    futures[0].result()


@program
def in_map() -> None:
    # Here and below: what is imported at first use is imported before the key. An import that is
    # interrupted tells what it had caught, and may even swallow the interrupt.
    with mh.Pool(2) as pool:
        assert list(pool.map(abs, [-1])) == [1]
        print("READY", flush=True)
        for _ in pool.map(time.sleep, [0.05] * 2000):
            pass


@program
def in_map_on_the_default_pool() -> None:
    assert list(mh.map(abs, [-1])) == [1]
    print("READY", flush=True)
    for _ in mh.map(time.sleep, [60] * 20):
        pass


@program
def in_a_map_of_short_items() -> None:
    with mh.Pool(2) as pool:
        list(pool.map(abs, range(10_000)))
        print("READY", flush=True)
        for _ in pool.map(abs, itertools.count()):
            pass


@program
def in_the_input_of_a_map() -> None:
    def items():
        for n in itertools.count():
            sum(range(200))
            yield n

    with mh.Pool(2) as pool:
        pool.map(abs, [-1], on_error="skip", ordered=False).run()
        print("READY", flush=True)
        pool.map(abs, items(), on_error="skip", ordered=False).run()


@program
def in_a_map_of_items_that_take_long_to_pickle() -> None:
    class Slow:
        def __reduce__(self):
            return Slow, () if sum(range(2000)) else (1,)

    def same(item):
        return item

    with mh.Pool(2) as pool:
        pool.map(same, [Slow()], on_error="return").run()
        print("READY", flush=True)
        pool.map(same, (Slow() for _ in itertools.count()), on_error="return").run()


@program
def in_a_block_that_finishes_an_endless_map() -> None:
    with mh.Pool(2) as pool:
        results = pool.map(time.sleep, itertools.repeat(0.01))
        print(repr(results), "READY", flush=True)


@program
def in_computing_tasks() -> None:
    def spin(n):
        while True:
            n += 1

    with mh.Pool(2) as pool:
        assert list(pool.map(abs, [-1])) == [1]
        print("READY", flush=True)
        list(pool.map(spin, range(10)))


@program
def in_tasks_that_do_not_hear() -> None:
    pool = mh.Pool(2)
    futures = submit_both(pool, 2)
    print("READY", flush=True)
    futures[0].result()


@program
def in_a_block_with_tasks_that_do_not_hear() -> None:
    with mh.Pool(2) as pool:
        futures = submit_both(pool, 2)
        print("READY", flush=True)
        futures[0].result()


@program
def in_short_tasks() -> None:
    with mh.Pool(2) as pool:
        assert pool.submit(abs, -1).result() == 1
        print("READY", flush=True)
        while True:
            for future in [pool.submit(abs, -n) for n in range(1000)]:
                future.result()


@program
def in_shutdown() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(4)]
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)
    pool.shutdown()


@program
def in_the_exit_of_the_program() -> None:
    futures = [mh.submit(time.sleep, 60) for _ in range(4)]
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)


@program
def in_a_starting_pool() -> None:
    # So does a variable that is looked up and not there.
    os.environ.update(MANYHANDS_ENGINE="", MANYHANDS_SHOW_ARGS="1", MANYHANDS_STORE="")
    for turn in itertools.count():
        with mh.Pool(2) as pool:
            pool.submit(abs, -1).result()
        if turn == 0:
            print("READY", flush=True)


@program
def while_another_thread_waits() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(4)]
    thread = threading.Thread(target=futures[0].exception)
    thread.start()
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)
    time.sleep(60)


@program
def while_another_thread_waits_for_the_default_pool() -> None:
    futures = [mh.submit(time.sleep, 60) for _ in range(4)]
    thread = threading.Thread(target=futures[0].exception)
    thread.start()
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)
    futures[1].result()


@program
def while_a_daemon_thread_waits() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(4)]
    threading.Thread(target=futures[0].result, daemon=True).start()
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)
    time.sleep(60)


@program
def with_callbacks() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(4)]
    for future in futures:
        future.add_done_callback(lambda future: None)
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)
    futures[0].result()


_PROGRAMS = [
    in_result,
    in_result_in_a_with_block,
    in_the_end_of_a_with_block,
    in_result_on_the_default_pool,
    in_result_of_a_task_that_waits_for_its_worker,
    in_map,
    in_map_on_the_default_pool,
    in_a_map_of_short_items,
    in_the_input_of_a_map,
    in_a_map_of_items_that_take_long_to_pickle,
    in_a_block_that_finishes_an_endless_map,
    in_computing_tasks,
    in_tasks_that_do_not_hear,
    in_a_block_with_tasks_that_do_not_hear,
    in_short_tasks,
    in_shutdown,
    in_a_starting_pool,
    while_another_thread_waits,
    while_another_thread_waits_for_the_default_pool,
    while_a_daemon_thread_waits,
    with_callbacks,
]


@pytest.mark.parametrize("chosen", _PROGRAMS, ids=lambda chosen: chosen.name)
def test_one_interrupt_ends_it(chosen: Program) -> None:
    typed = on_terminal(chosen.source(), _CTRL_C)
    print(f"it had ended {typed.seconds:.2f} s after the key")
    assert typed.shown.count("Traceback") == 1, typed.shown
    assert typed.shown.count("KeyboardInterrupt") == 1, typed.shown
    # What a shell shows as 130.
    assert typed.code == -signal.SIGINT, typed
    assert not typed.survivors


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
@program_test
def test_a_map_in_which_no_python_runs_is_interrupted_at_once(engine: str) -> None:
    """A signal that comes between two waits is not left for a third: C code never looks itself."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    latest = 0.0
    with mh.Pool(2, engine=engine) as pool:
        pool.map(abs, [1]).run()  # imports what only maps need
        for _ in range(30):
            results = pool.map(abs, itertools.count())
            begin = time.monotonic()
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                results.run()
            except KeyboardInterrupt as error:
                latest = max(latest, time.monotonic() - begin - 0.02)
                frames = traceback.extract_tb(error.__traceback__)
                assert [frame.name for frame in frames] == ["<module>"], frames
            results.close()  # it may have come before the map was run
    print(f"{latest:.3f} s from the signal to the exception, at most")
    assert latest < 5


@pytest.mark.parametrize("engine", ["process", "thread"])
@program_test
def test_a_map_that_nobody_has_got_does_not_run(engine: str) -> None:
    """A Ctrl-C that comes while a map is made: to take its endless input would never end."""

    def interrupted(*args):
        raise KeyboardInterrupt

    with mh.Pool(2, engine=engine) as pool:
        pool.map(abs, [1]).run()
        pool._maps = type("Interrupted", (type(pool._maps),), {"add": interrupted})(pool._maps)
        with contextlib.suppress(KeyboardInterrupt):
            pool.map(abs, itertools.count())
    print("fine")


@pytest.mark.parametrize("ordered", [True, False])
@program_test
def test_other_threads_run_while_a_map_waits_for_its_turn(ordered: bool) -> None:
    """Nothing of the map is on its way; others keep the worker busy until a thread ends that."""
    with mh.Pool(1) as pool:
        results = pool.map(abs, itertools.count(), ordered=ordered, buffersize=1)
        assert next(results) == 0
        endless = pool.submit(time.sleep, 1000)
        others = [pool.submit(abs, -1) for _ in range(100)]
        timer = threading.Timer(0.2, endless.cancel)
        timer.start()
        assert next(results) == 1
        assert all(other.result() == 1 for other in others)
        timer.join()


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
@program_test
def test_other_threads_run_beside_a_map_in_which_no_python_runs(engine: str) -> None:
    def count():
        while not over:
            time.sleep(0.001)
            turns.append(time.monotonic())

    over, turns = [], []
    thread = threading.Thread(target=count)
    thread.start()
    with mh.Pool(2, engine=engine) as pool:
        pool.map(abs, range(10_000_000)).run()
    over.append(True)
    thread.join()
    longest = max(after - before for before, after in itertools.pairwise(turns))
    print(f"{len(turns)} turns, {longest:.3f} s from one to the next at most")
    assert longest < 5


@program
def in_the_exit_of_the_program_that_waits_for_a_thread() -> None:
    def linger():
        time.sleep(0.5)

    futures = [mh.submit(time.sleep, 60) for _ in range(4)]
    while sum(future.running() for future in futures) < 2:
        pass
    threading.Thread(target=linger).start()
    print("READY", flush=True)


@pytest.mark.parametrize("delay", [0.0, 0.05])
@pytest.mark.parametrize(
    "chosen",
    [in_the_exit_of_the_program, in_the_exit_of_the_program_that_waits_for_a_thread],
    ids=lambda chosen: chosen.name,
)
def test_interrupt_while_the_program_ends(chosen: Program, delay: float) -> None:
    """The main program is over and waits for what was submitted."""
    typed = on_terminal(chosen.source(), _CTRL_C, delay=delay)
    print(f"it had ended {typed.seconds:.2f} s after the key")
    assert typed.shown.count("Traceback") <= 1, typed.shown
    assert not typed.survivors


@pytest.mark.parametrize("at", ["at once", "later"])
def test_an_interrupt_while_the_program_begins_to_end(at: str) -> None:
    """Python gives up the end of the threads then, says so, and goes on to the exit handlers."""
    ended = run(
        "-c",
        f"""
import signal, sys, threading, time
import manyhands as mh

def interrupt(*_):
    sys.setprofile(None)
    signal.raise_signal(signal.SIGINT)

def interrupt_shutdown(frame, event, _):
    if frame.f_code is threading._shutdown.__code__:
        interrupt()

futures = [mh.submit(time.sleep, 600) for _ in range(4)]
while sum(future.running() for future in futures) < 2:
    time.sleep(0.001)
if {at!r} == "at once":
    sys.setprofile(interrupt_shutdown)
else:
    threading._register_atexit(interrupt)
""",
    )
    assert ended.err.count("Traceback") == 1, ended.err
    assert "KeyboardInterrupt" in ended.err


@program
def with_asyncio() -> None:
    async def main():
        with mh.Pool(2) as pool:
            print("READY", flush=True)
            await asyncio.gather(*[pool.submit(time.sleep, 60) for _ in range(4)])

    asyncio.run(main())


@program
def with_asyncio_and_a_map() -> None:
    async def main():
        with mh.Pool(2) as pool:
            print("READY", flush=True)
            await pool.map(time.sleep, [0.01] * 100_000)

    asyncio.run(main())


@pytest.mark.parametrize(
    "chosen", [with_asyncio, with_asyncio_and_a_map], ids=lambda chosen: chosen.name
)
def test_interrupt_in_an_event_loop(chosen: Program) -> None:
    typed = on_terminal(chosen.source(), _CTRL_C)
    print(f"it had ended {typed.seconds:.2f} s after the key")
    assert typed.shown.rstrip().endswith("KeyboardInterrupt"), typed.shown
    assert typed.code == -signal.SIGINT, typed
    assert not typed.survivors


@program
def that_catches_it() -> None:
    def wait():
        while not os.path.exists("go on"):
            time.sleep(0.001)

    with mh.Pool(2) as pool:
        futures = [pool.submit(wait) for _ in range(10)]
        while sum(future.running() for future in futures) < 2:
            pass
        try:
            print("READY", flush=True)
            while True:
                time.sleep(60)
        except KeyboardInterrupt:
            print("caught", flush=True)
        Path("go on").touch()
        # The workers heard nothing of it.
        for future in futures:
            assert future.result(20) is None
        assert pool.submit(abs, -5).result(20) == 5
        assert pool.stats().deaths == 0
    print("fine")


@program
def that_catches_it_and_ends() -> None:
    future = mh.submit(time.sleep, 600)
    while not future.running():
        pass
    print("READY", flush=True)
    try:
        future.result()
    except KeyboardInterrupt:
        print("caught", flush=True)


def test_a_program_may_catch_it_and_end() -> None:
    typed = on_terminal(that_catches_it_and_ends.source(), _CTRL_C, waiting=True)
    assert (typed.code, "caught" in typed.shown) == (0, True), typed.shown
    assert not typed.survivors


@program
def that_catches_it_and_submits() -> None:
    future = mh.submit(time.sleep, 600)
    while not future.running():
        pass
    print("READY", flush=True)
    try:
        future.result()
    except KeyboardInterrupt:
        print("caught", flush=True)
    future.cancel()
    mh.submit(print, "not lost")


def test_what_is_submitted_after_it_runs_at_the_end() -> None:
    typed = on_terminal(that_catches_it_and_submits.source(), _CTRL_C, waiting=True)
    assert (typed.code, "not lost" in typed.shown) == (0, True), typed.shown
    assert not typed.survivors


def test_a_program_may_catch_it_and_go_on() -> None:
    typed = on_terminal(that_catches_it.source(), _CTRL_C)
    assert typed.code == 0, typed.shown
    assert "fine" in typed.shown
    assert not typed.survivors


@program_test
def test_a_wait_that_is_interrupted_by_a_handler_goes_on() -> None:
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    with mh.Pool(2) as pool:
        assert pool.submit(time.sleep, 0.5).result(20) is None
        assert list(pool.map(time.sleep, [0.01] * 50)) == [None] * 50
        count = len(seen)
        assert count > 5, "the handler has to run while the main thread waits"
        pool.submit(time.sleep, 0.3)
    assert len(seen) > count
    signal.setitimer(signal.ITIMER_REAL, 0)


@program_test
def test_a_handler_that_raises_ends_the_wait_and_not_the_task() -> None:
    class Enough(Exception):
        pass

    def stop(number, frame):
        raise Enough

    signal.signal(signal.SIGALRM, stop)
    with mh.Pool(1) as pool, closed_gate(Path.cwd()) as gate:
        assert pool.submit(abs, -1).result(20) == 1
        future = pool.submit(pass_through, gate.path)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            future.result()
        except Enough:
            pass
        else:
            raise AssertionError("the handler did not run")
        gate.open()
        assert future.result(20) is None
        assert pool.stats().deaths == 0
