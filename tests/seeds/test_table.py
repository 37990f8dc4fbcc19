"""The table in README.md names each test of this folder, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

_HERE = Path(__file__).parent


def test_the_table_is_complete() -> None:
    named: set[tuple[str, str]] = set()
    file = ""
    for line in (_HERE / "README.md").read_text().splitlines():
        if found := re.search(r"test in `(test_\w+\.py)`", line):
            file = found[1]
        elif line.startswith("|"):
            named |= {(file, name) for name in re.findall(r"`(test_\w+)`", line)}
    there = {
        (path.name, name)
        for path in _HERE.glob("test_article_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(there) > 20
    assert named == there
