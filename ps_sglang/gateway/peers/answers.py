"""What a gateway process does when another one asks it to."""

from __future__ import annotations

from ps_sglang.gateway.dispatch.aborts import abort_by_rid
from ps_sglang.gateway.dispatch.dispatcher import Dispatcher
from ps_sglang.gateway.peers.messages import AbortRid, EndSession, OwnMetrics, Question
from ps_sglang.gateway.peers.sharing import Sharing
from ps_sglang.gateway.routing.sessions import TenantSessions
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics


class Answers:
    """Answers the questions of other processes, see `GatewayPeers.ask`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        sessions: TenantSessions,
        sharing: Sharing,
        metrics: GatewayMetrics,
    ) -> None:
        self._dispatcher = dispatcher
        self._sessions = sessions
        self._sharing = sharing
        self._metrics = metrics

    def __call__(self, question: Question) -> tuple[int, bytes]:
        """How many samples that aborted, and what was asked for."""
        match question:
            case AbortRid(rid, tenant):
                return abort_by_rid(self._dispatcher, rid, tenant), b""
            case EndSession(tenant, id):
                session = self._sessions.of(tenant).get(id)
                return 0 if session is None else self._sharing.end_session(session), b""
            case OwnMetrics():
                return 0, self._metrics.render()
        return 0, b""
