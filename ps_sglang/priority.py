"""A request's place among those that wait on a worker, as the gateway tells it.

It goes in SGLang's field `priority`, the one number of a request that every route takes to the
scheduler: the client's priority, and among equals how much of the prompt the chosen prefill worker
held. A decode worker's queue for room decides who is prefilled next. By arrival, conversations
would come back in the order in which the prefill worker lets their pages go, and a full pool would
hold nothing that is asked for.
"""

from __future__ import annotations

from typing import Final

_HELD_BITS: Final = 24
_MOST_HELD: Final = (1 << _HELD_BITS) - 1


def place(priority: int, held: int) -> int:
    """The place of a request with this priority and so many held tokens; higher goes first."""
    return (priority << _HELD_BITS) + min(held, _MOST_HELD)


def decode_priority(place: int) -> int:
    """The client's part of a place."""
    return place >> _HELD_BITS
