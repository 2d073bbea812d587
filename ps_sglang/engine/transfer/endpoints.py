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

    def __init__(
        self, mgr: ZmqKVManager, bootstrap_addr: str, bootstrap_room: int, *args: Any, **kwargs: Any
    ) -> None:
        mgr.rooms_with_sender.add(bootstrap_room)
        super().__init__(mgr, bootstrap_addr, bootstrap_room, *args, **kwargs)
        mgr.record_refusal(bootstrap_room)

    def abort(self) -> None:
        """Give up, and tell the decode worker, now or when it asks; it would wait for pages."""
        self.kv_mgr.refuse(self.bootstrap_room, "the prefill worker aborted the request")
        self.conclude_state = KVPoll.Failed
        self.clear()

    def clear(self) -> None:
        """Forget the room."""
        self.kv_mgr.rooms_with_sender.discard(self.bootstrap_room)
        super().clear()


class ZmqKVReceiver(CommonKVReceiver):  # type: ignore[misc]
    """A decode worker's end of one handoff."""

    holds_everything = False

    def init(self, prefill_dp_rank: int) -> None:
        """Resolve the prefill rank that serves this worker; there must be exactly one."""
        super().init(prefill_dp_rank)
        if self.conclude_state is None and self.required_prefill_response_num != 1:
            self.kv_mgr.record_failure(
                self.bootstrap_room,
                f"transfer backend zmq takes pages from one prefill rank, but "
                f"{self.required_prefill_response_num} share this worker's KV heads or layers: "
                "give both roles the same --tp-size and no --pp-size, or use mooncake or nixl",
            )
            self.kv_mgr.update_status(self.bootstrap_room, KVPoll.Failed)

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
