"""Server-sent events, as SGLang's and OpenAI's streams use them."""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"


class Splitter:
    """Cuts what arrives, in pieces of any size, into events."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def events(self, piece: bytes) -> list[bytes]:
        """The events that are whole now, each with the blank line that ends it."""
        buffer = self._buffer
        if not buffer and 0 <= piece.find(b"\n\n") == len(piece) - 2:
            return [piece]  # as nearly always
        buffer += piece
        events, start = [], 0
        while (end := buffer.find(b"\n\n", self._searched)) >= 0:
            events.append(bytes(buffer[start : end + 2]))
            start = self._searched = end + 2
        del buffer[:start]
        # The blank line itself may be split between two pieces.
        self._searched = max(0, len(buffer) - 1)
        return events


def event(payload: Any) -> bytes:
    """One event that carries `payload` as JSON."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def payload(data: bytes) -> dict[str, Any] | None:
    """The JSON object that an event carries, or None if it carries none (`[DONE]`, a comment)."""
    lines = [line[5:] for line in data.split(b"\n") if line.startswith(b"data:")]
    try:
        content = msgspec.json.decode(b"\n".join(lines))
    except msgspec.DecodeError:
        return None
    return content if isinstance(content, dict) else None
