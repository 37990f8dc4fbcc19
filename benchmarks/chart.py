"""The overview as an SVG: how many times as good as the best peer, on a logarithmic axis.

Everything is drawn on a card with its own background, light or dark as the reader prefers, so that
it can be read on any page. Text stays text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks import peers
from benchmarks.model import OURS
from benchmarks.verdict import Judgement, advantage
from benchmarks.wording import number, unit_name

WIDTH = 960
MARGIN = 28
LABELS_WIDTH = 366
VALUES_WIDTH = 62
ROW_HEIGHT = 42
BAR_HEIGHT = 16
HEADER_HEIGHT = 104
FOOTER_HEIGHT = 44
DOT_RADIUS = 3.5
PLOT_LEFT = MARGIN + LABELS_WIDTH
PLOT_RIGHT = WIDTH - MARGIN - VALUES_WIDTH
# Peers that are further behind than this stand at the left edge.
FARTHEST_BEHIND = 0.01
TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)

_STYLE = """\
svg { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.card { fill: #ffffff; stroke: #d0d7de; }
.title { font-size: 19px; font-weight: 600; fill: #1f2328; }
.subtitle, .detail, .tick, .legend { fill: #59636e; }
.subtitle { font-size: 12px; }
.legend { font-size: 12px; }
.label { font-size: 13px; font-weight: 600; fill: #1f2328; }
.detail { font-size: 11px; }
.tick { font-size: 11px; text-anchor: middle; }
.value { font-size: 13px; font-weight: 600; fill: #1f2328; }
.grid { stroke: #e4e8ec; }
.even { stroke: #59636e; stroke-width: 1.5; }
.better { fill: #0b7285; }
.worse { fill: #c2410c; }
.peer { fill: #ffffff; stroke: #7d8590; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
.card { fill: #151b23; stroke: #3d444d; }
.title, .label, .value { fill: #f0f6fc; }
.subtitle, .detail, .tick, .legend { fill: #9198a1; }
.grid { stroke: #2a313c; }
.even { stroke: #9198a1; }
.better { fill: #3bc9db; }
.worse { fill: #ff922b; }
.peer { fill: #151b23; stroke: #9198a1; }
}"""


def draw(judgements: Sequence[Judgement], subtitle: str) -> str:
    """The chart; metrics without a figure of ours are named in it as failed."""
    axis = _Axis.for_all(judgements)
    plot_bottom = HEADER_HEIGHT + ROW_HEIGHT * len(judgements)
    height = plot_bottom + FOOTER_HEIGHT
    description = "; ".join(
        f"{_label(judgement)}: {_factor(judgement)}" for judgement in judgements
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-labelledby="title description">',
        '<title id="title">manyhands against the best peer, per workload</title>',
        f'<desc id="description">{escape(description)}</desc>',
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
        _text(MARGIN, 36, "title", "manyhands against the best peer"),
        _text(MARGIN, 56, "subtitle", subtitle),
        *_legend(),
        *_grid(axis, plot_bottom),
    ]
    for position, judgement in enumerate(judgements):
        lines += _row(judgement, axis, HEADER_HEIGHT + ROW_HEIGHT * position)
    lines.append(
        f'<line class="even" x1="{axis.x(1):.1f}" x2="{axis.x(1):.1f}" y1="{HEADER_HEIGHT - 4}" '
        f'y2="{plot_bottom}"/>'
    )
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


class _Axis:
    """A logarithmic scale from factors to the drawing's x."""

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    @classmethod
    def for_all(cls, judgements: Sequence[Judgement]) -> _Axis:
        ours = [1.0, *(one.advantage for one in judgements if one.advantage is not None)]
        behind = [factor for judgement in judgements for factor in _peer_factors(judgement)]
        # Our own bars are never cut off.
        low = min(*ours, *(max(factor, FARTHEST_BEHIND) for factor in behind), 1.0)
        # Some room beyond the longest bar, and never a scale so narrow that it exaggerates.
        return cls(min(low / 1.2, 0.3), max(max(ours) * 1.2, 3.0))

    def x(self, factor: float) -> float:
        share = math.log(factor / self.low) / math.log(self.high / self.low)
        return PLOT_LEFT + min(max(share, 0.0), 1.0) * (PLOT_RIGHT - PLOT_LEFT)


def _legend() -> list[str]:
    y = 80
    entries = (
        ('<rect class="better" x="{x}" y="{bar}" width="16" height="9" rx="2"/>', 22, "better"),
        ('<rect class="worse" x="{x}" y="{bar}" width="16" height="9" rx="2"/>', 22, "worse"),
        ('<line class="even" x1="{x}" x2="{x}" y1="{top}" y2="{y}"/>', 8, "the best peer"),
        ('<circle class="peer" cx="{x}" cy="{middle}" r="3.5"/>', 10, "other peers"),
    )
    lines = []
    x = MARGIN
    for shape, gap, text in entries:
        lines.append(shape.format(x=x, y=y + 1, top=y - 11, bar=y - 9, middle=y - 4.5))
        lines.append(_text(x + gap, y, "legend", text))
        x += gap + 7 * len(text) + 22
    return lines


def _grid(axis: _Axis, plot_bottom: int) -> list[str]:
    lines = []
    for tick in TICKS:
        if not axis.low <= tick <= axis.high:
            continue
        x = axis.x(tick)
        lines.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEADER_HEIGHT - 4}" '
            f'y2="{plot_bottom}"/>'
        )
        lines.append(_text(x, plot_bottom + 17, "tick", f"{tick:g}×"))
    middle = (PLOT_LEFT + PLOT_RIGHT) / 2
    note = "times as good as the best peer (logarithmic)"
    lines.append(_text(middle, plot_bottom + 34, "tick", note))
    return lines


def _row(judgement: Judgement, axis: _Axis, top: int) -> list[str]:
    middle = top + ROW_HEIGHT / 2
    lines = [
        _text(MARGIN, middle - 3, "label", _label(judgement)),
        _text(MARGIN, middle + 12, "detail", _detail(judgement)),
    ]
    even = axis.x(1)
    value = _factor(judgement)
    end = even
    if judgement.advantage is not None:
        end = axis.x(judgement.advantage)
        kind = "better" if judgement.advantage >= 1 else "worse"
        lines.append(
            f'<rect class="{kind}" x="{min(even, end):.1f}" y="{middle - BAR_HEIGHT / 2:.1f}" '
            f'width="{max(abs(end - even), 1):.1f}" height="{BAR_HEIGHT}" rx="2"/>'
        )
    # The best peer itself is the line at 1.
    for factor in _peer_factors(judgement):
        if factor < 1:
            x = max(axis.x(factor), PLOT_LEFT + DOT_RADIUS)
            lines.append(f'<circle class="peer" cx="{x:.1f}" cy="{middle:.1f}" r="{DOT_RADIUS}"/>')
    lines.append(_text(max(even, end) + 8, middle + 4.5, "value", value))
    return lines


def _peer_factors(judgement: Judgement) -> list[float]:
    """How good each competing peer is, as a factor of the best one."""
    best = judgement.figures[judgement.best_peer].median if judgement.best_peer else None
    if best is None:
        return []
    factors = [
        advantage(judgement.metric, figure.median, best)
        for key, figure in judgement.figures.items()
        if key != OURS and figure.median is not None and peers.by_key(key).competes
    ]
    return [factor for factor in factors if factor is not None]


def _label(judgement: Judgement) -> str:
    title = judgement.workload.title
    if len(judgement.workload.metrics) > 1:
        title += f": {judgement.metric.title}"
    return title


def _detail(judgement: Judgement) -> str:
    ours = judgement.figures.get(OURS)
    if ours is None or ours.median is None or judgement.best_peer is None:
        return ""
    best = judgement.figures[judgement.best_peer]
    theirs = number(best.median) if best.median is not None else "–"
    label = peers.by_key(judgement.best_peer).label
    unit = unit_name(judgement.metric)
    return f"{number(ours.median)} {unit}; best peer {theirs}, {label}"


def _factor(judgement: Judgement) -> str:
    if judgement.verdict == "failed":
        return "failed"
    if judgement.advantage is None:
        return "no peer"
    return f"{number(judgement.advantage)}×"


def _text(x: float, y: float, kind: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'
