"""What a process does where it forks: a child has one thread, and nothing of its parent's pools."""

from __future__ import annotations

import os
import sys

from manyhands import _core

__all__ = ["watch"]

# Modules that have something of the process: locks, for one, which another thread of the parent may
# have held, and for which a child would wait for ever. Most are imported late, or never.
_WITH_A_PARENT = (
    "_broadcast",
    "_capture",
    "_default",
    "_encoding",
    "_follower",
    "_future",
    "_launch",
    "_module_globals",
    "_nested",
    "_pool",
    "_shared",
    "_threads",
)

_is_watched = False


def watch() -> None:
    """From now on; more than once is no more."""
    global _is_watched
    if _is_watched:
        return
    _is_watched = True
    os.register_at_fork(
        before=_core.before_fork,
        after_in_parent=_core.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def _after_fork_in_child() -> None:
    _core.after_fork_in_child()
    for name in _WITH_A_PARENT:
        module = sys.modules.get(f"manyhands.{name}")
        # It may have been imported by another thread, half.
        forget = getattr(module, "forget_parent", None)
        if forget is not None:
            forget()
