"""A subscriber against the real publisher over real sockets, with a relay that disturbs it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import msgspec
import pytest
import zmq
import zmq.asyncio

from ps_sglang.events.control import EventStreamError
from ps_sglang.events.messages import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    Pin,
    Position,
    Release,
    RequestRefused,
    Span,
    Status,
)
from ps_sglang.events.publisher import WorkerEventPublisher
from ps_sglang.events.subscriber import EventSubscriber, SubscriberTiming
from tests.events.event_parts import Frames, Relay, Tree, WorkerCache, running, stored

FAST = SubscriberTiming(heartbeat=0.05, answer=2.0, lost=0.2)


@pytest.fixture
async def tree() -> AsyncIterator[Tree]:
    made = Tree()
    yield made
    made.publisher.shutdown()


def _subscriber(
    tree: Tree, mirror: WorkerCache, relay: Relay | None = None, timing: SubscriberTiming = FAST
) -> EventSubscriber:
    publish = tree.publisher.endpoint if relay is None else relay.address
    return EventSubscriber(publish, tree.publisher.control, mirror, timing)


async def test_what_was_stored_before_and_after_it_came_is_told(tree: Tree) -> None:
    tree.store(1)
    tree.store(2, 1)
    mirror = WorkerCache()
    events = _subscriber(tree, mirror)
    assert not events.is_live
    async with running(events):
        await mirror.until(lambda: mirror.is_live)
        assert mirror.parents == {1: None, 2: 1}
        tree.store(3, 2)
        tree.remove(3)
        tree.store(4, 2)
        await mirror.until(lambda: mirror.parents == tree.parents)
        assert events.is_live
        assert mirror.losses == []


async def test_news_before_the_whole_tree_has_come_are_left_out(tree: Tree) -> None:
    mirror = WorkerCache()
    events = _subscriber(tree, mirror)
    tree.snapshots_wait = True
    async with running(events):
        await tree.until(lambda: bool(tree.commands))
        while not mirror.records:  # until the subscription is there as well
            tree.store(len(tree.parents))
            tree.publisher.record(Span(rid="r", role="decode", began=0.0))
            await mirror.soon()
        assert mirror.parents == {}
        assert not mirror.is_live
        tree.tell_all()
        await mirror.until(lambda: mirror.is_live and mirror.parents == tree.parents)


async def test_a_batch_that_comes_twice_is_told_once(tree: Tree) -> None:
    mirror = WorkerCache()
    relay, events = await _live_through_relay(tree, mirror)
    async with running(relay, events):
        await mirror.until(lambda: mirror.is_live)
        relay.disturb = lambda frames: [frames, frames]
        told, replays = mirror.told, events.counts["replays"]
        for block in range(5):
            tree.store(block)
        await mirror.until(lambda: mirror.parents == tree.parents)
        tree.publisher.record(Span(rid="r", role="decode", began=0.0))
        await mirror.until(lambda: bool(mirror.records))
        assert mirror.told == told + 5
        assert events.counts["replays"] == replays


class Blocks(WorkerCache):
    """Keeps every block with its parent and its tokens, and how many each event had."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[int, tuple[int | None, list[int]]] = {}
        self.sizes: list[int] = []

    def kv(self, event: KvEvent) -> None:
        if isinstance(event, AllBlocksCleared):
            self.blocks.clear()
        else:
            self.sizes.append(len(event.block_hashes))
        if isinstance(event, BlockRemoved):
            for block in event.block_hashes:
                del self.blocks[block]
        elif isinstance(event, BlockStored):
            parent, size = event.parent_block_hash, event.block_size
            for number, block in enumerate(event.block_hashes):
                self.blocks[block] = (parent, event.token_ids[number * size : (number + 1) * size])
                parent = block
        self._changed.set()


async def test_long_events_are_told_in_pieces(tree: Tree) -> None:
    """No request waits until all of a long prompt has been taken in."""
    mirror = Blocks()
    async with running(_subscriber(tree, mirror)):
        await mirror.until(lambda: mirror.is_live)
        first, others = list(range(5)), list(range(100, 100 + 1000))
        tree.publish(
            BlockStored(first, None, list(range(10)), 2, cache_salt="s"),
            BlockStored(others, 4, list(range(2000)), 2, cache_salt="s"),
        )
        expected = {
            block: (block - 1 if block else None, [2 * block, 2 * block + 1]) for block in first
        }
        expected |= {
            100 + number: (99 + number if number else 4, [2 * number, 2 * number + 1])
            for number in range(1000)
        }
        await mirror.until(lambda: mirror.blocks == expected)
        assert max(mirror.sizes) <= 128
        tree.publish(BlockRemoved(others[200:][::-1]))
        await mirror.until(lambda: len(mirror.blocks) == 205)
        assert max(mirror.sizes) <= 128
        assert mirror.losses == []


