# ruff: noqa: PT017 - these programs run without pytest.
"""Machines that lack something: an error or another way, never a hang, never SIGBUS (P23, P24)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import manyhands as mh
import procfs
from programs import Program, program, program_test

# ---- Descriptors ---------------------------------------------------------------------------------


@program
def few_descriptors(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        with mh.Pool(3) as pool:
            futures = [pool.submit(len, bytes(size)) for size in (1, 3_000_000) * 20]
            results = []
            for future in futures:
                try:
                    results.append(future.result(15))
                except (RuntimeError, OSError) as error:
                    results.append(str(error))
        print("results", [result for result in results if isinstance(result, str)][:1])
    except (RuntimeError, OSError) as error:
        print("refused", error)


@pytest.mark.parametrize("limit", [5, 8, 12, 16, 20, 25, 30, 40, 60])
def test_few_descriptors(limit: int) -> None:
    ended = few_descriptors.run(limit=limit)
    print(limit, ended.out, ended.err[-300:])
    if "results" not in ended.out and "refused" not in ended.out:
        # Not even the interpreter's own imports may work.
        assert limit <= 8, str(ended)
        assert "Too many open files" in ended.err or "No such file" in ended.err, str(ended)
        assert ended.code > 0, str(ended)
    assert not ended.survivors


@program_test
def test_descriptors_run_out_after_the_pool_has_started() -> None:
    def echo(data):
        return data

    data = bytes(3_000_000)
    with mh.Pool(2) as pool:
        assert pool.submit(echo, data).result(20) == data
        assert list(pool.map(abs, range(100))) == list(range(100))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        used = len(procfs.descriptors())
        outcomes = set()
        for limit in range(used + 3, 3, -1):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            for future in [pool.submit(echo, data) for _ in range(4)]:
                try:
                    assert future.result(15) == data
                    outcomes.add("result")
                except mh.TaskError as error:
                    assert "open files" in str(error) or isinstance(error, mh.WorkerDied), error
                    outcomes.add(type(error).__name__)
            # What is small needs no descriptor.
            assert pool.submit(abs, -1).result(15) == 1
        print(outcomes)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        assert pool.submit(echo, data).result(20) == data
        # A worker that is lost meanwhile is replaced when there is room again.
        resource.setrlimit(resource.RLIMIT_NOFILE, (5, hard))
        dead = pool.submit(os._exit, 1).exception(15)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        assert isinstance(dead, mh.WorkerDied), repr(dead)
        try:
            assert pool.submit(abs, -1).result(15) == 1
        except RuntimeError as error:
            print(f"broken: {error}")


@program_test
def test_many_files_open_in_this_process() -> None:
    """Descriptors beyond 1024 are as good as others."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with contextlib.ExitStack() as stack:
        count = min(hard, 4096) - 500
        files = [stack.enter_context(open(os.devnull)) for _ in range(count)]
        assert files
        with mh.Pool(2) as pool:
            assert list(pool.map(len, [bytes(3_000_000)] * 20)) == [3_000_000] * 20


# ---- Memory --------------------------------------------------------------------------------------


@program_test
def test_a_task_that_is_out_of_memory() -> None:
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    def take(size):
        return len(bytearray(size))

    with mh.Pool(1, initializer=limited) as pool:
        error = pool.submit(take, 4 << 30).exception(20)
        assert isinstance(error, MemoryError), repr(error)
        assert pool.submit(take, 1000).result(20) == 1000
        assert pool.stats().deaths == 0


@program_test
def test_a_result_that_its_worker_has_no_memory_to_send() -> None:
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))

    def make(size):
        return bytes(size)

    with mh.Pool(1, initializer=limited) as pool:
        for size in (100 << 20, 180 << 20, 250 << 20, 330 << 20, 400 << 20):
            try:
                assert len(pool.submit(make, size).result(20)) == size
            except (MemoryError, RuntimeError) as error:
                assert not isinstance(error, mh.NotPicklable), error
                print(size, repr(error)[:200])
        assert pool.submit(len, b"12").result(20) == 2


