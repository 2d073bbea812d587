"""GET /openapi.json and GET /docs: all routes, as a document and as a page.

Both are made of the routes that are registered and of the tables that check their bodies.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterator
from importlib.metadata import version
from typing import Any, Final

from aiohttp import hdrs, web

from ps_sglang.gateway.bodies.engine_fields import LOAD_SECTIONS
from ps_sglang.gateway.bodies.schemas import Schema
from ps_sglang.gateway.paths import OF_ONE_DECODER
from ps_sglang.gateway.routes.bodies_schema import BODIES, STREAMED, error_schema
from ps_sglang.gateway.routes.page import KINDS

_MODEL: Final = {"model": {"type": "string"}}
_TENANT: Final = {"tenant": {"type": "string"}}
_QUERIES: Final[dict[tuple[str, str], dict[str, Schema]]] = {
    ("get", "/v1/loads"): {
        "dp_rank": {"type": "integer", "minimum": 0},
        "include": {"type": "string", "description": "Some of " + ", ".join(LOAD_SECTIONS)},
    },
    ("delete", "/sessions/{id}"): _TENANT,
    ("post", "/sessions/{id}/end"): _TENANT,
    ("get", "/v1/responses/{id}"): _TENANT,
    ("delete", "/v1/responses/{id}"): _TENANT,
    ("post", "/v1/responses/{id}/cancel"): _TENANT,
    ("post", "/abort_request"): _TENANT,
    ("post", "/debug/route"): _TENANT,
    ("delete", "/workers/{name}"): {"now": {"enum": ["0", "1"]}},
    ("get", "/get_model_info"): _MODEL,
    ("get", "/model_info"): _MODEL,
    ("get", "/get_server_info"): _MODEL,
    ("get", "/server_info"): _MODEL,
}
_CREATES: Final = frozenset((("post", "/workers"), ("post", "/decoders")))
_JSON: Final = ("application/json",)
# The kinds of answers that are not JSON.
_KINDS: Final[dict[str, Collection[str]]] = {
    "/": ("text/html",),
    "/abort_request": (),  # without content
    "/docs": ("text/html",),
    "/flush_cache": ("text/plain",),
    "/metrics": ("text/plain",),
    "/page/{file}": KINDS.values(),
    **dict.fromkeys(STREAMED, (*_JSON, "text/event-stream")),
}
# The status that says no in the form in which 200 says yes.
_NO: Final = {
    "/flush_cache": "400",
    **dict.fromkeys(("/health", "/health_generate", "/ready", "/readiness"), "503"),
}
_ABOUT: Final = (
    "Many of these routes stand behind /models/NAME too, for one decoder, whatever `model` says. "
    "A field that is null counts as not given, and unknown fields are left out."
)


def add_routes(router: web.UrlDispatcher) -> None:
    """Register all routes of this module."""
    router.add_get("/openapi.json", document)
    router.add_get("/docs", page)


async def document(request: web.Request) -> web.Response:
    """The OpenAPI document of all routes."""
    return web.json_response(describe(request.app.router))


async def page(request: web.Request) -> web.Response:
    """The same as a page, which needs nothing from elsewhere."""
    return web.Response(text=_page(describe(request.app.router)), content_type="text/html")


def describe(router: web.UrlDispatcher) -> dict[str, Any]:
    """The OpenAPI document of the routes of `router`."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary in sorted(_routes(router)):
        paths.setdefault(path, {})[method] = _operation(method, path, summary)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ps_sglang", "version": version("ps-sglang"), "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
    }


def _routes(router: web.UrlDispatcher) -> Iterator[tuple[str, str, str]]:
    """Method, path and summary of the routes, without their twins for one decoder."""
    for route in router.routes():
        resource = route.resource
        if resource is None or route.method in (hdrs.METH_HEAD, hdrs.METH_OPTIONS):
            continue
        if resource.canonical.startswith(OF_ONE_DECODER):
            continue
        yield route.method.lower(), resource.canonical, _summary(route.handler)


def _summary(handler: Any) -> str:
    """The first paragraph of a handler's docstring, without the route that it begins with."""
    paragraph = " ".join((handler.__doc__ or "").partition("\n\n")[0].split())
    return re.sub(r"^[A-Z]+ /\S+( `[^`]*`)?: ", "", paragraph)


def _operation(method: str, path: str, summary: str) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": _responses(method, path)}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ] + [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in _QUERIES.get((method, path), {}).items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if (schema := BODIES.get((method, path))) is not None:
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _responses(method: str, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer."}
    if kinds := _KINDS.get(path, _JSON):
        answer["content"] = {kind: {} for kind in kinds}
    error = {
        "description": "An error.",
        "content": {"application/json": {"schema": error_schema(path)}},
    }
    answers = {"201" if (method, path) in _CREATES else "200": answer, "default": error}
    if path in _NO:
        answers[_NO[path]] = {**answer, "description": "The answer is no."}
    return answers


_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-size:.9em}summary{cursor:pointer}li{list-style:none}ul{padding-left:1rem}"
    "details{margin:.4rem 0}.m{display:inline-block;width:4.5rem;font-weight:600}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}"
)


def _page(content: dict[str, Any]) -> str:
    listed = "".join(
        _entry(method, path, operation)
        for path, methods in content["paths"].items()
        for method, operation in methods.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>ps_sglang: routes</title>'
        f"<style>{_STYLE}</style><h1>ps_sglang: routes</h1><p>{html.escape(_ABOUT)}</p>"
        f'<p>As a document: <a href="openapi.json">openapi.json</a></p>{listed}</html>'
    )


def _entry(method: str, path: str, operation: dict[str, Any]) -> str:
    head = (
        f'<span class="m">{method.upper()}</span> <code>{html.escape(path)}</code> '
        f"{html.escape(operation['summary'])}"
    )
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    properties = schema.get("schema", {}).get("properties", {})
    if not properties:
        return f"<p>{head}</p>"
    needed = schema["schema"].get("required", ())
    fields = "".join(
        f"<li><code>{html.escape(name)}</code> {html.escape(_words(one))}"
        f"{', required' if name in needed else ''}</li>"
        for name, one in sorted(properties.items())
    )
    return f"<details><summary>{head}</summary><ul>{fields}</ul></details>"


def _words(schema: Schema) -> str:
    """A schema in a few words."""
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        words = (_words(one) for one in schema["anyOf"] if one != {"type": "null"})
        return " or ".join(dict.fromkeys(filter(None, words)))
    kind = schema.get("type", "")
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    if low is not None and "maximum" in schema:
        return f"{kind} from {low:g} to {schema['maximum']:g}"
    return str(kind if isinstance(kind, str) else " or ".join(kind))
