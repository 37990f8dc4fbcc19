"""What the tests of all folders share: a watchdog that tells more of a hang than stacks; Ctrl-C."""

from __future__ import annotations

import signal

import pytest

import watchdog

_watchdogs: list[watchdog.Watchdog] = []


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts something in the background has it ignore Ctrl-C, and all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    limit = float(config.getini("faulthandler_timeout") or 0)
    if limit > 0:
        _watchdogs.append(watchdog.start(limit))


def pytest_runtest_logstart(nodeid: str) -> None:
    for dog in _watchdogs:
        dog.begin(nodeid)


def pytest_runtest_logfinish() -> None:
    for dog in _watchdogs:
        dog.end()
