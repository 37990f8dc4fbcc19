"""A user's script, run in a fresh interpreter that times itself from its first line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.model import DEFAULT_WORKERS, Json, NotOffered
from benchmarks.peers.base import Peer

_SCRIPT = """\
import time

begin = time.perf_counter()
{imports}

imported = time.perf_counter()


def work(value):
    return value + 1


def main():
    with {pool} as pool:
        first_result = {call}
        first = time.perf_counter()
    between = time.perf_counter()
    with {pool} as pool:
        second_result = {call}
        second = time.perf_counter()
    import json

    times = {{
        "import": imported - begin,
        "first": first - begin,
        "second": second - between,
        "results": [first_result, second_result],
    }}
    print(json.dumps(times))


if __name__ == "__main__":
    main()
"""


def run_program(peer: Peer) -> Json:
    """Run the peer's script; times in seconds, and the results of its two tasks."""
    if peer.program is None:
        raise NotOffered
    workers = str(DEFAULT_WORKERS)
    text = _SCRIPT.format(
        imports=peer.program.imports,
        pool=peer.program.pool.format(workers=workers),
        call=peer.program.call,
    )
    times: Json = _run(text)
    return times


def run_import(peer: Peer) -> float:
    """Seconds of the peer's import in a fresh interpreter."""
    if peer.program is None:
        raise NotOffered
    text = (
        f"import time\n\nbegin = time.perf_counter()\n{peer.program.imports}\n\n"
        "print(time.perf_counter() - begin)\n"
    )
    return float(_run(text))


def _run(text: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder) / "program.py"
        path.write_text(text)
        # Not through pipes: what the program leaves running would keep them open.
        output = Path(folder) / "output"
        with output.open("wb") as stream:
            subprocess.run([sys.executable, path], stdout=stream, check=True)
        return json.loads(output.read_text())
