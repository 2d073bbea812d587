"""The handoff protocol, one behaviour at a time, on a network that does one thing wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ps_sglang.engine.metrics import HandoffFailure
from ps_sglang.engine.transfer.messages import (
    Alive,
    Cancelled,
    Fetch,
    Frames,
    MalformedMessageError,
    Memory,
    Message,
    Offer,
    Pages,
    Pull,
    Received,
    Register,
    Rejected,
    decode,
    encode,
)
from ps_sglang.engine.transfer.pulls import Outcome
from tests.transfer.handoff_world import (
    AUX_WIDTH,
    BUFFERS,
    LIMITS,
    PAGES,
    TICK_S,
    WIDTH,
    Decode,
    Prefill,
    World,
)

DONE = Outcome()
ROOM = 7
TOKENS = list(range(14))
SOURCE = random.Random(1)
NOISE: Any = SOURCE.randbytes(BUFFERS * len(TOKENS) * WIDTH)
CONTENT = np.frombuffer(NOISE, dtype=np.uint8).reshape(BUFFERS, len(TOKENS), WIDTH)
METADATA = SOURCE.randbytes(AUX_WIDTH)


class Pair:
    """A prefill worker, a decode worker, and one request."""

    def __init__(self, *, same_host: bool = True, memory: str = "host", **options: Any) -> None:
        self.world = World(memory=memory)
        self.prefill = Prefill(self.world, "tcp://p", "first", random.Random(2))
        self.decode = Decode(
            self.world, "tcp://d", "d", random.Random(3), same_host=same_host, **options
        )

    def start(self, room: int = ROOM, *, held: int = 0, heard: list[int] = TOKENS) -> None:
        self.decode.start(room, "tcp://p", heard, CONTENT, METADATA, held=held)
        self.prefill.start(room, TOKENS, CONTENT, METADATA, chunks=[8, 6])

    def outcomes(self, room: int = ROOM) -> tuple[Outcome | None, Outcome | None]:
        return self.prefill.requests[room].outcome, self.decode.requests[room].outcome

    def run(self, seconds: float = 120.0) -> None:
        self.world.run(seconds, until=self.over)

    def over(self) -> bool:
        outcomes = [
            *(request.outcome for request in self.prefill.requests.values()),
            *(request.outcome for request in self.decode.requests.values()),
        ]
        return None not in outcomes

    def assert_handed_over(self) -> None:
        """The decode stand-in has compared every byte."""
        self.run()
        assert self.outcomes() == (DONE, DONE)
        assert not self.decode.failures
        self.world.run(0.05)
        assert self.prefill.idle()
        assert self.decode.untouched()

    def messages(self, kind: type[Message]) -> list[Any]:
        decoded = [decode(frames)[0] for _, frames in self.world.sent]
        return [message for message in decoded if isinstance(message, kind)]

    def bend(self, kind: type[Message], change: Callable[[Frames], list[Frames]], times: int = 1):  # type: ignore[no-untyped-def]
        """Change the first messages of a kind on their way."""
        left = [times]

        def carry(frames: Frames) -> list[tuple[float, Frames]]:
            if left[0] and isinstance(decode(frames)[0], kind):
                left[0] -= 1
                return [(0.001, copy) for copy in change([bytes(frame) for frame in frames])]
            return [(0.001, frames)]

        self.world.carry = carry


def drop(_frames: Frames) -> list[Frames]:
    return []


def double(frames: Frames) -> list[Frames]:
    return [frames, frames]


def cut(frames: Frames) -> list[Frames]:
    return [[*frames[:-1], frames[-1][:-1]]]


def damage(frames: Frames) -> list[Frames]:
    last = bytearray(frames[-1])
    last[len(last) // 2] ^= 1
    return [[*frames[:-1], bytes(last)]]


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
@pytest.mark.parametrize("held", [0, 5, 8, 14])
def test_pages_arrive_in_batches_as_chunks_finish(same_host: bool, held: int) -> None:
    pair = Pair(same_host=same_host)
    pair.start(held=held)
    pair.assert_handed_over()
    offers = [offer for offer in pair.messages(Offer) if offer.digest]
    assert sum(offer.count for offer in offers) == 14 - held
    assert max(offer.count for offer in offers) <= 4
    assert [offer.last for offer in offers] == [False] * (len(offers) - 1) + [True]
    path = "shm" if same_host else "tcp"
    expected = {} if held == 14 else {
        f"batches.{path}": len([offer for offer in offers if offer.count]),
        f"bytes.{path}": (14 - held) * BUFFERS * WIDTH,
    }  # fmt: skip
    assert pair.decode.counts == expected
    assert bool(pair.messages(Pages)) == (not same_host and held < 14)


def test_first_chunk_lands_while_the_next_is_computed() -> None:
    pair = Pair()
    pair.start()
    pair.prefill.requests[ROOM].pace_s = 10.0
    pair.world.run(5.0)
    assert pair.outcomes() == (None, None)
    assert pair.decode.counts["bytes.shm"] == 8 * BUFFERS * WIDTH
    pair.assert_handed_over()


@pytest.mark.parametrize("memory", ["host", "late"])
@pytest.mark.parametrize("change", [drop, double, cut, damage])
@pytest.mark.parametrize("kind", [Register, Memory, Pull, Offer, Fetch, Pages, Received])
def test_one_bad_message_costs_time_only(
    kind: type[Message], change: Callable[[Frames], list[Frames]], memory: str
) -> None:
    pair = Pair(same_host=False, memory=memory)
    pair.bend(kind, change)
    pair.start()
    pair.assert_handed_over()


@pytest.mark.parametrize("kind", [Offer, Pages, Received])
def test_every_message_of_a_kind_comes_twice(kind: type[Message]) -> None:
    pair = Pair(same_host=False)
    pair.bend(kind, double, times=100)
    pair.start()
    pair.assert_handed_over()
    assert pair.decode.counts["bytes.tcp"] == 14 * BUFFERS * WIDTH


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_pages_are_copied_while_their_digest_is_computed(same_host: bool) -> None:
    """They count once it is there: here its message is lost, and the offer is repeated."""
    pair = Pair(same_host=same_host)

    def carry(frames: Frames) -> list[tuple[float, Frames]]:
        message, _ = decode(frames)
        late = isinstance(message, Offer) and message.digest and pair.world.now < 5.0
        return [] if late else [(0.001, frames)]

    pair.world.carry = carry
    pair.start()
    pair.world.run(4.9)
    arrived = pair.decode.memory[:, pair.decode.requests[ROOM].rows] == CONTENT
    pages = arrived.all(axis=(0, 2))
    assert pages.sum() == (14 if same_host else 8)  # what is not counted stays in the window
    assert pair.decode.counts == {}
    assert not pair.messages(Received)
    assert len(pair.messages(Fetch)) == (0 if same_host else LIMITS.fetches)
    pair.assert_handed_over()
    path = "shm" if same_host else "tcp"
    assert pair.decode.counts == {f"batches.{path}": 4, f"bytes.{path}": 14 * BUFFERS * WIDTH}


def test_reader_sets_the_pace() -> None:
    """No more batches are on their way than the reader asked for, however many are offered."""
    pair = Pair(same_host=False, poll_s=1.0)
    pair.start()
    pair.world.run(0.9)
    assert len(pair.messages(Offer)) == 2 * 4
    assert len(pair.messages(Fetch)) == len(pair.messages(Pages)) == LIMITS.fetches
    pair.assert_handed_over()


def test_a_long_handoff_lets_the_decode_worker_step_in_between() -> None:
    pair = Pair(poll_s=1.0, batches_per_poll=3)
    pair.start()
    pair.world.run(1.5)
    assert pair.decode.counts["batches.shm"] == 3
    assert pair.decode.wakes == 4 + 1  # for each batch, and because there is more
    pair.world.run(1.0)
    assert pair.decode.counts["batches.shm"] == 4
    pair.assert_handed_over()


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_damaged_batch_is_pulled_again_once(same_host: bool) -> None:
    pair = Pair(same_host=same_host)
    if same_host:
        spoil_copies(pair, times=1)
    else:
        pair.bend(Pages, damage)
    pair.start()
    pair.assert_handed_over()
    path = "shm" if same_host else "tcp"
    assert pair.decode.counts[f"damaged.{path}"] == 1
    assert pair.decode.counts[f"pulled_again.{path}"] == 1


def test_batch_damaged_twice_fails_by_name() -> None:
    pair = Pair(same_host=False)
    pair.bend(Pages, damage, times=100)
    pair.start()
    pair.world.run(1.0, until=pair.over)
    prefill, decode_side = pair.outcomes()
    assert prefill == decode_side
    assert decode_side is not None
    assert "pages 0..4 of room 7 came damaged from tcp://p, twice" in str(decode_side.failure)
    assert pair.decode.failures == [HandoffFailure.DAMAGED]
    pair.world.run(0.05)
    assert pair.prefill.idle()
    assert pair.decode.untouched()


def spoil_copies(pair: Pair, times: int) -> None:
    """The pool changes between an offer and the copying of its first batches."""
    whole = pair.world.carry
    left = [times]

    def carry(frames: Frames) -> list[tuple[float, Frames]]:
        message, _ = decode(frames)
        if left[0] and isinstance(message, Offer) and message.digest:
            left[0] -= 1
            row = int(np.frombuffer(message.rows, dtype=np.int32)[0])
            pair.prefill.memory[1, row, 5] ^= 1
            pair.decode.poll_s = 0.01

            def restore(frames: Frames) -> list[tuple[float, Frames]]:
                if isinstance(decode(frames)[0], Fetch):
                    pair.prefill.memory[1, row, 5] ^= 1
                    pair.world.carry = whole
                return whole(frames)

            pair.world.carry = restore
        return whole(frames)

    pair.world.carry = carry


def test_other_token_ids_are_named_on_both_sides() -> None:
    pair = Pair()
    pair.start(heard=[*TOKENS[:-1], 99])
    pair.run()
    for outcome in pair.outcomes():
        assert outcome is not None
        assert "the workers disagree on the base prefix: 14 tokens" in str(outcome.failure)
    assert pair.decode.failures == [HandoffFailure.REFUSED]
    assert not pair.messages(Offer)


@pytest.mark.parametrize(
    ("decode_worker", "reason"),
    [
        ({"fingerprint": "other"}, "tcp://d expects KV of base other, but this prefill worker "),
        ({"buffers": 2}, "lays out a KV page as 2 buffers of [64] bytes, this prefill worker as 3"),
    ],
)
def test_an_incompatible_worker_is_refused_by_name(
    decode_worker: dict[str, Any], reason: str
) -> None:
    pair = Pair(**decode_worker)
    pair.start()
    pair.run()
    for outcome in pair.outcomes():
        assert outcome is not None
        assert reason in str(outcome.failure)
    assert pair.decode.failures == [HandoffFailure.REFUSED]


def test_each_reader_has_its_own_lease() -> None:
    """One of two decode workers dies: its lease ends alone, the other one's pages are lent on."""
    pair = Pair(poll_s=1000.0)
    other = Decode(pair.world, "tcp://other", "o", random.Random(4), poll_s=1000.0)
    pair.start()
    other.start(8, "tcp://p", TOKENS, CONTENT, METADATA)
    pair.prefill.start(8, TOKENS, CONTENT, METADATA)
    pair.world.run(1.0)
    assert len(pair.messages(Offer)) == 2 * 8
    pair.decode.stopped = True  # killed: nothing is heard of it any more
    pair.world.nodes.pop("tcp://d")
    pair.world.run(LIMITS.lease_s + 2.0)
    outcome = pair.prefill.requests[ROOM].outcome
    assert outcome is not None
    assert f"decode worker tcp://d was not heard of for {LIMITS.lease_s:g} s" in str(
        outcome.failure
    )
    assert pair.prefill.counts == {"expired": 1}
    assert pair.prefill.requests[8].outcome is None
    other.poll_s = 0.01
    pair.world.run(1.0)
    assert pair.prefill.requests[8].outcome == DONE == other.requests[8].outcome
    assert pair.prefill.idle()


