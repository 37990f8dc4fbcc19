"""Progress: when something is shown, what, and that a map never suffers from it."""

from __future__ import annotations

import gc
import io
import logging
import os
import sys
import threading
import types
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from terminal import run_on_terminal

from manyhands import _progress, _progress_show, _ticker
from manyhands._progress import Counts
from manyhands._progress_text import Pace, duration, line, sentence
from observing import until
from programs import output_of, run_file


def counts(**values: Any) -> Counts:
    known: dict[str, Any] = dict(
        done=6312,
        failed=2,
        taken=6312,
        total=10_000,
        workers=8,
        busy=8,
        elapsed=5.2,
        rate=1204.0,
        left=3.06,
        ended=False,
    )
    return Counts(**(known | values))


class Map:
    """Stands for a map: numbers that progress reads."""

    def __init__(self, *numbers: int) -> None:
        self.numbers: tuple[int, int, int, int, int] | None = (*(numbers or (0, 0, 0)), 4, 4)  # type: ignore[assignment]

    def read(self) -> tuple[int, int, int, int, int] | None:
        return self.numbers


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is a terminal, as far as anybody asks; pytest would undo it in a fixture."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("MANYHANDS_PROGRESS", raising=False)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end waits for a call that is under way, for as long as that takes."""
    monkeypatch.setattr(_progress, "_LAST_CALL_SECONDS", 60.0)


@pytest.fixture
def ticker(monkeypatch: pytest.MonkeyPatch) -> _ticker._Ticker:
    """One that has no thread, at time 0: nobody looks at anything but the test."""
    ticker = _ticker._Ticker()
    monkeypatch.setattr(ticker, "_start", lambda: True)
    monkeypatch.setattr(_ticker, "_ticker", ticker)
    monkeypatch.setattr(_progress, "monotonic", lambda: 0.0)
    return ticker


