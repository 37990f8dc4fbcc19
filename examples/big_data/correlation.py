"""The correlation of each column of a table with each other: the table is a shared array, and so is
the answer, of which each task fills some rows.

    python examples/big_data/correlation.py [TABLE] [--to FILE]

It needs NumPy. Without a table it takes a photograph, and needs Pillow: each row is a tile of 16 by
16 pixels, and has their 768 numbers. The answer is checked against `numpy.corrcoef`.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import manyhands as mh

TILE = 16

parser = argparse.ArgumentParser(
    description="The correlation of each column of a table with each other."
)
parser.add_argument(
    "table",
    nargs="?",
    type=Path,
    help="a .npy file, or a .csv file of numbers below one line of names; by default tiles of a "
    "photograph",
)
parser.add_argument("--to", type=Path, metavar="FILE", help="the .npy file for the answer")
parser.add_argument(
    "--hands", type=int, default=mh.cpu_count(), help="worker processes (%(default)s, all CPUs)"
)
arguments = parser.parse_args()


def tiles(file: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(file) as picture:
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(picture), (TILE, TILE, 3))
    return windows[::5, ::5].reshape(-1, TILE * TILE * 3)


def read(path: Path | None) -> np.ndarray:
    if path is None:
        return tiles(Path(__file__).parent / "pictures" / "astronaut.jpg")
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    return np.loadtxt(path, delimiter=",", skiprows=1)


def standardise(columns: slice) -> None:
    """Gives these columns a mean of 0 and a length of 1, where they are."""
    part = table[:, columns]
    part -= part.mean(axis=0)
    part /= np.sqrt((part**2).sum(axis=0))


def correlate(columns: slice) -> None:
    answer[columns] = table[:, columns].T @ table


start = time.perf_counter()
given = read(arguments.table)
loaded = time.perf_counter()

# Both functions use these, which are sent by reference: all processes have the same memory.
table = mh.share(np.asarray(given, float))
count = table.shape[1]
answer = mh.shared_array((count, count))
step = max(1, count // (4 * arguments.hands))
parts = [slice(first, first + step) for first in range(0, count, step)]
with mh.Pool(arguments.hands) as pool:
    pool.map(standardise, parts).list()
    pool.map(correlate, parts).list()
seconds = time.perf_counter() - loaded

if arguments.to is not None:
    np.save(arguments.to, answer)
wanted = np.corrcoef(given, rowvar=False)
print(
    f"{table.shape[0]} rows of {count} columns, {table.nbytes / 1e6:.0f} MB, read in "
    f"{loaded - start:.2f} s: {seconds:.2f} s with {arguments.hands} hands, "
    f"{table.nbytes / 1e6 / seconds:.0f} MB/s"
)
print(f"the largest difference to numpy.corrcoef is {np.abs(answer - wanted).max():.0e}")
if arguments.table is None:
    print(
        f"a pixel and the one beside it: {answer[0, 3]:.2f}; opposite corners: {answer[0, -3]:.2f}"
    )
