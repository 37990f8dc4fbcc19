"""Thumbnails of a folder of pictures: `map` over the files, and one picture of them all, which is a
shared array of which each task fills its place.

    python examples/big_data/thumbnails.py [FOLDER] [--to FOLDER] [--sheet FILE]

It needs Pillow and NumPy. Without a folder it takes the pictures that lie beside it.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import manyhands as mh

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp"}

parser = argparse.ArgumentParser(description="Makes thumbnails of all pictures in a folder.")
parser.add_argument(
    "folder",
    nargs="?",
    type=Path,
    default=Path(__file__).parent / "pictures",
    help="where the pictures are, in folders below it too; by default those beside this program",
)
parser.add_argument(
    "--to",
    type=Path,
    metavar="FOLDER",
    help="where the thumbnails go, as NAME.jpg for each NAME; without it none is written",
)
parser.add_argument(
    "--sheet", type=Path, metavar="FILE", help="one picture that shows them all, such as sheet.jpg"
)
parser.add_argument(
    "--size", type=int, default=160, help="pixels of the longer side of a thumbnail (%(default)s)"
)
parser.add_argument(
    "--hands", type=int, default=mh.cpu_count(), help="worker processes (%(default)s, all CPUs)"
)
arguments = parser.parse_args()
folder, target, size = arguments.folder, arguments.to, arguments.size


def shrink(file: Path, place: np.ndarray) -> int:
    """Writes the thumbnail, and puts it in the middle of its place; how many pixels there were."""
    with Image.open(file) as picture:
        pixels = picture.width * picture.height
        picture.draft("RGB", (size, size))  # a JPEG need not be read in full
        small = ImageOps.exif_transpose(picture).convert("RGB")
    small.thumbnail((size, size))
    if target is not None:
        path = target / file.relative_to(folder).with_name(file.name + ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        small.save(path)
    top, left = (size - small.height) // 2, (size - small.width) // 2
    place[top : top + small.height, left : left + small.width] = small
    return pixels


files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
if not files:
    parser.error(f"there are no pictures in {folder}")

columns = math.ceil(math.sqrt(len(files)))
rows = math.ceil(len(files) / columns)
# places[row, column] is a square of the sheet, and of the same memory.
sheet = mh.shared_array((rows * size, columns * size, 3), np.uint8)
places = sheet.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
squares = [places[divmod(number, columns)] for number in range(len(files))]

start = time.perf_counter()
done = pixels = 0
with mh.Pool(arguments.hands) as pool:
    for result in pool.map(shrink, files, squares, on_error="return"):
        if isinstance(result, mh.Failure):
            print(f"{files[result.index]}: {result.exception}")
        else:
            done += 1
            pixels += result
seconds = time.perf_counter() - start

if arguments.sheet is not None:
    Image.fromarray(sheet).save(arguments.sheet)
read = sum(file.stat().st_size for file in files)
speed = pixels / 1e6 / seconds
print(
    f"{done} of {len(files)} pictures, {pixels / 1e6:.1f} megapixels in {read / 1e6:.1f} MB of "
    f"files: {seconds:.2f} s with {arguments.hands} hands, {speed:.1f} megapixels/s"
)
