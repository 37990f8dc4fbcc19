"""The examples with big data do what they say: their results are those of other means."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from programs import run

FOLDER = Path(__file__).parents[2] / "examples" / "big_data"
PICTURES = FOLDER / "pictures"


def output_of(name: str, folder: Path, *arguments: object) -> str:
    ended = run(FOLDER / name, *map(str, arguments), cwd=folder)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert re.search(r"\d+\.\d\d s with \d+ hands", ended.out), ended.out
    return ended.out


def pixels_of(picture: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(picture.convert("RGB"), float)


def test_thumbnails_look_like_their_pictures(tmp_path: Path) -> None:
    source, size = tmp_path / "source", 100
    shutil.copytree(PICTURES, source / "below")
    with Image.open(PICTURES / "cat.jpg") as cat:
        turned = Image.Exif()
        turned[0x0112] = 6  # the camera lay on its side
        cat.save(source / "turned.jpg", exif=turned)
        cat.convert("P").save(source / "palette.png")
        cat.convert("RGBA").save(source / "layers.png")
    (source / "no picture.jpg").write_text("no picture")

    to, sheet = tmp_path / "to", tmp_path / "sheet.png"
    out = output_of("thumbnails.py", tmp_path, source, "--to", to, "--sheet", sheet, "--size", size)
    assert "no picture.jpg: cannot identify" in out
    files = sorted(source.rglob("*.jpg")) + sorted(source.rglob("*.png"))
    assert len(files) == 10
    assert "9 of 10 pictures" in out
    assert len([path for path in to.rglob("*") if path.is_file()]) == 9
    with Image.open(sheet) as whole:
        assert whole.size == (4 * size, 3 * size)
        places = (
            pixels_of(whole).reshape(3, size, 4, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
        )
    for path, place in zip(sorted(files), places, strict=False):
        if path.name == "no picture.jpg":
            assert not place.any()
            continue
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        with Image.open(to / path.relative_to(source).with_name(path.name + ".jpg")) as small:
            assert max(small.size) == size
            ratio = size / max(upright.size)
            assert all(
                abs(a - ratio * b) <= 1 for a, b in zip(small.size, upright.size, strict=True)
            )
            seen = pixels_of(small)
        wanted = pixels_of(upright.resize(small.size, Image.Resampling.LANCZOS))
        difference = np.abs(seen - wanted).mean()
        assert difference < 8, (path, difference)
        # Of no other picture, and no grey surface.
        assert difference < np.abs(seen[::-1] - wanted).mean() / 2, (path, difference)
        top, left = ((size - side) // 2 for side in seen.shape[:2])
        there = place[top : top + seen.shape[0], left : left + seen.shape[1]]
        assert np.abs(there - seen).mean() < 8, path  # the file is a JPEG


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    ended = run(FOLDER / "thumbnails.py", str(tmp_path))
    assert ended.code == 2
    assert "there are no pictures" in ended.err


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_the_correlation_is_that_of_numpy(tmp_path: Path, suffix: str) -> None:
    with Image.open(PICTURES / "coffee.jpg") as picture:
        table = pixels_of(picture)[:, :, 0].T  # 600 rows of 400 columns
    path, to = tmp_path / f"table{suffix}", tmp_path / "answer.npy"
    if suffix == ".npy":
        np.save(path, table)
    else:
        names = ",".join(f"column {number}" for number in range(table.shape[1]))
        np.savetxt(path, table, delimiter=",", header=names)
    out = output_of("correlation.py", tmp_path, path, "--to", to, "--hands", 3)
    assert "600 rows of 400 columns" in out
    answer = np.load(to)
    assert answer.shape == (400, 400)
    np.testing.assert_allclose(answer, np.corrcoef(table, rowvar=False), rtol=0, atol=1e-12)
    # The file that was given is as it was.
    if suffix == ".npy":
        assert np.array_equal(np.load(path), table)


def test_pixels_side_by_side_are_alike(tmp_path: Path) -> None:
    out = output_of("correlation.py", tmp_path)
    found = re.search(r"beside it: (\S+); opposite corners: (\S+)", out)
    assert found
    beside, corner = map(float, found.groups())
    assert 0.9 < beside < 1
    assert corner < beside - 0.1


def test_distances_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "distances"
    out = output_of("larger_than_memory.py", tmp_path, "--file", path, "--gigabytes", 0.16)
    count = 6324
    assert f"the distances of {count} points" in out
    assert "in memory: MemoryError" in out
    found = re.search(r"more than (\d+) MB of its own", out)
    assert found
    assert int(found[1]) < 128
    array = np.memmap(path, np.float32, "r", shape=(count, count))
    points = np.random.default_rng(1).normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for row in (0, 1, count // 2, count - 1):
        # The angle by half of the straight way through the Earth.
        straight = np.linalg.norm(points - points[row], axis=1)
        wanted = 2 * 6371.0 * np.arcsin(np.clip(straight / 2, 0, 1))
        np.testing.assert_allclose(array[row], wanted, atol=0.5)
        np.testing.assert_allclose(array[:, row], wanted, atol=0.5)
    assert (np.diagonal(array) < 0.5).all()
    assert path.stat().st_size == 4 * count * count


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_their_help_teaches(path: Path) -> None:
    ended = run(path, "--help")
    assert ended.code == 0, ended.err
    assert "--hands" in ended.out
    assert sys.executable not in ended.out