# ---------------------------------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.5, "1 min 00 s"),
        (80, "1 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_line() -> None:
    assert line(counts(), "parse_file", 100, True) == (
        "parse_file   63%  ▕█████████████▉        ▏   6,312/10,000  1,204/s  3 s left  2 failed"
        "  8 workers"
    )
    assert line(counts(failed=0, workers=1), "f", 70, False) == (
        "f   63%  [#########      ]   6,312/10,000  1,204/s  3 s left  1 worker"
    )
    assert line(counts(total=None, left=None), "f", 80, True) == (
        "f  6,312 done  1,204/s  5 s  2 failed  8 workers"
    )
    assert line(counts(rate=None, left=None, done=0, taken=0), "f", 40, True) == (
        "f    0%       0/10,000  2 failed"
    )


def test_the_loop_that_takes_the_results_is_what_is_waited_for() -> None:
    shown = line(counts(busy=0, taken=12), "f", 100, True)
    assert "12 taken" in shown
    assert "taken" not in line(counts(busy=1, taken=12), "f", 100, True)


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize(
    "label", ["f", "a_function_with_a_name_that_is_rather_long", "日本語の関数"]
)
@pytest.mark.parametrize("total", [None, 10_000])
def test_the_line_fits(unicode: bool, label: str, total: int | None) -> None:
    import wcwidth

    seen = set()
    for columns in range(1, 140):
        shown = line(counts(total=total), label, columns, unicode)
        assert wcwidth.wcswidth(shown) <= columns
        assert shown
        assert unicode or shown.isascii()
        seen.add("6,312" in shown)
    assert seen == {True, False}  # with enough room the number is there


def test_what_matters_least_goes_first() -> None:
    words = ["workers", "█", "1,204", "63%", "left", "failed", "6,312"]
    gone: list[str] = []
    for columns in range(110, 21, -1):
        shown = line(counts(), "parse_file", columns, True)
        gone += [word for word in words if word not in shown and word not in gone]
    assert gone == words[:5]


def test_labels_cannot_move_the_cursor() -> None:
    assert line(counts(), "a\x1b[2J\nb", 100, True).startswith("a?[2J?b  ")


def test_sentences() -> None:
    assert sentence(counts(), "f") == "f: 6,312 of 10,000 items (63 %), 1,204/s, 3 s left, 2 failed"
    over = counts(done=10_000, ended=True, elapsed=8.0, left=0.0, failed=0)
    assert sentence(over, "f") == "f: 10,000 items in 8 s, 1,250/s"
    assert sentence(counts(ended=True, failed=0), "f") == (
        "f: stopped after 6,312 of 10,000 items, 5 s, 1,214/s"
    )
    assert sentence(counts(total=None, done=1, ended=True, failed=0, elapsed=2.0), "f") == (
        "f: 1 item in 2 s, 30/min"
    )


# --------------------------------------------------------------------------------- rate, time left


def measured(pace: Pace, now: float, done: int, **more: Any) -> tuple[float | None, float | None]:
    values = {"taken": done, "total": 1000, "busy": 4} | more
    return pace.measure(now, done, **values)


def test_a_steady_pace() -> None:
    pace = Pace(100.0)
    assert measured(pace, 100.0, 0) == (None, None)
    for tenth in range(1, 300):
        rate, left = measured(pace, 100 + tenth / 10, tenth)
        assert rate == pytest.approx(10)
        assert left == pytest.approx(100 - tenth / 10, abs=0.2)


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    pace = Pace(0.0)
    for second in range(1, 21):
        measured(pace, second, second)
    for second in range(21, 32):
        rate, _ = measured(pace, second, 20 + 40 * (second - 20), total=10_000)
    assert rate == pytest.approx(40)


def test_long_items_count_down() -> None:
    # Four workers, items of a minute, that end together.
    pace = Pace(0.0)
    left = []
    for second in range(0, 241):
        _, now_left = measured(pace, second, second // 60 * 4, total=40)
        left.append(now_left)
    assert left[59] is None
    assert left[60] == pytest.approx(540)
    assert left[90] == pytest.approx(510)
    assert left[120] == pytest.approx(480)
    known = [seconds for seconds in left if seconds is not None]
    assert all(later <= earlier for earlier, later in pairwise(known))


def test_what_does_not_move_has_no_time_left() -> None:
    pace = Pace(0.0)
    measured(pace, 1.0, 100)
    measured(pace, 2.0, 200)
    rate, left = measured(pace, 8.0, 200)
    assert (rate, left) == (pytest.approx(100), pytest.approx(7))
    rate, left = measured(pace, 102.0, 200)
    assert left is None
    assert rate == pytest.approx(100 / 101)


def test_all_done_and_not_all_taken() -> None:
    pace = Pace(0.0)
    for second in range(1, 11):
        _, left = measured(pace, second, 1000, taken=second, busy=0)
    assert left == pytest.approx(990)
    assert measured(pace, 11.0, 1000, taken=1000, busy=0)[1] == 0


def test_more_than_were_announced() -> None:
    pace = Pace(0.0)
    measured(pace, 1.0, 10, total=10)
    assert measured(pace, 2.0, 20, total=10)[1] == 0
    assert "100%" in line(counts(done=20_000), "f", 100, True)


def test_memory_of_a_pace_is_bounded() -> None:
    pace = Pace(0.0)
    for tick in range(20_000):
        measured(pace, tick / 8, tick, total=None)
    assert len(pace._done.samples) < 100
    for tick in range(20_000, 40_000):
        measured(pace, tick / 8, 20_000, total=None)
    assert len(pace._done.samples) < 100


# --------------------------------------------------------------------------------- who is shown it


def started(target: Any = None) -> bool:
    progress = _progress.start(Map().read, total=4, label="f", target=target)
    if progress is not None:
        progress.finish()
    return progress is not None


def test_nothing_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MANYHANDS_PROGRESS", raising=False)
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert not started()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert not started()


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch)
    assert started()
    assert not started(False)
    monkeypatch.setenv("TERM", "dumb")
    assert not started()


def test_the_environment_is_asked_where_the_call_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_terminal(monkeypatch)
    monkeypatch.setenv("MANYHANDS_PROGRESS", "0")
    assert not started()
    assert started(True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("MANYHANDS_PROGRESS", "1")
    assert started()
    assert not started(False)
    monkeypatch.setenv("MANYHANDS_PROGRESS", "yes")
    with pytest.raises(ValueError, match="MANYHANDS_PROGRESS must be 0 or 1, not 'yes'"):
        started()


def test_nothing_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch)
    monkeypatch.setenv("MANYHANDS_DEPTH", "1")
    assert not started()
    assert not started(True)
    assert started(lambda counts: None)


def test_nothing_in_another_thread_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend([started(), started(True)]))
    thread.start()
    thread.join()
    assert found == [False, True]


