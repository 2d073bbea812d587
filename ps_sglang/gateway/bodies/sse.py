"""Server-sent events, as SGLang's and OpenAI's streams use them."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"


async def read_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield each event, with the blank line that ends it, as soon as it has arrived whole.

    What follows the last blank line is no event and is dropped.
    """
    buffer = bytearray()
    searched = 0
    async for chunk in chunks:
        buffer += chunk
        while (end := buffer.find(b"\n\n", searched)) >= 0:
            yield bytes(buffer[: end + 2])
            del buffer[: end + 2]
            searched = 0
        # The blank line itself may be split between two chunks.
        searched = max(0, len(buffer) - 1)


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
