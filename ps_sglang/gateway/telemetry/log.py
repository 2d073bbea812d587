"""The gateway's log on stderr, written some lines at a time so that no request waits for it."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Final, TextIO

from ps_sglang.gateway.telemetry.lines import LineFormatter

_DELAY_SECONDS: Final = 0.1
_MOST_LINES: Final = 512


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


def configure() -> None:
    """Log to stderr from level INFO on."""
    handler = BufferedHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # What the format does not show need not be found out for each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
