"""What the tests of all folders share: a watchdog that says more of a hang than stacks."""

from __future__ import annotations

import pytest

import watchdog

_watchdogs: list[watchdog.Watchdog] = []


def pytest_configure(config: pytest.Config) -> None:
    limit = float(config.getini("faulthandler_timeout") or 0)
    if limit > 0:
        _watchdogs.append(watchdog.start(limit))


def pytest_runtest_logstart(nodeid: str) -> None:
    for dog in _watchdogs:
        dog.begin(nodeid)


def pytest_runtest_logfinish() -> None:
    for dog in _watchdogs:
        dog.end()
