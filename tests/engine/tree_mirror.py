"""A subscriber that rebuilds a worker's tree from what it publishes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import msgspec
import zmq

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.events.messages import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    KvEventBatch,
    Position,
    Reply,
    Request,
    Snapshot,
    Span,
)
from ps_sglang.launch import Cluster
from ps_sglang.launch.spec import EventPorts
from ps_sglang.wires import as_client

_DEADLINE_MS = 60_000
Prefix = tuple[str | None, tuple[int, ...]]


@contextmanager
def mirroring(cluster: Cluster) -> Iterator[dict[str, TreeMirror]]:
    """A mirror of each worker, by its name."""
    with ExitStack() as stack:
        yield {
            worker.name: stack.enter_context(closing(TreeMirror(worker.events, cluster.key)))
            for worker in cluster.plan.workers
        }


class TreeMirror:
    """One worker's tree as its events have it, from now on."""

    def __init__(self, events: EventPorts, key: ClusterKey) -> None:
        self._context = zmq.Context()
        as_client(self._context, key)
        self._news = self._socket(zmq.SUB, events.publishes)
        self._news.subscribe(b"")
        self._control = self._socket(zmq.REQ, events.control)
        self._blocks: dict[int, Prefix] = {}
        self.next = -1
        self.removed = 0
        self.salts: set[str | None] = set()
        self.spans: dict[str, Span] = {}
        while not self._news.poll(200):  # a subscription takes effect at some time
            self.ask(Snapshot())
        self.resynchronize()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def prefixes(self) -> set[Prefix]:
        """Every prefix of whole pages that the worker holds, with its tenant's salt."""
        return set(self._blocks.values())

    def ask(self, request: Request) -> Reply:
        """The worker's answer."""
        self._control.send(msgspec.msgpack.encode(request))
        return msgspec.msgpack.decode(self._control.recv(), type=Reply)

    def resynchronize(self) -> set[Prefix]:
        """Ask for a snapshot and take it; what the events before it had told."""
        position = self.ask(Snapshot())
        assert isinstance(position, Position)
        snapshots: list[set[Prefix]] = []
        while not snapshots:
            for event in self._batch():
                # On a first subscription the news may come from before the snapshot.
                if isinstance(event, AllBlocksCleared) and self.next > position.next:
                    snapshots.append(self.prefixes())
                self._apply(event)
        return snapshots[0]

    def wait_for(self, tokens: Sequence[int]) -> None:
        """Until the worker's tree holds these tokens."""
        self._until(lambda: (None, tuple(tokens)) in self._blocks.values())

    def span(self, rid: str) -> Span:
        """The span of a request, once it is there."""
        self._until(lambda: rid in self.spans)
        return self.spans[rid]

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            for event in self._batch():
                self._apply(event)

    def _batch(self) -> list[KvEvent]:
        topic, number, content = self._news.recv_multipart()
        if topic.startswith(b"timeline:"):
            record = msgspec.msgpack.decode(content, type=Span)
            self.spans[record.rid] = record
            return []
        assert self.next in (-1, int.from_bytes(number, "big")), "a batch is missing"
        self.next = int.from_bytes(number, "big") + 1
        return msgspec.msgpack.decode(content, type=KvEventBatch).events

    def _apply(self, event: KvEvent) -> None:
        if isinstance(event, AllBlocksCleared):
            self._blocks.clear()
        elif isinstance(event, BlockRemoved):
            self.removed += len(event.block_hashes)
            for block in event.block_hashes:
                self._blocks.pop(block, None)
        elif isinstance(event, BlockStored):
            self.salts.add(event.cache_salt)
            parent = event.parent_block_hash
            # Before the first snapshot, parents are unknown.
            _, tokens = self._blocks.get(parent, (None, ())) if parent is not None else (None, ())
            for index, block in enumerate(event.block_hashes):
                start = index * event.block_size
                tokens += tuple(event.token_ids[start : start + event.block_size])
                self._blocks[block] = event.cache_salt, tokens

    def _socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.rcvtimeo = _DEADLINE_MS
        socket.connect(address)
        return socket
