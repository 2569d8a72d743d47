"""The log, on standard error: lines for people on a terminal, JSON elsewhere.

A `LineWriter` writes them: if nobody reads the log, or the disk is slow or full, the service goes on.
"""

import functools
import logging
import os
import sys
import time
from collections.abc import MutableMapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from pydantic_core import from_json, to_json

from app.server.line_writer import LineWriter

log = structlog.get_logger()


_STDERR: Final = 2
_CLOSE_SECONDS: Final = 2.0  # that the end of the process waits for somebody to read the log
_MAX_TEXT_CHARS: Final = 1024  # of one fact
_MAX_TRACEBACK_CHARS: Final = 8192
_MAX_REPETITIONS: Final = 10  # of one event, in one second
_MAX_KNOWN_EVENTS: Final = 256


def _tell_dropped(count: int) -> None:
    log.warning("lines of the log were dropped: nobody read it, or it could not be written", lines=count)


_writer = LineWriter(_STDERR, _tell_dropped)


class _Stderr:
    """Standard error without errors, and without waiting."""

    def write(self, text: str) -> None:
        _writer.put(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Do nothing: the writer does."""


class _Logger:
    """Hands the lines of structlog to the writer.

    It has no lock, as the loggers of structlog do: the writer logs that lines were dropped, within a line that it gets.
    """

    def msg(self, text: str) -> None:
        """Write a line."""
        _writer.put(f"{text}\n".encode(errors="backslashreplace"))

    debug = info = warning = error = critical = msg


class _Repetitions:
    """Admits 10 lines a second of each event, so that clients cannot fill the log."""

    def __init__(self) -> None:
        self.dropped = 0  # lines, since the start
        # By event: when its second began, and how many lines were admitted and dropped since then.
        self._seen: dict[str, tuple[float, int, int]] = {}

    def admit(self, event: str) -> int | None:
        """Count a line of an event.

        Returns:
            How many lines of this event were dropped before this one; None: this one is to be dropped.
        """
        now = time.monotonic()
        began, admitted, dropped = self._seen.get(event, (now, 0, 0))
        if now - began >= 1:
            began, admitted = now, 0
        if admitted >= _MAX_REPETITIONS:
            self.dropped += 1
            self._seen[event] = began, admitted, dropped + 1
            return None
        if len(self._seen) >= _MAX_KNOWN_EVENTS:
            self._seen.clear()
        self._seen[event] = began, admitted + 1, 0
        return dropped

    def process(self, _logger: Any, _method: str, facts: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Drop a line of structlog, or add how many lines like it were dropped. Lines of the audit are all admitted."""
        if "outcome" not in facts:
            dropped = self.admit(str(facts["event"]))
            if dropped is None:
                raise structlog.DropEvent
            if dropped:
                facts["dropped_before"] = dropped
        return facts

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line of the logging module is admitted."""
        return self.admit(f"{record.name}: {record.msg}") is not None


_repetitions = _Repetitions()


def _shorten(_logger: Any, _method: str, facts: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut long texts, which a client may have sent. Of a traceback the end is what matters."""
    for name, value in facts.items():
        if isinstance(value, str) and len(value) > _MAX_TEXT_CHARS:
            if name == "exception":
                facts[name] = value[-_MAX_TRACEBACK_CHARS:]
            else:
                facts[name] = value[:_MAX_TEXT_CHARS] + "…"
    return facts


def start() -> None:
    """Write the log in a thread from here on. Its rights are those of this thread."""
    _writer.start()


def finish() -> None:
    """Write what waits to be written, for 2 s at most."""
    _writer.close(_CLOSE_SECONDS)


def dropped_lines() -> dict[str, int]:
    """Return how many lines were dropped since the start, by the reason."""
    return {"log": _writer.dropped, "repeated": _repetitions.dropped}


def file_writer(fd: int) -> LineWriter:
    """Return a writer for the audit file, with a thread of its own. The log tells which lines are lost."""

    def tell_failed(reason: str, lines: bytes) -> None:
        for line in lines.splitlines():
            try:
                facts = from_json(line)
                operation = facts.pop("what")
            except (ValueError, AttributeError, KeyError):  # a part of a line
                operation, facts = None, {"line": line.decode(errors="replace"), "outcome": "unknown"}
            facts.pop("event", None)
            log.warning("the audit file cannot be written", **{**facts, "error": reason, "event_lost": operation})

    def tell_dropped(count: int) -> None:
        log.warning("lines of the audit were dropped: the file could not be written, or not in time", lines=count)

    writer = LineWriter(-1, tell_dropped, tell_failed)
    writer.start()
    writer.switch(fd)
    return writer


def _json(event: object, **_: Any) -> str:
    return to_json(event, fallback=repr).decode()


@functools.cache
def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def log_events(lines: Sequence[tuple[str, bytes]]) -> None:
    """Log several events with one write: one write for each would cost a tenth of the time of a change.

    Args:
        lines: The text of each event, and its facts as the members of a JSON object.
    """
    if _is_terminal():
        for event, facts in lines:
            log.info(event, **from_json(b"{%b}" % facts))
        return
    end = f'"level":"info","timestamp":"{datetime.now(UTC).isoformat().replace("+00:00", "Z")}"}}\n'.encode()
    _writer.put(b"".join([b'{%b,"event":"%b",%b' % (facts, event.encode(), end) for event, facts in lines]))


def configure() -> None:
    """Set up structlog, and give the lines of uvicorn and asyncio the same form."""
    _open_standard_files()
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _shorten,
    ]
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if _is_terminal()
        else [structlog.processors.format_exc_info, _shorten, structlog.processors.JSONRenderer(_json)]
    )
    # The service's own lines bypass the logging module: with it, a line costs a quarter of the time of a change.
    structlog.configure(
        processors=[_repetitions.process, *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _Logger(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    handler.addFilter(_repetitions.filter)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    # uvicorn tells of each step of its start and stop, in words of its own; what matters is logged by the service.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _open_standard_files() -> None:
    """Open those of the files 0, 1 and 2 that are closed. Otherwise the journal could be opened as standard error."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