@pytest.mark.parametrize("target", ["yes", 1, [], int, type("Bar", (), {"update": 1, "n": 2})])
def test_other_targets_are_refused(target: Any) -> None:
    with pytest.raises(TypeError, match="progress= takes True, False, a function"):
        started(target)


def test_the_first_of_several_has_the_line(
    monkeypatch: pytest.MonkeyPatch, ticker: _ticker._Ticker
) -> None:
    pretend_terminal(monkeypatch)
    shown: list[str] = []

    class Shown:
        def __init__(self, label: str) -> None:
            self.label = label

        def show(self, counts: Counts) -> None:
            shown.append(self.label)

        def end(self, counts: Counts) -> None:
            shown.append(f"end of {self.label}")

    real = _progress_show.open_display

    def open_display(kind: str, target: Any, label: str, context: Any) -> Any:
        return Shown(label) if kind == "terminal" else real(kind, target, label, context)

    monkeypatch.setattr(_progress_show, "open_display", open_display)
    outer = _progress.start(Map().read, total=4, label="outer")
    inner = _progress.start(Map().read, total=4, label="inner")
    called: list[Counts] = []
    function = _progress.start(Map().read, total=4, label="function", target=called.append)
    assert outer
    assert inner
    assert function
    begin = outer.due
    ticker.tick(begin - 1)
    assert (shown, len(called)) == ([], 1)
    ticker.tick(begin)
    assert shown == ["outer"]
    ticker.tick(begin + 1)
    outer.finish()
    ticker.tick(begin + 9)
    inner.finish()
    inner.finish()
    assert shown == ["outer", "outer", "end of outer", "inner", "end of inner"]
    function.finish()
    assert len(called) == 5
    assert ticker._running == {}


# -------------------------------------------------------------------------------- what users give


def test_a_function_gets_counts() -> None:
    arrived = threading.Event()
    seen: list[tuple[Counts, str]] = []

    def show(counts: Counts) -> None:
        seen.append((counts, threading.current_thread().name))
        arrived.set()

    fake = Map(3, 1, 2)
    progress = _progress.start(fake.read, total=None, label="f", target=show)
    assert progress
    assert arrived.wait(60)
    first, thread = seen[0]
    assert thread == "manyhands-progress"
    assert (first.done, first.failed, first.taken, first.workers) == (3, 1, 2, 4)
    assert (first.total, first.left, first.ended) == (None, None, False)
    assert first.elapsed >= 0
    fake.numbers = (10, 1, 10, 4, 0)
    progress.total = 10
    progress.finish()
    last, thread = seen[-1]
    assert thread == threading.current_thread().name
    assert (last.done, last.total, last.ended) == (10, 10, True)
    told = len(seen)
    progress.finish()
    progress.tick(progress.due)
    assert len(seen) == told


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_function_that_raises_is_called_no_more(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Semaphore(0)
    calls = []

    def show(counts: Counts) -> None:
        calls.append(counts)
        called.release()
        raise error("no")

    with caplog.at_level(logging.ERROR, "manyhands"):
        broken = _progress.start(Map().read, total=4, label="parse", target=show)
        assert called.acquire(timeout=60)
        # The thread is still there, for others.
        other = _progress.start(Map().read, total=4, label="f", target=lambda _: called.release())
        assert called.acquire(timeout=60)
    assert broken
    assert other
    broken.finish()
    other.finish()
    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the progress of parse is no longer shown"
    ]
    assert caplog.records[0].name == "manyhands"


