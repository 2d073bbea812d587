"""The KV manager of backend ``zmq``: one per scheduler process, prefill or decode.

The decode worker asks for the delta (:class:`~.messages.Pull`) and the prefill worker answers
with page batches as chunks of the prompt finish. Pool memory is touched by the scheduler thread
alone: the prefill side copies pages out in ``send()``, the decode side copies them in in
``poll()``. So a page that an abort has freed is never read or written by a late transfer.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from typing import Any, Final

import numpy as np
import zmq

from ps_sglang.engine import waiting
from ps_sglang.engine.compat.srt import (
    AbortNotification,
    CommonKVManager,
    DisaggregationMode,
    KVArgs,
    KVPoll,
    NetworkAddress,
)
from ps_sglang.engine.settings import BASE_FINGERPRINT
from ps_sglang.engine.transfer.memory import HostRows, Indices
from ps_sglang.engine.transfer.messages import (
    MalformedMessageError,
    PageBatch,
    Pull,
    Register,
    decode,
    encode,
)

logger = logging.getLogger(__name__)

_REMEMBERED_REFUSALS: Final = 4096


class PullTarget:
    """What the prefill side knows of one pull (the fields that SGLang's common code reads)."""

    is_dummy = False

    def __init__(self, pull: Pull) -> None:
        self.endpoint = pull.endpoint
        self.dst_port = pull.port


class PendingPull:
    """The decode side of one pull: where pages go, and batches that have arrived."""

    def __init__(self, pages: Indices, aux_slot: int) -> None:
        self.pages = pages
        self.aux_slot = aux_slot
        self.received = 0
        self.batches: deque[tuple[PageBatch, Any]] = deque()


class ZmqKVManager(CommonKVManager):  # type: ignore[misc]
    """SGLang's common manager with page transfer over its own ZMQ sockets."""

    kv_status_msg_tag = b"KV_STATUS"
    kv_status_msg_carries_reason = True

    def __init__(
        self,
        args: KVArgs,
        disaggregation_mode: DisaggregationMode,
        server_args: Any,
        is_mla_backend: bool | None = False,
    ) -> None:
        """Register with the bootstrap server (prefill) and start listening.

        Raises:
            ValueError: the KV pool is not in host memory, or the parallelism is not supported.
        """
        _require_supported(args, server_args)
        self.pages = HostRows(args.kv_data_ptrs, args.kv_data_lens, args.kv_item_lens)
        self.aux = HostRows(args.aux_data_ptrs, args.aux_data_lens, args.aux_item_lens)
        self.base_fingerprint = os.environ.get(BASE_FINGERPRINT, "")
        self.pulls: dict[int, PendingPull] = {}
        self.rooms_with_sender: set[int] = set()
        self._sessions: dict[str, str | None] = {}  # why its pulls are refused, or None
        self._refused_rooms: OrderedDict[int, str] = OrderedDict()
        super().__init__(args, disaggregation_mode, server_args, is_mla_backend)
        self.session = f"{self.local_ip}:{self.rank_port}"
        if disaggregation_mode is DisaggregationMode.PREFILL:
            self._listen(self._on_prefill_frames)
        else:
            self._listen(self._on_decode_frames)
            self._start_heartbeat_checker_thread()

    def _listen(self, handle: Any) -> None:
        def receive() -> None:
            while True:
                frames = self.server_socket.recv_multipart(copy=False)
                try:
                    handle([frame.buffer for frame in frames])
                except MalformedMessageError as error:
                    logger.warning("Dropped a message on the KV transfer port: %s", error)
                except Exception:  # this thread's outermost loop: without it all transfers hang
                    logger.exception("Failed on a message on the KV transfer port")

        threading.Thread(target=receive, name="kv-transfer", daemon=True).start()

    # Prefill side

    def _on_prefill_frames(self, frames: list[Any]) -> None:
        if bytes(frames[0]) == b"ABORT":
            self._on_abort([bytes(frame) for frame in frames])
            return
        message, _ = decode(frames)
        if isinstance(message, Register):
            self._sessions[message.session] = self._misfit(message)
        elif isinstance(message, Pull):
            self._on_pull(message)

    def _misfit(self, peer: Register) -> str | None:
        """Why pages must not go to this peer, or None (invariant I5 at connect time)."""
        if peer.base_fingerprint != self.base_fingerprint:
            return (
                f"decode worker {peer.session} expects KV of base "
                f"{peer.base_fingerprint or 'unknown'}, but this prefill worker serves base "
                f"{self.base_fingerprint or 'unknown'}"
            )
        if peer.page_item_lens != self.pages.row_bytes:
            return (
                f"decode worker {peer.session} lays out a KV page as "
                f"{_layout(peer.page_item_lens)}, this prefill worker as "
                f"{_layout(self.pages.row_bytes)}"
            )
        if peer.aux_item_lens != self.aux.row_bytes:
            return f"decode worker {peer.session} has another metadata layout"
        return None

    def _on_pull(self, pull: Pull) -> None:
        not_registered = f"decode worker {pull.session} has not registered"
        reason = self._sessions.get(pull.session, not_registered)
        reason = reason or self._refused_rooms.get(pull.room)
        if reason is not None:
            self.refuse(pull.room, reason)
            self.send_kv_status_message(
                targets=[(pull.endpoint, pull.port)],
                bootstrap_room=pull.room,
                status=KVPoll.Failed,
                failure_reason=reason,
            )
            return
        self.transfer_infos[pull.room] = {pull.session: PullTarget(pull)}
        self.req_to_decode_prefix_len[pull.room] = pull.prefix_tokens
        self.update_status(pull.room, KVPoll.WaitingForInput)

    def _on_abort(self, frames: list[bytes]) -> None:
        notice = AbortNotification.from_zmq(frames)
        if notice is not None and self.request_status.get(notice.room) != KVPoll.Success:
            self.refuse(notice.room, "the decode worker aborted the request")

    def refuse(self, room: int, reason: str) -> None:
        """Fail a room whose other half may come later, or never."""
        self._refused_rooms[room] = reason
        while len(self._refused_rooms) > _REMEMBERED_REFUSALS:
            self._refused_rooms.popitem(last=False)
        if room in self.rooms_with_sender:
            self.record_refusal(room)
        else:
            for table in (self.transfer_infos, self.req_to_decode_prefix_len, self.request_status):
                table.pop(room, None)

    def record_refusal(self, room: int) -> None:
        """Apply an earlier :meth:`refuse` to a room that has a sender by now."""
        reason = self._refused_rooms.get(room)
        if reason is not None:
            self.conclude_failure(bootstrap_room=room, failure_reason=reason)

    def add_transfer_request(
        self, bootstrap_room: int, kv_indices: Indices, index_slice: slice, is_last_chunk: bool,
        aux_index: int | None = None, **_unused: Any,
    ) -> None:  # fmt: skip
        """Send pages of a room to the decode worker that pulls it (scheduler thread)."""
        if self.request_status.get(bootstrap_room) in (None, KVPoll.Failed):
            return
        batch = PageBatch(bootstrap_room, index_slice.start, len(kv_indices), is_last_chunk)
        frames: list[Any] = [*encode(batch), *self.pages.gather(kv_indices)]
        if is_last_chunk:
            frames += self.aux.gather(np.array([aux_index], dtype=np.int32))
        for endpoint, port in self._room_notify_targets(bootstrap_room):
            try:
                self._send_pages(NetworkAddress(endpoint, port), frames)
            except zmq.ZMQError as error:
                reason = f"could not send pages to {endpoint}:{port}: {error}"
                self.conclude_failure(bootstrap_room=bootstrap_room, failure_reason=reason)
                return
        self.update_status(bootstrap_room, KVPoll.Success if is_last_chunk else KVPoll.Transferring)

    def _send_pages(self, peer: NetworkAddress, frames: list[Any]) -> None:
        endpoint = peer.to_tcp()
        socket = self._connect(endpoint, is_ipv6=peer.is_ipv6)
        with self._socket_send_locks[endpoint]:
            socket.send_multipart(frames, copy=False)

    # Decode side

    def build_receiver_registration_message(self) -> list[bytes]:
        """What a receiver sends a prefill worker when it first connects."""
        return encode(
            Register(
                session=self.session,
                base_fingerprint=self.base_fingerprint,
                page_item_lens=self.pages.row_bytes,
                aux_item_lens=self.aux.row_bytes,
            )
        )

    def build_receiver_metadata_message(
        self, *, bootstrap_room: int, decode_prefix_len: int | None, **_unused: Any
    ) -> list[bytes]:
        """What a receiver sends to ask for a request's delta."""
        return encode(
            Pull(
                session=self.session,
                room=bootstrap_room,
                endpoint=self.local_ip,
                port=self.rank_port,
                prefix_tokens=decode_prefix_len or 0,
            )
        )

    def _on_decode_frames(self, frames: list[Any]) -> None:
        if bytes(frames[0]) == self.kv_status_msg_tag:
            status = self.parse_kv_status_message([bytes(frame) for frame in frames])
            if status is not None:
                room, value, rank, reason = status
                self.apply_prefill_status(
                    bootstrap_room=room, status=value, prefill_rank=rank, failure_reason=reason
                )
            return
        batch, payload = decode(frames)
        if isinstance(batch, PageBatch):
            pull = self.pulls.get(batch.room)
            if pull is not None:  # else the request is over: nobody owns those pages
                pull.batches.append((batch, payload))
                waiting.ring()

    def land(self, room: int) -> None:
        """Copy a room's arrived batches into the pool (scheduler thread)."""
        pull = self.pulls.get(room)
        while pull is not None and pull.batches:
            batch, payload = pull.batches.popleft()
            try:
                self._land_batch(pull, batch, payload)
            except ValueError as error:
                self.record_failure(room, f"bad page batch from the prefill worker: {error}")
                self.update_status(room, KVPoll.Failed)
                return

    def _land_batch(self, pull: PendingPull, batch: PageBatch, payload: Any) -> None:
        end = batch.first + batch.count
        if batch.first != pull.received or end > len(pull.pages):
            raise ValueError(
                f"pages {batch.first}..{end} after {pull.received} of {len(pull.pages)}"
            )
        if batch.last and end != len(pull.pages):
            raise ValueError(f"ended after {end} of {len(pull.pages)} pages")
        buffers = len(self.pages.row_bytes)
        self.pages.scatter(pull.pages[batch.first : end], payload[:buffers])
        pull.received = end
        if batch.last:
            self.aux.scatter(np.array([pull.aux_slot], dtype=np.int32), payload[buffers:])
            self.update_status(batch.room, KVPoll.Success)


def _layout(row_bytes: list[int]) -> str:
    return f"{len(row_bytes)} buffers of {sorted(set(row_bytes))} bytes"


def _require_supported(args: KVArgs, server_args: Any) -> None:
    if server_args.device != "cpu":
        raise ValueError(
            f"--disaggregation-transfer-backend zmq moves host memory, but the KV pool is on "
            f"{server_args.device}: choose mooncake or nixl"
        )
    if any(args.state_types):
        raise ValueError(
            f"--disaggregation-transfer-backend zmq moves attention KV only, but the model also "
            f"keeps {[str(kind) for kind in args.state_types]}: choose mooncake or nixl"
        )
