"""How numbers, units and bounds are written, the same in tables and charts."""

from __future__ import annotations

import math

from benchmarks.model import Metric
from benchmarks.verdict import Check


def check_text(metric: Metric, check: Check | None) -> str:
    """A bound and what was reached, as in `≥ 5 × mp.Pool: 7.3`."""
    if check is None:
        return "–"
    bound = check.bound
    limit = f"{bound.limit:.3g}"
    reached = number(check.value) if check.value is not None else "no figure"
    if bound.kept_from is not None:
        return f"≥ {limit} of its advantage on all CPUs: {reached}"
    sign = "≥" if metric.better == "higher" else "≤"
    if bound.against:
        return f"{sign} {limit} × {bound.against_label}: {reached}"
    return f"{sign} {limit} {unit_name(metric)}: {reached}"


def number(value: float) -> str:
    """Three digits, the ones that count; whole numbers without a fraction."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    if value == round(value):
        return f"{rounded:,.0f}"
    # Rounding may have carried into one more digit: 9.996 becomes 10.0.
    return f"{rounded:,.{max(2 - math.floor(math.log10(abs(rounded))), 0)}f}"


def unit_name(metric: Metric) -> str:
    return "µs" if metric.unit == "us" else metric.unit