def test_a_map_that_is_gone_ends_its_progress() -> None:
    fake = Map(1, 0, 1)
    over = threading.Event()
    weak = weakref.WeakMethod(fake.read)

    def read() -> Any:
        method = weak()
        return None if method is None else method()

    progress = _progress.start(
        read, total=4, label="f", target=lambda counts: counts.ended and over.set()
    )
    del fake
    gc.collect()
    assert over.wait(60)
    assert progress
    progress.finish()


class Bar:
    """What is needed of a bar of tqdm."""

    def __init__(self) -> None:
        self.n = 100  # the user's own start
        self.total: int | None = None
        self.refreshed = 0
        self.closed = False

    def update(self, n: int) -> None:
        self.n += n

    def refresh(self) -> None:
        self.refreshed += 1

    def close(self) -> None:
        self.closed = True


def test_what_behaves_like_tqdm() -> None:
    bar = Bar()
    fake = Map(3, 0, 3)
    progress = _progress.start(fake.read, total=10, label="f", target=bar)
    assert progress
    progress.tick(0.0)
    assert (bar.n, bar.total) == (103, 10)
    fake.numbers = (7, 0, 7, 4, 4)
    progress.finish()
    assert bar.n == 107
    assert bar.refreshed == 1
    assert not bar.closed


def test_tqdm() -> None:
    tqdm = pytest.importorskip("tqdm")
    screen = io.StringIO()
    with tqdm.tqdm(desc="mine", file=screen) as bar:
        progress = _progress.start(Map(7, 0, 7).read, total=10, label="f", target=bar)
        assert progress
        progress.finish()
        assert (bar.n, bar.total) == (7, 10)
    assert "mine:  70%" in screen.getvalue()
    with pytest.raises(TypeError, match="not the class tqdm"):
        _progress.start(Map().read, total=10, label="f", target=tqdm.tqdm)


@pytest.mark.parametrize("is_started", [True, False])
def test_rich(is_started: bool) -> None:
    pytest.importorskip("rich")
    from rich.console import Console
    from rich.progress import Progress

    screen = io.StringIO()
    bars = Progress(console=Console(file=screen, force_terminal=True, width=60))
    if is_started:
        bars.start()
    fake = Map(3, 0, 3)
    progress = _progress.start(fake.read, total=10, label="f[0]", target=bars)
    assert progress
    progress.tick(0.0)
    assert bars.live.is_started
    [task] = bars.tasks
    assert (task.completed, task.total) == (3, 10)
    fake.numbers = (10, 0, 10, 4, 4)
    progress.finish()
    assert (task.completed, task.total) == (10, 10)
    assert bars.live.is_started is is_started
    bars.stop()
    assert "f[0]" in screen.getvalue()


def test_rich_without_a_total() -> None:
    pytest.importorskip("rich")
    from rich.console import Console
    from rich.progress import Progress

    bars = Progress(console=Console(file=io.StringIO()))
    progress = _progress.start(Map(3, 0, 3).read, total=None, label="f", target=bars)
    assert progress
    progress.finish()
    [task] = bars.tasks
    assert task.finished