def test_restarted_decode_worker_is_served_while_the_lease_of_the_dead_one_ends() -> None:
    pair = Pair(poll_s=1000.0)
    pair.start()
    pair.world.run(1.0)
    first_words = pair.world.sent[0][1]
    again = Decode(pair.world, "tcp://d", "reborn", random.Random(4))
    pair.prefill.start(9, TOKENS, CONTENT, METADATA)
    again.start(9, "tcp://p", TOKENS, CONTENT, METADATA)
    pair.world.run(0.05, until=lambda: pair.prefill.requests[9].pulled)
    pair.prefill.receive(first_words)  # of the dead process: they come late
    pair.world.run(1.0)
    assert again.requests[9].outcome == DONE == pair.prefill.requests[9].outcome
    pair.world.run(LIMITS.lease_s + 1.0)
    outcome, _ = pair.outcomes()
    assert outcome is not None
    assert "decode worker tcp://d was not heard of for 15 s" in str(outcome.failure)
    assert pair.prefill.idle()


def test_prefill_worker_that_dies_is_noticed() -> None:
    pair = Pair()
    pair.start()
    pair.prefill.requests[ROOM].pace_s = 1000.0
    pair.world.run(1.0)
    assert pair.decode.counts["batches.shm"] == 2
    pair.world.nodes.pop("tcp://p")
    pair.world.run(LIMITS.lease_s + 3.0)
    outcome = pair.decode.requests[ROOM].outcome
    assert outcome is not None
    assert "prefill worker tcp://p was not heard of for 15 s" in str(outcome.failure)
    assert pair.decode.failures == [HandoffFailure.LOST]


