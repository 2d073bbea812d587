"""Errors that a client of the gateway can see, in OpenAI's format.

GatewayError
├── BadRequest          400  the client must change its request
│   └── ModelNotFound   404  ... or its choice of model
├── EngineError         4xx/5xx  an engine refused or aborted the request; its status is kept
├── NoWorker         503  no worker of a role can take the request now
└── WorkerError
    ├── WorkerUnreachable  503  no answer: another worker, or a later try, may help
    │   └── OtherProcess        ... or not the worker's
    └── WorkerFailed       502/503  a worker answered, but not as the protocol says
"""

import ast
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec

from ps_sglang.gateway.config import Worker


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

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(
            f"The model {name!r} does not exist; served models: {', '.join(served)}.",
            status=404,
            param="model",
            code="model_not_found",
        )


class EngineError(GatewayError):
    """An engine refused or aborted the request."""


class NoWorker(GatewayError):
    """No worker of a role can take the request now; a later try may help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503, code="no_worker")


class WorkerError(GatewayError):
    """One worker is at fault."""

    def __init__(self, worker: Worker, problem: str, *, status: int, code: str) -> None:
        super().__init__(f"{worker.title} {problem}", status=status, code=code)
        self.worker = worker


class WorkerUnreachable(WorkerError):
    """The worker cannot be connected to, or broke the connection off."""

    def __init__(self, worker: Worker, reason: str) -> None:
        super().__init__(worker, f"is unreachable: {reason}", status=503, code="worker_unreachable")


class OtherProcess(WorkerUnreachable):
    """Another process answers at the worker's address."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker, "another process answers at its address")


class WorkerFailed(WorkerError):
    """The worker answered something that no client can be given."""

    def __init__(self, worker: Worker, reason: str, *, status: int = 502) -> None:
        super().__init__(worker, f"failed: {reason}", status=status, code="worker_failed")


@contextmanager
def reaching(worker: Worker) -> Iterator[None]:
    """In this block a connection that fails raises WorkerUnreachable, whatever client made it."""
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise WorkerUnreachable(worker, str(error) or type(error).__name__) from error


def require_process(worker: Worker, wanted: str | None, found: str | None) -> None:
    """Raise OtherProcess unless the answer of a worker is of the process that was `wanted`."""
    if wanted is not None and found != wanted:
        raise OtherProcess(worker)


def engine_error(status: int, body: bytes) -> EngineError:
    """Bring an engine's error answer (SGLang 0.5.23 has four shapes of it) into one form.

    Shapes: `{"object": "error", "message", "type", "param", "code"}` (OpenAI routes and HTTP
    exceptions), `{"error": {...}}` (/generate), `{"error": "text"}` (contract check), plain text.
    """
    fields = _error_fields(body)
    param, code = fields.get("param"), fields.get("code")
    return EngineError(
        _readable(_text(fields.get("message"))) or f"The engine answered with status {status}.",
        status=status,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
    )


def streamed_error(fields: Any) -> EngineError:
    """The error that an engine sent as `{"error": fields}` inside an event stream."""
    fields = fields if isinstance(fields, dict) else {"message": fields}
    code = fields.get("code")
    return EngineError(
        _text(fields.get("message")) or "The engine broke the stream off.",
        status=code if isinstance(code, int) and 400 <= code < 600 else 500,
    )


def _error_fields(body: bytes) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {"message": body.decode(errors="replace").strip()}
    if isinstance(content, dict):
        inner = content.get("error", content)
        if isinstance(inner, dict):
            return {"message": inner.get("detail"), **inner}
        return {"message": inner}
    return {"message": content}


_PROBLEM = re.compile(
    r"""'loc': \((?P<place>[^)]*)\), 'msg': (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
)


def _readable(message: str) -> str:
    """FastAPI's validation errors, which print Python objects and a source file, as sentences."""
    first = message.partition("\n")[0]
    if not re.fullmatch(r"\d+ validation errors?:", first):
        return message
    problems = dict.fromkeys(map(_problem, _PROBLEM.finditer(message)))  # in order, each once
    return "; ".join(problems) or first.rstrip(":")


def _problem(match: re.Match[str]) -> str:
    place = [str(part) for part in ast.literal_eval(f"({match['place']},)") if part != "body"]
    text: str = ast.literal_eval(match["text"])
    return f"`{place[0]}`: {text}" if place else text


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return msgspec.json.encode(value).decode()


def _openai_type(status: int) -> str:
    known = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return known.get(status, "invalid_request_error" if status < 500 else "server_error")
