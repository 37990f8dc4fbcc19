"""What is written: raw rounds as JSON, tables as Markdown, and the block in README.md.

The rounds are read again where some workloads of a full run are renewed.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import chart, peers
from benchmarks.machine import Machine
from benchmarks.model import OURS, Json, Metric, Outcome, Record
from benchmarks.verdict import Figure, Judgement
from benchmarks.wording import check_text, number, unit_name

START_MARKER = "<!-- bench:start -->"
END_MARKER = "<!-- bench:end -->"
RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Report:
    """One whole run of the benchmarks."""

    date: datetime.date
    machine: Machine
    versions: dict[str, str | None]
    judgements: Sequence[Judgement]
    records: Sequence[Record]
    quick: bool
    partial: bool
    # By workload, those that were measured again after the full run: when, and beside what.
    renewed: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        suffix = "-quick" if self.quick else ""
        if self.partial:
            suffix += "-partial"
        return f"{self.date.isoformat()}-{self.machine.slug}{suffix}"

    @property
    def is_publishable(self) -> bool:
        """Whether it may stand in the README: quick and partial runs are for looking only."""
        return not self.quick and not self.partial


def write_results(report: Report) -> list[Path]:
    """Write the JSON, Markdown and SVG files, and return their paths."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    texts = {
        ".json": json.dumps(as_json(report), indent=1) + "\n",
        ".svg": chart.draw(report.judgements, subtitle(report)),
        ".md": as_markdown(report),
    }
    paths = []
    for suffix, text in texts.items():
        path = RESULTS / f"{report.name}{suffix}"
        path.write_text(text)
        paths.append(path)
    return paths


@dataclass(frozen=True)
class Earlier:
    """A full run, as it was written."""

    date: datetime.date
    machine: Machine
    versions: dict[str, str | None]
    records: list[Record]
    renewed: dict[str, str]


def read_last(machine: Machine) -> Earlier:
    """The last full run on such a machine.

    Raises:
        FileNotFoundError: there is none.
    """
    full = "[0-9]" * 4 + "-[0-9][0-9]-[0-9][0-9]-" + machine.slug + ".json"
    found = sorted(RESULTS.glob(full))
    if not found:
        raise FileNotFoundError(f"{RESULTS} has no full run on a machine like this: {full}")
    told = json.loads(found[-1].read_text())
    records = [
        Record(**{**each, "outcome": each["outcome"] and Outcome(**each["outcome"])})
        for each in told["rounds"]
    ]
    return Earlier(
        date=datetime.date.fromisoformat(told["date"]),
        machine=Machine(**told["machine"]),
        versions=told["versions"],
        records=records,
        renewed=told.get("renewed", {}),
    )


def write_readme(report: Report, readme: Path) -> bool:
    """Replace the block between the markers; False when there is no such block."""
    text = readme.read_text() if readme.is_file() else ""
    before, start, rest = text.partition(START_MARKER)
    _, end, after = rest.partition(END_MARKER)
    if not start or not end:
        return False
    link = (RESULTS / report.name).as_posix()
    block = "\n".join(
        [
            "",
            "",
            f"![How many times as good as the best peer manyhands is, per workload]({link}.svg)",
            "",
            *summary_table(report.judgements),
            "",
            *footnotes(report),
            f"- Every peer, its spread, and what each workload does: [{report.name}]({link}.md).",
            "",
            "",
        ]
    )
    readme.write_text(before + start + block + end + after)
    return True


def as_json(report: Report) -> Json:
    return {
        "date": report.date.isoformat(),
        "quick": report.quick,
        "partial": report.partial,
        "machine": dataclasses.asdict(report.machine),
        "versions": report.versions,
        "renewed": report.renewed,
        "judgements": [_judgement_as_json(judgement) for judgement in report.judgements],
        "rounds": [dataclasses.asdict(record) for record in report.records],
    }


def _judgement_as_json(judgement: Judgement) -> Json:
    return {
        "workload": judgement.workload.name,
        "metric": dataclasses.asdict(judgement.metric),
        "figures": {key: dataclasses.asdict(figure) for key, figure in judgement.figures.items()},
        "best_peer": judgement.best_peer,
        "advantage": judgement.advantage,
        "must": dataclasses.asdict(judgement.must) if judgement.must else None,
        "aim": dataclasses.asdict(judgement.aim) if judgement.aim else None,
        "verdict": judgement.verdict,
    }


