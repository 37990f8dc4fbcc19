#!/usr/bin/env python3
"""Check that the crates depend on each other one way only.

A crate may use the crates below it, never one beside or above it, not even for its tests. Only the
lowest makes system calls, only the highest knows Python and only one knows the command line, so
only they may depend on the crates for that. (Tests may: a dev-dependency is not part of what we
ship.)
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LAYERS = [  # from the bottom up
    "manyhands-os",
    "manyhands-shm",
    "manyhands-sync",
    "manyhands-runtime",
    "manyhands-cli",
    "manyhands-python",
]
ONLY_IN = {
    "manyhands-cli": {"clap", "clap_complete"},
    "manyhands-os": {"libc", "linux-raw-sys", "nix", "rustix"},
    "manyhands-python": {"numpy", "pyo3", "pyo3-build-config", "pyo3-ffi"},
}
FEWEST_CRATES = 3


def violations(packages: list[dict[str, Any]]) -> list[str]:
    """One sentence for each rule that is broken."""
    found = []
    if len(packages) < FEWEST_CRATES:
        found.append(
            f"Only {len(packages)} crates were seen, at least {FEWEST_CRATES} exist: "
            "the check looked in the wrong place."
        )
    for package in packages:
        name = package["name"]
        if name not in LAYERS:
            found.append(f"{name} has no layer: give it one in scripts/check_crate_layers.py.")
            continue
        for dependency in package["dependencies"]:
            needed = dependency["name"]
            if needed in LAYERS and LAYERS.index(needed) >= LAYERS.index(name):
                found.append(f"{name} depends on {needed}, which is not below it.")
            if dependency["kind"] == "dev":
                continue
            found.extend(
                f"{name} depends on {needed}, which only {owner} may."
                for owner, owned in ONLY_IN.items()
                if needed in owned and name != owner
            )
    return found


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"],
        cwd=root,
        check=True,
        stdout=subprocess.PIPE,
    )
    packages = json.loads(metadata.stdout)["packages"]
    found = violations(packages)
    for sentence in found:
        print(sentence, file=sys.stderr)
    if not found:
        print(f"crate layers: {len(packages)} crates, all dependencies point down")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