async def test_records_of_requests_are_told(tree: Tree) -> None:
    mirror = WorkerCache()
    record = Span(rid="r", role="decode", began=1.5, pull=0.25, pulled=7)
    async with running(_subscriber(tree, mirror)):
        await mirror.until(lambda: mirror.is_live)
        tree.publisher.record(record)
        await mirror.until(lambda: bool(mirror.records))
    assert mirror.records == [record]


async def _live_through_relay(tree: Tree, mirror: WorkerCache) -> tuple[Relay, EventSubscriber]:
    relay = Relay(tree.publisher.endpoint)
    return relay, _subscriber(tree, mirror, relay)


async def test_a_batch_that_is_missing_is_asked_for_again(tree: Tree) -> None:
    mirror = WorkerCache()
    relay, events = await _live_through_relay(tree, mirror)
    async with running(relay, events):
        await mirror.until(lambda: mirror.is_live)
        snapshots = events.counts["snapshots"]
        relay.disturb = lambda frames: []
        tree.store(1)
        tree.store(2, 1)
        await relay.saw(relay.seen + 2)
        relay.disturb = lambda frames: [frames]
        tree.store(3, 2)
        await mirror.until(lambda: mirror.parents == tree.parents)
        assert events.counts["replays"] >= 1
        assert events.counts["snapshots"] == snapshots


async def test_a_missing_batch_that_nothing_follows_is_noticed(tree: Tree) -> None:
    mirror = WorkerCache()
    relay, events = await _live_through_relay(tree, mirror)
    async with running(relay, events):
        await mirror.until(lambda: mirror.is_live)
        snapshots = events.counts["snapshots"]
        relay.disturb = lambda frames: []
        tree.store(1)
        await mirror.until(lambda: mirror.parents == {1: None})
        assert events.counts["snapshots"] == snapshots


async def test_batches_that_are_gone_are_replaced_by_the_whole_tree() -> None:
    tree = Tree(buffer_steps=1)
    mirror = WorkerCache()
    relay, events = await _live_through_relay(tree, mirror)
    try:
        async with running(relay, events):
            await mirror.until(lambda: mirror.is_live)
            relay.disturb = lambda frames: []
            for block in range(5):
                tree.store(block)
            await relay.saw(relay.seen + 5)
            relay.disturb = lambda frames: [frames]
            tree.store(9)
            await mirror.until(lambda: mirror.parents == tree.parents)
            assert events.counts["snapshots"] > 1
            assert mirror.losses == []
    finally:
        tree.publisher.shutdown()


@pytest.mark.parametrize(
    "damage",
    [
        lambda frames: frames[:2],
        lambda frames: [b"kv", *frames[1:]],
        lambda frames: [frames[0], b"\0", frames[2]],
        lambda frames: [b"news:" + frames[0][3:], *frames[1:]],
    ],
    ids=["truncated", "no topic", "short number", "unknown kind"],
)
async def test_a_damaged_message_is_asked_for_again(damage: object, tree: Tree) -> None:
    mirror = WorkerCache()
    relay, events = await _live_through_relay(tree, mirror)
    async with running(relay, events):
        await mirror.until(lambda: mirror.is_live)
        relay.disturb = lambda frames: [damage(frames)]  # type: ignore[operator]
        tree.store(1)
        await mirror.until(lambda: mirror.parents == tree.parents)
    if "news" not in str(damage):
        assert events.counts["replays"] >= 1