@program_test
def test_a_result_that_the_parent_has_no_memory_for() -> None:
    def make(size):
        return bytes(size)

    with mh.Pool(2) as pool:
        assert list(pool.map(abs, range(100))) == list(range(100))
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
        error = pool.submit(make, 300 << 20).exception(20)
        assert isinstance(error, MemoryError | RuntimeError), repr(error)
        assert not isinstance(error, mh.NotPicklable), error
        print(repr(error))
        assert pool.submit(abs, -1).result(20) == 1
        try:
            pool.submit(len, bytes(20 << 20)).result(20)
        except (MemoryError, RuntimeError) as problem:
            print(repr(problem))
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        assert len(pool.submit(make, 30 << 20).result(20)) == 30 << 20


@program
def small_address_space(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limit << 20, limit << 20))
    with mh.Pool(2) as pool:
        assert list(pool.map(len, [bytes(100_000)] * 100)) == [100_000] * 100


@pytest.mark.parametrize("limit", [100, 200, 400])
def test_small_address_space(limit: int) -> None:
    ended = small_address_space.run(limit=limit)
    print(ended)
    if ended.code != 0:
        assert ended.code > 0, f"it ended by a signal\n{ended}"
        assert "Error" in ended.err, str(ended)
    assert not ended.survivors


@program
def large_data_in_small_address_space(limit: int) -> None:
    # No such thing as a warning of what has no room in the store.
    logging.getLogger("manyhands").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (limit << 20, limit << 20))

    def make(number):
        return np.full(500_000, float(number))

    with mh.Pool(2) as pool:
        for number in range(20):
            total = number * 500_000
            assert pool.submit(np.sum, make(number)).result(20) == total
            assert pool.submit(np.sum, mh.put(make(number))).result(20) == total
            assert (pool.submit(make, number).result(20) == number).all()
        assert [array[0] for array in pool.map(np.negative, map(make, range(20)))] == [
            -number for number in range(20)
        ]
    print("fine")


@pytest.mark.parametrize("limit", [700, 2000, 20_000])
def test_large_data_in_small_address_space(limit: int) -> None:
    """The limit is there before the pool; numpy needs half a gigabyte of addresses itself."""
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ended = large_data_in_small_address_space.run(limit=limit, environment=environment, seconds=60)
    assert ended.check().out == "fine\n"


# ---- What the system does not offer --------------------------------------------------------------


