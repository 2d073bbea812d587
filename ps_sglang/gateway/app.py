"""The gateway as an aiohttp application."""

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from ps_sglang.gateway import generation, info
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.dispatch import Dispatcher
from ps_sglang.gateway.legs import Background
from ps_sglang.gateway.metrics import GatewayMetrics
from ps_sglang.gateway.requests import Surface
from ps_sglang.gateway.routing import Router
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.tracing import trace

MAX_BODY_BYTES = 64 * 2**20
CONNECT_SECONDS = 5.0
# aiohttp waits this long twice: for requests to end, and for cancelled ones to end.
SHUTDOWN_SECONDS = 2.0
_PROXIED = ("/get_model_info", "/model_info", "/get_server_info", "/server_info")


def build_app(config: GatewayConfig) -> web.Application:
    """The gateway for a cluster. Serve it with `runner`, which ends a request with its client."""
    app = web.Application(middlewares=[trace], client_max_size=MAX_BODY_BYTES)

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
        background = Background()
        async with _session() as session:
            router, metrics = Router(config), GatewayMetrics()
            dispatcher = Dispatcher(session, router, background, metrics)
            app[GATEWAY] = Gateway(config, session, router, dispatcher, metrics)
            yield
            await background.close()

    app.cleanup_ctx.append(lifespan)
    for prefix in ("", "/models/{model}"):
        _add_routes(app.router, prefix)
    return app


def runner(app: web.Application) -> web.AppRunner:
    """A runner under which a client that hangs up cancels its handler, and so its workers."""
    return web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
    )


def _session() -> aiohttp.ClientSession:
    # A connection each: a kept one may be closed by the worker just when a request is sent on it,
    # and that request could not be told from one whose worker died.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    # No total timeout: an answer takes as long as it takes.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True)


def _add_routes(router: web.UrlDispatcher, prefix: str) -> None:
    for surface in Surface:
        router.add_post(prefix + surface.value, generation.handler(surface))
    router.add_get(prefix + "/v1/models", info.list_models)
    router.add_get(prefix + "/v1/models/{name}", info.get_model)
    router.add_get(prefix + "/health", info.health)
    router.add_get(prefix + "/metrics", info.metrics)
    router.add_get(prefix + "/flush_cache", info.flush_cache)
    router.add_post(prefix + "/flush_cache", info.flush_cache)
    for path in _PROXIED:
        router.add_get(prefix + path, info.from_decoder)
