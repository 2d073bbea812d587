"""What a gateway process does when another one asks it to."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from ps_sglang.gateway.dispatch.aborts import abort_by_rid
from ps_sglang.gateway.dispatch.dispatcher import Dispatcher
from ps_sglang.gateway.peers.messages import (
    AbortRid,
    EndSession,
    OwnMetrics,
    OwnShare,
    Question,
    Withdrawn,
)
from ps_sglang.gateway.peers.peers import Answer
from ps_sglang.gateway.peers.sharing import Sharing
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.sessions import TenantSessions
from ps_sglang.gateway.telemetry import live_share
from ps_sglang.gateway.telemetry.activity import Activity
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics


class Answers:
    """Answers the questions of other processes, see `GatewayPeers.ask`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        pool: WorkerPool,
        sessions: TenantSessions,
        sharing: Sharing,
        metrics: GatewayMetrics,
        activity: Activity,
    ) -> None:
        self._dispatcher = dispatcher
        self._pool = pool
        self._sessions = sessions
        self._sharing = sharing
        self._metrics = metrics
        self._activity = activity

    def __call__(self, question: Question) -> Answer | Coroutine[Any, Any, Answer]:
        """How many samples that aborted, and what was asked for."""
        match question:
            case AbortRid(rid, tenant):
                return abort_by_rid(self._dispatcher, rid, tenant), b""
            case EndSession(tenant, id):
                session = self._sessions.of(tenant).get(id)
                return 0 if session is None else self._sharing.end_session(session), b""
            case Withdrawn(decoder):
                return self._none_left(decoder)
            case OwnMetrics():
                return 0, self._metrics.render()
            case OwnShare():
                return 0, live_share.encode(live_share.of(self._activity, self._metrics))
        return 0, b""

    async def _none_left(self, decoder: str) -> Answer:
        for served in self._pool.withdrawn(decoder):
            await served.requests.wait_idle()
            self._pool.forget(served)
        return 0, b""