async def test_a_batch_with_damaged_content_leads_to_the_whole_tree(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = WorkerCache()
    relay, events = await _live_through_relay(tree, mirror)
    async with running(relay, events):
        await mirror.until(lambda: mirror.is_live)
        relay.disturb = lambda frames: [[*frames[:2], frames[2][:-1]]]
        tree.store(1)
        await relay.saw(relay.seen + 1)
        relay.disturb = lambda frames: [frames]
        await mirror.until(lambda: mirror.parents == tree.parents)
        assert events.counts["snapshots"] > 1
    assert "its events do not fit" in caplog.text


async def test_an_event_that_does_not_fit_leads_to_the_whole_tree(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = WorkerCache()
    async with running(_subscriber(tree, mirror)):
        await mirror.until(lambda: mirror.is_live)
        tree.parents[7] = None
        tree.publish(stored(8, 7))
        tree.parents[8] = 7
        await mirror.until(lambda: mirror.parents == {7: None, 8: 7})
    assert "block 7 is not here" in caplog.text


async def test_a_tree_that_does_not_add_up_is_asked_for_until_it_does(tree: Tree) -> None:
    mirror = WorkerCache()
    events = _subscriber(tree, mirror)
    tree.parents[8] = 7
    async with running(events):
        await mirror.until(lambda: len(mirror.losses) > 1)
        assert not mirror.is_live
        assert not events.is_live
        assert mirror.losses[0] == "its events do not fit: block 7 is not here"
        tree.parents = {7: None, 8: 7}
        await mirror.until(lambda: mirror.is_live and mirror.parents == tree.parents)


async def test_a_worker_that_has_restarted_is_told_anew(tree: Tree) -> None:
    mirror = WorkerCache()
    events = _subscriber(tree, mirror)
    async with running(events):
        tree.store(1)
        await mirror.until(lambda: mirror.parents == {1: None})
        tree.publisher.shutdown()
        again = Tree(endpoint=tree.publisher.endpoint, replay_endpoint=tree.publisher.control)
        try:
            again.store(2)
            await mirror.until(lambda: mirror.is_live and mirror.parents == {2: None})
        finally:
            again.publisher.shutdown()
    assert mirror.losses[-1] == "it has restarted"


async def test_last_words_of_a_worker_that_has_restarted_are_ignored(tree: Tree) -> None:
    mirror = WorkerCache()
    relay, events = await _live_through_relay(tree, mirror)
    async with running(relay, events):
        await mirror.until(lambda: mirror.is_live)
        snapshots = events.counts["snapshots"]
        relay.disturb = lambda frames: [[b"kv:former", *frames[1:]]] * 3 + [frames]
        tree.store(1)
        tree.store(2)
        await mirror.until(lambda: mirror.parents == tree.parents)
        # One question settles who speaks; it makes the worker tell its whole tree.
        assert events.counts["snapshots"] == snapshots + 1
        assert mirror.losses == []


async def test_a_silent_worker_is_lost(tree: Tree) -> None:
    mirror = WorkerCache()
    events = _subscriber(
        tree, mirror, timing=SubscriberTiming(heartbeat=0.05, answer=0.1, lost=0.2)
    )
    async with running(events):
        tree.store(1)
        await mirror.until(lambda: mirror.is_live and bool(mirror.parents))
        tree.publisher.shutdown()
        await mirror.until(lambda: not mirror.is_live)
        assert mirror.losses == ["it has not answered for 0.1 s"]
        assert not events.is_live
        assert events.counts["losses"] == 1


async def test_commands_reach_the_worker(tree: Tree) -> None:
    events = _subscriber(tree, WorkerCache())
    assert isinstance(await events.ask(Release("s")), Position)
    await events.ask(Pin("s", 2.5))
    events.close()
    await asyncio.sleep(0)
    assert tree.commands == [Release("s"), Pin("s", 2.5)]


async def test_a_late_answer_is_not_taken_for_the_next_ones() -> None:
    router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    router.linger = 0
    router.bind("tcp://127.0.0.1:*")
    timing = SubscriberTiming(heartbeat=1, answer=0.2, lost=1)
    events = EventSubscriber(
        "tcp://127.0.0.1:1", router.get_string(zmq.LAST_ENDPOINT), WorkerCache(), timing
    )
    try:
        with pytest.raises(EventStreamError, match=r"has not answered for 0\.2 s"):
            await events.ask(Status())
        late = await router.recv_multipart()
        second = asyncio.create_task(events.ask(Status()))
        now = await router.recv_multipart()
        for frames, incarnation in ((late, "late"), (now, "now")):
            reply = msgspec.msgpack.encode(Position(incarnation, 0))
            await router.send_multipart([frames[0], b"", reply])
        assert await second == Position("now", 0)
    finally:
        events.close()
        router.close()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([b"", msgspec.msgpack.encode(RequestRefused("no"))], "refused Status.*: no"),
        ([b"", b"\xc1"], "not understood"),
        ([b""], "not understood"),
    ],
)
async def test_an_answer_that_is_none_is_an_error(frames: Frames, message: str) -> None:
    router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    router.linger = 0
    router.bind("tcp://127.0.0.1:*")
    events = EventSubscriber(
        "tcp://127.0.0.1:1", router.get_string(zmq.LAST_ENDPOINT), WorkerCache()
    )
    try:
        answer = asyncio.create_task(events.ask(Status()))
        peer, *_ = await router.recv_multipart()
        await router.send_multipart([peer, *frames])
        with pytest.raises(EventStreamError, match=message):
            await answer
    finally:
        events.close()
        router.close()


