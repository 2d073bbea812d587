"""Operations that change a worker or a decoder: one at a time, and each to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from ps_sglang.gateway.errors import GatewayError, PathNotAllowed
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.model_roots import refusal

log = logging.getLogger("ps_sglang.gateway")

Subject = AnyWorkerState | str
"""What an operation changes: a worker, or the decoder of a name."""


class OperationLocks:
    """The operation under way on each worker and decoder: a second one is refused, not queued."""

    def __init__(self) -> None:
        self._operations: dict[Subject, str] = {}

    def operation(self, subject: Subject) -> str | None:
        """The operation under way, such as "is leaving"; None if there is none."""
        return self._operations.get(subject)

    def refuse_if_busy(self, subject: Subject) -> None:
        """Raise GatewayError if an operation is under way."""
        if (operation := self.operation(subject)) is not None:
            raise conflict(f"{_name(subject)!r} {operation}; try again when that has ended.")

    def begin(self, subject: Subject, operation: str) -> None:
        """Begin an operation; raises GatewayError if another is under way."""
        self.refuse_if_busy(subject)
        self._operations[subject] = operation

    def end(self, subject: Subject) -> None:
        """The operation has ended."""
        del self._operations[subject]


OPERATION_LOCKS = web.AppKey("operation_locks", OperationLocks)


async def run_to_end(
    request: web.Request,
    subject: Subject,
    operation: str,
    work: Callable[[], Awaitable[web.Response]],
) -> web.Response:
    """Run an operation to its end, even if the caller hangs up."""
    locks = request.app[OPERATION_LOCKS]
    locks.begin(subject, operation)
    done: asyncio.Future[web.Response] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        try:
            response = await work()
        except Exception as error:
            log.warning("%s %s: %s", _name(subject), operation, error)
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(response)
        finally:
            locks.end(subject)

    request.app[GATEWAY].background.start(run())
    return await done


async def require_allowed(request: web.Request, path: str, param: str) -> None:
    """Raise PathNotAllowed unless weights may be loaded from `path`; `param` names it."""
    roots = request.app[GATEWAY].config.model_roots
    # In a thread: it asks the file system, which may be slow.
    problem = await asyncio.to_thread(refusal, path, roots)
    if problem is not None:
        raise PathNotAllowed(f"`{param}`: {problem}.", param=param)


def conflict(message: str, code: str = "worker_conflict") -> GatewayError:
    """The error of a call that the state of a worker or decoder does not allow."""
    return GatewayError(message, status=409, code=code)


def _name(subject: Subject) -> str:
    return subject if isinstance(subject, str) else subject.name
