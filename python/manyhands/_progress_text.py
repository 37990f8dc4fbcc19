"""Progress in words and figures: how fast, how long still, and a line that fits its place."""

from __future__ import annotations

import unicodedata
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manyhands._progress import Counts

__all__ = ["Pace", "duration", "line", "sentence"]

_WINDOW_SECONDS = 10.0
_WINDOW_ITEMS = 10
_BAR_COLUMNS = (8, 24)
_LABEL_COLUMNS = (6, 32)

# What a line can do without, in this order.
_LEAST_FIRST = ("workers", "bar", "taken", "rate", "percent", "label", "left")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class _Flow:
    """How many came, and when."""

    def __init__(self, started: float) -> None:
        #: Moments at which the number had grown, in their order; at least one.
        self.samples: deque[tuple[float, int]] = deque([(started, 0)])
        self.longest_gap = 0.0

    def add(self, now: float, number: int) -> None:
        samples = self.samples
        if number > samples[-1][1]:
            samples.append((now, number))
        # Over ten seconds, and at least ten items: slow ones come too rarely for ten seconds.
        while len(samples) > 2 and (
            now - samples[1][0] >= _WINDOW_SECONDS and number - samples[1][1] >= _WINDOW_ITEMS
        ):
            samples.popleft()

    def rate(self, now: float) -> float | None:
        """How many per second; once they stay away, fewer and fewer."""
        (since, first), (last, number) = self.samples[0], self.samples[-1]
        if number == first:
            return None
        until = last if now - last <= self._patience() else now
        return (number - first) / max(until - since, 1e-6)

    def left(self, now: float, missing: int) -> float | None:
        """Seconds until so many more have come; None where none came for too long to tell."""
        (since, first), (last, number) = self.samples[0], self.samples[-1]
        if number == first or now - last > self._patience():
            return None
        # Counted from the last that came, down to when the next is due, and no further.
        per_item = max(last - since, 1e-6) / (number - first)
        return max(missing * per_item - min(now - last, self._gap()), 0.0)

    def _gap(self) -> float:
        """The longest time without any that is usual."""
        moments = [moment for moment, _ in self.samples]
        return max(later - earlier for earlier, later in pairwise(moments))

    def _patience(self) -> float:
        return max(_WINDOW_SECONDS, 2 * self._gap())


class Pace:
    """Rate and time left, from what was seen of a map so far."""

    def __init__(self, started: float) -> None:
        self._done = _Flow(started)
        self._taken = _Flow(started)

    def measure(
        self, now: float, done: int, taken: int, total: int | None, busy: int
    ) -> tuple[float | None, float | None]:
        """Items that end per second, and seconds until the end, each None where nobody knows."""
        self._done.add(now, done)
        self._taken.add(now, taken)
        rate = self._done.rate(now)
        if total is None:
            return rate, None
        left = 0.0 if done >= total else self._done.left(now, total - done)
        if busy == 0 and taken < done:
            # The workers wait for the loop that takes the results.
            loop_left = self._taken.left(now, total - taken)
            if loop_left is None or left is None:
                return rate, loop_left
            left = max(left, loop_left)
        return rate, left


# ------------------------------------------------------------------------------------- in figures


def duration(seconds: float) -> str:
    """A time in the two units that matter: "3 s", "1 min 20 s", "2 h 05 min", "3 d 4 h"."""
    whole = int(seconds + 0.5)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole} s"
    if hours < 1:
        return f"{minutes} min {whole % 60:02} s"
    if days < 1:
        return f"{hours} h {minutes % 60:02} min"
    return f"{days} d {hours % 24} h"


def _left(seconds: float) -> str:
    return f"{duration(max(seconds, 1.0))} left"  # "0 s" would be a promise


def _rate(rate: float) -> str:
    if rate >= 10:
        return f"{rate:,.0f}/s"
    if rate >= 1:
        return f"{rate:.1f}/s"
    if rate * 60 >= 1:
        return f"{rate * 60:.0f}/min"
    return f"{rate * 3600:.0f}/h"


def _percent(counts: Counts) -> int:
    total = counts.total or 0
    return 100 if counts.done >= total else counts.done * 100 // total


def _many(number: int, one: str) -> str:
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