def _unshare() -> list[str]:
    """A command that runs others where mounts are their own, if this machine permits it."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("user and mount namespaces are not permitted here")
    return command


@program
def large_and_small() -> None:
    def echo(data):
        return data

    def read_maps():
        return Path("/proc/self/maps").read_text()

    large = os.urandom(3_000_000)
    array = np.arange(1_000_000.0)
    with mh.Pool(2) as pool:
        for data in (b"small", large):
            assert all(result == data for result in pool.map(echo, [data] * 20))
        put, shared = mh.put(array), mh.share(array)
        for sent in [array, put, shared] * 5:
            assert (pool.submit(echo, sent).result(20) == array).all()
        # Shared memory is files without a name, and never in /dev/shm.
        for maps in (read_maps(), pool.submit(read_maps).result(20)):
            assert "/dev/shm" not in maps
            assert "memfd:manyhands-store" in maps
        error = pool.submit(os._exit, 1).exception(20)
        assert isinstance(error, mh.WorkerDied)
    assert list(mh.map(len, [large] * 10)) == [len(large)] * 10
    assert mh.submit(abs, -1).result(20) == 1
    print("fine")


@pytest.mark.parametrize(
    "mounting",
    [
        pytest.param("mount -t tmpfs -o size=1m tmpfs /dev/shm", id="dev-shm-of-1-MB"),
        pytest.param("mount -t tmpfs -o size=4k,ro tmpfs /dev/shm", id="dev-shm-read-only"),
        pytest.param(
            # Nothing but the plainest devices: no /dev/shm, no /dev/mqueue, no /dev/pts.
            "mkdir -p tmp/dev && mount -t tmpfs tmpfs tmp/dev && cd tmp/dev"
            " && for node in null zero full random urandom; do"
            " touch $node && mount --bind /dev/$node $node; done"
            " && cd ../.. && mount --move tmp/dev /dev && rmdir tmp/dev",
            id="no-dev-shm",
        ),
        pytest.param(
            "mount --bind / / && mount -o remount,bind,ro / && ! touch /touched 2>/dev/null",
            id="read-only-root",
        ),
        pytest.param("mount -t tmpfs tmpfs /sys", id="no-sys"),
    ],
)
def test_file_systems_that_are_missing_or_small(mounting: str) -> None:
    """joblib#513, #168, #604: a hang or a bus error where /dev/shm is too small, as in containers
    by default; PyGithub#2430, numba#3344, celery#185: nothing works where there is none."""
    command = [*_unshare(), "sh", "-c", f'({mounting}) >&2 || exit 77; exec "$@"', "sh"]
    ended = large_and_small.run(before=command)
    if ended.code == 77:
        pytest.skip(f"this machine does not permit the mounts: {ended.err.strip()}")
    assert "fine" in ended.check().out


@program
def until_the_disk_is_full() -> None:
    array = np.arange(100_000.0)
    held = []
    with mh.Pool(2, store="1MB") as pool:
        try:
            while len(held) < 100:
                held.append(mh.put(array + len(held)))
        except MemoryError as error:
            text = str(error)
        else:
            raise AssertionError("there is room for all")
        # The numbers of both.
        assert f"the object store has no room for {array.nbytes} bytes" in text, text
        assert f"no file in {os.environ['TMPDIR']} has room for {array.nbytes} bytes" in text, text
        spilled = pool.stats().store.spilled
        assert 3 << 20 < spilled <= 4 << 20, spilled
        assert f"{spilled} bytes are in such files" in text, text
        for number, put in enumerate(held):
            assert (put == array + number).all()
            assert pool.submit(np.sum, put).result(20) == array.sum() + number * len(array)
        # What is dropped makes room.
        held.clear()
        del put
        deadline = time.monotonic() + 20
        while pool.stats().store.spilled:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        held.append(mh.put(array))
        held.append(mh.put(array))
        assert pool.stats().store.spilled
    print("fine")


@program
def with_shared_arrays_until_the_disk_is_full() -> None:
    def fill(array, number):
        array[:] = number

    folder = os.environ["TMPDIR"]
    with mh.Pool(2) as pool:
        held = []
        try:
            while len(held) < 100:
                path = os.path.join(folder, str(len(held)))
                held.append(mh.shared_array(100_000, float, path=path))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            assert error.filename == path, error
            assert "there is no room for the 800000 bytes of a shared array" in str(error), error
        else:
            raise AssertionError("there is room for all")
        # What was made is whole, and of what was not nothing is left.
        assert len(held) == 5, held
        assert sorted(os.listdir(folder)) == [str(number) for number in range(5)]
        futures = [pool.submit(fill, array, number) for number, array in enumerate(held)]
        assert [future.result(20) for future in futures] == [None] * 5
        for number, array in enumerate(held):
            assert (array == number).all()
    print("fine")


@pytest.mark.parametrize(
    "what",
    [until_the_disk_is_full, with_shared_arrays_until_the_disk_is_full],
    ids=lambda what: what.name,
)
def test_a_full_disk(what: Program) -> None:
    mounting = 'mount -t tmpfs -o size=4m tmpfs "$TMPDIR" >&2 || exit 77; exec "$@"'
    ended = what.run(before=[*_unshare(), "sh", "-c", mounting, "sh"])
    if ended.code == 77:
        pytest.skip(f"this machine does not permit the mount: {ended.err.strip()}")
    assert ended.check().out == "fine\n"