def test_prefill_worker_that_sends_no_pages_is_not_waited_for() -> None:
    """It answers all else, so it is not dead."""
    pair = Pair(same_host=False)
    pair.bend(Pages, drop, times=10_000)
    pair.start()
    pair.world.run(2 * LIMITS.stall_s, until=pair.over)
    for outcome in pair.outcomes():
        assert outcome is not None
        assert "no page came from prefill worker tcp://p for 60 s" in str(outcome.failure)
    assert pair.decode.failures == [HandoffFailure.STALLED]
    pair.world.run(0.05)
    assert pair.prefill.idle()
    assert pair.decode.untouched()


def test_restarted_prefill_worker_with_an_empty_tree() -> None:
    pair = Pair()
    pair.start()
    pair.prefill.requests[ROOM].pace_s = 1000.0
    pair.world.run(1.0)
    reborn = Prefill(pair.world, "tcp://p", "second", random.Random(5))
    reborn.start(ROOM, TOKENS, CONTENT, METADATA)  # what was received is not mixed with this
    pair.world.run(5.0)
    assert reborn.requests[ROOM].outcome == pair.decode.requests[ROOM].outcome
    outcome = pair.decode.requests[ROOM].outcome
    assert outcome is not None
    assert outcome.failure == "prefill worker tcp://p restarted"
    assert pair.decode.failures == [HandoffFailure.LOST]
    reborn.start(9, TOKENS, CONTENT, METADATA)
    pair.decode.start(9, "tcp://p", TOKENS, CONTENT, METADATA)
    pair.world.run(5.0)
    assert reborn.requests[9].outcome == DONE == pair.decode.requests[9].outcome