def as_markdown(report: Report) -> str:
    kind = "Benchmarks" if report.is_publishable else "Benchmarks, trial run"
    lines = [
        f"# {kind}, {report.date.isoformat()}",
        "",
        f"![Overview]({report.name}.svg)",
        "",
        *summary_table(report.judgements),
        "",
        *footnotes(report),
        "",
    ]
    last_workload = None
    for judgement in report.judgements:
        workload = judgement.workload
        if workload.name != last_workload:
            lines += [f"## {workload.name}: {workload.title}", "", workload.note, ""]
            last_workload = workload.name
        metric = judgement.metric
        better = f"{metric.better} is better"
        lines += [f"### {metric.title}, {unit_name(metric)} ({better})", ""]
        lines += [*_peer_table(judgement), "", f"Verdict: **{judgement.verdict}**.", ""]
    return "\n".join(lines).rstrip() + "\n"


def summary_table(judgements: Sequence[Judgement]) -> list[str]:
    """The Markdown table of all metrics, manyhands against the best peer and its bounds."""
    rows = []
    for judgement in judgements:
        best = judgement.best_peer
        rows.append(
            [
                f"{judgement.workload.title}, {judgement.metric.title}",
                _cell(judgement.metric, judgement.figures.get(OURS)),
                f"{_cell(judgement.metric, judgement.figures[best])} ({peers.by_key(best).label})"
                if best
                else "none",
                f"{number(judgement.advantage)} ×" if judgement.advantage is not None else "–",
                check_text(judgement.metric, judgement.must),
                check_text(judgement.metric, judgement.aim),
                judgement.verdict,
            ]
        )
    header = ["Measured", "manyhands", "Best peer", "Advantage", "Must", "Aim", "Verdict"]
    return _markdown_table(header, rows, right=(1, 3))


def _peer_table(judgement: Judgement) -> list[str]:
    rows = []
    reference = judgement.figures.get(OURS)
    for peer in peers.ALL:
        if peer.key not in judgement.workload.peers:
            continue
        figure = judgement.figures.get(peer.key)
        if figure is None:
            rows.append([peer.label, "not installed", "", "", "", ""])
            continue
        low, high = figure.minimum, figure.maximum
        ours = reference.median if reference else None
        ratio = figure.median / ours if figure.median is not None and ours else None
        failures = "; ".join(dict.fromkeys(figure.failures))
        rows.append(
            [
                peer.label,
                _cell(judgement.metric, figure, with_unit=False),
                number(low) if low is not None else "–",
                number(high) if high is not None else "–",
                f"{number(ratio)}" if ratio is not None else "–",
                f"{figure.rounds}"
                + (f", {len(figure.failures)} failed: {failures}" if failures else ""),
            ]
        )
    header = ["Peer", "Median", "Least", "Most", "Of manyhands'", "Rounds"]
    return _markdown_table(header, rows, right=(1, 2, 3, 4))


def footnotes(report: Report) -> list[str]:
    """What every table needs to be understood."""
    names = {"python": "Python (multiprocessing, concurrent.futures)"}
    used = ", ".join(
        f"{names.get(name, name)} {version or 'not installed'}"
        for name, version in report.versions.items()
    )
    lines = [
        "- *Advantage*: how many times as good as the best peer, above 1 is better, below 1 worse. "
        "*Must* and *Aim*: the bound, then what was reached. Medians over rounds that go over all "
        "libraries in turns, each run in a process of its own, its results checked.",
        f"- {report.date.isoformat()}, {report.machine}. {used}.",
    ]
    left = {record.peer for record in report.records if record.leftovers}
    if left:
        labels = ", ".join(peers.by_key(key).label for key in sorted(left))
        lines.append(f"- Left processes running after a run, which had to be killed: {labels}.")
    if report.machine.is_busy:
        share = f"{report.machine.busy_share:.0%}"
        lines.append(f"- **The machine was busy with other work ({share} of its CPU time).**")
    for when in sorted(set(report.renewed.values())):
        names = ", ".join(f"`{name}`" for name, its in report.renewed.items() if its == when)
        lines.append(f"- Measured again, all libraries of the row: {names} ({when}).")
    if not report.is_publishable:
        lines.append("- **A trial run: few rounds or not all workloads; not for publication.**")
    return lines


def subtitle(report: Report) -> str:
    parts = [
        report.date.isoformat(),
        f"{report.machine.cpu_model}, {report.machine.cpus} CPUs",
        f"Python {report.machine.python}",
    ]
    if not report.is_publishable:
        parts.append("trial run")
    if report.machine.is_busy:
        parts.append("machine busy")
    return " · ".join(parts)


def _cell(metric: Metric, figure: Figure | None, *, with_unit: bool = True) -> str:
    if figure is None:
        return "not installed"
    if figure.median is None:
        return "failed"
    text = number(figure.median)
    if with_unit:
        text += f" {unit_name(metric)}"
    return text + (" (some rounds failed)" if figure.failures else "")


def _markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]
) -> list[str]:
    marks = ["---:" if position in right else "---" for position in range(len(header))]
    cells = [header, marks, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]
