"""Every request's id, log line, metrics and last resort for errors."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from ps_sglang.gateway import ids
from ps_sglang.gateway.bodies.anthropic_answer import error_payload
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.errors import (
    BROKEN_ENCODING,
    INTERNAL,
    BadRequest,
    GatewayBusy,
    GatewayError,
    ModelNotFound,
)
from ps_sglang.gateway.listener import client_of, read_body
from ps_sglang.gateway.paths import registered_path
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.telemetry.lines import one_word
from ps_sglang.gateway.telemetry.log import FIELDS, about
from ps_sglang.gateway.telemetry.reasons import CLIENT_HUNG_UP, cancel_of, rejection_of

if TYPE_CHECKING:
    from ps_sglang.gateway.telemetry.otel import RequestSpans

log = logging.getLogger("ps_sglang.gateway")

REQUEST_ID = "x-request-id"
_GOOD_ID = re.compile(r"[!-~]{1,128}")  # printable ASCII, no blank: it is a word of a log line
_MOST_HEADER_BYTES = 2**16
"""Of all names and values together; the parser bounds each, and their number."""
# The last two only where aiohttp finds a package for them; it refuses them otherwise.
_ENCODINGS = frozenset(("gzip", "deflate", "identity", "", "br", "zstd"))
# By path, as a wrong method has no route.
_ANTHROPIC = re.compile(r"(/models/[^/]+)?/v1/messages(/.*)?")
_TRANSLATED = ("/v1/messages", "/v1/responses")
_WITH_BODY = frozenset(("POST", "PUT"))
_GENERATION = frozenset((*(endpoint.value for endpoint in Endpoint), *_TRANSLATED))


@dataclass
class RequestRecord:
    """What is known of one request while it runs."""

    id: str
    route: str
    started: float = field(default_factory=time.monotonic)
    decoder: str = ""
    rid: str = ""  # of its first sample: that one's trace, and workers' logs, begin with it
    error: GatewayError | None = None
    spans: RequestSpans | None = None  # where traces are exported
    rate_headers: dict[str, str] = field(default_factory=dict)  # what is left of its key's rate
    is_passed_on: bool = False  # to another gateway process, which counts it

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every answer carries."""
        return {REQUEST_ID: self.id, **self.rate_headers}

    def failed(self, error: GatewayError) -> None:
        """The request failed after its status had gone out."""
        self.error = error


RECORD = web.RequestKey("record", RequestRecord)


@web.middleware
async def handle_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give each request an id, turn errors into OpenAI's format, log and count the outcome."""
    record = request[RECORD] = RequestRecord(_request_id(request), registered_path(request) or "")
    with about(record.id):
        return await _handle(request, handler, record)


async def _handle(
    request: web.Request, handler: Handler, record: RequestRecord
) -> web.StreamResponse:
    status = CLIENT_HUNG_UP
    client = client_of(request)
    if client is not None:
        client.began()
    try:
        response = await _answer(request, handler, record)
        if not response.prepared:
            response.headers.update(record.headers)
        status = response.status if record.error is None else record.error.status
        return response
    except ConnectionResetError:
        # The client hung up while its answer was being written: there is nobody to answer.
        return web.Response(status=CLIENT_HUNG_UP)
    finally:
        if client is not None:
            client.ended()
        _conclude(request, record, status)


@web.middleware
async def read_whole_body(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have the body at hand before the handler begins; only for clients that may ask."""
    _check_encoding(request)
    if request.method in _WITH_BODY and request.match_info.http_exception is None:
        await read_body(request)
    return await handler(request)


async def _answer(
    request: web.Request, handler: Handler, record: RequestRecord
) -> web.StreamResponse:
    headers: dict[str, str] = {}
    try:
        _check_head(request)
        return await handler(request)
    except ModelNotFound as error:
        record.failed(request.app[GATEWAY].not_found(error))
    except GatewayError as error:
        record.failed(error)
    except web.HTTPException as error:
        record.failed(GatewayError(_http_problem(request, error), status=error.status))
        if hdrs.ALLOW in error.headers:
            headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    except web.RequestPayloadError:
        record.failed(BadRequest(BROKEN_ENCODING))
    except ConnectionResetError:
        raise
    except Exception:
        log.exception("the request failed inside the gateway")
        record.failed(GatewayError(INTERNAL, status=500))
    assert record.error is not None
    if is_anthropic(request):
        response = _json(record.error, error_payload(record.error, record.id))
    else:
        response = error_response(record.error)
    response.headers.update(headers)
    body = request.content
    is_cut = not body.is_eof() or body.exception() is not None
    if isinstance(record.error, GatewayBusy) or is_cut:
        response.force_close()  # a kept connection is one less for others; half a body, no use
    return response


def is_anthropic(request: web.Request) -> bool:
    """Whether the path is one of Anthropic's API."""
    return _ANTHROPIC.fullmatch(request.path) is not None


def error_response(error: GatewayError) -> web.Response:
    """The error as an answer of its own, in OpenAI's format."""
    return _json(error, error.payload())


def _json(error: GatewayError, payload: dict[str, Any]) -> web.Response:
    return web.json_response(payload, status=error.status, headers=error.headers)


def _check_head(request: web.Request) -> None:
    length = sum(len(name) + len(value) for name, value in request.raw_headers)
    if length > _MOST_HEADER_BYTES:
        raise GatewayError(
            f"The headers have {length} bytes; at most {_MOST_HEADER_BYTES} are allowed.",
            status=431,
        )


def _check_encoding(request: web.Request) -> None:
    """aiohttp gives a body in an encoding that it does not know as it came."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.lower() not in _ENCODINGS:
        raise BadRequest(
            f"The content-encoding {encoding!r} is not supported: send gzip, deflate or neither."
        )


def _http_problem(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPNotFound):
        return f"There is no {request.path!r} here."
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path!r} takes {', '.join(sorted(error.allowed_methods))} only."
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return f"The body is too large: {error.text}"
    return error.text or error.reason


def _request_id(request: web.Request) -> str:
    request_id = request.headers.get(REQUEST_ID, "")
    return request_id if _GOOD_ID.fullmatch(request_id) else ids.unique()


def _conclude(request: web.Request, record: RequestRecord, status: int) -> None:
    seconds = time.monotonic() - record.started
    generation = record.route in _GENERATION and not record.is_passed_on
    _log(request, record, status, seconds, generation=generation)
    if record.spans is not None:
        record.spans.end(status, record.error)
    metrics = request.app[GATEWAY].metrics
    if record.error is not None and (rejection := rejection_of(record.error)) is not None:
        metrics.rejected(rejection)
    if not generation:
        return
    metrics.answered(record.decoder, record.route, status, seconds)
    if (cancel := cancel_of(status, record.error)) is not None:
        metrics.cancelled(cancel)


def _log(
    request: web.Request, record: RequestRecord, status: int, seconds: float, *, generation: bool
) -> None:
    level = logging.INFO if generation or status >= 400 else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "rid": one_word(record.rid) or "-",
        "model": record.decoder or "-",
        "route": record.route or request.rel_url.raw_path,
        "status": status,
        "ms": round(seconds * 1000),
    }
    if record.error is not None:
        fields["error"] = record.error.message
    text = " ".join(
        f"{name}={value!r}" if name == "error" else f"{name}={value}"
        for name, value in fields.items()
    )
    log.log(level, "%s", text, extra={FIELDS: {"message": "answered", **fields}})
