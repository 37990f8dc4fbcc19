"""A result larger than memory: a shared array in a file, of which each task fills some rows. Here
it is the distance of each of many points on the Earth to each other.

    python examples/big_data/larger_than_memory.py [--gigabytes 40] [--file FILE]

It needs NumPy. A worker allows itself less memory of its own than the array has bytes. What it has
in memory of the file is the system's, which writes it to the disk when memory is short.
"""

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import manyhands as mh

RADIUS = 6371.0  # of the Earth, in km
OWN = 128_000_000  # bytes of memory that a worker may have besides what it has at its start
PIECE = 2_000_000  # bytes that are computed at once

parser = argparse.ArgumentParser(
    description="Writes the distances between many points to a file, larger than memory."
)
parser.add_argument(
    "--gigabytes", type=float, default=0.2, help="how large the file becomes (%(default)s)"
)
parser.add_argument(
    "--file",
    type=Path,
    help="where it is written, and stays: an array of 4-byte floats; by default a file in this "
    "folder, which is removed at the end (/tmp may be memory)",
)
parser.add_argument(
    "--hands", type=int, default=mh.cpu_count(), help="worker processes (%(default)s, all CPUs)"
)
arguments = parser.parse_args()

count = math.isqrt(int(arguments.gigabytes * 1e9 / 4))
random = np.random.default_rng(1)
points = random.normal(size=(count, 3))
points /= np.linalg.norm(points, axis=1, keepdims=True)


def status(name: str) -> int:
    """What the system says of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def limit_memory() -> None:
    """What is allocated beyond it raises MemoryError; files that are mapped are not counted."""
    most = status("VmData") + OWN
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def distances(rows: slice) -> np.ndarray:
    cosines = points[rows] @ points.T
    return RADIUS * np.arccos(np.clip(cosines, -1, 1))


def fill(part: np.ndarray, first: int) -> tuple[float, int]:
    """Fills rows of the array, some at a time; the longest distance, and memory of its own."""
    longest, most = 0.0, 0
    step = max(1, PIECE // (8 * count))
    for start in range(0, len(part), step):
        found = distances(slice(first + start, first + min(start + step, len(part))))
        part[start : start + step] = found
        longest = max(longest, found.max())
        most = max(most, status("RssAnon"))
    return longest, most


def main(file: Path) -> None:
    start = time.perf_counter()
    array = mh.shared_array((count, count), np.float32, path=file)
    step = max(1, count // (16 * arguments.hands))
    firsts = range(0, count, step)
    parts = (array[first : first + step] for first in firsts)
    with mh.Pool(arguments.hands, initializer=limit_memory) as pool:
        results = pool.map(fill, parts, firsts).list()
        seconds = time.perf_counter() - start
        refused = pool.submit(np.empty, array.shape, array.dtype).exception()

    # Some rows anew, here: is in the file what should be?
    for row in random.integers(count, size=10):
        assert np.allclose(array[row], distances(slice(row, row + 1)), atol=1)
    size = file.stat().st_size
    print(
        f"{size / 1e9:.2f} GB, the distances of {count} points, in {seconds:.2f} s with "
        f"{arguments.hands} hands: {size / 1e6 / seconds:.0f} MB/s"
    )
    print(
        f"no worker had more than {max(own for _, own in results) / 1e6:.0f} MB of its own; it was "
        f"allowed {OWN / 1e6:.0f} MB more than at its start"
    )
    if refused is not None:
        print(f"if a worker asks for all of it in memory: {type(refused).__name__}")
    print(f"the longest distance is {max(longest for longest, _ in results):.0f} km")


if arguments.file is not None:
    main(arguments.file)
else:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        main(Path(folder) / "distances")
