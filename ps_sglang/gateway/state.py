"""What all handlers of one gateway share."""

import time
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from ps_sglang.gateway.config import DecodeWorker, GatewayConfig, Worker
from ps_sglang.gateway.dispatch import Dispatcher
from ps_sglang.gateway.errors import BadRequest, ModelNotFound
from ps_sglang.gateway.metrics import GatewayMetrics
from ps_sglang.gateway.routing import Router


@dataclass(frozen=True)
class Gateway:
    """The running gateway."""

    config: GatewayConfig
    session: aiohttp.ClientSession
    router: Router
    dispatcher: Dispatcher
    metrics: GatewayMetrics
    started: int = field(default_factory=lambda: int(time.time()))

    def workers(self, decoder: str | None) -> tuple[Worker, ...]:
        """All workers, or the prefill workers and those of one decoder."""
        return (*self.config.prefill, *self.decode_workers(decoder))

    def decode_workers(self, decoder: str | None) -> tuple[DecodeWorker, ...]:
        """All decode workers, or those of one decoder."""
        return self.config.decode if decoder is None else self.config.decode_workers(decoder)


GATEWAY = web.AppKey("gateway", Gateway)


def model_in_path(request: web.Request) -> str | None:
    """The decoder that a `/models/<name>/...` URL names; raises ModelNotFound."""
    name = request.match_info.get("model")
    served = request.app[GATEWAY].config.decoders
    if name is not None and name not in served:
        raise ModelNotFound(name, served)
    return name


def one_model(request: web.Request) -> str:
    """The decoder of a request without a body: by its path, by `?model=`, or the only one."""
    served = request.app[GATEWAY].config.decoders
    name = model_in_path(request) or request.query.get("model")
    if name is None and len(served) == 1:
        return served[0]
    if name is None:
        raise BadRequest(
            "This path needs a model: use /models/<name>/... or ?model=<name>; served models: "
            f"{', '.join(served)}.",
            param="model",
        )
    if name not in served:
        raise ModelNotFound(name, served)
    return name
