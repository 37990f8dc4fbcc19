#!/usr/bin/env python3
"""Write into the README how large the wheel in dist/ is, and which systems it is for.

Usage: wheel_size.py [--check]

--check only says whether what stands there is right, up to a tenth of a megabyte, which another
version of a compiler may make.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"(<!-- wheel:start -->\n)(.*?)(<!-- wheel:end -->)", re.DOTALL)
SIZE = re.compile(r"The wheel is ([0-9.]+) MB")
MEGABYTE = 1_000_000
ROUGHLY = 0.15


def sentence(wheel: Path) -> str:
    """What the README says of the wheel."""
    platform = re.search(r"manylinux_(\d+)_(\d+)_(\w+)\.whl$", wheel.name)
    if platform is None:
        raise SystemExit(f"{wheel.name} is no manylinux wheel.")
    major, minor, machine = platform.groups()
    return (
        f"The wheel is {wheel.stat().st_size / MEGABYTE:.1f} MB, for Linux on {machine} with glibc "
        f"{major}.{minor} or newer.\n"
    )


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    place = PLACE.search(text)
    if place is None:
        print("README.md has no place for it: <!-- wheel:start -->, <!-- wheel:end -->.")
        return 1
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        print(f"dist/ holds {len(wheels)} wheels, not one: run `make wheel`.", file=sys.stderr)
        return 1
    wanted = sentence(wheels[0])
    if arguments:
        stated = SIZE.search(place[2])
        size = wheels[0].stat().st_size / MEGABYTE
        if stated is None or abs(float(stated[1]) - size) > ROUGHLY:
            print(f"The README is not up to date ({size:.2f} MB): run `make wheel-size`.")
            return 1
    elif place[2] != wanted:
        readme.write_text(PLACE.sub(lambda found: found[1] + wanted + found[3], text), "utf-8")
    print(wanted, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
