"""/decoders: what is served, whole models and adapters; adapters come and go at run time.

Each of these calls goes on to its end if its caller hangs up. By then all gateway processes have
heard of it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from aiohttp import web

from ps_sglang.gateway.errors import BadRequest, GatewayError
from ps_sglang.gateway.routes.operations import (
    OPERATION_LOCKS,
    conflict,
    require_allowed,
    run_to_end,
)
from ps_sglang.gateway.routing.decoder_state import AdapterSource, DecoderState
from ps_sglang.gateway.state import GATEWAY


class NewVersion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of PUT /decoders/<name>. `path` is the adapter's folder, as the workers see it.

    `allow_unverified` admits an adapter without a manifest.
    """

    path: str
    allow_unverified: bool = False

    @property
    def source(self) -> AdapterSource:
        """Where workers get it from."""
        return AdapterSource(self.path, allow_unverified=self.allow_unverified)


class NewDecoder(NewVersion, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /decoders."""

    name: str


_Body = TypeVar("_Body", bound=NewVersion)


def add_routes(app: web.Application) -> None:
    """Register all routes of this module."""
    app.router.add_get("/decoders", list_decoders)
    app.router.add_post("/decoders", add_decoder)
    app.router.add_put("/decoders/{name}", replace)
    app.router.add_delete("/decoders/{name}", remove)


async def list_decoders(request: web.Request) -> web.Response:
    """GET /decoders: every decoder, with its workers and its unfinished requests."""
    served = request.app[GATEWAY].pool.decoders
    return web.json_response({"decoders": [_entry(one) for one in served.values()]})


async def add_decoder(request: web.Request) -> web.Response:
    """POST /decoders: all adapter workers load an adapter, and then serve it; or none does.

    Each worker compares it with its base before it loads anything.
    """
    gateway = request.app[GATEWAY]
    new = _body(await request.read(), NewDecoder)
    _check_name(new.name)
    await gateway.owner.require_all()
    request.app[OPERATION_LOCKS].refuse_if_busy(new.name)
    served = gateway.pool.decoders.get(new.name)
    if served is not None and served.source is None:
        raise _conflict(f"{new.name!r} is a whole model's name; choose another one.")
    if served is not None:
        raise _conflict(
            f"{new.name!r} is taken: replace it (`ps-sglang decoders replace`), or choose another "
            "name."
        )
    if not gateway.pool.adapter_workers:
        raise _conflict(
            "No worker of this cluster takes adapters: start it with at least one decoder that is "
            "an adapter, or have such a worker join (`ps-sglang workers add`)."
        )

    await require_allowed(request, new.path, "path")

    async def change() -> web.Response:
        served = await gateway.decoder_changes.serve(new.name, new.source)
        await gateway.owner.all_know()
        return web.json_response(_entry(served), status=201)

    return await run_to_end(request, new.name, "is being added", change)


async def replace(request: web.Request) -> web.Response:
    """PUT /decoders/<name>: another adapter under the name.

    New requests get it as soon as all workers have it; those that run keep the old one. The answer
    comes when they have ended and the old one is unloaded.
    """
    gateway = request.app[GATEWAY]
    new = _body(await request.read(), NewVersion)
    await require_allowed(request, new.path, "path")
    await gateway.owner.require_all()
    before = _adapter(request)

    async def change() -> web.Response:
        served = await gateway.decoder_changes.serve(before.name, new.source)
        await gateway.owner.all_end(before.name)
        await gateway.decoder_changes.retire(before)
        return web.json_response(_entry(served))

    return await run_to_end(request, before.name, "is being replaced", change)


async def remove(request: web.Request) -> web.Response:
    """DELETE /decoders/<name>: no new request gets it; it is unloaded with the last one's end."""
    gateway = request.app[GATEWAY]
    await gateway.owner.require_all()
    served = _adapter(request)

    async def change() -> web.Response:
        await gateway.owner.all_end(served.name)
        await gateway.decoder_changes.retire(served)
        return web.json_response({"name": served.name, "removed": True})

    request.app[OPERATION_LOCKS].refuse_if_busy(served.name)
    gateway.pool.withdraw(served)
    return await run_to_end(request, served.name, "is being removed", change)


def _adapter(request: web.Request) -> DecoderState:
    """The decoder in the path, which must be an adapter; raises GatewayError."""
    name, pool = request.match_info["name"], request.app[GATEWAY].pool
    request.app[OPERATION_LOCKS].refuse_if_busy(name)
    served = pool.served(name)
    if served.source is not None:
        return served
    if any(one.worker.adapters is not None for one in served.workers):
        raise _conflict(f"{name!r} is the base of the adapters, and stays as long as they do.")
    raise _conflict(
        f"{name!r} is a whole model, with workers of its own: `ps-sglang workers swap` gives it "
        "other weights, and it leaves with its last worker."
    )


def _body(content: bytes, kind: type[_Body]) -> _Body:
    try:
        body = msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        fields = ", ".join(f"`{name}`" for name in kind.__struct_fields__)
        raise BadRequest(f"The body is JSON with {fields}: {error}.") from error
    if not body.path:
        raise BadRequest("`path` must be an adapter's folder, as the workers see it.", param="path")
    return body


def _check_name(name: str) -> None:
    # A client makes nothing of a path with a dot for a name.
    unfit = not name or name in (".", "..") or not name.isprintable()
    if unfit or "/" in name or ":" in name:
        raise BadRequest(
            f"`name` must be a printable text without '/', as URLs name it, and without ':', "
            f"behind which SGLang looks for an adapter; not {name!r}.",
            param="name",
        )


def _conflict(message: str) -> GatewayError:
    return conflict(message, "decoder_conflict")


def _entry(served: DecoderState) -> dict[str, Any]:
    source = served.source
    workers = dict.fromkeys((*served.workers, *served.lora_names))
    return {
        "name": served.name,
        "kind": "model" if source is None else "adapter",
        "path": source and source.path,
        "weights": source and source.digest,
        "requests": served.requests.unfinished,
        "workers": [
            {
                "name": one.name,
                "lora_name": served.lora_names.get(one),
                "state": one.state,
                "problem": served.problems.get(one) or one.problem,
            }
            for one in workers
        ],
    }
