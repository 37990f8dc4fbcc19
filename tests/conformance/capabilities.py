"""What each engine can do, and what it cannot.

The tests of this folder run on every engine. Where engines differ a test asks for a flag, never for
a name, and says what happens with it and without it. `test_capabilities.py` looks whether the flags
are true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import manyhands as mh


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an engine can do."""

    name: str

    # A task that ends its process costs that task; the program goes on.
    isolation: bool
    # Tasks run in processes of their own, each with its pid.
    own_pids: bool
    # A task has private copies of its arguments, and the caller a copy of its result. So what
    # cannot be pickled cannot be an argument or a result.
    copies: bool
    # What a function has captured, its defaults and its `self` are copies as well, as they were
    # when the map was made; without it tasks and caller use the same ones.
    copies_functions: bool
    # `copy=False` is accepted, and then arguments are the very objects.
    shares_on_request: bool
    # Tasks run while the caller goes on: a future can be pending, be waited for and be cancelled.
    background: bool
    # Two tasks run at the same time.
    parallel: bool
    # Whoever waits for a task that runs goes on at once when it is ended: by `cancel`, by a time
    # limit, by leaving the block with an exception. Without it, where the caller runs the task
    # itself, its end is waited for.
    kill: bool
    # A task that does not end when it is asked to is killed, whatever it does. Without it the pool
    # goes on without its thread.
    force: bool
    # A Ctrl-C that comes while a task runs in the calling thread is the caller's, who can't tell it
    # from a KeyboardInterrupt of the task's own: such a one ends the call, or the map.
    interrupts_caller: bool
    # An exception comes as the very object that was raised, its frames in its own traceback.
    # Without it they are in the text of its cause, a `RemoteTraceback`.
    own_exceptions: bool


PROCESS = Capabilities(
    name="process",
    isolation=True,
    own_pids=True,
    copies=True,
    copies_functions=True,
    shares_on_request=False,
    background=True,
    parallel=True,
    kill=True,
    force=True,
    interrupts_caller=False,
    own_exceptions=False,
)

THREAD = Capabilities(
    name="thread",
    isolation=False,
    own_pids=False,
    copies=False,
    copies_functions=False,
    shares_on_request=True,
    background=True,
    parallel=True,
    kill=True,
    force=False,
    interrupts_caller=False,
    own_exceptions=True,
)

INLINE = Capabilities(
    name="inline",
    isolation=False,
    own_pids=False,
    copies=True,
    copies_functions=False,
    shares_on_request=True,
    background=False,
    parallel=False,
    kill=False,
    force=False,
    interrupts_caller=True,
    own_exceptions=True,
)

ENGINES = (PROCESS, THREAD, INLINE)


@dataclass(frozen=True)
class Mapping:
    """`map` and `starmap` of a pool, or of the module for the same engine and number of workers."""

    engine: Capabilities
    map: Callable[..., mh.Results[Any]]
    starmap: Callable[..., mh.Results[Any]]
