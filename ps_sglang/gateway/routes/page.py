"""GET /: the page that shows the cluster at work, and GET /v1/live, what it shows.

The page is a handful of files that are the same for everybody, so they need no key. It asks the
data with the key of whoever looks at it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from aiohttp import hdrs, web

from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.routes.live import LIVE, LiveView

KINDS: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
# Nothing comes from elsewhere, and no other page may frame this one.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-cache",
}


def add_routes(app: web.Application) -> None:
    """Register all routes of this module."""
    app[LIVE] = LiveView()
    app.router.add_get("/", index)
    app.router.add_get("/page/{file}", file)
    app.router.add_get("/v1/live", live)


async def index(request: web.Request) -> web.Response:
    """GET /: the page that shows the cluster at work."""
    return _answer("index.html")


async def file(request: web.Request) -> web.Response:
    """GET /page/<file>: a part of the page."""
    return _answer(request.match_info["file"])


async def live(request: web.Request) -> web.Response:
    """GET /v1/live: workers, running requests, the base-token tree and the last turns' times."""
    content = await request.app[LIVE].content(request.app)
    return web.Response(
        body=content, content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store"}
    )


def _answer(name: str) -> web.Response:
    content = _files().get(name)
    if content is None:
        raise GatewayError(f"The page has no file {name!r}.", status=404)
    kind = KINDS[name.rpartition(".")[2]]
    return web.Response(body=content, content_type=kind, charset="utf-8", headers=_HEADERS)


@cache
def _files() -> dict[str, bytes]:
    """The page's files by name."""
    folder = files("ps_sglang.gateway").joinpath("page")
    return {
        one.name: one.read_bytes()
        for one in folder.iterdir()
        if one.name.rpartition(".")[2] in KINDS
    }
