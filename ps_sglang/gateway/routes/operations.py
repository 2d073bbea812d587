"""Operations that change a worker: one at a time, and each to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.routing.pool import AnyWorkerState
from ps_sglang.gateway.state import GATEWAY

log = logging.getLogger("ps_sglang.gateway")


class OperationLocks:
    """The operation under way on each worker: a second one is refused, not queued."""

    def __init__(self) -> None:
        self._operations: dict[AnyWorkerState, str] = {}

    def operation(self, worker_state: AnyWorkerState) -> str | None:
        """The operation on the worker, such as "is leaving"; None if there is none."""
        return self._operations.get(worker_state)

    def refuse_if_busy(self, worker_state: AnyWorkerState) -> None:
        """Raise GatewayError if an operation on the worker is under way."""
        if (operation := self.operation(worker_state)) is not None:
            raise conflict(f"{worker_state.name!r} {operation}; try again when that has ended.")

    def begin(self, worker_state: AnyWorkerState, operation: str) -> None:
        """Begin an operation; raises GatewayError if another is under way."""
        self.refuse_if_busy(worker_state)
        self._operations[worker_state] = operation

    def end(self, worker_state: AnyWorkerState) -> None:
        """The operation has ended."""
        del self._operations[worker_state]


OPERATION_LOCKS = web.AppKey("operation_locks", OperationLocks)


async def run_to_end(
    request: web.Request,
    worker_state: AnyWorkerState,
    operation: str,
    work: Callable[[], Awaitable[web.Response]],
) -> web.Response:
    """Run an operation on a worker to its end, even if the caller hangs up."""
    locks = request.app[OPERATION_LOCKS]
    locks.begin(worker_state, operation)
    done: asyncio.Future[web.Response] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        try:
            response = await work()
        except Exception as error:
            log.warning("%s %s: %s", worker_state.worker.title, operation, error)
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(response)
        finally:
            locks.end(worker_state)

    request.app[GATEWAY].background.start(run())
    return await done


def conflict(message: str) -> GatewayError:
    """The error of a call that the state of a worker does not allow."""
    return GatewayError(message, status=409, code="worker_conflict")