def test_prefill_worker_that_restarts_before_it_offers_anything() -> None:
    """The new process has no such request, and says so; one that it has, it serves."""
    pair = Pair()
    for room in (1, 2):
        pair.decode.start(room, "tcp://p", TOKENS, CONTENT, METADATA)
    pair.world.run(1.0)
    reborn = Prefill(pair.world, "tcp://p", "second", random.Random(5))
    reborn.start(2, TOKENS, CONTENT, METADATA)
    pair.world.run(5.0)
    assert pair.decode.requests[1].outcome == Outcome("prefill worker tcp://p restarted")
    assert pair.decode.failures == [HandoffFailure.LOST]
    assert pair.decode.requests[2].outcome == DONE == reborn.requests[2].outcome


@pytest.mark.parametrize("reborn", [False, True], ids=["same", "reborn"])
@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_hours_without_a_request_cost_the_next_one_nothing(same_host: bool, reborn: bool) -> None:
    """Nor does a prefill worker that restarted meanwhile, as nothing was asked of it."""
    pair = Pair(same_host=same_host)
    pair.start()
    pair.assert_handed_over()
    for hour in range(4):
        if reborn and hour == 2:
            pair.prefill = Prefill(pair.world, "tcp://p", "second", random.Random(5))
        end = pair.world.now + 3600
        while pair.world.now < end:
            pair.world.deliver_until(pair.world.now + TICK_S)
            pair.prefill.step()
            pair.decode.step()
    pair.start(8)
    pair.world.run(1.0, until=pair.over)
    assert pair.outcomes(8) == (DONE, DONE)
    pair.world.run(0.05)
    assert pair.prefill.idle()
    assert pair.decode.untouched()
    assert pair.decode.reader.pulls == pair.prefill.lender.rooms == 0


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_a_process_that_stood_still_does_not_take_the_others_for_dead(same_host: bool) -> None:
    """A suspended host: for longer than a stall neither worker runs, and then both do."""
    pair = Pair(same_host=same_host)
    pair.bend(Pages, drop)  # so that pages are waited for
    pair.start()
    pair.prefill.requests[ROOM].pace_s = 70.0
    pair.world.run(1.0)
    pair.prefill.stopped = pair.decode.stopped = True
    pair.world.run(LIMITS.stall_s + 2 * LIMITS.lease_s)
    pair.prefill.stopped = pair.decode.stopped = False
    pair.assert_handed_over()


