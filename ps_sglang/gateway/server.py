"""The HTTP server around the application: what it cannot parse is refused in OpenAI's format.

aiohttp answers such a request in plain text, and logs a traceback for it.
"""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong

from ps_sglang.gateway import ids
from ps_sglang.gateway.errors import BROKEN_ENCODING, INTERNAL, GatewayError
from ps_sglang.gateway.listener import IDLE_SECONDS
from ps_sglang.gateway.routes.middleware import REQUEST_ID, error_response
from ps_sglang.gateway.state import Gateway

log = logging.getLogger("ps_sglang.gateway")

# aiohttp waits this long twice: for requests to end, and for cancelled ones to end.
SHUTDOWN_SECONDS = 2.0
LINGER_SECONDS = 2.0  # for the rest of a body after its answer


def runner(app: web.Application) -> web.AppRunner:
    """A runner under which a client that hangs up cancels its handler, and so its workers."""
    return _Runner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGER_SECONDS,
    )


async def serve_peers(app: web.AppRunner, gateway: Gateway) -> None:
    """Serve what other gateway processes pass on, if there are any; the runner's end ends it."""
    peers = gateway.peers
    if not peers.is_alone:
        await web.UnixSite(app, peers.http_socket(peers.own)).start()


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        server = await super()._make_server()

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await server.request_handler(request)
            except web.HTTPException as error:  # of its Expect header, before any middleware
                return error_response(GatewayError(error.text or "", status=error.status))

        return _Server(
            handle,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            **server._kwargs,
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed; closes the connection."""
        if status >= 500:
            log.error("a request of %s failed in the server", request.remote, exc_info=exc)
            error = GatewayError(INTERNAL, status=status)
        else:
            error = GatewayError(_problem(exc, message), status=_status(exc, message, status))
            log.info("a request of %s was refused: %s", request.remote, error.message)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        response = error_response(error)
        response.headers[REQUEST_ID] = ids.unique()
        response.force_close()
        return response


_TOO_MANY = "Too many headers"


def _status(error: BaseException | None, message: str | None, status: int) -> int:
    """aiohttp knows 400 only. A URL that is too long is told apart from a header by neither."""
    too_large = isinstance(error, LineTooLong) or (message or "").startswith(_TOO_MANY)
    return 431 if too_large else status


def _problem(error: BaseException | None, message: str | None) -> str:
    if isinstance(error, LineTooLong):
        return "A header or the URL is too long: a line may have 8190 bytes."
    if isinstance(error, ContentEncodingError):
        return BROKEN_ENCODING
    first = (message or "").strip().partition("\n")[0].rstrip(":")
    return f"The request is not valid HTTP: {first or 'it cannot be parsed'}."
