"""A request's priority on a worker, as the gateway encodes it.

It goes in SGLang's field `priority`, the one number of a request that every route takes to the
scheduler: the client's priority, and among equals how many tokens of the prompt the chosen prefill
worker held. A decode worker's queue for room decides who is prefilled next. By arrival,
conversations would come back in the order in which the prefill worker evicts their pages, and a
full pool would hold nothing that is asked for.
"""

from __future__ import annotations

from typing import Final

_HELD_BITS: Final = 24
_MOST_HELD: Final = (1 << _HELD_BITS) - 1


def encode_priority(priority: int, held_tokens: int) -> int:
    """The priority of a request on a decode worker, from the client's and the tokens held."""
    return (priority << _HELD_BITS) + min(held_tokens, _MOST_HELD)


def decode_priority(encoded: int) -> int:
    """The client's priority in an encoded one."""
    return encoded >> _HELD_BITS
