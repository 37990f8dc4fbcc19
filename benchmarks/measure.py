"""The measured process: `python -m benchmarks.measure SETTINGS_JSON OUTCOME_FILE`.

Its imports stay few: with spawn and forkserver, every worker of a peer imports this module again.
"""

from __future__ import annotations

import json
import os
import sys


def main(settings_json: str, outcome_path: str) -> None:
    raw = json.loads(settings_json)
    if raw["cpus"] is not None:
        os.sched_setaffinity(0, raw["cpus"])

    import dataclasses
    from pathlib import Path

    from benchmarks import peers, workloads
    from benchmarks.model import Settings

    settings = Settings(**raw)
    workload = workloads.by_name(settings.workload)
    outcome = workload.run(peers.by_key(settings.peer), settings)
    missing = {metric.key for metric in workload.metrics} ^ outcome.values.keys()
    if missing:
        raise RuntimeError(f"{workload.name} has other metrics than it announces: {missing}")
    Path(outcome_path).write_text(json.dumps(dataclasses.asdict(outcome)))


if __name__ == "__main__":
    main(*sys.argv[1:])
