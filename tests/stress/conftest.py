"""The programs of `tests/crash` and `tests/unit` are these tests' too."""

from __future__ import annotations

import sys
from pathlib import Path

for name in ("crash", "unit"):
    sys.path.insert(0, str(Path(__file__).parents[1] / name))