# ---------------------------------------------------------------------------------------- one line


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    columns = 0
    for character in text:
        if not unicodedata.combining(character):
            columns += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return columns


def _label(text: str, columns: int, unicode: bool) -> str:
    """The text in one line of at most so many columns."""
    safe = text if unicode else text.encode("ascii", "replace").decode("ascii")
    shown = "".join(character if character.isprintable() else "?" for character in safe)
    if _columns(shown) <= columns:
        return shown
    mark = "…" if unicode else "~"
    while shown and _columns(shown) > columns - 1:
        shown = shown[:-1]
    return shown + mark


def _bar(fraction: float, columns: int, unicode: bool) -> str:
    """A bar that takes so many columns, its ends included."""
    inside = columns - 2
    if not unicode:
        return f"[{'#' * int(fraction * inside):<{inside}}]"
    eighths = int(fraction * inside * 8)
    full, rest = divmod(eighths, 8)
    part = _EIGHTHS[rest] if rest else ""
    return f"▕{'█' * full + part:<{inside}}▏"


def line(counts: Counts, label: str, columns: int, unicode: bool, *, bar: bool = True) -> str:
    """One line of at most so many columns; where they are few, what matters least is left out."""
    total = counts.total
    texts = {"label": _label(label, _LABEL_COLUMNS[1], unicode)}
    if total is None:
        texts["number"] = f"{counts.done:,} done"
    else:
        texts["percent"] = f"{_percent(counts):3}%"
        if bar:
            texts["bar"] = " " * _BAR_COLUMNS[0]
        texts["number"] = f"{counts.done:>{len(f'{total:,}')},}/{total:,}"
    if counts.busy == 0 and counts.taken < counts.done:
        texts["taken"] = f"{counts.taken:,} taken"
    if counts.rate is not None:
        texts["rate"] = _rate(counts.rate)
    if total is None:
        texts["left"] = duration(counts.elapsed)
    elif counts.left is not None:
        texts["left"] = _left(counts.left)
    if counts.failed:
        texts["failed"] = f"{counts.failed:,} failed"
    texts["workers"] = _many(counts.workers, "worker")

    for name in _LEAST_FIRST:
        room = columns - _width(texts)
        if room >= 0:
            break
        shorter = _columns(texts.get("label", "")) + room
        if "workers" not in texts and shorter >= _LABEL_COLUMNS[0]:
            texts["label"] = _label(texts["label"], shorter, unicode)
            break
        texts.pop(name, None)
    if "bar" in texts and total is not None:
        fraction = min(counts.done / total, 1.0) if total else 1.0
        wide = min(_BAR_COLUMNS[0] + max(columns - _width(texts), 0), _BAR_COLUMNS[1])
        texts["bar"] = _bar(fraction, wide, unicode)
    return _label("  ".join(texts.values()).lstrip(), columns, unicode)


def _width(texts: dict[str, str]) -> int:
    return sum(map(_columns, texts.values())) + 2 * (len(texts) - 1)


# ----------------------------------------------------------------------------------- in a sentence


def sentence(counts: Counts, label: str) -> str:
    """What a log gets: "parse_file: 6,312 of 10,000 items (63 %), 1,204/s, 3 s left, 2 failed"."""
    total, done = counts.total, counts.done
    items = _many(done, "item")
    if counts.ended and (total is None or done >= total):
        words = [f"{items} in {duration(counts.elapsed)}"]
    elif counts.ended:
        words = [f"stopped after {done:,} of {_many(total or 0, 'item')}"]
        words.append(duration(counts.elapsed))
    elif total is None:
        words = [f"{items} in {duration(counts.elapsed)}"]
    else:
        words = [f"{done:,} of {_many(total, 'item')} ({_percent(counts)} %)"]
    if counts.ended:
        if counts.elapsed > 0 and done:
            words.append(_rate(done / counts.elapsed))
    else:
        if counts.rate is not None:
            words.append(_rate(counts.rate))
        if counts.left is not None:
            words.append(_left(counts.left))
    if counts.failed:
        words.append(f"{counts.failed:,} failed")
    return f"{_label(label, _LABEL_COLUMNS[1], True)}: {', '.join(words)}"
