"""Our gateway without keys, limits and metrics, to see what they cost.

    python -m benchmarks.gateway.bare --config FILE

All metrics are left out, those that it has always had included.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web
from aiohttp.typedefs import Handler

from ps_sglang.gateway import __main__, app
from ps_sglang.gateway.access.authentication import PRINCIPAL
from ps_sglang.gateway.access.principal import ANONYMOUS_ADMIN


class Nothing:
    """Does nothing, whatever it is asked for, and is a block as well."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Self:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


@web.middleware
async def _anybody(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[PRINCIPAL] = ANONYMOUS_ADMIN
    return await handler(request)


@web.middleware
async def _any_rate(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request)


REPLACED: Final[dict[str, Any]] = {
    "authentication": lambda _: _anybody,
    "limit_rate": _any_rate,
    "RequestLimiter": Nothing,
    "GatewayMetrics": Nothing,
}
"""What the gateway's application is made with, by its name there."""


if __name__ == "__main__":
    for name, value in REPLACED.items():
        setattr(app, name, value)
    __main__.main()
