"""`manyhands demo`: one real job, three ways, and a worker that dies half-way.

The job: every `.py` file of the running Python's standard library is parsed with `ast` and
measured: its functions, the longest one, and the cyclomatic complexity of each. It is done in one
process, by `multiprocessing.Pool` and by manyhands, in turns; then once more by manyhands while one
of its workers is killed. The demo ends with status 0 only when every run gave the same answer.

Cyclomatic complexity is McCabe's: 1 for a function, and 1 more for each

* `if`, `elif`, and conditional expression (`a if b else c`),
* `for`, `async for` and `while`,
* `except` clause,
* `case` of a `match`, but not the bare `case _`,
* `and` and `or` (each operator counts),
* `if` inside a comprehension.

`with`, `assert`, `else`, `finally` and the `for` of a comprehension add nothing. A function inside
another counts for itself, decorators and defaults included; a lambda counts for the function it
stands in. Code outside all functions is not counted.
"""

from __future__ import annotations

import argparse
import ast
import os
import signal
import statistics
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from manyhands import Pool

__all__ = [
    "FileMeasure",
    "FunctionMeasure",
    "main",
    "measure",
    "measure_source",
    "run_demo",
    "standard_library",
]

ROUNDS = 3
DEFAULT_SECONDS = 10.0
CALIBRATION_FILES = 24
FEWEST_FILES = 12
# Tried for this job: map with its default chunks and with smaller ones, imap_unordered with chunks
# of 1 to 32 files. This was the fastest and the steadiest; with map's default chunks of a quarter
# of each worker's share, a round now and then ends with one worker waiting for the other.
POOL_CHUNK_FILES = 12
# Not measured: installed packages, and the library's own tests with their broken inputs.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
)
# Where in the run a worker is killed: at the first mark, and at a later one only when the worker
# happened to be between two files, so that nothing was lost.
KILL_MARKS = (1 / 3, 1 / 2, 2 / 3)

_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)


class FunctionMeasure(NamedTuple):
    """One function: where it is, how long, how complex."""

    name: str
    line: int
    lines: int
    complexity: int


class FileMeasure(NamedTuple):
    """One file: its totals, its longest and its most complex function, or why it does not parse."""

    path: str
    lines: int
    functions: int
    complexity: int
    longest: FunctionMeasure | None
    most_complex: FunctionMeasure | None
    error: str | None


class Run(NamedTuple):
    """One run of the whole job: how long it took, and its answer, ordered by path."""

    seconds: float
    answer: tuple[FileMeasure, ...]


class Kills(NamedTuple):
    """What was killed and lost in a run: worker ids, and the files their deaths took down."""

    pids: list[int]
    lost: list[str]


def measure(path: str) -> FileMeasure:
    """Measure the Python file at `path`; a file that is no valid source is reported, not raised."""
    return measure_source(Path(path).read_bytes(), path)


def measure_source(source: bytes, path: str = "<source>") -> FileMeasure:
    """Measure Python source given as bytes, whose encoding is found as Python itself finds it."""
    lines = source.count(b"\n") + (not source.endswith(b"\n") and source != b"")
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError, RecursionError) as problem:
        reason = problem.msg if isinstance(problem, SyntaxError) else str(problem)
        return FileMeasure(path, lines, 0, 0, None, None, f"{type(problem).__name__}: {reason}")
    functions = _functions(tree)
    return FileMeasure(
        path,
        lines,
        len(functions),
        sum(function.complexity for function in functions),
        max(functions, key=lambda function: (function.lines, -function.line), default=None),
        max(functions, key=lambda function: (function.complexity, -function.line), default=None),
        None,
    )


def _functions(tree: ast.Module) -> list[FunctionMeasure]:
    """Measure each function of a module, however deep, in the order of the source."""
    found: list[FunctionMeasure] = []
    # A stack, not recursion: an expression may be nested deeper than Python's own limit.
    scopes: list[tuple[ast.AST, str]] = [(tree, "")]
    while scopes:
        scope, prefix = scopes.pop()
        decisions = 0
        nodes = list(ast.iter_child_nodes(scope))
        while nodes:
            node = nodes.pop()
            if isinstance(node, _FunctionNode | ast.ClassDef):
                scopes.append((node, f"{prefix}{node.name}."))
                continue
            decisions += _decisions(node)
            nodes.extend(ast.iter_child_nodes(node))
        if isinstance(scope, _FunctionNode):
            last_line = scope.end_lineno or scope.lineno
            found.append(
                FunctionMeasure(
                    prefix[:-1], scope.lineno, last_line - scope.lineno + 1, 1 + decisions
                )
            )
    found.sort(key=lambda function: function.line)
    return found


