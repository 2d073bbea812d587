"""Prefill and decode workers in one process: the real protocol, a network and a clock to bend.

The engines are stand-ins that do with pages what SGLang does: a prefill worker fills pages chunk
by chunk, keeps them until their lease ends, and overwrites them from then on; a decode worker
polls, checks every byte of what it was told is there, and overwrites its pages once it is done.
"""

from __future__ import annotations

import contextlib
import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ps_sglang.engine.metrics import HandoffFailure
from ps_sglang.engine.transfer.host_memory import HostMemory
from ps_sglang.engine.transfer.lender import Lender
from ps_sglang.engine.transfer.limits import TransferLimits
from ps_sglang.engine.transfer.memory import HostRows, Indices
from ps_sglang.engine.transfer.messages import Frames, MalformedMessageError
from ps_sglang.engine.transfer.page_memory import PageMemory, PeerPool
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest
from ps_sglang.engine.transfer.pulls import Outcome
from ps_sglang.engine.transfer.reader import Reader
from ps_sglang.engine.transfer.shared_pool import (
    AttachedPool,
    PoolDescriptor,
    SharedMemory,
    UnreachablePoolError,
    describe,
)

PAGES, BUFFERS, WIDTH = 96, 3, 64
AUX_SLOTS, AUX_WIDTH = 32, 40
TICK_S = 0.5
MAILBOX_MESSAGES = 4
FOUR_PAGES = 4 * BUFFERS * WIDTH
LIMITS = TransferLimits(batch_bytes=FOUR_PAGES, fetches=2, linger_s=90.0)

Carry = Callable[[Frames], list[tuple[float, Frames]]]  # frames -> copies, each with its delay


class World:
    """A clock, and a network that carries messages between endpoints."""

    def __init__(self, carry: Carry | None = None, memory: str = "host") -> None:
        """`memory` of all workers: of the "host", or of a device that is "late"."""
        self.now = 0.0
        self.carry: Carry = carry or (lambda frames: [(0.001, frames)])
        self.nodes: dict[str, Prefill | Decode] = {}
        self.sent: list[tuple[str, Frames]] = []
        self.memory = memory
        self.devices: list[Device] = []
        self._mail: list[tuple[float, int, str, Frames]] = []
        self._letters = 0

    def clock(self) -> float:
        return self.now

    def send(self, address: str, frames: Frames) -> None:
        self.sent.append((address, frames))
        for delay, copy in self.carry(frames):
            # What is on its way does not change with the sender's memory: TCP has copied it.
            letter = [bytes(frame) for frame in copy]
            self._letters += 1
            heapq.heappush(self._mail, (self.now + delay, self._letters, address, letter))

    def deliver_until(self, time: float) -> None:
        """Deliver all that arrives before `time`."""
        while self._mail and self._mail[0][0] <= time:
            self.now, _, address, frames = heapq.heappop(self._mail)
            endpoint, _, mailbox = address.partition("#")
            node = self.nodes.get(endpoint)
            if node is None or node.stopped:
                continue
            if mailbox == node.mailbox.name and node.mailbox.holds_more:
                node.mailbox.frames.append(frames)
            else:
                node.receive(frames)
        self.now = time
        for device in self.devices:
            device.run_until(time)

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass: messages, ticks and polls."""
        end = self.now + seconds
        while self.now < end and not until():
            self.deliver_until(self.now + 0.01)
            for node in list(self.nodes.values()):
                node.step()


class Job:
    """Work of a device, and the ticket for it."""

    def __init__(self, device: Device, at: float, work: Callable[[], Any]) -> None:
        self._device, self.at, self._work = device, at, work
        self.is_over = False
        self.value: Any = None

    def run(self) -> None:
        """It is over now."""
        if not self.is_over:
            self.value, self.is_over = self._work(), True

    def done(self) -> bool:
        return self.is_over

    def wait(self) -> None:
        """Time passes on the device alone; what its engine launched before comes first."""
        self._device.finish_steps()
        self.run()


class Device:
    """Works on while its host goes on. Only an engine's steps are done in the order of launch."""

    def __init__(self, world: World, source: random.Random) -> None:
        self._world, self._source = world, source
        self._steps: list[Job] = []
        self._jobs: list[Job] = []
        world.devices.append(self)

    def launch_step(self, work: Callable[[], None]) -> None:
        """The engine has a step write pages, which will take a while."""
        start = max([self._world.now, *(step.at for step in self._steps)])
        self._steps.append(Job(self, start + self._source.uniform(0.0, 0.1), work))

    def launch(self, work: Callable[[], Any]) -> Job:
        """Do something with pages after the steps launched so far."""
        start = max([self._world.now, *(step.at for step in self._steps)])
        takes = 0.005 if self._source.random() < 0.5 else self._source.expovariate(4.0)
        self._jobs.append(Job(self, start + takes, work))
        return self._jobs[-1]

    def run_until(self, time: float) -> None:
        """Do all that is due."""
        for jobs in (self._steps, self._jobs):
            due = sorted((job for job in jobs if job.at <= time), key=lambda job: job.at)
            for job in due:
                job.run()
            jobs[:] = [job for job in jobs if not job.is_over and job.at > time]

    def finish_steps(self) -> None:
        """The engine waits for its steps."""
        for step in self._steps:
            step.run()
        self._steps.clear()