def test_a_short_stop_of_one_process_is_waited_for() -> None:
    pair = Pair()
    pair.start()
    pair.prefill.requests[ROOM].pace_s = 40.0
    pair.world.run(1.0)
    for node in (pair.prefill, pair.decode):
        node.stopped = True
        pair.world.run(LIMITS.lease_s - 4.0)
        node.stopped = False
        pair.world.run(1.0)
    pair.assert_handed_over()


@pytest.mark.parametrize("memory", ["host", "late"])
@pytest.mark.parametrize("first", ["prefill", "decode"])
@pytest.mark.parametrize("offered", [False, True])
def test_an_abort_ends_the_other_side(first: str, offered: bool, memory: str) -> None:
    pair = Pair(poll_s=1000.0, memory=memory)
    pair.start()
    if offered:
        pair.world.run(1.0)
    (pair.prefill if first == "prefill" else pair.decode).abort(ROOM)
    pair.decode.poll_s = 0.01
    pair.world.run(1.0)
    for outcome in pair.outcomes():
        assert outcome is not None
        assert outcome.failure == f"the {first} worker aborted the request"
    # Giving up oneself is no failure.
    assert pair.decode.failures == ([HandoffFailure.ABORTED] if first == "prefill" else [])
    assert pair.prefill.idle()
    assert pair.decode.untouched()


def test_the_other_leg_of_an_aborted_request_comes_late() -> None:
    pair = Pair()
    pair.prefill.start(1, TOKENS, CONTENT, METADATA)
    pair.prefill.abort(1)
    pair.decode.start(1, "tcp://p", TOKENS, CONTENT, METADATA)
    pair.decode.start(2, "tcp://p", TOKENS, CONTENT, METADATA)
    pair.world.run(1.0)
    pair.decode.abort(2)
    pair.world.run(1.0)
    pair.prefill.start(2, TOKENS, CONTENT, METADATA)
    pair.run()
    assert str(pair.decode.requests[1].outcome).count("the prefill worker aborted the request")
    assert str(pair.prefill.requests[2].outcome).count("the decode worker aborted the request")
    pair.world.run(0.05)
    assert len(pair.prefill.free) == PAGES


def test_stale_lease_is_refused() -> None:
    pair = Pair()
    pair.start()
    pair.assert_handed_over()
    for stale in (
        Fetch("tcp://d#d", "tcp://p", 0, 0),
        Received("tcp://d#d", "tcp://p", 99, [0]),
        Cancelled("tcp://d#d", "tcp://p", 98, None, "why"),
    ):
        pair.world.sent.clear()
        pair.prefill.receive(encode(stale))
        (answer,) = pair.messages(Rejected)
        assert answer.pull == stale.pull
        assert answer.reason in ("no such lease", "the handoff is over")


