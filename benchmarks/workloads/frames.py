"""A pandas frame with Arrow-backed strings, in 16 pieces: `groupby` in tasks, frames back."""

from __future__ import annotations

import statistics
import time

from benchmarks.model import DEFAULT_WORKERS, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.workloads.warm import NAPS, WrongResult

ROWS = 1_000_000
PIECES = 16
PIECE_ROWS = ROWS // PIECES
SHOPS = 500
PRODUCTS = 10_000
PASSES = 3
SHORT_ROWS = 100

_PEERS = ("ppe-fork", "joblib", "mpire", "ray")


def run(peer: Peer, settings: Settings) -> Outcome:
    # As in a user's program, the parent has imported the module of its task, and with it pandas.
    import numpy
    import pandas

    from benchmarks.frame_tasks import with_shares

    numbers = numpy.arange(ROWS)
    shops = [f"shop {number * 7 % SHOPS}" for number in range(ROWS)]
    products = [f"product {number * 11 % PRODUCTS}" for number in range(ROWS)]
    frame = pandas.DataFrame(
        {
            "shop": pandas.array(shops, dtype="string[pyarrow]"),
            "product": pandas.array(products, dtype="string[pyarrow]"),
            "day": numbers % 365,
            "pieces": numbers % 13 + 1,
            "price": numbers % 997 / 10 + 1.0,
            "amount": numbers % 1_999 / 10 + 1.0,
        }
    )
    pieces = [frame.iloc[first : first + PIECE_ROWS] for first in range(0, ROWS, PIECE_ROWS)]
    expected = [with_shares(piece) for piece in pieces]
    seconds = []
    with peer.open(DEFAULT_WORKERS, preload=("pandas",)) as session:
        session.submit_all(*NAPS)
        session.submit_all(with_shares, [frame[:SHORT_ROWS]] * 2 * DEFAULT_WORKERS)
        for _ in range(PASSES):
            begin = time.perf_counter()
            results = session.submit_all(with_shares, pieces)
            seconds.append(time.perf_counter() - begin)
            if not all(map(pandas.DataFrame.equals, results, expected)):
                raise WrongResult("a frame is not the one expected")
    return Outcome({"rate": ROWS / statistics.median(seconds)})


WORKLOAD = Workload(
    name="frames",
    title="A frame of 1,000,000 rows in 16 pieces, frames back",
    peers=(OURS, *_PEERS),
    metrics=(
        Metric(
            key="rate",
            title="rows per second",
            unit="rows/s",
            better="higher",
            must=Bound(1.3, _PEERS, "the best peer"),
            aim=Bound(2.0, _PEERS, "the best peer"),
        ),
    ),
    run=run,
    note="Six columns, two of them strings backed by Arrow. A task does a `groupby` and gives its "
    "rows back with a column more. The median of three passes in a warm pool; the pieces are "
    "slices, made before.",
    rounds=3,
)