class LateMemory:
    """Host memory as a device would serve it: tickets are done late, and not in order."""

    path = "shm"
    is_written_late = True

    def __init__(self, memory: HostMemory, device: Device) -> None:
        self.row_bytes, self.row_total = memory.row_bytes, memory.row_total
        self._memory, self._device = memory, device
        self.describe, self.open, self.follow = memory.describe, memory.open, memory.follow

    def copy(self, source: PeerPool, source_rows: Indices, rows: Indices) -> Job:
        return self._device.launch(lambda: self._memory.copy(source, source_rows, rows).value)

    def digest(self, rows: Indices) -> Job:
        return self._device.launch(lambda: self._memory.digest(rows).value)

    def gather(self, rows: Indices) -> Job:
        return self._device.launch(lambda: self._memory.gather(rows).value)

    def scatter(self, rows: Indices, packed: Any) -> Job:
        if len(packed) != len(rows) * self.row_total:
            raise ValueError("not as long as the rows need")
        return self._device.launch(lambda: self._memory.scatter(rows, packed).value)


@dataclass
class Box:
    """A mailbox: what is posted waits for the scheduler's next look."""

    name: str
    frames: list[Frames] = field(default_factory=list)

    @property
    def holds_more(self) -> bool:
        return len(self.frames) < MAILBOX_MESSAGES

    def collect(self, take: Callable[[Frames], None]) -> None:
        while self.frames:
            with contextlib.suppress(MalformedMessageError):
                take(self.frames.pop(0))


@dataclass
class PrefillRequest:
    """A request on a prefill worker: pages it fills, and how the handoff ended."""

    content: np.ndarray  # [buffers, pages, width]
    metadata: bytes
    rows: Indices
    slot: int
    chunks: list[int]  # pages of each chunk that is still to be computed
    next_chunk_at: float
    pace_s: float
    held: int = 0  # pages that the decode worker has already
    sent: int = 0
    pulled: bool = False
    outcome: Outcome | None = None
    released: bool = False