@pytest.mark.usefixtures("ticker")
def test_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []

    class Handle:
        def update(self, shown: Any) -> None:
            outputs.append(shown)

    def display(shown: Any, display_id: bool) -> Handle:
        assert display_id
        outputs.append(shown)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    displays = types.ModuleType("IPython.display")
    displays.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    monkeypatch.delenv("MANYHANDS_PROGRESS", raising=False)

    progress = _progress.start(Map(3, 0, 3).read, total=10, label="<lambda>")
    assert progress
    progress.tick(progress.due)
    assert "3/10" in repr(outputs[0])
    html = outputs[0]._repr_html_()
    assert '<progress value="3" max="10">' in html
    assert "&lt;lambda&gt;" in html
    progress.tick(progress.due)
    progress.finish()
    assert len(outputs) == 3
    assert (repr(outputs[2]), outputs[2]._repr_html_()) == ("", "")

    # Over before anything was shown: no output at all.
    assert started()
    assert len(outputs) == 3
    shell.kernel = None  # IPython in a terminal
    assert not started()


# --------------------------------------------------------------------------------- off a terminal


@pytest.mark.usefixtures("ticker")
def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    fake = Map(100, 0, 100)
    progress = _progress.start(fake.read, total=1000, label="parse", target=True)
    assert progress
    for second in (2, 9):
        progress.tick(second)
    assert stream.getvalue() == ""
    for second in (10, 11, 19.9):
        progress.tick(second)
    assert stream.getvalue() == "parse: 100 of 1,000 items (10 %), 50/s, 16 s left\n"
    fake.numbers = (1000, 2, 1000, 4, 0)
    monkeypatch.setattr(_progress, "monotonic", lambda: 22.0)
    progress.finish()
    assert stream.getvalue().splitlines()[1:] == ["parse: 1,000 items in 22 s, 45/s, 2 failed"]


@pytest.mark.usefixtures("ticker")
def test_the_environment_wants_no_sentence_for_each_short_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("MANYHANDS_PROGRESS", "1")
    assert started()
    assert stream.getvalue() == ""
    assert started(True)
    assert stream.getvalue() == "f: stopped after 0 of 4 items, 0 s\n"


def test_a_stream_that_was_closed_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = _progress.start(Map().read, total=4, label="f", target=True)
    assert progress
    stream.close()
    progress.finish()
    assert [record.getMessage() for record in caplog.records] == [
        "the progress of f is no longer shown"
    ]


# --------------------------------------------------------------------------------- a real terminal

# The thread is kept out of it: the program itself says when the bar is drawn.
BY_HAND = """
import time
from manyhands import _progress
_progress.PATIENCE_SECONDS = 1e6
state = [6312, 2, 6312, 8, 8]
progress = _progress.start(lambda: tuple(state), total=10_000, label="parse_file")
def draw(): progress.tick(progress._started + 6)
"""


def test_the_bar_is_below_and_leaves_nothing(tmp_path: Path) -> None:
    seen = run_on_terminal(
        tmp_path,
        BY_HAND
        + """
print("before")
draw()
mark("drawn")
state[0] = 9999
draw()
mark("later")
progress.finish()
print("after")
""",
    )
    assert seen.code == 0
    assert seen.at["drawn"][:2] == ["before", ""]
    assert seen.at["drawn"][2].startswith("parse_file   63%  ▕████")
    assert "6,312/10,000" in seen.at["drawn"][2]
    assert "9,999/10,000" in seen.at["later"][2]
    assert len(seen.at["later"]) == 3
    assert seen.at["end"] == ["before", "after"]


def test_prints_are_clean(tmp_path: Path) -> None:
    seen = run_on_terminal(
        tmp_path,
        BY_HAND
        + """
import logging
logging.basicConfig(format="%(message)s")
draw()
for n in range(20):
    print("line", n)
print("half a ", end="", flush=True)
draw()
mark("half")
print("line")
logging.warning("a warning")
draw()
os.write(1, b"what a worker writes\\n")
mark("worker")
draw()
mark("drawn")
progress.finish()
assert "write" not in vars(sys.stdout)
assert "write" not in vars(sys.stderr)
""",
    )
    assert seen.code == 0, seen.at["end"]
    lines = [f"line {n}" for n in range(20)]
    assert seen.at["half"][-2] == "half a"
    assert seen.at["half"][:-2] == lines[-10:]
    assert "6,312/10,000" in seen.at["half"][-1]
    last = ["half a line", "a warning", "what a worker writes"]
    assert [text for text in seen.at["drawn"] if "6,312" not in text][-4:] == [*last, ""]
    assert seen.at["end"] == [*lines, *last][-10:]


