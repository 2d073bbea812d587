"""Log lines that stay one line each, whatever a client has sent.

A client's text that begins a line of its own would be read as the gateway's, by people and by
programs; a terminal acts on control characters.
"""

from __future__ import annotations

import logging

_CONTINUED = "  | "  # no line of a log begins so


def one_line(text: str) -> str:
    """The text with what is not printable as an escape, `\\n` for the end of a line."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def one_word(text: str) -> str:
    """As `one_line`, with blanks escaped as well: no text can bring in a field of its own."""
    return one_line(text).replace(" ", "\\x20")


class LineFormatter(logging.Formatter):
    """Formats a record as one line; those of a traceback follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Nothing is taken from what another formatter has left in the record."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        lines = [one_line(self.formatMessage(record))]
        if record.exc_info:
            # Its last lines may repeat what a client sent.
            lines += (
                _CONTINUED + one_line(line)
                for line in self.formatException(record.exc_info).split("\n")
            )
        return "\n".join(lines)