@dataclass
class Prefill:
    """A prefill worker process."""

    world: World
    endpoint: str
    incarnation: str
    source: random.Random
    fingerprint: str = "base"
    stopped: bool = False
    requests: dict[int, PrefillRequest] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mailbox = Box(self.incarnation)
        self.shared = SharedMemory(BUFFERS * PAGES * WIDTH)
        self.memory = np.frombuffer(self.shared.buffer, dtype=np.uint8)
        self.memory = self.memory[: BUFFERS * PAGES * WIDTH].reshape(BUFFERS, PAGES, WIDTH)
        self.aux = np.zeros((AUX_SLOTS, AUX_WIDTH), dtype=np.uint8)
        addresses = [buffer.ctypes.data for buffer in self.memory]
        lengths = [PAGES * WIDTH] * BUFFERS
        self.free = set(range(PAGES))
        self.slots = set(range(AUX_SLOTS))
        rows = HostRows(addresses, lengths, [WIDTH] * BUFFERS)
        self.pages, self.device = page_memory(
            self.world, self.source, HostMemory(rows, describe(addresses, lengths))
        )
        self.lender = Lender(
            self.pages,
            aux_rows(self.aux),
            base_fingerprint=self.fingerprint,
            incarnation=self.incarnation,
            send=self._send,
            events=self,
            clock=self.world.clock,
            limits=LIMITS,
            count=lambda what, path, n: count(self.counts, what, path, n),
        )
        self.ticked_at = 0.0
        self.world.nodes[self.endpoint] = self

    def _send(self, endpoint: str, frames: Frames) -> None:
        if self.world.nodes.get(self.endpoint) is self:
            self.world.send(endpoint, frames)

    def start(
        self, room: int, tokens: list[int], content: np.ndarray, metadata: bytes, *, held: int = 0,
        chunks: list[int] | None = None, pace_s: float = 0.05,
    ) -> None:  # fmt: skip
        """A request comes whose pages have this content."""
        pages = content.shape[1]
        rows = self.source.sample(sorted(self.free), pages)
        self.free -= set(rows)
        slot = self.source.choice(sorted(self.slots))
        self.slots.remove(slot)
        self.requests[room] = PrefillRequest(
            content, metadata, np.array(rows, dtype=np.int32), slot, chunks or [pages],
            self.world.now, pace_s,
        )  # fmt: skip
        self.lender.open(room, PrefixDigest.of(tokens))

    def pulled(self, room: int, prefix_tokens: int) -> None:
        request = self.requests[room]
        request.pulled, request.held = True, prefix_tokens
        request.sent = prefix_tokens  # a page is a token here

    def received(self, room: int) -> None:
        self._ended(room, Outcome())

    def failed(self, room: int, reason: str) -> None:
        self._ended(room, Outcome(reason))

    def _ended(self, room: int, outcome: Outcome) -> None:
        assert self.requests[room].outcome is None, "a request ends once"
        self.requests[room].outcome = outcome

    def receive(self, frames: Frames) -> None:
        receive(self.lender, frames)

    def step(self) -> None:
        """What the scheduler does: compute chunks, offer them, free what is over."""
        if self.stopped:
            return
        self.mailbox.collect(self.lender.receive)
        self.lender.poll()
        if self.world.now - self.ticked_at >= TICK_S:
            self.ticked_at = self.world.now
            self.lender.tick()
        for room, request in self.requests.items():
            if request.outcome is None and request.pulled:
                self._compute(room, request)
            if request.outcome is not None and not request.released:
                self.release(room, "over")

    def _compute(self, room: int, request: PrefillRequest) -> None:
        if not request.chunks or self.world.now < request.next_chunk_at:
            return
        end = request.content.shape[1] - sum(request.chunks[1:])
        request.chunks.pop(0)
        request.next_chunk_at = self.world.now + request.pace_s
        written = request.rows[:end].copy()

        def write() -> None:
            self.memory[:, written] = request.content[:, :end]

        if self.device is None:
            write()
        else:
            self.device.launch_step(write)
        self.aux[request.slot] = np.frombuffer(request.metadata, dtype=np.uint8)
        last = not request.chunks
        rows = request.rows[request.sent : end] if end > request.sent else request.rows[:0]
        request.sent = max(end, request.sent)
        if len(rows) or last:
            self.lender.offer(room, rows, request.slot if last else None)

    def digested(self, room: int) -> list[int]:
        """The pages of a room whose digest the decode worker was told."""
        lease = self.lender._leases.of_room(room)
        batches = [] if lease is None else lease.batches
        return [row for batch in batches if batch.offer.digest for row in batch.rows.tolist()]

    def abort(self, room: int) -> None:
        """The client hangs up."""
        request = self.requests[room]
        if request.outcome is None:
            request.outcome = Outcome("the prefill worker aborted the request")
            self.release(room, request.outcome.failure or "")

    def release(self, room: int, reason: str) -> None:
        """Free a request's pages; somebody else writes them at once."""
        request = self.requests[room]
        request.released = True
        self.lender.close(room, reason)
        if self.device is not None:
            self.device.finish_steps()
        self.memory[:, request.rows] = 0xEE
        self.aux[request.slot] = 0xEE
        self.free |= set(request.rows.tolist())
        self.slots.add(request.slot)
        request.rows = request.rows[:0]

    def idle(self) -> bool:
        return len(self.free) == PAGES and len(self.slots) == AUX_SLOTS


@dataclass
class DecodeRequest:
    """A request on a decode worker."""

    peer: str
    content: np.ndarray
    metadata: bytes
    rows: Indices
    slot: int
    outcome: Outcome | None = None


