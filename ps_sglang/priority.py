"""What the gateway writes into SGLang's field `priority` of a request, and how to read it.

It is the one number of a request that every route takes to the scheduler: the client's priority,
and among equals how much of the prompt the chosen prefill worker has cached. A decode worker's
queue for room decides who is prefilled next. By arrival, conversations would come back in the
order in which the prefill worker evicts their pages, and a full pool would hold nothing that is
asked for.
"""

from __future__ import annotations

from typing import Final

_CACHED_BITS: Final = 24
_MOST_CACHED: Final = (1 << _CACHED_BITS) - 1


def encode_priority(priority: int, cached_tokens: int) -> int:
    """The number for a client's `priority` and so many cached tokens; higher goes first."""
    return (priority << _CACHED_BITS) + min(cached_tokens, _MOST_CACHED)


def decode_priority(encoded: int) -> int:
    """The client's part of an encoded priority."""
    return encoded >> _CACHED_BITS
