"""How many threads libraries have inside of workers, and how nested pools share the processors."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manyhands as mh
import procfs
from gate import Gate, closed_gate, pass_through, report_arrival
from observing import pids_of, until
from programs import output_of, run_file

CORES = mh.cpu_count()
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
# How long a worker idles until it gives memory back, in seconds, and how long that is waited for.
REST = 5.0
PATIENCE = 90.0


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MANYHANDS_WORKERS", raising=False)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def blas_threads() -> int:
    """How many threads the OpenBLAS of NumPy says that it has."""
    np.ones(1)  # it is loaded
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "openblas" in line}
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        for prefix in ("scipy_", ""):
            for suffix in ("64_", ""):
                count = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
                if count is not None:
                    return int(count())
    pytest.skip("this NumPy has no OpenBLAS")


def openmp_threads(library: str) -> int:
    """How many threads this OpenMP says that it would start here."""
    return int(ctypes.CDLL(library).omp_get_max_threads())


def polars_threads() -> int:
    """How many threads Polars has; it starts them with the question."""
    import polars

    return int(polars.thread_pool_size())


def arrow_threads() -> int:
    """How many threads Arrow computes with."""
    import pyarrow

    return int(pyarrow.cpu_count())


def look(_: object = None) -> tuple[int, int, list[str | None]]:
    return mh.cpu_count(), blas_threads(), [os.environ.get(name) for name in VARIABLES]


def expected(share: int) -> tuple[int, int, list[str | None]]:
    return min(share, CORES), share, [str(share)] * 3


@pytest.mark.parametrize("workers", [1, 2, 3, CORES, 2 * CORES])
def test_workers_times_threads_fit_the_processors(workers: int) -> None:
    share = max(1, CORES // workers)
    with mh.Pool(workers) as pool:
        assert pool.submit(look).result(60) == expected(share)
    assert workers * share <= max(CORES, workers)


def test_what_is_asked_for_is_given() -> None:
    with mh.Pool(2, inner_threads=3) as pool:
        assert pool.submit(look).result(60) == expected(3)
    with mh.Pool(1, inner_threads=1) as pool:
        assert pool.submit(look).result(60) == expected(1)


def test_a_library_that_a_task_loads(tmp_path: Path) -> None:
    """Nothing imports it before: the variables are set by then."""
    source = f"""
        import os, sys
        sys.path.insert(0, {os.fspath(Path(__file__).parent)!r})
        import manyhands as mh
        def task():
            loaded = "numpy" in sys.modules
            import importlib
            return loaded, importlib.import_module("test_inner_threads").blas_threads()
        for workers in (1, {2 * CORES}):
            with mh.Pool(workers) as pool:
                print(pool.submit(task).result(60))
        """
    folders = [os.fspath(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = output_of(tmp_path, source, env={"PYTHONPATH": os.pathsep.join(folders)})
    assert found == f"(False, {CORES})\n(False, 1)\n"


@pytest.fixture
def gomp() -> str:
    """The OpenMP of GCC. Not looked for by each worker that imports this: that takes a process."""
    name = ctypes.util.find_library("gomp")
    if name is None:
        pytest.skip("the OpenMP of GCC is not installed here")
    return name


def check_threads(
    threads: Callable[[], int], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that tasks load finds its variable in time, and it is the one that it reads."""
    with mh.Pool(1) as pool:
        assert pool.submit(threads).result(60) == CORES
    with mh.Pool(2 * CORES) as pool:
        assert pool.submit(threads).result(60) == 1
    with mh.Pool(2, inner_threads=CORES + 1) as pool:
        assert pool.submit(threads).result(60) == CORES + 1
    monkeypatch.setenv(variable, str(CORES + 2))
    with mh.Pool(2 * CORES) as pool:
        assert pool.submit(threads).result(60) == CORES + 2
    with mh.Pool(2 * CORES, inner_threads=1) as pool:
        assert pool.submit(threads).result(60) == 1


