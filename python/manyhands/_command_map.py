"""`manyhands map`: a function, its inputs, and a line of output for each."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import sys
import traceback
import types
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from manyhands._command_input import Flow, PathInput, RecordInput
from manyhands._command_line import BROKEN_PIPE, INTERRUPTED, UsageError, tell
from manyhands._command_output import Output, keep_standard_output
from manyhands._command_target import find_function
from manyhands._command_task import (
    BadResult,
    MalformedRecord,
    Work,
    encode_line,
    make_task,
)
from manyhands._describe import users_part
from manyhands._errors import RemoteTraceback

__all__ = ["MapArguments", "run_map"]

_SOME_FAILED = 1
_TERMINATED = 143
# Failures that are told one by one; all are counted.
_TOLD = 5
_SENTENCE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class MapArguments:
    """What was typed, as `Map` of the crate `manyhands-cli` describes it."""

    module: str | None
    file: str | None
    function: str
    paths: list[str]
    form: str
    records: str | None
    keywords: bool
    output: str
    pickle: bool
    workers: int | None
    engine: str | None
    unordered: bool
    on_error: str
    batch: int | None
    progress: bool | None
    settings: list[tuple[str, str]]


class _Terminated(KeyboardInterrupt):
    """SIGTERM: the run ends as by Ctrl-C."""


class _Stopped(Exception):
    """An item failed, and that ends the run."""


def run_map(arguments: MapArguments) -> int:
    """Runs the function over its inputs; the exit code."""
    run = _Run(arguments)
    try:
        signal.signal(signal.SIGTERM, _terminate)
        run.prepare(keep_standard_output())
        run.run()
    except UsageError:
        raise
    except _Stopped:
        code = _SOME_FAILED
    except KeyboardInterrupt as interrupt:
        code = _TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        tell(f"error: {place}{error.strerror or error}.")
        code = _SOME_FAILED
    except Exception:
        run.abandon(quietly=False)
        raise
    else:
        return run.conclude()
    run.abandon(quietly=code == BROKEN_PIPE)
    _end_now(code)
    return code


def _terminate(number: int, frame: types.FrameType | None) -> None:
    raise _Terminated


def _end_now(code: int) -> None:
    """Ends what still runs, instead of waiting for it as the end of a program does."""
    from manyhands._pool import _end_all_but_for_threads

    if not _end_all_but_for_threads():
        # Threads cannot be ended, and Python would wait for them.
        if sys.stderr is not None:
            sys.stderr.flush()
        os._exit(code)


class _Run:
    def __init__(self, arguments: MapArguments) -> None:
        self._arguments = arguments
        self._flow = Flow(arguments.batch or 1)
        self._total: int | None = None
        self._done = 0
        self._failed = 0
        self._output: Output | None = None
        self._hint: Any = None
        self._input: PathInput | RecordInput
        self._task: Any
        self._streams = False

    def prepare(self, standard: int | None) -> None:
        """Looks at all that was typed before anything is run."""
        arguments = self._arguments
        _configure(arguments.settings)
        function = find_function(arguments.module, arguments.file, arguments.function)
        if arguments.records is None:
            self._input = PathInput(arguments.paths)
        else:
            self._input = RecordInput(arguments.records, arguments.form)
        self._total = self._input.total
        self._output = Output(arguments.output, standard, binary=arguments.pickle)
        work = Work(
            arguments.form,
            self._input.header,
            keywords=arguments.keywords,
            pickle=arguments.pickle,
        )
        batches = arguments.batch is not None
        self._streams = not batches and inspect.isgeneratorfunction(inspect.unwrap(function))
        self._task = make_task(function, work, batches=batches, streams=self._streams)

    def run(self) -> None:
        """Runs the function over all inputs, and writes what comes."""
        arguments = self._arguments
        assert self._output is not None
        manyhands: Any = import_module("manyhands")
        try:
            results = manyhands.map(
                self._task,
                self._input.items(self._flow),
                engine=arguments.engine,
                workers=arguments.workers,
                ordered=not arguments.unordered,
                on_error="return",
                total=self._total,
                batch=arguments.batch,
                progress=arguments.progress,
            )
        except (TypeError, ValueError) as error:
            self._output.discard()
            raise UsageError(f"{error}.") from None
        with closing(results):
            self._write(results, manyhands.Failure)
        self._hint = results._hint()
        self._output.complete()

    def _write(self, results: Iterable[Any], failure: type) -> None:
        assert self._output is not None
        write = self._output.write
        for end in results:
            if isinstance(end, bytes):
                write(end)
                if self._streams and end:
                    continue  # its item has not ended
                self._flow.returned += 1
                self._done += 1
            elif end is None:
                self._flow.returned += 1
            elif isinstance(end, failure):
                self._take_failure(end)
            else:
                self._flow.returned += 1
                self._fail(end.index, end.reference, end.error, {})

    def _take_failure(self, failure: Any) -> None:
        # Of a batch that failed, each item did.
        items = failure.input if isinstance(failure.input, list) else [failure.input]
        self._flow.returned += len(items)
        more = {"attempts": failure.attempts, "pid": failure.pid}
        for item in items:
            if item is None:
                self._fail(failure.index, "an input that is not known", failure.exception, more)
            elif item:  # a pause that failed costs nothing
                self._fail(item[0], item[1], failure.exception, more)

    def _fail(self, index: int, reference: str, error: BaseException, more: dict[str, Any]) -> None:
        self._failed += 1
        if self._failed <= _TOLD or self._arguments.on_error == "raise":
            what = _message(error)
            if not isinstance(error, MalformedRecord | BadResult):
                what = f"{_type_name(error)}: {what}"
            tell(f"item {index:,} ({reference}) failed: {_shortened(what)}")
        if self._arguments.on_error == "raise":
            text = _traceback(error)
            if text is not None:
                tell(text.rstrip())
            raise _Stopped
        if self._failed == _TOLD + 1:
            tell("more items failed; from here on they are only counted")
        if self._arguments.on_error == "return":
            assert self._output is not None
            self._output.write(self._encoded(index, reference, error, more))

    def _encoded(
        self, index: int, reference: str, error: BaseException, more: dict[str, Any]
    ) -> bytes:
        described: dict[str, Any] = {"type": _type_name(error), "message": _message(error)}
        text = _traceback(error)
        if text is not None:
            described["traceback"] = text
            described |= more
        entry = {"index": index, "input": reference, "error": described}
        return pickle.dumps(entry) if self._arguments.pickle else encode_line(entry)

    def conclude(self) -> int:
        """Says how it went, where there is something to say; the exit code."""
        if self._hint is not None and sys.stderr is not None and sys.stderr.isatty():
            tell(f"hint: {self._hint.as_arguments()}")
        if not self._failed:
            return 0
        kept = self._arguments.on_error == "return"
        name = None if self._output is None else self._output.name
        where = f"; the errors are in {name}" if kept and name else ""
        tell(f"{self._failed:,} of {_items(self._done + self._failed)} failed{where}")
        return _SOME_FAILED

    def abandon(self, *, quietly: bool) -> None:
        """Keeps what is done, and says how much it is and where."""
        if self._output is None:
            return
        self._output.abandon()
        if quietly:
            return
        ended = self._done + self._failed
        of = _items(ended) if self._total is None else f"{ended:,} of {_items(self._total)}"
        kept = self._output.partial
        tell(f"stopped after {of}" + (f"; what is done is in {kept}" if kept else ""))


def _items(count: int) -> str:
    return f"{count:,} item" if count == 1 else f"{count:,} items"


def _configure(settings: list[tuple[str, str]]) -> None:
    if not settings:
        return
    manyhands: Any = import_module("manyhands")
    known = list(inspect.signature(manyhands.configure).parameters)
    for key, text in settings:
        if key not in known:
            near = get_close_matches(key, known)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(
                f"There is no setting {key}.", f"{hint}the settings are {', '.join(known)}"
            )
        try:
            manyhands.configure(**{key: _setting_value(text)})
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"--config {key}={text} is refused: {error}.",
                f"the settings are {', '.join(known)}",
            ) from None


def _setting_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _type_name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ == "builtins" or isinstance(error, MalformedRecord | BadResult):
        return kind.__qualname__
    package = "manyhands" if kind.__module__.startswith("manyhands._") else kind.__module__
    return f"{package}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # the user's `__str__`
        return f"<its str() raised {type(problem).__name__}>"


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SENTENCE else f"{text[: _SENTENCE - 1]}…"


def _traceback(error: BaseException) -> str | None:
    """The traceback as the user's code sees it; None for what no code of theirs raised."""
    if isinstance(error, MalformedRecord | BadResult):
        return None
    if isinstance(error.__cause__, RemoteTraceback):
        return error.__cause__.text
    trace = users_part(error.__traceback__)
    if trace is None:
        return None
    return "".join(traceback.format_exception(type(error), error, trace))
