"""Aborts by the id that a client gave its request."""

from __future__ import annotations

from typing import Final

from ps_sglang.gateway.bodies.samples import client_rid
from ps_sglang.gateway.bodies.translation import ABORTED
from ps_sglang.gateway.dispatch.dispatcher import Dispatcher
from ps_sglang.gateway.dispatch.pd_request import PrefillDecodeRequest
from ps_sglang.gateway.errors import GatewayError

_STATUS: Final = 499
"""Of a request that its client gave up: none on which clients ask again."""


def abort_by_rid(dispatcher: Dispatcher, rid: str, tenant: str) -> int:
    """Abort the samples of a tenant's requests with this `rid`; returns how many."""

    def concerns(pd_request: PrefillDecodeRequest) -> bool:
        context = pd_request.context
        own = context.names_rid and context.tenant == tenant
        return own and client_rid(pd_request.rid) == rid

    aborted = GatewayError(f"The request {rid!r} was aborted.", status=_STATUS, code=ABORTED)
    return dispatcher.interrupt(aborted, concerns)
