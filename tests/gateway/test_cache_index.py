"""Prompts, estimates, and what they and the events say together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from ps_sglang.events.control import EventStreamError
from ps_sglang.events.messages import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    KvEventBatch,
    Pin,
    Release,
    Snapshot,
    Span,
)
from ps_sglang.events.publisher import WorkerEventPublisher
from ps_sglang.events.subscriber import SubscriberTiming
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.index import CacheIndex, IndexMetrics, PrefixMatch, Prompt, Prompts
from ps_sglang.gateway.index.estimate import SECONDS, SETTLING_SECONDS, Estimate, FirstSenders
from ps_sglang.gateway.index.index_monitor import MISSES
from ps_sglang.gateway.index.prompt import BLOCK_BYTES, KINDS
from tests.gateway.hand_clock import Clock
from tests.gateway.tokenizer_kinds import byte_level, with_bos, word_piece

FAST = SubscriberTiming(heartbeat=0.05, answer=2.0, lost=5.0)


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    with_bos(byte_level()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(
        "<s>{% for m in messages %}{{ m['role'] + m['content'] + '\n' }}{% endfor %}"
        "{{ raise_exception('no') if messages[0]['content'] == 'refused' }}"
    )
    return Prompts.load(str(tmp_path))


# -- prompts -------------------------------------------------------------------------------------


def test_all_forms_of_a_prompt_have_the_same_bytes(prompts: Prompts) -> None:
    chat = {"messages": [{"role": "user", "content": "asks"}]}
    want = prompts.prompt("userasks\n", "s")
    assert want.text == b"<s>userasks\n"
    ids = with_bos(byte_level()).encode("userasks\n").ids
    for same in (prompts.chat(chat, "s"), prompts.prompt(ids, "s")):
        assert (same.text, same.salt, same.exact) == (want.text, "s", True)
    assert prompts.chat({**chat, "input_ids": ids}).tokens == len(ids)
    assert (prompts.problem, prompts.chat_problem) == (None, None)


def test_a_chat_without_a_known_text_is_not_exact(prompts: Prompts) -> None:
    refused = {"role": "user", "content": "refused"}
    one = prompts.chat({"messages": [refused]})
    two = prompts.chat({"messages": [refused, {"role": "assistant", "content": "x"}]})
    assert not one.exact
    assert two.text.startswith(one.text)


@pytest.mark.parametrize("lossy", [True, False])
def test_without_a_usable_tokenizer_nothing_is_exact(
    lossy: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if lossy:
        word_piece().save(str(tmp_path / "tokenizer.json"))
    prompts = Prompts.load(str(tmp_path) if lossy else None)
    assert prompts.problem is not None
    assert prompts.chat_problem == prompts.problem
    ids, longer, text = prompts.prompt([1, 2]), prompts.prompt([1, 2, 3]), prompts.prompt("a")
    assert longer.text.startswith(ids.text)
    assert (ids.tokens, text.tokens) == (2, None)
    assert not any(one.exact for one in (ids, text, prompts.chat({"messages": [{"role": "user"}]})))
    assert ("what workers hold is estimated" in caplog.text) == lossy


def test_without_a_chat_template_texts_are_exact(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    prompts = Prompts.load(str(tmp_path))
    assert prompts.problem is None
    assert "no chat template can be read" in (prompts.chat_problem or "")
    assert prompts.prompt("a").exact
    assert not prompts.chat({"messages": [{"role": "user", "content": "a"}]}).exact


def test_blocks_tell_prefixes_tenants_and_kinds_apart() -> None:
    text = bytes(range(256)) * 5  # two blocks and a half
    blocks = Prompt(text).blocks
    assert len(blocks) == 3
    assert Prompt(text[:1100]).blocks[:2] == blocks[:2]
    assert Prompt(text[:1100]).blocks[2] != blocks[2]
    assert Prompt(b"x" + text[1:]).blocks[1] != blocks[1]
    for other in (Prompt(text, "s"), Prompt(text, exact=False)):
        assert not set(other.blocks) & set(blocks)


# -- estimates -----------------------------------------------------------------------------------


def test_what_is_on_its_way_counts_until_it_will_never_come(clock: Clock) -> None:
    estimate = Estimate(clock)
    estimate.sent([1, 2, 3])
    estimate.sent([1, 2])
    assert estimate.match([1, 2, 3, 4], SECONDS) == 3
    estimate.settled([1, 2, 3], arrived=False)
    assert estimate.match([1, 2, 3], SECONDS) == 2
    estimate.settled([1, 2], arrived=False)
    assert estimate.match([1, 2, 3], SECONDS) == 0
    assert len(estimate) == 0


def test_what_has_arrived_counts_for_a_time_or_until_forgotten(clock: Clock) -> None:
    estimate = Estimate(clock)
    estimate.sent([1, 2])
    estimate.settled([1, 2], arrived=True)
    clock.now += 10
    assert (estimate.match([1, 2], 10), estimate.match([1, 2], 9)) == (2, 0)
    estimate.sent([1])
    estimate.settled([1], arrived=True)
    assert estimate.match([1, 2], 9) == 1
    estimate.forget()
    assert estimate.match([1, 2], 10) == 0


def test_the_least_recently_used_blocks_go_first_and_prefixes_last(clock: Clock) -> None:
    estimate = Estimate(clock, capacity=3)
    for blocks in ([1, 2], [3, 4]):
        estimate.sent(blocks)
        estimate.settled(blocks, arrived=True)
    assert (estimate.match([1, 2], 1), estimate.match([3, 4], 1)) == (1, 2)


def test_the_first_sender_of_a_block_is_remembered() -> None:
    first = FirstSenders(capacity=3)
    assert first.turn([1, 2], "a") == [False, False]
    assert first.turn([1, 2, 3], "b") == [True, True, False]
    assert first.turn([1, 2, 3], "a") == [False, False, True]
    assert first.turn([4], "a") == [False]
    assert len(first) == 3
    assert first.turn([1, 2, 3], "b") == [True, True, False]  # 3 was the oldest, and is new


# -- both ----------------------------------------------------------------------------------------


class Tree:
    """What a worker with events publishes."""

    def __init__(self) -> None:
        self.publisher = WorkerEventPublisher()
        self.commands: list[object] = []
        self._events: list[KvEvent] = []
        loop = asyncio.get_running_loop()

        def command(one: object) -> None:
            loop.call_soon_threadsafe(self._command, one)

        self.publisher.on_command(command)

    def _command(self, command: object) -> None:
        self.commands.append(command)
        if isinstance(command, Snapshot):
            self._publish([AllBlocksCleared(), *self._events])

    def _publish(self, events: Sequence[KvEvent]) -> None:
        self.publisher.publish(KvEventBatch(0.0, list(events)))
        self.publisher.record(Span(rid="events told", role="decode", began=0.0))

    def tell(self, *events: KvEvent) -> None:
        self._events += events
        self._publish(events)

    def decode_worker(self, name: str) -> DecodeWorker:
        return DecodeWorker(
            name,
            "http://h",
            "a",
            events=self.publisher.endpoint,
            events_control=self.publisher.control,
        )


@pytest.fixture
async def tree() -> AsyncIterator[Tree]:
    made = Tree()
    yield made
    made.publisher.shutdown()


def _stored(ids: Sequence[int], salt: str | None = None, medium: str | None = "GPU") -> BlockStored:
    hashes = [hash((salt, medium, *ids[: end + 1])) for end in range(len(ids))]
    return BlockStored(hashes, None, list(ids), 1, medium=medium, cache_salt=salt)


class Told:
    """Notes when a worker has told something."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Span]] = []
        self._news = asyncio.Event()

    def __call__(self, worker: str, record: Span) -> None:
        self.records.append((worker, record))
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a worker tells; what had to be asked for again comes without a record."""
        async with asyncio.timeout(60):
            while not condition():
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 0.1)


@pytest.fixture
def told() -> Told:
    return Told()


def _prefix(prompts: Prompts, ids: Sequence[int]) -> PrefixMatch:
    return PrefixMatch(len(ids), len(b"".join(prompts.texts.of(ids))))


def _decode(name: str) -> DecodeWorker:
    return DecodeWorker(name, "http://h", "a")


def test_without_events_what_was_sent_is_held_for_a_time(prompts: Prompts, clock: Clock) -> None:
    cache_index = CacheIndex(prompts, clock=clock)
    cache_index.add(PrefillWorker("p", "http://h", "h", 1))
    cache_index.add(_decode("d"))
    prompt = prompts.prompt("x" * 2000)
    size = len(prompt.text)
    assert cache_index.match(prompt) == {}
    cache_index.sent("p", prompt)
    assert cache_index.match(prompt) == {"p": PrefixMatch(size // 4, size)}
    cache_index.settled("p", prompt, arrived=True)
    clock.now += SECONDS
    assert cache_index.match(prompt)["p"].bytes == size
    shorter = prompts.prompt("x" * 1100)
    assert cache_index.match(shorter)["p"].bytes == 2 * BLOCK_BYTES
    clock.now += 1
    assert cache_index.match(prompt) == {}
    assert cache_index.source("p").problem == "it publishes no events"
    assert cache_index.source("p").kind == "estimate"


async def test_events_and_what_is_on_its_way(
    prompts: Prompts, clock: Clock, tree: Tree, told: Told
) -> None:
    cache_index = CacheIndex(prompts, on_span=told, clock=clock, timing=FAST)
    cache_index.add(tree.decode_worker("d"))
    prompt = prompts.prompt("x" * 2000, "s")
    ids = with_bos(byte_level()).encode("x" * 2000).ids
    assert cache_index.source("d").problem == "its events have not been heard yet"
    await cache_index.start()
    try:
        tree.tell(_stored(ids[:100], "s"), _stored(ids, "other"), _stored(ids, "s", "CPU_PINNED"))
        held = _prefix(prompts, ids[:100])
        await told.until(lambda: cache_index.source("d").tokens == 100 + len(ids))
        # Large batches are taken in slice by slice: the worker is live after the last.
        await told.until(lambda: cache_index.source("d").kind == "events")
        assert cache_index.match(prompt) == {"d": held}
        assert cache_index.source("d").counts["snapshots"] >= 1
        # A prompt on its way is held whole, and counted by how long tokens are here.
        cache_index.sent("d", prompt)
        coming = cache_index.match(prompt)["d"]
        assert coming.bytes == len(prompt.text)
        assert coming.tokens == pytest.approx(len(ids), abs=5)
        # Arrived, it counts until its events must have come.
        cache_index.settled("d", prompt, arrived=True)
        assert cache_index.match(prompt)["d"] == coming
        clock.now += SETTLING_SECONDS + 0.1
        assert cache_index.match(prompt)["d"] == held
        # Without exact bytes the events say nothing, and the estimate lives longer.
        vague = Prompt(prompt.text, "s", exact=False)
        cache_index.sent("d", vague)
        cache_index.settled("d", vague, arrived=True)
        clock.now += SECONDS
        assert cache_index.match(vague)["d"].bytes == len(prompt.text)
        tree.tell(BlockRemoved(_stored(ids, "s").block_hashes[50:]))
        await told.until(lambda: cache_index.match(prompt) == {"d": _prefix(prompts, ids[:50])})
    finally:
        await cache_index.stop()


async def test_a_worker_that_leaves_and_comes_back(
    prompts: Prompts, tree: Tree, told: Told
) -> None:
    cache_index = CacheIndex(prompts, on_span=told, timing=FAST)
    await cache_index.start()
    prompt = prompts.prompt([5, 6, 7])
    tree.tell(_stored([5, 6, 7]))
    for _ in range(2):
        cache_index.add(tree.decode_worker("d"))
        await told.until(lambda: "d" in cache_index.match(prompt))
        assert cache_index.match(prompt) == {"d": PrefixMatch(3, len(prompt.text))}
        assert cache_index.blocks == 3
        cache_index.remove("d")
        assert cache_index.match(prompt) == {}
        assert cache_index.blocks == 0
        # A request that was on its way there may end later.
        cache_index.settled("d", prompt, arrived=True)
    await cache_index.stop()


async def test_records_and_commands_go_by_the_workers_name(
    prompts: Prompts, tree: Tree, told: Told
) -> None:
    cache_index = CacheIndex(prompts, on_span=told, timing=FAST)
    cache_index.add(tree.decode_worker("d"))
    cache_index.add(_decode("none"))
    await cache_index.start()
    try:
        await told.until(lambda: bool(told.records))
        record = Span(rid="r", role="decode", began=1.0)
        tree.publisher.record(record)
        await told.until(lambda: told.records[-1] == ("d", record))
        await cache_index.release("d", "session")
        await cache_index.pin("d", "session", 2.0)
        await asyncio.sleep(0)
        assert tree.commands[-2:] == [Release("session"), Pin("session", 2.0)]
        assert (cache_index.has_events("d"), cache_index.has_events("none")) == (True, False)
        with pytest.raises(EventStreamError, match="'none' publishes no events"):
            await cache_index.release("none", "session")
    finally:
        await cache_index.stop()


def test_tokens_saved_by_another_decoders_turn(prompts: Prompts) -> None:
    cache_index = CacheIndex(prompts)
    first, longer = prompts.prompt("x" * 1021), prompts.prompt("x" * 3000)
    nothing = PrefixMatch(0, 0)
    assert cache_index.turn(first, "a", nothing) == 0
    assert cache_index.turn(first, "a", PrefixMatch(250, 1024)) == 0
    # Of four blocks that are held now, a's turn brought in two.
    assert cache_index.turn(longer, "b", PrefixMatch(500, 4 * BLOCK_BYTES)) == 250
    assert cache_index.turn(longer, "a", PrefixMatch(500, 4 * BLOCK_BYTES)) == 250


def test_a_prompts_length(prompts: Prompts) -> None:
    cache_index = CacheIndex(prompts)
    prompt = prompts.prompt("x" * 1000)
    assert cache_index.tokens(prompts.prompt([1, 2]), {}) == 2
    assert cache_index.tokens(prompt, {}) == len(prompt.text) / 4
    held = {"p": PrefixMatch(10, 103), "d": PrefixMatch(5, 53)}
    assert cache_index.tokens(prompt, held) == 10 + (len(prompt.text) - 103) / 4


async def test_a_flush_and_a_worker_that_is_gone(prompts: Prompts, tree: Tree, told: Told) -> None:
    timing = SubscriberTiming(heartbeat=0.05, answer=0.2, lost=0.3)
    cache_index = CacheIndex(prompts, on_span=told, timing=timing)
    cache_index.add(tree.decode_worker("d"))
    await cache_index.start()
    try:
        tree.tell(_stored([5, 6]))
        await told.until(lambda: cache_index.blocks == 2)
        tree.tell(AllBlocksCleared())
        await told.until(lambda: cache_index.blocks == 0)
        tree.tell(_stored([5, 6, 7]))
        await told.until(lambda: cache_index.blocks == 3)
        tree.publisher.shutdown()
        await told.until(lambda: cache_index.source("d").kind == "estimate")
        assert cache_index.blocks == 0
        assert cache_index.source("d").problem == "it has not answered for 0.2 s"
    finally:
        await cache_index.stop()


# -- whether prompts find what is stored ---------------------------------------------------------


async def test_a_kind_of_prompts_that_finds_nothing_is_estimated(
    prompts: Prompts, clock: Clock, tree: Tree, told: Told
) -> None:
    """As with a worker whose chat template is another than the one at hand."""
    cache_index = CacheIndex(prompts, on_span=told, clock=clock, timing=FAST)
    cache_index.add(tree.decode_worker("d"))
    await cache_index.start()
    try:
        text = prompts.prompt("x" * 1200)
        ids = with_bos(byte_level()).encode("x" * 1200).ids
        tree.tell(_stored(ids))
        await told.until(lambda: "d" in cache_index.match(text) and cache_index.is_live("d"))
        chat = prompts.chat({"messages": [{"role": "user", "content": "y" * 1200}]})
        for _ in range(MISSES + 1):
            assert cache_index.problem("chat") is None
            for prompt in (chat, text):
                cache_index.sent("d", prompt)
                cache_index.settled("d", prompt, arrived=True)
            clock.now += SETTLING_SECONDS
        cache_index.settled("d", chat, arrived=True)
        assert "did not find what was stored" in (cache_index.problem("chat") or "")
        assert cache_index.problem("text") is None
        clock.now += SECONDS / 2
        assert cache_index.match(chat)["d"].bytes == len(chat.text)
        # One that is found will do.
        more = with_bos(byte_level()).encode(chat.text[3:].decode()).ids
        # Those two share their first token.
        tree.tell(_stored(more))
        await told.until(lambda: cache_index.blocks == len(ids) + len(more) - 1)
        for _ in range(2):
            cache_index.sent("d", chat)
            cache_index.settled("d", chat, arrived=True)
            clock.now += SETTLING_SECONDS
        assert cache_index.problem("chat") is None
    finally:
        await cache_index.stop()


async def test_what_a_worker_that_left_had_stored_is_not_missed(
    prompts: Prompts, clock: Clock, tree: Tree, told: Told
) -> None:
    cache_index = CacheIndex(prompts, on_span=told, clock=clock, timing=FAST)
    await cache_index.start()
    try:
        for _ in range(2):
            cache_index.add(tree.decode_worker("d"))
            await told.until(lambda: cache_index.source("d").kind == "events")
            for number in range(MISSES):
                prompt = prompts.prompt(f"{number}" + "x" * 1200)
                cache_index.sent("d", prompt)
                cache_index.settled("d", prompt, arrived=True)
            cache_index.remove("d")
            clock.now += SETTLING_SECONDS
        assert cache_index.problem("text") is None
    finally:
        await cache_index.stop()


async def test_metrics_say_what_is_known_and_what_is_estimated(
    prompts: Prompts, tree: Tree, told: Told
) -> None:
    cache_index = CacheIndex(prompts, on_span=told, timing=FAST)
    cache_index.add(tree.decode_worker("d"))
    cache_index.add(_decode("none"))
    registry = CollectorRegistry()
    registry.register(IndexMetrics(cache_index))

    def metric(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"ps_sglang_gateway_{name}", labels)

    await cache_index.start()
    try:
        tree.tell(_stored([5, 6]))
        await told.until(lambda: bool(cache_index.blocks))
    finally:
        await cache_index.stop()
    assert (metric("index_live", worker="d"), metric("index_live", worker="none")) == (1, 0)
    assert (metric("index_tokens", worker="d"), metric("duplicated_tokens")) == (2, 0)
    assert (
        metric("feed_total", worker="d", what="batches")
        == cache_index.source("d").counts["batches"]
    )
    assert metric("feed_total", worker="none", what="losses") == 0
    assert metric("index_addressed", prompts="chat") == 1
    vague = CollectorRegistry()
    vague.register(IndexMetrics(CacheIndex(Prompts(problem="none at hand"))))
    for kind in KINDS:
        name = "ps_sglang_gateway_index_addressed"
        assert vague.get_sample_value(name, {"prompts": kind}) == 0
