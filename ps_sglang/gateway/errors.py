"""Errors that a client of the gateway can see, in OpenAI's format.

GatewayError
├── BadRequest          400  the client must change its request
│   └── ModelNotFound   404  ... or its choice of model
├── EngineError         4xx/5xx  an engine refused or aborted the request; its status is kept
├── PoisonRequest       422  two workers died with the request in flight
├── PathNotAllowed      403  weights may not be loaded from there
├── DeadlineExceeded    504  the request took longer than any may
├── DecoderRefused      409  a worker refuses to load or unload an adapter, and says why
├── LimitExceeded       429  a limit is reached, of a key or of the whole gateway
├── GatewayBusy         429  the gateway has no descriptors, ports or memory left for the request
├── NoWorker         503  no worker of a role can take the request now
└── WorkerError
    ├── WorkerUnreachable  503  no answer: another worker, or a later try, may help
    │   └── OtherProcess        ... or not the worker's
    └── WorkerFailed       502/503  a worker answered, but not as the protocol says
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final, Self

import aiohttp
import msgspec

from ps_sglang.gateway import refusals
from ps_sglang.gateway.config import Worker

RETRY_AFTER_SECONDS: Final = 1

INTERNAL = "The gateway has an internal error; see its log."
BROKEN_ENCODING = (
    "The body is not what its content-encoding says, or that is neither gzip nor deflate."
)


class GatewayError(Exception):
    """An error with its HTTP status and the fields of OpenAI's error object."""

    def __init__(
        self, message: str, *, status: int, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's headers say of it."""
        return {}

    def payload(self) -> dict[str, Any]:
        """The error as the JSON object that OpenAI clients expect."""
        error = {
            "message": self.message,
            "type": _openai_type(self.status),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


class BadRequest(GatewayError):
    """The request cannot be served as it is; the message says how to mend it."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
    ) -> None:
        super().__init__(message, status=status, param=param, code=code)


class ModelNotFound(BadRequest):
    """The named model is not served here."""

    def __init__(self, name: str, served: Iterable[str]) -> None:
        super().__init__(
            f"The model {name!r} does not exist; served models: {', '.join(served)}.",
            status=404,
            param="model",
            code="model_not_found",
        )
        self.name = name


class EngineError(GatewayError):
    """An engine refused or aborted the request."""

    @classmethod
    def aborted(cls, message: str, status: object) -> Self:
        """What an engine tells inside an answer; `status` counts if it is an error's."""
        error_status = status if isinstance(status, int) and 400 <= status < 600 else 500
        return cls(message, status=error_status, code=refusals.code_of(error_status, message))


class PoisonRequest(GatewayError):
    """Two workers died with the request in flight; it is refused for a while.

    The status is none on which OpenAI's clients send a request again (408, 409, 429, 5xx): each
    time it could cost two workers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, status=422, code="poison_request")


class PathNotAllowed(GatewayError):
    """Weights may not be loaded from a path."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message, status=403, param=param, code="path_not_allowed")


class DecoderRefused(GatewayError):
    """A worker refuses to load or unload an adapter."""

    def __init__(self, message: str, *, status: int = 409) -> None:
        super().__init__(message, status=status, code="decoder_refused")


class DeadlineExceeded(GatewayError):
    """The request took longer than any may here; another try would do the same work again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The request was not answered in {seconds:g} s, the longest that one may take here. "
            "Ask for fewer tokens, or have whoever runs this raise --request-timeout.",
            status=504,
            code="deadline_exceeded",
        )

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's and Anthropic's clients would send it again."""
        return {"x-should-retry": "false"}


class LimitExceeded(GatewayError):
    """A limit is reached; the same request will do later.

    `limit` says which one.
    """

    def __init__(self, reason: str, *, limit: str, retry_after: int = RETRY_AFTER_SECONDS) -> None:
        super().__init__(
            f"{reason}. Try again in {retry_after} s.", status=429, code="rate_limit_exceeded"
        )
        self.limit = limit
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, in seconds."""
        return {"Retry-After": str(self.retry_after)}


class GatewayBusy(GatewayError):
    """The gateway itself has too little left for the request; a later try may help."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The gateway is busy: {reason}. Try again in {RETRY_AFTER_SECONDS} s.",
            status=429,
            code="rate_limit_exceeded",
        )

    @property
    def headers(self) -> dict[str, str]:
        """When to try again."""
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}


