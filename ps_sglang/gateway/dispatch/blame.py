"""Who is at fault when a sample fails, and whether anything has changed about its workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ps_sglang.gateway.dispatch.pd_request import PrefillDecodeRequest
from ps_sglang.gateway.errors import (
    EngineError,
    GatewayError,
    Loss,
    WorkerError,
    WorkerFailed,
    WorkerUnreachable,
)
from ps_sglang.gateway.routing.router import Route
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, BreakerState


@contextmanager
def blaming(pd_request: PrefillDecodeRequest) -> Iterator[None]:
    """Lay a failed handoff at the door of a prefill worker that is broken, and says nothing.

    The decode worker may notice first, and says it as a failure of its own.
    """
    try:
        yield
    except EngineError as error:
        prefill = pd_request.route.prefill
        if (
            prefill is not None
            and prefill.breaker is BreakerState.OPEN
            and not pd_request.prefill_has_ended
            and error.status >= 500
        ):
            raise WorkerUnreachable(prefill.worker, error.message, Loss.TAKEN) from error
        raise


def broken_or_leaving(route: Route) -> list[tuple[bool, bool]]:
    """What may change about a route's workers while they are waited for."""
    return [(one.breaker is BreakerState.OPEN, one.draining) for one in route.workers]


def either(first: WorkerFailed, second: WorkerFailed) -> GatewayError:
    """What two prefill workers say of one request: in the same words, it is the request's error."""
    if first.reason == second.reason:
        return EngineError(first.reason, status=first.engine_status)
    return second


def at_fault(route: Route, error: WorkerError) -> AnyWorkerState:
    """The worker of the route that the error names."""
    return next(one for one in route.workers if one.worker == error.worker)
