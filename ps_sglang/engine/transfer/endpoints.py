"""Sender, receiver and bootstrap server of backend `zmq`, one of the first two per request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ps_sglang.engine import metrics
from ps_sglang.engine.compat.srt import (
    CommonKVBootstrapServer,
    CommonKVReceiver,
    CommonKVSender,
    KVPoll,
    NetworkAddress,
)
from ps_sglang.engine.transfer.memory import Indices
from ps_sglang.engine.transfer.messages import PREFILL_ABORTED, PREFILL_GAVE_UP
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest


class ZmqKVSender(CommonKVSender):  # type: ignore[misc]
    """A prefill worker's end of one handoff."""

    _closed = False

    init_time: float | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._began = time.monotonic()

    def open(self, base_prefix: Sequence[int]) -> None:
        """Wait for the decode worker, which must have the same token ids."""
        self.kv_mgr.lender.open(self.bootstrap_room, PrefixDigest.of(base_prefix))

    def poll(self) -> KVPoll:
        """As SGLang's, with the messages that have just come from decode workers."""
        self.kv_mgr.collect()
        return super().poll()

    def abort(self) -> None:
        """Give up, and tell the decode worker, now or when it asks; it would wait for pages."""
        self._close(PREFILL_ABORTED)
        self.conclude_state = KVPoll.Failed
        self.clear()

    def clear(self) -> None:
        """Forget the room."""
        with self.kv_mgr.failure_lock:
            reason = self.kv_mgr.failure_records.get(self.bootstrap_room)
        self._close(reason or PREFILL_GAVE_UP)
        super().clear()

    def _check_bootstrap_timeout(self) -> KVPoll | None:
        if self.init_time is not None:
            self.init_time = _as_wall_time(self._began)
        return super()._check_bootstrap_timeout()

    def _close(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self.kv_mgr.lender.close(self.bootstrap_room, reason)


class ZmqKVReceiver(CommonKVReceiver):  # type: ignore[misc]
    """A decode worker's end of one handoff."""

    holds_everything = False
    _asked: float | None = None
    base_prefix: PrefixDigest

    def init(self, prefill_dp_rank: int) -> None:
        """Resolve the prefill rank that serves this worker; there must be exactly one."""
        super().init(prefill_dp_rank)
        if self.conclude_state is None and self.required_prefill_response_num != 1:
            self.kv_mgr.fail(
                self.bootstrap_room,
                f"transfer backend zmq takes pages from one prefill rank, but "
                f"{self.required_prefill_response_num} share this worker's KV heads or layers: "
                "give both roles the same --tp-size and no --pp-size, or use mooncake or nixl",
            )

    def expect(self, base_prefix: Sequence[int]) -> None:
        """The token ids whose KV is asked for; the prefill worker must have the same."""
        self.base_prefix = PrefixDigest.of(base_prefix)

    def send_metadata(
        self, kv_indices: Indices, aux_index: int | None = None, *_args: Any,
        decode_prefix_len: int | None = None, **_kwargs: Any,
    ) -> None:  # fmt: skip
        """Ask for the pages of `kv_indices` (int32 page numbers of this worker's pool).

        With none to ask for, the prefill worker is told so and the handoff ends here.
        """
        assert aux_index is not None, "a handoff needs a metadata slot"
        if self.bootstrap_infos is None:
            metrics.handoff_failed(metrics.HandoffFailure.UNREACHABLE)
            self.kv_mgr.fail(
                self.bootstrap_room, f"prefill worker {self.bootstrap_addr} cannot be found"
            )
            return
        (info,) = self.bootstrap_infos
        self.kv_mgr.reader.pull(
            self.bootstrap_room,
            NetworkAddress(info["rank_ip"], info["rank_port"]).to_tcp(),
            rows=kv_indices,
            aux_slot=aux_index,
            prefix_tokens=decode_prefix_len or 0,
            prefix=self.base_prefix,
        )
        self._asked = time.monotonic()
        self.init_time = _as_wall_time(self._asked)
        self.holds_everything = len(kv_indices) == 0

    def _check_waiting_timeout(self) -> KVPoll | None:
        if self._asked is not None:
            self.init_time = _as_wall_time(self._asked)
        return super()._check_waiting_timeout()

    def _register_kv_args(self) -> bool:
        return True  # the reader registers by itself, again where that got lost

    def _poll(self) -> KVPoll:
        if self.conclude_state is None:
            outcome = self.kv_mgr.reader.poll(self.bootstrap_room)
            if outcome is not None and outcome.failure is not None:
                self.kv_mgr.fail(self.bootstrap_room, outcome.failure)
                self.invalidate_cached_bootstrap_infos()  # it may have moved
            elif outcome is not None:
                self.kv_mgr.update_status(self.bootstrap_room, KVPoll.Success)
        return super()._poll()

    def _clear(self) -> None:
        self.kv_mgr.reader.close(self.bootstrap_room)
        super()._clear()


def _as_wall_time(moment: float) -> float:
    """When a monotonic moment was, as the wall clock has it now.

    SGLang's time limits read that clock. One that is set by minutes would end handoffs, or keep
    them for ever.
    """
    return time.time() - (time.monotonic() - moment)


class ZmqKVBootstrapServer(CommonKVBootstrapServer):  # type: ignore[misc]
    """SGLang's registry of prefill ranks, unchanged."""