def _decisions(node: ast.AST) -> int:
    if isinstance(node, _BRANCHES):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return len(node.ifs)
    if isinstance(node, ast.match_case):
        pattern = node.pattern
        bare = isinstance(pattern, ast.MatchAs) and pattern.pattern is None and pattern.name is None
        return 0 if bare and node.guard is None else 1
    return 0


def standard_library() -> list[str]:
    """Paths of the running Python's own `.py` files, by name, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
        found.extend(os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))
    return sorted(found)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m manyhands.demo`, with the options of `manyhands demo`."""
    options = _parser().parse_args(argv)
    return run_demo(seconds=options.seconds, limit=options.limit, workers=options.workers)


def run_demo(
    *, seconds: float = DEFAULT_SECONDS, limit: int | None = None, workers: int | None = None
) -> int:
    """Run the demo; 0 when all answers agree, 1 when not.

    Args:
        seconds: about how long it may take.
        limit: how many files to use, however long that takes.
        workers: how many; by default the CPUs that may be used.
    """
    import manyhands as mh

    workers = workers or mh.cpu_count()
    started = time.perf_counter()

    every_path = standard_library()
    paths = _choose(every_path, workers, seconds, limit)
    version = ".".join(map(str, sys.version_info[:3]))
    _say(
        f"The job: measure {len(paths)} files of Python {version}'s standard library",
        "(functions, their length, their cyclomatic complexity), one file per task.",
    )
    if len(paths) < len(every_path):
        _say(
            f"That is {len(paths)} of {len(every_path)} files, spread evenly, "
            + ("as --limit asks." if limit else "so that the demo ends in time;"),
            *([] if limit else ["a larger --seconds gives it time for more."]),
        )

    ways: dict[str, Callable[[], Run]] = {
        "one process": lambda: _timed(paths, lambda: map(measure, paths)),
        "multiprocessing.Pool": lambda: _timed_multiprocessing(paths, workers),
        "manyhands.Pool": lambda: _timed_manyhands(paths, workers),
    }
    _heading(f"1. Three ways, {ROUNDS} rounds in turns, {workers} workers")
    runs = _interleave(ways)
    answer = runs["one process"][0].answer

    _heading("2. The answer")
    _say(*_answer_lines(answer))

    _heading("3. The time")
    _say(*_time_lines(runs))
    agree = all(run.answer == answer for of_one_way in runs.values() for run in of_one_way)
    total = sum(map(len, runs.values()))
    _say(
        "",
        f"All {total} runs gave the same answer."
        if agree
        else "The runs did NOT all give the same answer.",
    )

    _heading("4. A worker is killed in the middle of the job")
    survived, kills = _run_with_a_kill(paths, workers)
    same = survived.answer == answer
    _say(*_kill_lines(kills, survived, same))

    _say("", f"The demo took {time.perf_counter() - started:.1f} s.")
    return 0 if agree and same and kills.pids else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m manyhands.demo",
        description="Measure Python's own standard library serially, with multiprocessing.Pool and "
        "with manyhands; then kill a worker and see that the answer stays the same.",
    )
    parser.add_argument(
        "--seconds",
        type=_positive_number,
        default=DEFAULT_SECONDS,
        metavar="N",
        help="about how long the whole demo may take; fewer files are used when the machine is "
        "slow (default: %(default)g)",
    )
    parser.add_argument(
        "--limit", type=_positive_count, metavar="N", help="use N files, however long that takes"
    )
    parser.add_argument(
        "--workers", type=_positive_count, metavar="N", help="default: the CPUs that may be used"
    )
    return parser


def _positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above zero")
    return number


def _positive_count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a count of 1 or more")
    return number


def _choose(
    paths: Sequence[str], workers: int, budget_seconds: float, limit: int | None
) -> list[str]:
    """As many of the files, spread evenly, as the budget allows by a short calibration."""
    if limit is not None:
        return _spread(paths, limit)
    sample = _spread(paths, CALIBRATION_FILES)
    seconds = _timed(sample, lambda: map(measure, sample)).seconds
    # By size, because a sample of few files says little about the mean file.
    seconds_per_byte = seconds / sum(map(os.path.getsize, sample))
    job_seconds = seconds_per_byte * sum(map(os.path.getsize, paths))
    shares = ROUNDS * (1 + 2 / workers) + 1 / workers
    files = int(len(paths) * budget_seconds / (job_seconds * shares))
    return _spread(paths, max(files, FEWEST_FILES))


