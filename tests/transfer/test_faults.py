"""Hundreds of seeded schedules of faults through the real protocol code.

Every request must end, with the exact pages or with a reason; no page may stay leased, no page
may be written after its request is over, and no wrong page may ever be accepted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from ps_sglang.engine.transfer.messages import Frames
from ps_sglang.engine.transfer.pulls import Outcome
from tests.transfer.handoff_world import LIMITS, Decode, Prefill, World, contents

SCHEDULES = 480
GROUPS = 8
FAULTY_S = 30.0
FAULTS = {
    "drop", "double", "delay", "cut", "damage", "abort", "freeze", "decode worker killed mid-pull",
    "prefill worker killed mid-batch", "prefill worker restarted", "page rots in the pool",
}  # fmt: skip
LONGEST_S = 4 * LIMITS.lease_s + LIMITS.stall_s + 120.0


class BadNetwork:
    """Loses, doubles, delays, cuts and damages messages, each kind as often as the seed says."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        severity = source.choice((0.0, 0.3, 1.0))
        self.odds = {
            fault: source.random() * worst * severity
            for fault, worst in (
                ("drop", 0.3), ("double", 0.3), ("delay", 0.5), ("cut", 0.1), ("damage", 0.1),
            )
        }  # fmt: skip
        self.seen: set[str] = set()

    def carry(self, frames: Frames) -> list[tuple[float, Frames]]:
        if self._strikes("drop"):
            return []
        copies = [frames, frames] if self._strikes("double") else [frames]
        return [(self._delay(), self._bent([bytes(frame) for frame in copy])) for copy in copies]

    def heal(self) -> None:
        """From now on every message arrives, whole and in order."""
        self.odds = dict.fromkeys(self.odds, 0.0)

    def _strikes(self, fault: str) -> bool:
        struck = self.source.random() < self.odds[fault]
        if struck:
            self.seen.add(fault)
        return struck

    def _delay(self) -> float:
        return self.source.expovariate(0.5) if self._strikes("delay") else 0.001

    def _bent(self, frames: Frames) -> Frames:
        number = self.source.randrange(len(frames))
        if self._strikes("cut"):
            if self.source.random() < 0.5:
                return frames[:number]
            frame = frames[number]
            frames[number] = frame[: self.source.randrange(len(frame) + 1)]
        if self._strikes("damage") and frames[number]:
            frame = bytearray(frames[number])
            frame[self.source.randrange(len(frame))] ^= 1 << self.source.randrange(8)
            frames[number] = bytes(frame)
        return frames