def test_a_resized_terminal(tmp_path: Path) -> None:
    seen = run_on_terminal(
        tmp_path,
        BY_HAND
        + """
import fcntl, struct, termios
draw()
mark("wide")
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 30, 0, 0))
draw()
mark("narrow")
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 2, 30, 0, 0))
state[0] = 1
draw()
mark("flat")
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
draw()
mark("unknown")
progress.finish()
""",
        columns=100,
    )
    assert len(seen.at["wide"][1]) == 97
    assert seen.at["narrow"][1] == "6,312/10,000  2 failed"
    assert seen.at["flat"] == seen.at["narrow"]
    assert 60 < len(seen.at["unknown"][1]) < 80
    assert seen.at["end"] == []


def test_nothing_is_drawn_while_something_reads_keys(tmp_path: Path) -> None:
    seen = run_on_terminal(
        tmp_path,
        BY_HAND
        + """
import termios, tty
modes = termios.tcgetattr(0)
tty.setcbreak(0)
draw()
mark("keys")
termios.tcsetattr(0, termios.TCSADRAIN, modes)
draw()
mark("lines")
tty.setcbreak(0)
sys.ps1 = ">>> "
draw()
mark("prompt")
""",
    )
    assert seen.code == 0
    assert seen.at["keys"] == []
    assert len(seen.at["lines"]) == 2
    assert seen.at["prompt"] == []


def test_ascii(tmp_path: Path) -> None:
    seen = run_on_terminal(
        tmp_path,
        BY_HAND + "draw()\nmark('drawn')\nprogress.finish()",
        PYTHONUTF8="0",
        PYTHONIOENCODING="latin-1",
    )
    assert "63%  [#########      ]" in seen.at["drawn"][1]
    assert seen.raw.isascii()


WITH_THREAD = """
import threading, time
from manyhands import _progress, _progress_show
_progress.PATIENCE_SECONDS = 0.0
_progress._LAST_CALL_SECONDS = 60.0
drawn = threading.Semaphore(0)
draw = _progress_show.TerminalLine._draw
_progress_show.TerminalLine._draw = lambda self: (draw(self), drawn.release())
progress = _progress.start(lambda: (6312, 0, 6312, 8, 8), total=10_000, label="f")
assert drawn.acquire(timeout=60)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("progress.finish()", 0),
        ("pass", 0),
        ("raise KeyboardInterrupt", -2),
        ("raise ValueError('mine')", 1),
        ("raise SystemExit(3)", 3),
        ("del progress", 0),
    ],
)
def test_the_end_of_a_program(tmp_path: Path, end: str, code: int) -> None:
    seen = run_on_terminal(tmp_path, WITH_THREAD + end)
    assert seen.code == code
    assert b"6,312/10,000" in seen.raw
    assert not any("6,312" in text for text in seen.at["end"])
    assert bool(seen.at["end"]) is (end.startswith("raise") and code != 3)


def test_a_child_of_fork_has_no_bar(tmp_path: Path) -> None:
    seen = run_on_terminal(
        tmp_path,
        WITH_THREAD
        + """
import warnings
warnings.simplefilter("ignore")  # from 3.12 on, of forks beside threads
pid = os.fork()
if pid == 0:
    assert "write" not in vars(sys.stdout)
    assert threading.active_count() == 1
    progress.finish()
    print("child")
    # Its own maps have theirs.
    calls = threading.Semaphore(0)
    own = _progress.start(
        lambda: (1, 0, 1, 1, 1), total=2, label="g", target=lambda counts: calls.release()
    )
    assert calls.acquire(timeout=60)
    own.finish()
    os._exit(7)
