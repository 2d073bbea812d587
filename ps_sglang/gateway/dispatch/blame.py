"""Who is at fault when a sample fails, and whether anything has changed about its workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

from ps_sglang.gateway.dispatch.pd_request import PrefillDecodeRequest
from ps_sglang.gateway.errors import (
    EngineError,
    GatewayError,
    Loss,
    WorkerError,
    WorkerFailed,
    WorkerUnreachable,
)
from ps_sglang.gateway.routing.pool import AnyWorkerState, BreakerState
from ps_sglang.gateway.routing.router import Route


@contextmanager
def blaming(pd_request: PrefillDecodeRequest) -> Iterator[None]:
    """Lay a failed handoff at the door of a prefill worker that is broken, and says nothing.

    The decode worker may notice first, and says it as a failure of its own.
    """
    route = pd_request.route
    try:
        yield
    except EngineError as error:
        broken = route.prefill.breaker is BreakerState.OPEN and not pd_request.prefill_has_ended
        if broken and error.status >= 500:
            raise WorkerUnreachable(route.prefill.worker, error.message, Loss.TAKEN) from error
        raise


class RouteState(NamedTuple):
    """What may change about a route's workers while they are waited for."""

    prefill: tuple[bool, bool]
    decode: tuple[bool, bool]

    @classmethod
    def of(cls, route: Route) -> Self:
        return cls(_broken_or_leaving(route.prefill), _broken_or_leaving(route.decode))


def _broken_or_leaving(worker_state: AnyWorkerState) -> tuple[bool, bool]:
    return worker_state.breaker is BreakerState.OPEN, worker_state.draining


def either(first: WorkerFailed, second: WorkerFailed) -> GatewayError:
    """What two prefill workers say of one request: in the same words, it is the request's error."""
    if first.reason == second.reason:
        return EngineError(first.reason, status=first.engine_status)
    return second


def at_fault(route: Route, error: WorkerError) -> AnyWorkerState:
    """The worker of the pair that the error names."""
    return route.prefill if error.worker == route.prefill.worker else route.decode