class Schedule:
    """One run: workers, requests and faults, all drawn from a seed."""

    def __init__(self, seed: int, memory: str) -> None:
        self.source = random.Random(seed)
        self.network = BadNetwork(self.source)
        self.world = World(self.network.carry, memory)
        self.prefills = [self._prefill(f"tcp://p{n}") for n in range(self.source.choice((1, 2)))]
        self.decodes = [self._decode(f"tcp://d{n}") for n in range(self.source.choice((1, 3)))]
        self.cancelled: list[Prefill | Decode] = []
        self.seen = self.network.seen
        self.contents = contents(self.source)
        self.plan = self._plan()
        self.rooms = 0

    def _prefill(self, endpoint: str) -> Prefill:
        return Prefill(self.world, endpoint, f"{self.source.getrandbits(60)}", self.source)

    def _decode(self, endpoint: str) -> Decode:
        return Decode(
            self.world, endpoint, f"{self.source.getrandbits(60)}", self.source,
            same_host=self.source.random() < 0.5, poll_s=self.source.choice((0.01, 0.2)),
        )  # fmt: skip

    def _plan(self) -> list[tuple[float, Any]]:
        source = self.source
        events: list[tuple[float, Any]] = [
            (source.uniform(0, FAULTY_S / 2), self.request) for _ in range(source.randrange(2, 12))
        ]
        faults = (
            self.abort, self.abort, self.kill_decode, self.restart_decode, self.kill_prefill,
            self.restart_prefill, self.freeze, self.rot,
        )  # fmt: skip
        events += [
            (source.uniform(0, FAULTY_S * 0.7), source.choice(faults))
            for _ in range(source.randrange(6))
        ]
        return sorted(events, key=lambda event: event[0])

    @property
    def nodes(self) -> list[Prefill | Decode]:
        return [*self.prefills, *self.decodes]

    def run(self) -> None:
        """Play the plan, heal the network, and wait for every request to end."""
        for at, event in self.plan:
            self.world.run(at - self.world.now)
            event()
        self.world.run(FAULTY_S - self.world.now)
        for node in self.nodes:
            node.stopped = False
        self.network.heal()
        self._end_orphans()
        self.world.run(LONGEST_S, until=self.over)

    def over(self) -> bool:
        return all(
            request.outcome is not None for node in self.nodes for request in node.requests.values()
        ) and all(node.idle() for node in self.prefills)

    # Events

    def request(self) -> None:
        """Both legs of a request, in either order, or one leg whose other half never comes."""
        source = self.source
        prefill, decode = source.choice(self.prefills), source.choice(self.decodes)
        tokens, content, metadata = next(self.contents)
        pages = content.shape[1]
        if min(len(prefill.free), len(decode.free)) < pages or prefill.stopped or decode.stopped:
            return
        self.rooms += 1
        room = self.rooms
        held = source.choice((0, 0, pages // 2, pages))
        chunks = [pages]
        if pages > 4:
            chunks = [pages // 2, pages - pages // 2]
        heard = [*tokens[:-1], 1] if source.random() < 0.05 else tokens
        legs = [
            lambda: decode.start(room, prefill.endpoint, heard, content, metadata, held=held),
            lambda: prefill.start(
                room, tokens, content, metadata, chunks=chunks,
                pace_s=source.choice((0.01, 0.5, 4.0)),
            ),
        ]  # fmt: skip
        source.shuffle(legs)
        legs[0]()
        self.world.run(source.choice((0.0, 0.1)))
        if source.random() > 0.05:
            legs[1]()

    def _end_orphans(self) -> None:
        """End legs whose other half never reached a living worker, as SGLang's time limits do."""
        for prefill in self.prefills:
            for room in self._running(prefill):
                request = prefill.requests[room]
                if not request.pulled and not self._lives(room, self.decodes):
                    prefill.abort(room)
        for decode in self.decodes:
            for room in self._running(decode):
                # A killed worker is noticed; one whose endpoint lives again may not be.
                peer = decode.requests[room].peer
                if peer in self.world.nodes and not self._lives(room, self.prefills):
                    decode.abort(room)

    @staticmethod
    def _lives(room: int, among: Sequence[Prefill | Decode]) -> bool:
        running = [node.requests[room] for node in among if room in node.requests]
        return bool(running)

    def abort(self) -> None:
        nodes = [node for node in self.nodes if not node.stopped]
        running = [(node, room) for node in nodes for room in self._running(node)]
        if running:
            node, room = self.source.choice(running)
            node.abort(room)
            self.seen.add("abort")

    @staticmethod
    def _running(node: Prefill | Decode) -> list[int]:
        return [room for room, request in node.requests.items() if request.outcome is None]

    def kill_decode(self) -> None:
        victim = self.source.choice(self.decodes)
        if self._running(victim):
            self.seen.add("decode worker killed mid-pull")
        self._remove(victim, self.decodes)
        self.decodes.append(self._decode(f"tcp://d{self.source.getrandbits(60)}"))

    def restart_decode(self) -> None:
        victim = self.source.choice(self.decodes)
        self._remove(victim, self.decodes)
        self.decodes.append(self._decode(victim.endpoint))

    def kill_prefill(self) -> None:
        victim = self.source.choice(self.prefills)
        if self._running(victim):
            self.seen.add("prefill worker killed mid-batch")
        self._remove(victim, self.prefills)
        self.prefills.append(self._prefill(f"tcp://p{self.source.getrandbits(60)}"))

    def restart_prefill(self) -> None:
        victim = self.source.choice(self.prefills)
        if self._running(victim):
            self.seen.add("prefill worker restarted")
        self._remove(victim, self.prefills)
        self.prefills.append(self._prefill(victim.endpoint))

    def _remove(self, victim: Any, among: list[Any]) -> None:
        victim.stopped = True
        among.remove(victim)
        self.world.nodes.pop(victim.endpoint)
        self.cancelled.append(victim)

    def freeze(self) -> None:
        """A process stands still for a while: it neither hears, nor ticks, nor polls."""
        self.source.choice(self.nodes).stopped = True
        self.seen.add("freeze")

    def rot(self) -> None:
        """A byte of a page that is being lent changes, once its digest is out."""
        for prefill in self.prefills:
            for room, request in prefill.requests.items():
                if request.outcome is None and (rows := prefill.digested(room)):
                    row = self.source.choice(rows)
                    prefill.memory[0, row, 3] ^= 0x10
                    self.seen.add("page rots in the pool")
                    return


@pytest.mark.parametrize(
    ("memory", "group"), [*(("host", n) for n in range(GROUPS)), ("late", 0), ("late", 1)]
)
def test_every_request_ends_exactly_or_by_name(memory: str, group: int) -> None:
    received = named = 0
    seen: set[str] = set()
    for seed in range(group, SCHEDULES, GROUPS):
        schedule = Schedule(seed, memory)
        schedule.run()
        assert schedule.over(), f"seed {seed}: a request hangs or a page is leased for ever"
        seen |= schedule.seen
        for decode in schedule.decodes:
            assert decode.untouched(), f"seed {seed}: a page was written after its request"
            for room, request in decode.requests.items():
                assert request.outcome is not None
                received += request.outcome.failure is None
                named += bool(request.outcome.failure)
                received_there = [
                    prefill.requests[room].outcome
                    for prefill in schedule.prefills
                    if room in prefill.requests
                ]
                if len(request.rows) and Outcome() in received_there:
                    assert request.outcome == Outcome(), f"seed {seed}: room {room}"
        # What is remembered of rooms goes as well.
        schedule.world.run(2 * LIMITS.lease_s + LIMITS.linger_s)
        left = [prefill.lender.rooms for prefill in schedule.prefills]
        left += [decode.reader.pulls for decode in schedule.decodes]
        assert not any(left), f"seed {seed}: a room is remembered for ever"
    assert received > 100, "too few requests got through to prove anything"
    assert named > 10
    assert seen == FAULTS