def test_openmp_says_how_many(gomp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_threads(functools.partial(openmp_threads, gomp), "OMP_NUM_THREADS", monkeypatch)


def test_polars_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("polars") is None:
        pytest.skip("Polars is not installed here")
    check_threads(polars_threads, "POLARS_MAX_THREADS", monkeypatch)


def test_arrow_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        pytest.skip("Arrow is not installed here")
    check_threads(arrow_threads, "OMP_NUM_THREADS", monkeypatch)


@pytest.mark.parametrize("inner", [1, 2])
def test_arrow_starts_no_more(tmp_path: Path, inner: int) -> None:
    """Loaded by a task, or before the worker was born; how many wait for files is the user's."""
    if importlib.util.find_spec("pyarrow") is None:
        pytest.skip("Arrow is not installed here")
    source = f"""
        import os, sys
        import manyhands as mh
        def task():
            loaded = "pyarrow" in sys.modules
            import pyarrow as pa
            import pyarrow.compute
            table = pa.table({{"key": list(range(7)) * 100_000, "value": list(range(700_000))}})
            before = len(os.listdir("/proc/self/task"))
            batches = table.to_batches(max_chunksize=1000)
            found = pa.Table.from_batches(batches).sort_by("key")["key"][-1].as_py()
            for _ in range(10):
                table = pa.Table.from_batches(batches).filter(pa.compute.field("value") >= 7)
            started = len(os.listdir("/proc/self/task")) - before
            rows = found, len(table)
            return loaded, pa.cpu_count(), pa.io_thread_count(), started <= {inner}, *rows
        for preload in [], ["pyarrow.compute"]:
            with mh.Pool(2, preload=preload, inner_threads={inner}) as pool:
                print(*pool.submit(task).result(60))
        """
    found = output_of(tmp_path, source, env={"ARROW_IO_THREADS": "3"})
    rest = f"{inner} 3 True 6 699993\n"
    assert found == f"False {rest}True {rest}"


def test_a_library_that_is_loaded_is_told(gomp: str, tmp_path: Path) -> None:
    """Workers are forked from a process that has it already, with one thread."""
    (tmp_path / "has_gomp.py").write_text(f"import ctypes\nlibrary = ctypes.CDLL({gomp!r})\n")
    source = f"""
        import manyhands as mh
        def task():
            import sys
            loaded = "has_gomp" in sys.modules
            import has_gomp
            return loaded, has_gomp.library.omp_get_max_threads()
        for workers, inner in (1, None), ({2 * CORES}, None), (2, {CORES + 1}):
            with mh.Pool(workers, preload=["has_gomp"], inner_threads=inner) as pool:
                print(*pool.submit(task).result(60))
        """
    path = os.pathsep.join([os.fspath(tmp_path), os.environ.get("PYTHONPATH", "")])
    found = output_of(tmp_path, source, env={"PYTHONPATH": path})
    assert found == f"True {CORES}\nTrue 1\nTrue {CORES + 1}\n"


def test_what_the_user_has_set_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("POLARS_MAX_THREADS", "5")
    with mh.Pool(2 * CORES) as pool:
        # That of OpenBLAS is not set, so that it reads the first, as in any program.
        assert pool.submit(look).result(60) == (1, 3, ["3", None, "5"])
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    with mh.Pool(2 * CORES) as pool:
        assert pool.submit(look).result(60) == (1, 2, ["3", "2", "5"])
    with mh.Pool(1, inner_threads=4) as pool:
        assert pool.submit(look).result(60) == expected(4)


def test_what_the_user_has_set_in_words_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    monkeypatch.setenv("POLARS_MAX_THREADS", "")
    with mh.Pool(2 * CORES) as pool:
        assert pool.submit(look).result(60) == (1, 1, ["many", None, ""])
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    with mh.Pool(2 * CORES) as pool:
        assert pool.submit(look).result(60) == (1, 2, ["2,1", None, ""])


def test_workers_are_forked_whatever_the_user_has_set(tmp_path: Path) -> None:
    """A library that started its threads in the process that workers are forked from would have
    each worker be a program of its own, and the log would say so."""
    source = """
        import logging, os
        logging.basicConfig(level=logging.INFO)
        import numpy as np
        import manyhands as mh
        def task():
            matrix = np.ones((200, 200))
            return float((matrix @ matrix)[0, 0]), len(os.listdir("/proc/self/task"))
        with mh.Pool(2) as pool:
            print(pool.submit(task).result(60))
        """
    ended = run_file(tmp_path, source, env={"OMP_NUM_THREADS": "4"})
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("(200.0, ")


def test_modules_that_are_imported_are_told(tmp_path: Path) -> None:
    for module, setter in ("torch", "set_num_threads"), ("pyarrow", "set_cpu_count"):
        (tmp_path / f"{module}.py").write_text(
            f"threads = 0\ndef {setter}(count):\n    global threads\n    threads = count\n"
        )
    (tmp_path / "numexpr.py").write_text(
        "def set_num_threads(count):\n    raise ValueError('more than NUMEXPR_MAX_THREADS')\n"
    )
    source = """
        import manyhands as mh
        def task():
            import sys
            return [sys.modules[name].threads for name in ("torch", "pyarrow")]
        with mh.Pool(1, preload=["torch", "numexpr", "pyarrow"], inner_threads=7) as pool:
            print(pool.submit(task).result(60))
        with mh.Pool(4000, preload=["torch", "pyarrow"]) as pool:
            print(pool.submit(task).result(60))
        """
    path = os.pathsep.join([os.fspath(tmp_path), os.environ.get("PYTHONPATH", "")])
    # With a share of one nothing is to do.
    assert output_of(tmp_path, source, env={"PYTHONPATH": path}) == "[7, 7]\n[0, 0]\n"


def test_new_workers_after_a_resize_have_the_new_share() -> None:
    with mh.Pool(2 * CORES) as pool:
        assert pool.submit(look).result(60) == expected(1)
        pids = pids_of(pool)  # one that is on its way has the old share
        pool.resize(1)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has left already
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        found = 0
        while found != CORES and time.monotonic() < deadline:
            try:
                found = pool.submit(mh.cpu_count).result(60)
            except mh.WorkerDied:
                pass  # one that was about to be killed had taken it
        assert found == CORES
    with mh.Pool(2, inner_threads=3) as pool:
        pool.resize(1)
        assert pool.submit(look).result(60) == expected(3)


# ------------------------------------------------------------------------------------ nested pools


def below(depth: int, workers: int | None = None) -> list[tuple[int, int, int]]:
    """In this task and in pools below: processors, threads, and how many workers the pool has."""
    if depth == 0:
        return []
    with mh.Pool(workers) as pool:
        here = mh.cpu_count(), blas_threads(), pool.workers
        return [here, *pool.submit(below, depth - 1).result(60)]


def test_pools_in_tasks_divide_the_share_of_the_worker() -> None:
    with mh.Pool() as pool:
        assert pool.submit(below, 2).result(60) == [(1, 1, 1)] * 2
    with mh.Pool(1) as pool:
        whole = (CORES, CORES, CORES)
        assert pool.submit(below, 2).result(60) == [whole, (1, 1, 1)]
    with mh.Pool(1, inner_threads=2) as pool:
        share = min(2, CORES)
        assert pool.submit(below, 2).result(60) == [(share, 2, share), (1, 2 // share, 1)]


def test_numbers_that_are_asked_for_are_not_divided() -> None:
    with mh.Pool() as pool:
        found = pool.submit(below, 2, 3).result(60)
        # A pool of three in a worker; in one of these what is asked for is the default again.
        assert found == [(1, 1, 3), (1, 1, 1)]

        def task() -> tuple[int, int]:
            with mh.Pool(1, inner_threads=3) as inner:
                return inner.submit(blas_threads).result(60), inner.submit(mh.cpu_count).result(60)

        # More than the share if somebody says so; what is there is not more for that.
        assert pool.submit(task).result(60) == (3, min(3, CORES))


def test_the_number_of_the_program_is_not_that_of_each_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MANYHANDS_WORKERS", "3")
    with mh.Pool() as pool:
        assert pool.workers == 3
        assert pool.submit(below, 1).result(60)[0][2] == max(1, CORES // 3)


def test_what_the_user_has_set_goes_on_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    def task() -> tuple[Any, Any]:
        with mh.Pool(1) as inner:
            return look(), inner.submit(look).result(60)

    with mh.Pool(2 * CORES) as pool:
        assert pool.submit(task).result(60) == ((1, 2, ["2", None, "1"]),) * 2


def test_a_thread_pool_in_a_worker_is_made_for_waiting() -> None:
    def task() -> int:
        with mh.Pool(engine="thread") as threads:
            return threads.workers

    with mh.Pool(2 * CORES) as pool:
        assert pool.submit(task).result(60) == 5


# ------------------------------------------------------------------------- refused, configured


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: mh.Pool(1, inner_threads=0), ValueError, "from 1 to 4096, not 0"),
        (lambda: mh.Pool(1, inner_threads=5000), ValueError, "from 1 to 4096, not 5000"),
        (lambda: mh.Pool(1, inner_threads=True), TypeError, "whole number, not bool"),
        (lambda: mh.Pool(1, inner_threads="2"), TypeError, "whole number, not str"),  # type: ignore[arg-type]
        (lambda: mh.Pool(1, inner_threads=2, engine="thread"), ValueError, 'engine="thread" tasks'),
        (lambda: mh.Pool(inner_threads=2, engine="inline"), ValueError, 'engine="inline" tasks'),
        (lambda: mh.Pool(1, inner_max_num_threads=2), TypeError, "write inner_threads=2"),  # type: ignore[call-arg]
        (lambda: mh.configure(inner_threads=0), ValueError, "from 1 to 4096, not 0"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


def test_configured_for_all_pools() -> None:
    mh.configure(inner_threads=3, workers=2)
    try:
        assert mh.submit(blas_threads).result(60) == 3
        with mh.Pool(2) as pool:
            assert pool.submit(blas_threads).result(60) == 3
        with mh.Pool(2, inner_threads=2) as pool:
            assert pool.submit(blas_threads).result(60) == 2
        # Threads have none of their own; that is no reason to refuse them here.
        with mh.Pool(2, engine="thread") as pool:
            assert pool.submit(abs, -1).result(60) == 1
        mh.configure(inner_threads=1)
        assert mh.submit(blas_threads).result(60) == 1
    finally:
        mh.configure(inner_threads=None, workers=None)


# ------------------------------------------------- P26: threads of libraries, times nested pools


class Crowd:
    """The processes that come below this one, with their threads, looked at again and again."""

    def __init__(self) -> None:
        self.others = procfs.descendants(os.getpid())
        self.most_threads: dict[int, int] = {}
        self.running: list[int] = []
        self.ticks: dict[int, int] = {}
        self._begin = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.01):
            self._look()

    def _look(self) -> None:
        running = 0
        for pid in procfs.descendants(os.getpid()) - self.others:
            try:
                threads = procfs.threads(pid)
            except OSError:
                continue  # it ended meanwhile
            self.most_threads[pid] = max(self.most_threads.get(pid, 0), len(threads))
            running += sum(state == "R" for state, _ in threads)
            self.ticks[pid] = sum(ticks for _, ticks in threads)
        self.running.append(running)

    def mean_running(self) -> float:
        return sum(self.running) / len(self.running)

    def report(self) -> str:
        seconds = time.monotonic() - self._begin
        used = sum(self.ticks.values()) / os.sysconf("SC_CLK_TCK") / (seconds * CORES)
        return (
            f"{len(self.most_threads)} processes, {sum(self.most_threads.values())} threads; "
            f"CPU time / (wall x cores) {used:.2f}; running threads {self.mean_running():.1f} in "
            f"the mean, {max(self.running)} at most, on {CORES} cores"
        )


def multiply(size: int, times: int) -> int:
    matrix = np.ones((size, size))
    for _ in range(times):
        matrix = matrix @ matrix / size
    return blas_threads()


@pytest.mark.parametrize("inner", [None, 2])
def test_eight_workers_with_matrices_and_pools(
    inner: int | None, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    """P26 (scikit-learn#34070, scikit-learn#14265, ray#33891): workers x threads x workers of
    theirs run at once, and each waits for the others."""

    def task(_: int) -> tuple[int, int, list[int]]:
        with mh.Pool(inner) as pool:
            own = multiply(300, 2)
            theirs = pool.map(multiply, [400] * 4, [10] * 4).list()
            # Until the last of the eight has come, which may take a while.
            pool.submit(pass_through, gate.path).result(120)
            return pool.workers, own, theirs

    with mh.Pool(8) as pool, Crowd() as crowd:
        results = [pool.submit(task, number) for number in range(8)]
        gate.wait_arrivals(8)
        # All are there now, and all libraries have what threads they want.
        crowd_seen = len(crowd.running)
        while len(crowd.running) < crowd_seen + 2:
            time.sleep(0.001)
        gate.open()
        found = [future.result(120) for future in results]
    with capsys.disabled():
        print(f"\n  {crowd.report()}")
    share = max(1, CORES // 8)
    workers = inner or share
    assert found == [(workers, share, [max(1, share // workers)] * 4)] * 8
    # A worker with a pool of its own has two threads of manyhands': one looks after that, and one
    # handles what tasks log there, as logging is configured here.
    assert set(crowd.most_threads.values()) <= {*range(1, share + 3)}
    # The zygote, if it is new, eight workers, and of each of them a zygote and its workers.
    assert 8 < len(crowd.most_threads) <= 1 + 8 * (1 + 1 + workers)
    # Eight workers are asked for by number, which is never divided, and each pool has one worker at
    # least: 1.2 x CORES is promised of what pools do by default, and the next test's. Here it is
    # that nothing comes on top: of each worker its task and its pool's, with one thread each where
    # libraries left alone would have CORES each, and what starts processes and hands results on.
    assert crowd.mean_running() <= 1.2 * CORES + 8 * (1 + workers)


def multiply_until(gate: str, end: str) -> int:
    """Says that it is there, and then computes until there is a file of this name."""
    report_arrival(gate)
    while not os.path.exists(end):
        multiply(400, 10)
    return blas_threads()


@pytest.mark.skipif(CORES > 16, reason="so many pools at once are too much for a test")
def test_default_pools_in_default_pools_fill_the_processors(
    gate: Gate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers x matrices x pools of theirs with nothing asked for: no more runs than there are
    processors. It is looked at while all of them compute and nobody has anything else to do, and
    only at processes from here; so what else the machine does changes nothing."""
    end = str(tmp_path / "end")

    def task(_: int) -> tuple[int, list[int]]:
        multiply(300, 2)
        with mh.Pool() as pool:
            more_than_fit = [gate.path] * (CORES + 2)
            threads = pool.map(multiply_until, more_than_fit, [end] * len(more_than_fit)).list()
            return pool.workers, threads

    def lately() -> float:
        """How many threads ran in the mean when it was looked the last ten times."""
        return sum(crowd.running[-10:]) / 10

    with mh.Pool() as pool, Crowd() as crowd:
        try:
            results = [pool.submit(task, number) for number in range(CORES)]
            gate.wait_arrivals(CORES)
            enough = len(crowd.running) + 10
            # Who has started the last one, or been told of its start, may still be about to sleep
            # again, for as long as others have the processors. Who computes always runs: what is
            # too much is so at each look, and this waits in vain.
            until(
                lambda: len(crowd.running) >= enough and CORES / 2 < lately() <= 1.2 * CORES,
                crowd.report,
            )
            steady = lately()
        finally:
            Path(end).touch()
        found = [future.result(100) for future in results]
    with capsys.disabled():
        print(f"\n  {crowd.report()}; {steady:.2f} while all compute")
    assert found == [(1, [1] * (CORES + 2))] * CORES


# -------------------------------------------------------------- workers that idle give memory back


def make_and_free(megabytes: int) -> int:
    """Takes so much memory in small pieces, and lets go of all but the last, at the heap's end."""
    global last
    pieces = [bytearray(b"x") * 4000 for _ in range(megabytes * 250)]
    last = pieces[-1]
    return os.getpid()


def switches(pid: int) -> int:
    """How often the process has slept or was made to."""
    with open(f"/proc/{pid}/status") as status:
        return sum(int(line.split()[1]) for line in status if "voluntary" in line)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU library")
def test_an_idle_worker_gives_memory_back_once() -> None:
    """P19 (ray#34613): the memory of idle workers is not released."""
    with mh.Pool(1) as pool:
        for _ in range(2):
            pid = pool.submit(make_and_free, 200).result(60)
            full = procfs.anonymous_bytes(pid)
            assert full > 150e6, "the allocator keeps what was freed"
            deadline = time.monotonic() + PATIENCE
            while procfs.anonymous_bytes(pid) > full - 120e6:
                assert time.monotonic() < deadline, procfs.anonymous_bytes(pid)
                time.sleep(0.05)
        # It goes to sleep again, and then for good.
        before, since = switches(pid), time.monotonic()
        while procfs.stat(pid)[0] != "S" or time.monotonic() < since + REST / 10:
            time.sleep(0.01)
            if switches(pid) != before:
                before, since = switches(pid), time.monotonic()
            assert time.monotonic() < deadline + PATIENCE
        time.sleep(REST + 1)
        # Once, where it was not asleep yet.
        assert switches(pid) - before <= 1
        assert pool.submit(os.getpid).result(60) == pid