assert os.waitpid(pid, 0)[1] >> 8 == 7
while drawn.acquire(blocking=False): pass
for _ in range(2):  # the first may have been drawn before
    assert drawn.acquire(timeout=60)  # the parent's goes on
mark("parent")
progress.finish()
""",
    )
    assert seen.code == 0, seen.at["end"]
    assert seen.at["parent"][0] == "child"
    assert "6,312/10,000" in seen.at["parent"][2]
    assert seen.at["end"] == ["child"]


# -------------------------------------------------------------------------------------- the thread


def test_the_thread_sleeps_while_there_is_nothing(tmp_path: Path) -> None:
    source = """
        import threading, time
        from manyhands import _progress, _ticker
        _progress._LAST_CALL_SECONDS = 60.0
        assert _ticker._ticker._thread is None
        assert _progress.start(lambda: None, total=1, label="f") is None
        assert threading.active_count() == 1
        called = threading.Semaphore(0)
        for _ in range(3):
            one = _progress.start(
                lambda: (0, 0, 0, 1, 1), total=1, label="f", target=lambda _: called.release()
            )
            assert called.acquire(timeout=60)
            assert called.acquire(timeout=60)
            one.finish()
            while _ticker._ticker._wakes_at != float("inf"):
                time.sleep(0.01)
        assert threading.active_count() == 2
        print("good")
    """
    assert output_of(tmp_path, source) == "good\n"


def test_a_program_ends_while_a_call_does_not(tmp_path: Path) -> None:
    source = """
        import threading
        from manyhands import _progress, _ticker
        _progress._LAST_CALL_SECONDS = _ticker._STOP_SECONDS = 0.05
        entered = threading.Event()
        def forever(counts):
            entered.set()
            threading.Event().wait()
        progress = _progress.start(lambda: (0, 0, 0, 1, 1), total=1, label="f", target=forever)
        assert entered.wait(60)
        print("end")
    """
    ended = run_file(tmp_path, source)
    assert (ended.code, ended.out) == (0, "end\n")
    assert "f: a call of what was given as progress= does not end" in ended.err


def test_the_end_is_told_after_a_call_that_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "_LAST_CALL_SECONDS", 0.01)
    calls: list[bool] = []
    entered, may_go_on = threading.Event(), threading.Event()

    def slow(counts: Any) -> None:
        calls.append(counts.ended)
        entered.set()
        assert may_go_on.wait(60)

    one = _progress.start(lambda: (0, 0, 0, 1, 1), total=1, label="f", target=slow)
    assert one is not None
    assert entered.wait(60)
    one.finish()
    assert calls == [False]
    may_go_on.set()
    until(lambda: len(calls) > 1)
    one.finish()
    with one._lock:  # nobody is at it
        assert calls == [False, True]


def test_an_end_while_the_first_line_is_about_to_be_shown(ticker: _ticker._Ticker) -> None:
    calls: list[bool] = []

    def read() -> tuple[int, int, int, int, int]:
        if started is not None:
            started.finish()  # as another thread does, or the collector
        return (1, 0, 1, 1, 0)

    started: _progress.Progress | None = None
    started = _progress.start(
        read, total=9, label="f", target=lambda counts: calls.append(counts.ended)
    )
    assert started is not None
    started.always_ends = False  # as a bar, which is not shown before its map is some seconds old
    ticker.tick(60.0)
    assert calls == [False, True]


def test_all_that_is_imported_for_nothing_shown(tmp_path: Path) -> None:
    source = """
        import sys
        from manyhands import _progress
        assert _progress.start(lambda: None, total=1, label="f") is None
        print(sorted(n for n in sys.modules if n.startswith("manyhands._progress")))
    """
    assert output_of(tmp_path, source) == "['manyhands._progress']\n"
    assert os.path.exists(_progress_show.__file__)