def _spread(paths: Sequence[str], count: int) -> list[str]:
    """`count` of the paths at even distances; all of them where there are not more."""
    count = min(count, len(paths))
    return [paths[position * len(paths) // count] for position in range(count)]


def _timed(paths: Sequence[str], run: Callable[[], Iterable[FileMeasure]]) -> Run:
    begin = time.perf_counter()
    measures = list(run())
    seconds = time.perf_counter() - begin
    if len(measures) != len(paths):
        raise RuntimeError(f"{len(paths)} files went in, {len(measures)} answers came out")
    return Run(seconds, tuple(sorted(measures, key=lambda one: one.path)))


def _timed_multiprocessing(paths: Sequence[str], workers: int) -> Run:
    import multiprocessing

    def run() -> list[FileMeasure]:
        with multiprocessing.Pool(workers) as pool:
            return list(pool.imap_unordered(measure, paths, chunksize=POOL_CHUNK_FILES))

    return _timed(paths, run)


def _timed_manyhands(paths: Sequence[str], workers: int) -> Run:
    import manyhands as mh

    def run() -> list[FileMeasure]:
        with mh.Pool(workers) as pool:
            return list(pool.map(measure, paths))

    return _timed(paths, run)


def _interleave(ways: dict[str, Callable[[], Run]]) -> dict[str, list[Run]]:
    """Run every way once per round; each round begins with another one, so noise hits all."""
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(ROUNDS):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(ways[name]())
        line = ", ".join(f"{name} {runs[name][-1].seconds:.2f} s" for name in names)
        _say(f"  round {number + 1}: {line}")
    return runs


def _run_with_a_kill(paths: Sequence[str], workers: int) -> tuple[Run, Kills]:
    """Do the job with manyhands, kill one worker on the way, and submit again what it lost."""
    import manyhands as mh

    _say(
        "  Again with manyhands, each file submitted as one task. When a third of the files is",
        "  done, one worker gets SIGKILL. Its file is lost, and only that one; the rest goes on.",
        "",
    )
    kills = Kills([], [])
    marks = [max(1, int(len(paths) * mark)) for mark in KILL_MARKS]

    def run() -> list[FileMeasure]:
        measures: list[FileMeasure] = []
        again: list[Future[FileMeasure]] = []
        with mh.Pool(workers) as pool:
            futures: dict[Future[FileMeasure], str]
            futures = {pool.submit(measure, path): path for path in paths}
            for future in as_completed(futures):
                path = futures[future]
                try:
                    measures.append(future.result())
                except mh.WorkerDied as death:
                    kills.lost.append(path)
                    _say(
                        f"  lost:   {_short(path)}",
                        f"          {type(death).__name__}: {_shortened(str(death))}",
                        f"          submitted again: {_short(path)}",
                    )
                    again.append(pool.submit(measure, path))
                if marks and len(measures) >= marks[0]:
                    del marks[0]
                    if not kills.lost:
                        victim = _kill_one(pool, kills.pids, len(measures), len(paths))
                        kills.pids.append(victim)
            measures.extend(future.result() for future in again)
            pids = ", ".join(map(str, _pids(pool)))
            _say(f"  after:  the workers are now {pids}")
        return measures

    return _timed(paths, run), kills


def _pids(pool: Pool) -> list[int]:
    """The processes of the workers; one that is being started has none yet."""
    return [worker.pid for worker in pool.stats().workers if worker.pid is not None]


def _kill_one(pool: Pool, killed: Sequence[int], done: int, total: int) -> int:
    """Kills a worker that lives; `killed` are those that may still be listed."""
    while True:
        pids = _pids(pool)
        for victim in pids:
            if victim in killed:
                continue
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it died by itself
            _say(
                f"  before: the workers are {', '.join(map(str, pids))}",
                f"  KILL:   worker {victim} gets SIGKILL, with {done} of {total} files done",
            )
            return victim
        time.sleep(0.001)  # a new one is on its way


def _kill_lines(kills: Kills, survived: Run, same: bool) -> list[str]:
    lost = len(kills.lost)
    if not kills.pids:
        story = "No worker was killed: the job was over too soon. Give it more files."
    elif lost == 0:
        story = "The worker died between two files: nothing was lost, nothing had to be repeated."
    else:
        story = f"{lost} of {len(survived.answer)} files had to be done again."
    return [
        "",
        story,
        "The answer is the same as before: compared file by file."
        if same
        else "The answer is NOT the same as before.",
        f"The run took {survived.seconds:.2f} s, with the death and its repair.",
        "(A multiprocessing.Pool waits for ever for the file of a worker that was killed;",
        "a ProcessPoolExecutor gives up all files that are not done yet.)",
    ]


def _answer_lines(answer: Sequence[FileMeasure]) -> list[str]:
    packages: defaultdict[str, list[FileMeasure]] = defaultdict(list)
    for file in answer:
        packages[_short(file.path).split("/")[0]].append(file)
    ranked = sorted(packages.items(), key=lambda item: (-_complexity(item[1]), item[0]))
    rows = [("package or module", "files", "lines", "functions", "complexity", "most complex")]
    for package, files in ranked[:8]:
        rows.append((package, *_totals(files), _most_complex(files)))
    rows.append((f"all {len(packages)}", *_totals(answer), _most_complex(answer)))
    lines = _table(rows, left=(0, 5))

    longest = [(file, file.longest) for file in answer if file.longest is not None]
    if longest:
        file, function = max(longest, key=lambda pair: pair[1].lines)
        lines += [
            "",
            f"The longest function is {function.name} in {_short(file.path)}:"
            f" {function.lines} lines from line {function.line}.",
        ]
    broken = [file for file in answer if file.error is not None]
    for file in broken[:3]:
        lines.append(f"Not valid Python, so not measured: {_short(file.path)}: {file.error}")
    if len(broken) > 3:
        lines.append(f"(and {len(broken) - 3} more files that are not valid Python)")
    return lines


def _totals(files: Sequence[FileMeasure]) -> tuple[str, str, str, str]:
    functions = sum(file.functions for file in files)
    lines = sum(file.lines for file in files)
    return f"{len(files):,}", f"{lines:,}", f"{functions:,}", f"{_complexity(files):,}"


def _complexity(files: Sequence[FileMeasure]) -> int:
    return sum(file.complexity for file in files)


def _most_complex(files: Sequence[FileMeasure]) -> str:
    functions = [file.most_complex for file in files if file.most_complex is not None]
    if not functions:
        return "-"
    most = max(functions, key=lambda function: function.complexity)
    return f"{most.name.rpartition('.')[2]} ({most.complexity})"


def _time_lines(runs: dict[str, list[Run]]) -> list[str]:
    medians = {name: statistics.median(run.seconds for run in all_) for name, all_ in runs.items()}
    serial, pool, ours = medians
    rows = [("way", "median", "fastest", "slowest", f"against {serial}", f"against {pool}")]
    for name, all_ in runs.items():
        seconds = [run.seconds for run in all_]
        rows.append(
            (
                name,
                f"{medians[name]:.2f} s",
                f"{min(seconds):.2f} s",
                f"{max(seconds):.2f} s",
                f"{medians[serial] / medians[name]:.2f} x",
                f"{medians[pool] / medians[name]:.2f} x",
            )
        )
    return [
        *_table(rows, left=(0,)),
        "",
        "Starting and closing each pool is counted in, in every round; x above 1 is faster.",
        f"{pool} has settings tuned for this job: imap_unordered with chunks of",
        f"{POOL_CHUNK_FILES} files. {ours} is used as it is: pool.map(measure, paths).",
    ]


def _table(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lay out rows, the first being the header; columns in `left` align left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if position in left else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _short(path: str) -> str:
    """The path within the standard library."""
    root = sysconfig.get_path("stdlib")
    return Path(path).relative_to(root).as_posix() if path.startswith(root) else path


def _shortened(text: str, length: int = 76) -> str:
    # Messages name the task with its arguments: a path of this machine would fill the line.
    text = " ".join(text.replace(sysconfig.get_path("stdlib") + os.sep, "").split())
    return text if len(text) <= length else text[: length - 3] + "..."


def _heading(text: str) -> None:
    _say("", text, "=" * len(text))


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    # The functions sent to workers are those of the importable module, whatever the start method.
    from manyhands.demo import main as imported_main

    sys.exit(imported_main())
