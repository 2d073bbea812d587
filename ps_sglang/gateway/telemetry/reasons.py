"""Why a request was sent again, given up or refused: the values of metrics' `reason` labels.

They are few and fixed, so that nothing a client sends can make a new label.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from ps_sglang.gateway.bodies.translation import ABORTED
from ps_sglang.gateway.errors import GatewayBusy, GatewayError, LimitExceeded
from ps_sglang.gateway.refusals import CONTEXT_EXCEEDED

CLIENT_HUNG_UP: Final = 499
SESSION_ENDED: Final = "session_ended"


class Retry(StrEnum):
    """Why a sample was sent to other workers."""

    UNREACHABLE = "unreachable"
    """A worker could not be connected to."""
    LOST = "lost"
    """A worker died, or fell silent, with the sample."""
    FAILED = "failed"
    """A prefill worker answered with a failure."""


class Cancel(StrEnum):
    """Who ended a request before its answer was complete."""

    HUNG_UP = "hung_up"
    """The client closed its connection."""
    ABORTED = "aborted"
    """Somebody aborted it by its id."""
    SESSION_ENDED = "session_ended"
    """Its conversation was ended."""


class Rejection(StrEnum):
    """Why a request was refused."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    TOO_LONG = "too_long"
    """More tokens than the context has room for."""
    UNAUTHORIZED = "unauthorized"
    """No key, or a wrong one."""
    FORBIDDEN = "forbidden"
    """The key is not for this."""
    CONFLICT = "conflict"
    """Something else is under way."""
    SLOW = "slow"
    """The request's head or body did not come."""
    POISON = "poison"
    """Workers died of its like."""
    REQUESTS_AT_ONCE = "requests_at_once"
    """Its key, or all together, have so many requests under way. So with the next two."""
    QUEUED_REQUESTS = "queued_requests"
    QUEUED_TOKENS = "queued_tokens"
    REQUESTS_A_MINUTE = "requests_a_minute"
    """Its key sends them too fast."""
    LIMIT = "limit"
    """Another limit, of a worker, is reached."""
    BUSY = "busy"
    """The gateway has no connections or memory left."""
    NO_WORKER = "no_worker"
    """No worker can take it now."""


_BY_CODE: Final[Mapping[str | None, Rejection]] = {
    "model_not_found": Rejection.MODEL_NOT_FOUND,
    CONTEXT_EXCEEDED: Rejection.TOO_LONG,
    "poison_request": Rejection.POISON,
    "no_worker": Rejection.NO_WORKER,
}
_BY_LIMIT: Final[Mapping[str, Rejection]] = {
    "requests at once": Rejection.REQUESTS_AT_ONCE,
    "queued requests": Rejection.QUEUED_REQUESTS,
    "queued tokens": Rejection.QUEUED_TOKENS,
    "requests a minute": Rejection.REQUESTS_A_MINUTE,
}
_BY_STATUS: Final[Mapping[int, Rejection]] = {
    401: Rejection.UNAUTHORIZED,
    403: Rejection.FORBIDDEN,
    404: Rejection.NOT_FOUND,
    405: Rejection.NOT_FOUND,
    408: Rejection.SLOW,
    409: Rejection.CONFLICT,
    429: Rejection.LIMIT,
}


def rejection_of(error: GatewayError) -> Rejection | None:
    """Why a request was refused, None for one that failed or was given up."""
    if isinstance(error, GatewayBusy):
        return Rejection.BUSY
    if isinstance(error, LimitExceeded):
        return _BY_LIMIT[error.limit]
    if (reason := _BY_CODE.get(error.code)) is not None:
        return reason
    if not 400 <= error.status < CLIENT_HUNG_UP or error.code == SESSION_ENDED:
        return None
    return _BY_STATUS.get(error.status, Rejection.INVALID)


def cancel_of(status: int, error: GatewayError | None) -> Cancel | None:
    """Who ended a request that got `status` and `error`; None for one that nobody ended."""
    if error is not None and error.code == SESSION_ENDED:
        return Cancel.SESSION_ENDED
    if error is not None and error.code == ABORTED:
        return Cancel.ABORTED
    return Cancel.HUNG_UP if status == CLIENT_HUNG_UP else None