def test_nothing_is_read_after_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that the owner took back are its own: a late Fetch gets none of them."""
    pair = Pair(same_host=False, poll_s=1000.0)
    pair.start()
    pair.world.run(1.0)
    pair.prefill.abort(ROOM)
    monkeypatch.setattr(pair.prefill.lender._pages, "gather", lambda _rows: pytest.fail("read"))
    pair.prefill.receive(encode(Fetch("tcp://d#d", "tcp://p", 0, 3)))


@pytest.mark.parametrize("kind", [Pull, Fetch], ids=["digest", "gather"])
def test_pages_are_not_evicted_while_a_device_reads_them(kind: type[Message]) -> None:
    pair = Pair(same_host=False, memory="late")
    pair.start()
    assert pair.prefill.device is not None
    jobs = pair.prefill.device._jobs
    pair.world.run(5.0, until=lambda: bool(jobs and pair.messages(kind)))
    begun = list(jobs)
    assert begun
    assert not any(job.is_over for job in begun)
    pair.prefill.abort(ROOM)
    assert all(job.is_over for job in begun)


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
@pytest.mark.parametrize("aborts", ["prefill", "decode"])
def test_a_page_is_not_written_once_its_request_is_over(aborts: str, same_host: bool) -> None:
    pair = Pair(same_host=same_host, memory="late")
    pair.start()
    assert pair.decode.device is not None
    pair.world.run(5.0, until=lambda: bool(pair.decode.device and pair.decode.device._jobs))
    assert not any(job.is_over for job in pair.decode.device._jobs)
    (pair.prefill if aborts == "prefill" else pair.decode).abort(ROOM)
    pair.run()
    pair.world.run(5.0)
    assert pair.decode.untouched()


def test_a_device_s_pages_are_offered_when_they_are_written() -> None:
    pair = Pair(memory="late")
    pair.start()
    pair.assert_handed_over()
    assert all(offer.digest for offer in pair.messages(Offer))
    assert "damaged.shm" not in pair.decode.counts


def test_a_room_that_two_ask_for_is_refused_to_the_second() -> None:
    pair = Pair(poll_s=1000.0)
    other = Decode(pair.world, "tcp://other", "o", random.Random(4))
    pair.start()
    pair.world.run(1.0)
    other.start(ROOM, "tcp://p", TOKENS, CONTENT, METADATA)
    pair.world.run(1.0)
    assert other.requests[ROOM].outcome == Outcome("room 7 is being pulled already")
    pair.decode.poll_s = 0.01
    pair.assert_handed_over()


def test_messages_for_the_other_side_are_refused() -> None:
    pair = Pair()
    with pytest.raises(MalformedMessageError, match="is for a decode worker"):
        pair.prefill.lender.receive(encode(Pages("s", 0, 0), b""))
    with pytest.raises(MalformedMessageError, match="is for a prefill worker"):
        pair.decode.reader.receive(encode(Received("tcp://d#d", "tcp://p", 0, [0])))


def test_pages_that_do_not_add_up_fail_by_name() -> None:
    """The two workers count the delta differently: neither may guess."""
    pair = Pair()
    pair.start(held=6)
    pair.prefill.requests[ROOM].chunks = []
    pair.world.run(0.05, until=lambda: pair.prefill.requests[ROOM].pulled)
    pair.prefill.lender.offer(ROOM, np.arange(9, dtype=np.int32), 0)
    pair.run()
    for outcome in pair.outcomes():
        assert outcome is not None
        assert "asked for 8 pages, but the request has 9" in str(outcome.failure)
    assert pair.decode.failures == [HandoffFailure.REFUSED]


def test_schedulers_hear_of_pages_by_mail_and_threads_of_all_else() -> None:
    """So no thread stands between two schedulers, and a busy one delays nothing but its own."""
    pair = Pair()
    pair.start()
    pair.assert_handed_over()
    pair.world.run(2 * LIMITS.beat_s)
    seen = {(type(decode(frames)[0]), address) for address, frames in pair.world.sent}
    assert seen == {
        (Register, "tcp://p"), (Memory, "tcp://d"), (Alive, "tcp://p"), (Alive, "tcp://d"),
        (Pull, "tcp://p#first"), (Offer, "tcp://d#d"), (Received, "tcp://p#first"),
    }  # fmt: skip
    pair = Pair(same_host=False)
    pair.start()
    pair.assert_handed_over()
    seen = {(type(decode(frames)[0]), address) for address, frames in pair.world.sent}
    assert {(Fetch, "tcp://p"), (Pages, "tcp://d")} < seen


def test_pages_are_offered_two_batches_ahead_of_their_digests() -> None:
    """As many as are fetched at a time: there is always one to copy, and no heap of mail."""
    pair = Pair()
    pair.decode.start(ROOM, "tcp://p", TOKENS, CONTENT, METADATA)
    pair.prefill.start(ROOM, TOKENS, CONTENT, METADATA, chunks=[14])
    pair.assert_handed_over()
    offers = [(offer.seq, bool(offer.digest)) for offer in pair.messages(Offer)]
    assert offers == [
        (0, False), (1, False), (0, True), (2, False), (1, True), (3, False), (2, True), (3, True),
    ]  # fmt: skip


def test_land_hears_what_lies_in_the_mailbox() -> None:
    """A scheduler that only polls its requests needs no other look."""
    pair = Pair(poll_s=1e9)
    pair.start()
    pair.world.run(1.0)
    assert pair.decode.mailbox.frames
    assert pair.decode.reader.poll(ROOM) == DONE
    assert not pair.decode.mailbox.frames
