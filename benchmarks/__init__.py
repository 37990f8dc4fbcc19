"""manyhands against its peers: `python -m benchmarks`, run from the repository's root.

How a figure comes about
    `workloads/` says what is measured and what must be reached, `peers/` how each library is used,
    at its best usual settings. Each (workload, peer, round) runs in a process of its own
    (`measure.py`), under a hard time limit (`runner.py`). Rounds go over all peers in turns, each
    beginning with another peer, so that noise of the machine hits all alike. Every run checks its
    results; one that fails, hangs or is wrong is shown as such. Figures are medians over rounds.

What comes out
    `results/<date>-<cpu>.json` holds every raw round, with the machine and all versions; beside it
    are the same as Markdown and as an SVG chart, and a summary goes into README.md between the
    markers `<!-- bench:start -->` and `<!-- bench:end -->`. Nothing there is typed by hand.
"""
