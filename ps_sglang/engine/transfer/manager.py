"""The KV manager of backend `zmq`: one per scheduler process, prefill or decode.

It gives a `lender.Lender` (prefill) or a `reader.Reader` (decode) what they need of SGLang:
sockets, a thread that receives, a mailbox for the scheduler, and the status of each request. Pages
are written by the scheduler thread alone, in `poll()`.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from typing import Any, Final

from ps_sglang.engine import metrics, waiting
from ps_sglang.engine.compat.srt import (
    AbortNotification,
    CommonKVManager,
    DisaggregationMode,
    KVArgs,
    KVPoll,
    NetworkAddress,
)
from ps_sglang.engine.settings import BASE_FINGERPRINT
from ps_sglang.engine.transfer.host_memory import HostMemory
from ps_sglang.engine.transfer.lender import Lender
from ps_sglang.engine.transfer.mailbox import Mailbox
from ps_sglang.engine.transfer.memory import HostRows, Indices
from ps_sglang.engine.transfer.messages import DECODE_ABORTED, PREFILL_REFUSED
from ps_sglang.engine.transfer.outbox import Outbox
from ps_sglang.engine.transfer.page_memory import PageMemory
from ps_sglang.engine.transfer.reader import Reader
from ps_sglang.engine.transfer.serving import serve
from ps_sglang.engine.transfer.shared_pool import describe
from ps_sglang.wires import HandshakeMonitor, Refusals

_ABORT: Final = b"ABORT"  # first frame of SGLang's own message


class ZmqKVManager(CommonKVManager):  # type: ignore[misc]
    """SGLang's common manager with page transfer over its own ZMQ sockets."""

    memory: PageMemory
    lender: Lender  # on a prefill worker
    reader: Reader  # on a decode worker

    def __init__(
        self,
        args: KVArgs,
        disaggregation_mode: DisaggregationMode,
        server_args: Any,
        is_mla_backend: bool | None = False,
    ) -> None:
        """Register with the bootstrap server (prefill) and start listening.

        Raises ValueError if the KV pool is on another device than a CPU or a CUDA GPU, or holds
        more than attention KV.
        """
        _require_supported(args, server_args)
        super().__init__(args, disaggregation_mode, server_args, is_mla_backend)
        self.memory = pages = _page_memory(args, server_args.device)
        aux = HostRows(args.aux_data_ptrs, args.aux_data_lens, args.aux_item_lens)
        fingerprint = os.environ.get(BASE_FINGERPRINT, "")
        name = secrets.token_hex(8)
        self._mailbox = Mailbox(name, metrics.refused)
        self._outbox = Outbox(self._zmq_ctx, self._mailbox)
        if disaggregation_mode is DisaggregationMode.PREFILL:
            self.lender = Lender(
                pages, aux,
                base_fingerprint=fingerprint,
                incarnation=name,
                send=self._outbox.send,
                events=_RoomStatus(self),
                clock=time.monotonic,
                count=metrics.transferred,
            )  # fmt: skip
            self._listen(self.lender)
        else:
            address = NetworkAddress(self.local_ip, self.rank_port).to_tcp()
            self.reader = Reader(
                pages, aux,
                session=f"{address}#{name}",
                base_fingerprint=fingerprint,
                send=self._outbox.send,
                clock=time.monotonic,
                wake=waiting.ring,
                collect=self._mailbox.collect,
                count=metrics.transferred,
                failed=metrics.handoff_failed,
            )  # fmt: skip
            self._listen(self.reader)
            self._start_heartbeat_checker_thread()

    def collect(self) -> None:
        """Act on what lies in the mailbox, and on what a device has done (scheduler thread)."""
        self._mailbox.collect(self._side.receive)
        if isinstance(self._side, Lender):
            self._side.poll()

    def _listen(self, side: Lender | Reader) -> None:
        self._side = side
        waiting.watch_mailbox(self._mailbox.fd, self.collect)

        def receive(frames: list[Any]) -> None:
            if isinstance(side, Lender) and frames[0] == _ABORT:
                notice = AbortNotification.from_zmq([bytes(frame) for frame in frames])
                if notice is not None:
                    side.refuse(notice.room, DECODE_ABORTED)
            else:
                side.receive(frames)

        refusals = Refusals("transfer", metrics.refused)
        handshakes = HandshakeMonitor(self.server_socket)

        def tick() -> None:
            side.tick()
            self._outbox.close_idle()
            refusals.handshakes(handshakes)

        threading.Thread(
            target=serve,
            args=(self.server_socket, receive, tick),
            kwargs={"refusals": refusals},
            name="kv-transfer",
            daemon=True,
        ).start()

    def add_transfer_request(
        self, bootstrap_room: int, kv_indices: Indices, index_slice: slice, is_last_chunk: bool,
        aux_index: int | None = None, **_unused: Any,
    ) -> None:  # fmt: skip
        """Offer pages of a room to the decode worker that pulls it (scheduler thread)."""
        self.update_status(bootstrap_room, KVPoll.Transferring)
        self.lender.offer(bootstrap_room, kv_indices, aux_index if is_last_chunk else None)

    def refuse(self, room: int) -> None:
        """The request of a room was refused before it had a sender (scheduler thread)."""
        self.lender.refuse(room, PREFILL_REFUSED)

    def fail(self, room: int, reason: str) -> None:
        """End a room by name, for SGLang to find when it polls."""
        self.record_failure(room, reason)
        self.update_status(room, KVPoll.Failed)


class _RoomStatus:
    """Turns a lender's events into the states that SGLang polls."""

    def __init__(self, manager: ZmqKVManager) -> None:
        self._manager = manager

    def pulled(self, room: int, prefix_tokens: int) -> None:
        self._manager.req_to_decode_prefix_len[room] = prefix_tokens
        self._manager.update_status(room, KVPoll.WaitingForInput)

    def received(self, room: int) -> None:
        self._manager.update_status(room, KVPoll.Success)

    def failed(self, room: int, reason: str) -> None:
        self._manager.fail(room, reason)


def _page_memory(args: KVArgs, device: str) -> PageMemory:
    """The memory that the KV pool lies in."""
    pool = args.kv_data_ptrs, args.kv_data_lens, args.kv_item_lens
    if device == "cpu":
        return HostMemory(HostRows(*pool), describe(*pool[:2]))
    # Triton and CUDA's driver are imported where there is a GPU, and nowhere else.
    from ps_sglang.engine.transfer.cuda_memory import CudaMemory

    return CudaMemory(*pool, gpu=args.gpu_id, wake=waiting.ring)


def _require_supported(args: KVArgs, server_args: Any) -> None:
    if server_args.device not in ("cpu", "cuda"):
        raise ValueError(
            f"--disaggregation-transfer-backend zmq moves pages of CPUs and CUDA GPUs, but the KV "
            f"pool is on {server_args.device}: choose mooncake or nixl"
        )
    if any(args.state_types):
        raise ValueError(
            f"--disaggregation-transfer-backend zmq moves attention KV only, but the model also "
            f"keeps {[str(kind) for kind in args.state_types]}: choose mooncake or nixl"
        )
