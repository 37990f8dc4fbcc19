"""The task of `frames`, in a module that imports pandas at its top."""

from __future__ import annotations

import pandas


def with_shares(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame, and in a new column what each row's amount is of its shop's."""
    totals = frame.groupby("shop")["amount"].transform("sum")
    return frame.assign(share=frame["amount"] / totals)