@dataclass
class Decode:
    """A decode worker process."""

    world: World
    endpoint: str
    nonce: str
    source: random.Random
    same_host: bool = True
    fingerprint: str = "base"
    poll_s: float = 0.01
    buffers: int = BUFFERS
    batches_per_poll: int = 8
    wakes: int = 0
    stopped: bool = False
    requests: dict[int, DecodeRequest] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[HandoffFailure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mailbox = Box(self.nonce)
        self.memory = np.full((BUFFERS, PAGES, WIDTH), 0xDD, dtype=np.uint8)
        self.aux = np.full((AUX_SLOTS, AUX_WIDTH), 0xDD, dtype=np.uint8)
        self.free = set(range(PAGES))
        self.slots = set(range(AUX_SLOTS))
        rows = HostRows(
            [buffer.ctypes.data for buffer in self.memory[: self.buffers]],
            [PAGES * WIDTH] * self.buffers,
            [WIDTH] * self.buffers,
        )
        pages, self.device = page_memory(
            self.world, self.source, HostMemory(rows, attach=self._open_pool)
        )
        self.reader = Reader(
            pages,
            aux_rows(self.aux),
            session=f"{self.endpoint}#{self.nonce}",
            base_fingerprint=self.fingerprint,
            send=self._send,
            clock=self.world.clock,
            wake=self._ring,
            collect=self.mailbox.collect,
            limits=replace(LIMITS, batches_per_poll=self.batches_per_poll),
            count=lambda what, path, n: count(self.counts, what, path, n),
            failed=self.failures.append,
        )
        self.ticked_at = self.polled_at = 0.0
        self.world.nodes[self.endpoint] = self

    def _ring(self) -> None:
        self.wakes += 1

    def _open_pool(self, descriptor: PoolDescriptor) -> AttachedPool:
        if not self.same_host:
            raise UnreachablePoolError("it is on another host")
        return AttachedPool(descriptor)

    def _send(self, endpoint: str, frames: Frames) -> None:
        if self.world.nodes.get(self.endpoint) is self:
            self.world.send(endpoint, frames)

    def start(
        self, room: int, peer: str, tokens: list[int], content: np.ndarray, metadata: bytes,
        *, held: int = 0,
    ) -> None:  # fmt: skip
        """A request comes that holds the first `held` pages of `content` already."""
        rows = self.source.sample(sorted(self.free), content.shape[1] - held)
        self.free -= set(rows)
        slot = self.source.choice(sorted(self.slots))
        self.slots.remove(slot)
        self.requests[room] = DecodeRequest(
            peer, content[:, held:], metadata, np.array(rows, dtype=np.int32), slot
        )
        self.reader.pull(
            room, peer, rows=self.requests[room].rows, aux_slot=slot, prefix_tokens=held,
            prefix=PrefixDigest.of(tokens),
        )  # fmt: skip

    def receive(self, frames: Frames) -> None:
        receive(self.reader, frames)

    def step(self) -> None:
        """What the scheduler does: poll, check what came, free it."""
        if self.stopped:
            return
        if self.world.now - self.ticked_at >= TICK_S:
            self.ticked_at = self.world.now
            self.reader.tick()
        if self.world.now - self.polled_at < self.poll_s:
            return
        self.polled_at = self.world.now
        self.mailbox.collect(self.reader.receive)
        for room, request in self.requests.items():
            if request.outcome is None and (outcome := self.reader.poll(room)) is not None:
                if outcome.failure is None:
                    self._check(request)
                self._end(room, outcome)

    def _check(self, request: DecodeRequest) -> None:
        assert (self.memory[:, request.rows] == request.content).all(), "a wrong page was accepted"
        if len(request.rows):
            assert self.aux[request.slot].tobytes() == request.metadata, "wrong metadata"

    def abort(self, room: int) -> None:
        """The client hangs up."""
        if self.requests[room].outcome is None:
            self._end(room, Outcome("the decode worker aborted the request"))

    def _end(self, room: int, outcome: Outcome) -> None:
        request = self.requests[room]
        request.outcome = outcome
        self.reader.close(room)
        self.memory[:, request.rows] = 0xDD
        self.aux[request.slot] = 0xDD
        self.free |= set(request.rows.tolist())
        self.slots.add(request.slot)

    def untouched(self) -> bool:
        """Whether nothing was written into pages that no request owns."""
        free = sorted(self.free)
        return bool((self.memory[:, free] == 0xDD).all() and len(free) == PAGES)


def page_memory(
    world: World, source: random.Random, memory: HostMemory
) -> tuple[PageMemory, Device | None]:
    """The memory of a worker, and its device if it is a late one."""
    if world.memory == "host":
        return memory, None
    device = Device(world, source)
    return LateMemory(memory, device), device


def aux_rows(aux: np.ndarray) -> HostRows:
    return HostRows([aux.ctypes.data], [aux.nbytes], [aux.shape[1]])


def receive(side: Lender | Reader, frames: Frames) -> None:
    with contextlib.suppress(MalformedMessageError):  # dropped, as the socket thread does
        side.receive(frames)


def count(counts: dict[str, int], what: str, path: str, amount: int) -> None:
    name = f"{what}.{path}" if path else what
    counts[name] = counts.get(name, 0) + amount


def contents(source: random.Random) -> Iterator[tuple[list[int], np.ndarray, bytes]]:
    """Token ids, the pages of their KV, and metadata: of one new request after the other."""
    while True:
        pages = source.choice((0, 1, 3, 4, 9, 14))
        tokens = [source.randrange(50_000) for _ in range(pages)]
        noise: Any = source.randbytes(BUFFERS * pages * WIDTH)
        content = np.frombuffer(noise, dtype=np.uint8).reshape(BUFFERS, pages, WIDTH)
        yield tokens, content, source.randbytes(AUX_WIDTH)