@program
def without_a_system_call(numbers: list[int], error: int) -> None:
    # A seccomp filter that answers ENOSYS to some system calls, as old kernels and sandboxes do.
    def instruction(code, jump_true, jump_false, value):
        return struct.pack("HBBI", code, jump_true, jump_false, value)

    program = instruction(0x20, 0, 0, 0)  # load the number of the call
    for position, number in enumerate(numbers):
        program += instruction(0x15, len(numbers) - position, 0, number)  # equal: to the last line
    program += instruction(0x06, 0, 0, 0x7FFF0000)  # allow
    program += instruction(0x06, 0, 0, 0x00050000 | error)  # this error
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(header), 0, 0):
        sys.exit(77)

    def echo(data):
        return data

    large = os.urandom(3_000_000)
    try:
        with mh.Pool(2) as pool:
            assert pool.submit(echo, b"small").result(15) == b"small"
            assert pool.submit(echo, large).result(15) == large
            assert isinstance(pool.submit(os._exit, 1).exception(15), mh.WorkerDied)
            assert list(pool.map(abs, range(100))) == list(range(100))
        print("fine")
    except (RuntimeError, OSError) as problem:
        print("refused:", problem)


_CALLS = {
    "x86_64": {
        "memfd_create": 319,
        "pidfd_open": 434,
        "close_range": 436,
        "sched_getaffinity": 204,
        "clone": 56,
        "fork": 57,
        "vfork": 58,
        "clone3": 435,
    },
    "aarch64": {
        "memfd_create": 279,
        "pidfd_open": 434,
        "close_range": 436,
        "sched_getaffinity": 123,
        "clone": 220,
        "clone3": 435,
    },
}


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize(
    "names",
    [["memfd_create"], ["pidfd_open"], ["close_range"], ["pidfd_open", "close_range"]],
    ids="-".join,
)
def test_system_calls_that_are_missing(names: list[str], error: int) -> None:
    calls = _CALLS.get(platform.machine())
    if calls is None:
        pytest.skip(f"the numbers of system calls on {platform.machine()} are not known here")
    ended = without_a_system_call.run(numbers=[calls[name] for name in names], error=error)
    if ended.code == 77:
        pytest.skip("seccomp filters are not permitted here")
    print(ended.check().out)
    if "memfd_create" in names:
        assert "fine" in ended.out or "memfd" in ended.out, str(ended)
    else:
        assert "fine" in ended.out, str(ended)


def test_no_more_processes_and_threads() -> None:
    calls = _CALLS.get(platform.machine())
    if calls is None:
        pytest.skip(f"the numbers of system calls on {platform.machine()} are not known here")
    numbers = [calls[name] for name in ("clone", "clone3", "fork", "vfork") if name in calls]
    ended = without_a_system_call.run(numbers=numbers, error=errno.EAGAIN)
    if ended.code == 77:
        pytest.skip("seccomp filters are not permitted here")
    assert "refused" in ended.check().out, str(ended)


@program_test
def test_no_home_and_no_temporary_directory() -> None:
    for name in ("HOME", "TMPDIR", "XDG_RUNTIME_DIR", "PATH"):
        os.environ.pop(name, None)
    os.environ["TMPDIR"] = "/nowhere"
    with mh.Pool(2) as pool:
        assert list(pool.map(len, [bytes(3_000_000)] * 4)) == [3_000_000] * 4


@program_test
def test_the_working_directory_is_gone() -> None:
    folder = Path("gone")
    folder.mkdir()
    os.chdir(folder)
    os.rmdir("../gone")
    try:
        with mh.Pool(1) as pool:
            assert pool.submit(abs, -1).result(20) == 1
    except (RuntimeError, OSError) as error:
        print("refused:", error)
