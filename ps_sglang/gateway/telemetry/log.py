"""The gateway's log on stderr, written some lines at a time so that no request waits for it.

Each line about a request names it: what a handler does, and what it starts, runs inside `about`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from ps_sglang.gateway.config import LogFormat
from ps_sglang.gateway.telemetry.lines import LineFormatter

LOGGER: Final = "ps_sglang.gateway"
_DELAY_SECONDS: Final = 0.1
_MOST_LINES: Final = 512
_REQUEST: Final[ContextVar[str]] = ContextVar("request", default="")
FIELDS: Final = "fields"
"""What `extra` of a log call may have: the parts of its message, for JSON."""


@contextmanager
def about(request_id: str) -> Iterator[None]:
    """In this block, and in tasks that begin in it, lines are about a request."""
    token = _REQUEST.set(request_id)
    try:
        yield
    finally:
        _REQUEST.reset(token)


def current_request() -> str:
    """The id of the request that is being served, empty outside of any."""
    return _REQUEST.get()


def line_of(
    log_format: LogFormat, message: str, *, level: str = "INFO", logger: str = LOGGER
) -> str:
    """A line that is no log record: the message itself, or an object that holds it."""
    if log_format is LogFormat.TEXT:
        return message
    return _json_line(level, logger, message, {}, datetime.now(UTC))


def _json_line(
    level: str, logger: str, message: str, fields: Mapping[str, Any], at: datetime
) -> str:
    time = at.isoformat(timespec="milliseconds")
    return json.dumps(
        {"time": time, "level": level, "logger": logger, "message": message, **fields}
    )


class _TextFormatter(LineFormatter):
    """`time logger [request id] message`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        request = _REQUEST.get()
        name = f"{record.name} {request}" if request else record.name
        return f"{record.asctime} {name} {record.message}"


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; a traceback is its field `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {}
        if request := _REQUEST.get():
            fields["request_id"] = request
        fields |= record.__dict__.get(FIELDS, {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        at = datetime.fromtimestamp(record.created, UTC)
        return _json_line(record.levelname, record.name, record.getMessage(), fields, at)


class BufferedHandler(logging.Handler):
    """Writes lines soon after they were logged, and at the latest when the process ends.

    A line of level ERROR is written at once with all before it, and so is every line that is
    logged where no event loop runs.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._is_due = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a line; `logging` calls this under the handler's lock."""
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)
            return
        if record.levelno >= logging.ERROR or len(self._lines) >= _MOST_LINES:
            self.flush()
        elif not self._is_due:
            self._flush_later()

    def flush(self) -> None:
        """Write what waits; `logging` calls this at exit, too."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
        finally:
            self.release()

    def _flush_later(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        self._is_due = True
        loop.call_later(_DELAY_SECONDS, self._flush_due)

    def _flush_due(self) -> None:
        self._is_due = False
        self.flush()


FORMATTERS: Final[Mapping[LogFormat, type[logging.Formatter]]] = {
    LogFormat.TEXT: _TextFormatter,
    LogFormat.JSON: _JsonFormatter,
}


def configure(log_format: LogFormat) -> None:
    """Log to stderr from level INFO on."""
    handler = BufferedHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[log_format]())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # What no format shows need not be found out for each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