@pytest.mark.parametrize("seed", range(4))
async def test_any_disturbance_ends_with_the_tree(seed: int) -> None:
    source = random.Random(seed)
    tree = Tree(buffer_steps=source.choice((2, 8, 1000)))
    held_back: list[Frames] = []
    past: list[Frames] = []

    def disturb(frames: Frames) -> list[Frames]:
        fate = source.random()
        if fate < 0.15:
            return []
        if fate < 0.3:
            return [frames, frames]
        past.append(frames)
        if fate < 0.4:
            return [source.choice(past), frames]
        if fate < 0.5:
            held_back.append(frames)
            return []
        out = [frames, *held_back]
        held_back.clear()
        return out

    mirror = WorkerCache()
    relay, events = await _live_through_relay(tree, mirror)
    try:
        async with running(relay, events):
            relay.disturb = disturb
            for number in range(300):
                leaves = sorted(set(tree.parents) - set(tree.parents.values()))
                if leaves and source.random() < 0.4:
                    tree.remove(source.choice(leaves))
                else:
                    tree.store(number, source.choice([None, *tree.parents]))
                if number % 10 == 0:
                    await asyncio.sleep(0)
            await mirror.until(lambda: mirror.is_live and mirror.parents == tree.parents)
    finally:
        tree.publisher.shutdown()


async def test_an_address_where_nobody_is_is_no_error_but_never_live() -> None:
    publisher = WorkerEventPublisher()
    publisher.shutdown()
    mirror = WorkerCache()
    timing = SubscriberTiming(heartbeat=0.01, answer=0.05, lost=0.05)
    events = EventSubscriber(publisher.endpoint, publisher.control, mirror, timing)
    async with running(events):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await mirror.until(lambda: mirror.is_live)
    assert mirror.losses == []


async def test_a_nested_message_is_missed_and_the_tree_asked_for(tree: Tree) -> None:
    """What the worker keeps for replays is as bad, so that the whole tree must follow."""
    # An array with one item more than a batch has.
    mirror, nested = WorkerCache(), b"\x94\x00\x90\xc0" + b"\x91" * 200_000 + b"\xc0"
    events = _subscriber(tree, mirror)
    async with running(events):
        await mirror.until(lambda: mirror.is_live)
        tree.publisher.publish(msgspec.Raw(nested))
        await mirror.until(lambda: bool(mirror.losses))
        assert "do not fit" in mirror.losses[0]
        tree.store(1)
        await mirror.until(lambda: mirror.is_live and mirror.parents == tree.parents)


async def test_a_listener_that_fails_is_told_anew(tree: Tree) -> None:
    """Whatever a message does to its reader, the subscriber goes on, and says that it was lost."""
    mirror, failures = WorkerCache(), ["one"]
    take = mirror.kv

    def kv(event: KvEvent) -> None:
        if isinstance(event, BlockStored) and failures:
            raise KeyError(failures.pop())
        take(event)

    mirror.kv = kv  # type: ignore[method-assign]
    async with running(_subscriber(tree, mirror)):
        await mirror.until(lambda: mirror.is_live)
        tree.store(1)
        await mirror.until(lambda: bool(mirror.losses))
        assert "KeyError('one')" in mirror.losses[0]
        await mirror.until(lambda: mirror.is_live and mirror.parents == tree.parents)


async def test_the_events_of_another_process_is_not_taken_in(tree: Tree) -> None:
    tree.store(1)
    mirror = WorkerCache()
    mirror.expected = "another"
    async with running(_subscriber(tree, mirror)):
        await mirror.until(lambda: bool(mirror.losses))
        assert f"{tree.publisher.incarnation} is not another" in mirror.losses[0]
        assert (mirror.parents, mirror.is_live) == ({}, False)
        mirror.expected = tree.publisher.incarnation
        await mirror.until(lambda: mirror.is_live and mirror.parents == tree.parents)
        mirror.expected = "yet another"
        await mirror.until(lambda: not mirror.is_live)
        assert mirror.parents == {}


async def test_an_address_that_is_none_is_an_error_by_name() -> None:
    events = EventSubscriber("tcp://127.0.0.1:1", "nonsense", WorkerCache(), FAST)
    with pytest.raises(EventStreamError, match="cannot be asked at nonsense"):
        await events.ask(Status())
