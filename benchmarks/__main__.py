"""The command: `python -m benchmarks [--quick] [--only NAME [--renew]] [--no-write] [--list]`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, peers, processes, report, runner, workloads
from benchmarks.model import OURS, Record, Workload
from benchmarks.verdict import Judgement, judge
from benchmarks.wording import check_text, number, unit_name

README = Path("README.md")
EXIT_FAILED = 1
EXIT_MISSED = 3


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.list:
        for workload in workloads.ALL:
            print(f"{workload.name:28} {workload.title}")
        return 0
    if not Path("benchmarks/__main__.py").is_file():
        print("error: run this from the root of the repository", file=sys.stderr)
        return 2
    if not peers.by_key(OURS).is_installed():
        print("error: manyhands is not installed in this environment", file=sys.stderr)
        print("hint: `make bench` builds and installs it", file=sys.stderr)
        return 2

    if options.renew and (options.quick or not options.only):
        print("error: --renew goes with --only, and not with --quick", file=sys.stderr)
        return 2
    chosen = _choose(options.only)
    processes.adopt_orphans()
    begin = time.perf_counter()
    here = machine.look()
    _tell(f"{here}")
    if here.is_busy:
        _tell(
            f"warning: other work takes {here.busy_share:.0%} of the CPU time; figures will suffer"
        )

    records: list[Record] = []
    for workload in chosen:
        records += _run(workload, quick=options.quick)
    judgements = judge(chosen, records)
    _print_tables(judgements)
    whole = report.Report(
        date=datetime.date.today(),
        machine=here,
        versions=machine.versions(peers.ALL),
        judgements=judgements,
        records=records,
        quick=options.quick,
        partial=len(chosen) < len(workloads.ALL),
    )
    if options.renew:
        whole = _renewed(whole, chosen)
    if not options.no_write:
        _write(whole)
    _tell(f"done in {time.perf_counter() - begin:.0f} s")
    return _exit_status(judgements)


def _renewed(part: report.Report, chosen: Sequence[Workload]) -> report.Report:
    """The last full run, with these workloads in the place of its own."""
    last = report.read_last(part.machine)
    if last.versions != part.versions:
        raise RuntimeError(f"the last full run was of {last.versions}, and this is {part.versions}")
    names = {workload.name for workload in chosen}
    records = [record for record in last.records if record.workload not in names]
    records += part.records
    when = f"{part.date.isoformat()}, others took {part.machine.busy_share:.0%} of the CPU time"
    return dataclasses.replace(
        part,
        date=last.date,
        machine=last.machine,
        judgements=judge(workloads.ALL, records),
        records=records,
        partial=False,
        renewed={**last.renewed, **dict.fromkeys(sorted(names), when)},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure manyhands and its peers. Status 0: everything of manyhands ran, was "
        f"correct and reached what it must; {EXIT_FAILED}: something failed; {EXIT_MISSED}: "
        "something that must be reached was not.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds; the README is left as it is"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[workload.name for workload in workloads.ALL],
        metavar="NAME",
        help="measure this workload, and those it is compared with; may be repeated",
    )
    parser.add_argument(
        "--renew",
        action="store_true",
        help="with --only: put these in the place of those in the last full run on such a machine, "
        "which says so",
    )
    parser.add_argument("--no-write", action="store_true", help="print, and write no files")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    return parser


def _choose(only: Sequence[str] | None) -> list[Workload]:
    if not only:
        return list(workloads.ALL)
    names = set(only)
    for name in only:
        for metric in workloads.by_name(name).metrics:
            if metric.must is not None and metric.must.kept_from is not None:
                names.add(metric.must.kept_from)
    return [workload for workload in workloads.ALL if workload.name in names]


def _run(workload: Workload, *, quick: bool) -> list[Record]:
    listed = [peer for peer in peers.ALL if peer.key in workload.peers]
    unknown = set(workload.peers) - {peer.key for peer in listed}
    if unknown:
        raise RuntimeError(f"{workload.name} names peers that do not exist: {unknown}")
    installed = [peer for peer in listed if peer.is_installed()]
    _tell(f"{workload.name}: {workload.title}")
    for peer in listed:
        if peer not in installed:
            _tell(f"  {peer.label:32} {runner.NOT_INSTALLED}")

    def tell_record(record: Record) -> None:
        label = peers.by_key(record.peer).label
        if record.outcome is None:
            text = f"FAILED: {record.failure}"
        else:
            text = ", ".join(
                f"{number(record.outcome.values[metric.key])} {metric.unit}"
                for metric in workload.metrics
            )
        left = f"  ({record.leftovers} processes left behind, killed)" if record.leftovers else ""
        _tell(f"  round {record.round + 1}  {label:32} {text}{left}")

    return runner.run_workload(workload, installed, quick=quick, report=tell_record)


def _print_tables(judgements: Sequence[Judgement]) -> None:
    rows = [("measured", "manyhands", "best peer", "", "advantage", "must", "verdict")]
    for judgement in judgements:
        ours = judgement.figures.get(OURS)
        best = judgement.figures[judgement.best_peer] if judgement.best_peer else None
        unit = unit_name(judgement.metric)
        rows.append(
            (
                f"{judgement.workload.name} {judgement.metric.key}",
                f"{number(ours.median)} {unit}" if ours and ours.median is not None else "failed",
                f"{number(best.median)} {unit}" if best and best.median is not None else "-",
                peers.by_key(judgement.best_peer).label if judgement.best_peer else "",
                f"{number(judgement.advantage)} x" if judgement.advantage else "-",
                check_text(judgement.metric, judgement.must),
                judgement.verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        aligned = [
            cell.rjust(width) if position in (1, 2, 4) else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(aligned).rstrip())


def _write(whole: report.Report) -> None:
    for path in report.write_results(whole):
        _tell(f"written: {path}")
    if not whole.is_publishable:
        _tell("README.md is left as it is: only a full run goes there")
    elif report.write_readme(whole, README):
        _tell(f"written: {README}")
    else:
        _tell(f"warning: {README} has no {report.START_MARKER} … {report.END_MARKER}: not changed")


def _exit_status(judgements: Sequence[Judgement]) -> int:
    verdicts = {judgement.verdict for judgement in judgements}
    if verdicts & {"failed", "no reference"}:
        return EXIT_FAILED
    return EXIT_MISSED if "missed" in verdicts else 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