class NoWorker(GatewayError):
    """No worker of a role can take the request now; a later try may help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503, code="no_worker")

    @property
    def headers(self) -> dict[str, str]:
        """When to try again."""
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}


class WorkerError(GatewayError):
    """One worker is at fault."""

    def __init__(self, worker: Worker, problem: str, *, status: int, code: str) -> None:
        super().__init__(f"{worker.title} {problem}", status=status, code=code)
        self.worker = worker


class Loss(Enum):
    """What became of a request when its worker could not be reached."""

    NOT_TAKEN = "not taken"  # it never was there, or was taken away before anything went wrong
    TAKEN = "taken"  # it was there, but the worker is not known to be dead: it may be silent
    DIED = "died"  # the connection was lost while it was there


class Disconnected(ConnectionError):
    """The worker closed the connection before its answer was complete.

    `sent`: after a request was sent on it, which the worker may have begun to work on.
    """

    def __init__(self, reason: str, *, sent: bool = True) -> None:
        super().__init__(reason)
        self.sent = sent


class WorkerUnreachable(WorkerError):
    """The worker cannot be connected to, or broke the connection off."""

    def __init__(self, worker: Worker, reason: str, loss: Loss = Loss.NOT_TAKEN) -> None:
        super().__init__(worker, f"is unreachable: {reason}", status=503, code="worker_unreachable")
        self.reason = reason
        self.loss = loss


class OtherProcess(WorkerUnreachable):
    """Another process answers at the worker's address."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker, "another process answers at its address")


class WorkerFailed(WorkerError):
    """The worker answered something that no client can be given.

    `reason` and `engine_status` are the engine's own words and status, if it gave any.
    """

    def __init__(self, worker: Worker, reason: str, *, engine_status: int = 502) -> None:
        status = 503 if engine_status == 503 else 502
        super().__init__(worker, f"failed: {reason}", status=status, code="worker_failed")
        self.reason = reason
        self.engine_status = engine_status


@contextmanager
def reaching(worker: Worker) -> Iterator[None]:
    """In this block a connection that fails raises WorkerUnreachable, whatever client made it.

    If the gateway's own system has nothing left for one, it raises GatewayBusy.
    """
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        if is_own(error):
            raise GatewayBusy(reason) from error
        died = isinstance(error, Disconnected) and error.sent
        raise WorkerUnreachable(worker, reason, Loss.DIED if died else Loss.NOT_TAKEN) from error


_OWN: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
)
_OWN_NAMES: Final = frozenset((socket.EAI_MEMORY, socket.EAI_SYSTEM))


def is_own(error: BaseException) -> bool:
    """Whether this system failed to make a connection: no descriptor, memory or port is left."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, socket.gaierror):
        return error.errno in _OWN_NAMES
    return isinstance(error, OSError) and error.errno in _OWN


def require_process(worker: Worker, expected: str | None, answering: str | None) -> None:
    """Raise OtherProcess unless the answer of a worker is of the process that was `wanted`."""
    if expected is not None and answering != expected:
        raise OtherProcess(worker)


def engine_error(status: int, body: bytes) -> EngineError:
    """Bring an engine's error answer (SGLang 0.5.23 has five shapes of it) into one form.

    Shapes: `{"object": "error", "message", "type", "param", "code"}` (OpenAI routes and HTTP
    exceptions), `{"error": {...}}` (/generate), `{"error": "text"}` (contract check),
    `{"error_message": "text"}` (adapters), plain text.
    """
    fields = _error_fields(body)
    message, place = refusals.readable(_text(fields.get("message")))
    param, code = fields.get("param"), fields.get("code")
    return EngineError(
        message or f"The engine answered with status {status}.",
        status=status,
        param=param if isinstance(param, str) else place,
        code=code if isinstance(code, str) else refusals.code_of(status, message),
    )


def streamed_error(fields: Any) -> EngineError:
    """The error that an engine sent as `{"error": fields}` inside an event stream."""
    fields = fields if isinstance(fields, dict) else {"message": fields}
    message, code = _text(fields.get("message")), fields.get("code")
    return EngineError.aborted(message or "The engine broke the stream off.", code)


def _error_fields(body: bytes) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {"message": body.decode(errors="replace").strip()}
    if isinstance(content, dict):
        inner = content.get("error", content)
        if isinstance(inner, dict):
            return {"message": inner.get("detail") or inner.get("error_message"), **inner}
        return {"message": inner}
    return {"message": content}


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return msgspec.json.encode(value).decode()


def _openai_type(status: int) -> str:
    types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return types.get(status, "invalid_request_error" if status < 500 else "server_error")
