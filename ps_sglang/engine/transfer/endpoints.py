"""Sender, receiver and bootstrap server of backend ``zmq``, one of the first two per request."""

from __future__ import annotations

from typing import Any

from ps_sglang.engine.compat.srt import (
    CommonKVBootstrapServer,
    CommonKVReceiver,
    CommonKVSender,
    KVPoll,
)
from ps_sglang.engine.transfer.manager import PendingPull, ZmqKVManager
from ps_sglang.engine.transfer.memory import Indices


class ZmqKVSender(CommonKVSender):  # type: ignore[misc]
    """A prefill worker's end of one handoff."""

    def __init__(self, mgr: ZmqKVManager, *args: Any, **kwargs: Any) -> None:
        super().__init__(mgr, *args, **kwargs)
        mgr.record_refusal(self.bootstrap_room)


class ZmqKVReceiver(CommonKVReceiver):  # type: ignore[misc]
    """A decode worker's end of one handoff."""

    holds_everything = False

    def send_metadata(
        self, kv_indices: Indices, aux_index: int | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Ask for the pages of ``kv_indices`` (int32 page numbers of this worker's pool).

        With none to ask for, the prefill worker is told so and the handoff ends here.
        """
        assert aux_index is not None, "a handoff needs a metadata slot"
        self.kv_mgr.pulls[self.bootstrap_room] = PendingPull(kv_indices, aux_index)
        super().send_metadata(kv_indices, aux_index, *args, **kwargs)
        if len(kv_indices) == 0 and self.conclude_state is None:
            self.holds_everything = True
            self.kv_mgr.update_status(self.bootstrap_room, KVPoll.Success)

    def _poll(self) -> KVPoll:
        if self.conclude_state is None:
            self.kv_mgr.land(self.bootstrap_room)
        return super()._poll()

    def _clear(self) -> None:
        self.kv_mgr.pulls.pop(self.bootstrap_room, None)
        super()._clear()


class ZmqKVBootstrapServer(CommonKVBootstrapServer):  # type: ignore[misc]
    """SGLang's registry of prefill ranks, unchanged."""
