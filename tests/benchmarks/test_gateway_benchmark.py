"""The gateway benchmark: its engines are what they say, and all systems see the same trace."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import jinja2
import pytest
from tokenizers import Tokenizer

from benchmarks.gateway import agents, systems, trace
from benchmarks.gateway.client import Client, Reply
from benchmarks.gateway.compared import engine, running
from benchmarks.gateway.latency import Through
from benchmarks.gateway.messages import Totals
from benchmarks.gateway.simulation import simulated
from benchmarks.gateway.systems import Fleet
from benchmarks.gateway.tree import PageTree, page_hashes
from benchmarks.gateway.vocabulary import (
    CHAT_TEMPLATE,
    WordTokenizer,
    render,
    words,
    write_tokenizer,
)

PROMPT_TOKENS = 36_697  # of the small trace below with seed 7
# One slot: it plays all sessions to their ends, since no other slot finds none left.
SHAPE = trace.Shape(slots=1, sessions=3, turns_median=4, pause_seconds=0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gateway-benchmark")
    write_tokenizer(made / "tokenizer")
    return made


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[Fleet]:
    configs = [
        *(engine(folder, f"prefill-{number}", pool_tokens=1 << 16) for number in range(2)),
        *(engine(folder, name, decoder=name, pool_tokens=1 << 16) for name in trace.ROLES),
    ]
    with systems.fleet(folder / "tokenizer", configs) as found:
        yield found


@pytest.mark.parametrize(
    "text",
    [
        " ".join(random.Random(0).choices(words(), k=500)),
        "<|im_start|>user\nx < y, <|im_sta, \n  two  spaces \n\n漢字 é<|im_end|>\n",
        "",
    ],
)
def test_texts_are_tokenized_as_the_tokenizer_does(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert WordTokenizer(folder / "tokenizer").encode(text) == expected


def test_chats_are_tokenized_as_their_texts(folder: Path) -> None:
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b <c>"}]
    tokenizer = WordTokenizer(folder / "tokenizer")
    for messages in (chat, chat[:1], [*chat, *chat]):
        assert tokenizer.encode_chat(messages) == tokenizer.encode(render(messages))


def test_chats_are_rendered_as_the_template_does() -> None:
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b <c>"}]
    template = jinja2.Environment(keep_trailing_newline=True).from_string(CHAT_TEMPLATE)
    assert render(chat) == template.render(messages=chat, add_generation_prompt=True)


def test_pages_are_named_by_all_that_comes_before_and_the_tenant() -> None:
    tokens = list(range(64))
    pages = page_hashes(tokens, "", 16)
    assert len(set(pages)) == 4
    assert page_hashes(tokens[:63], "", 16) == pages[:3]
    assert page_hashes([9, *tokens[1:]], "", 16)[3] != pages[3]
    assert not set(page_hashes(tokens, "tenant", 16)) & set(pages)


def test_the_tree_evicts_leaves_least_recently_used_first() -> None:
    tree = PageTree(capacity=4)
    tree.add([1, 2])
    tree.unlock([1, 2])
    tree.add([3, 4])
    tree.unlock([3, 4])
    tree.lock([1, 2])
    assert tree.make_room(1) == [4]
    assert tree.make_room(1) == []
    with pytest.raises(MemoryError):
        tree.make_room(3)
    tree.unlock([1, 2])
    assert tree.make_room(4) == [3, 2, 1]


def test_what_is_added_to_held_pages_goes_before_them() -> None:
    tree = PageTree(capacity=3)
    tree.add([1])
    tree.add([2, 3])
    tree.unlock([1, 2, 3])
    assert tree.make_room(3) == [3, 2, 1]


@pytest.mark.parametrize("name", ["gateway", "greedy", "balanced"])
async def test_all_see_the_same_prompts(engines: Fleet, folder: Path, name: str) -> None:
    systems.forget(engines, 1 << 15)
    with running(name, engines, folder) as (target, _):
        taken = await trace.run(SHAPE, 7, target)
    prefill, decode = systems.totals(engines.prefill), systems.totals(engines.decode)
    found = trace.judged(taken, prefill)
    turns = sum(len(one.turns) for one in trace.sessions(SHAPE, 7))
    assert found["requests"] == sum(one.requests for one in decode) == turns
    assert found["prompt_tokens"] == sum(one.prompt_tokens for one in decode) == PROMPT_TOKENS
    assert found["computed_tokens"] + sum(one.cached_tokens for one in prefill) == PROMPT_TOKENS
    # Nothing is evicted here, so a turn computes what its conversation has grown by.
    assert found["hit_percent"] > 50


async def test_engines_tell_the_gateway_what_they_computed(engines: Fleet, folder: Path) -> None:
    systems.forget(engines, 1 << 15)
    with systems.gateway(engines, folder) as served:
        await trace.run(SHAPE, 7, Through(served))
        computed = sum(one.computed_tokens for one in systems.totals(engines.prefill))
        url = next(iter(served.urls.values()))
        async with aiohttp.ClientSession() as http:
            told = 0.0
            while told != computed:  # the last records are on their way
                async with http.get(f"{url}/metrics") as response:
                    told = sum(
                        float(line.split()[-1])
                        for line in (await response.text()).splitlines()
                        if line.startswith("ps_sglang_gateway_base_tokens_total")
                        and 'source="computed"' in line
                    )


def test_judged() -> None:
    prefill = [
        Totals(prompt_tokens=600, computed_tokens=100, evicted_tokens=7, busy_seconds=1.0),
        Totals(prompt_tokens=400, computed_tokens=300, evicted_tokens=3, busy_seconds=3.0),
    ]
    found = trace.judged(trace.Run([0.1] * 20, [0.2] * 20, 4.0), prefill)
    assert found["hit_percent"] == pytest.approx(60)
    assert found["imbalance"] == pytest.approx(1.5)
    assert found["busy_percent"] == pytest.approx(50)
    assert found["first_p95_ms"] == pytest.approx(100)


def test_a_trace_is_the_same_for_the_same_seed() -> None:
    first, second = trace.sessions(SHAPE, 7), trace.sessions(SHAPE, 7)
    assert first == second != trace.sessions(SHAPE, 8)
    assert list(trace.roles(9)) == [*(trace.PLANNER, trace.ACTOR) * 3, *trace.ROLES[2:], "planner"]


def test_a_trace_has_the_lengths_of_the_published_one() -> None:
    """A 16th of what Codex took on SWE-bench Pro, in the mean."""
    shape = trace.Shape(slots=0, sessions=1000)
    made = trace.sessions(shape, 7)
    turns = [len(one.turns) for one in made]
    assert statistics.median(turns) == pytest.approx(30, abs=1.5)
    assert statistics.quantiles(turns, n=10)[8] == pytest.approx(57, abs=4)
    assert statistics.mean(turns) == pytest.approx(33, abs=2)
    firsts, lasts = zip(*(lengths(one) for one in made), strict=True)
    assert statistics.mean(firsts) * 16 == pytest.approx(12_367, rel=0.05)
    assert statistics.mean(lasts) * 16 == pytest.approx(84_482, rel=0.1)
    answers = statistics.mean(turn.answer_tokens for one in made for turn in one.turns)
    assert answers * 16 == pytest.approx(17_239 / 33, rel=0.05)


def lengths(session: trace.Session) -> tuple[int, int]:
    """Words of the first and the last prompt."""
    total, first = len(session.system.split()), 0
    for turn in session.turns:
        total += sum(len(message["content"].split()) for message in turn.said)
        first = first or total
        last = total
        total += turn.answer_tokens
    return first, last


def test_the_first_sessions_are_under_way() -> None:
    """As many tokens live at the beginning as later, so that a pool means the same throughout."""
    shape = trace.Shape(slots=1000, sessions=1000)
    made = trace.sessions(shape, 7)
    live = 1000 * statistics.mean(lengths(one)[0] - shape.system_words for one in made)
    assert live == pytest.approx(trace.working_set(shape), rel=0.1)
    before = [message for one in made for message in one.turns[0].said]
    assert sum(message["role"] == "assistant" for message in before) > 10_000


def test_a_trace_ends_when_a_slot_finds_no_session() -> None:
    shape = trace.Shape(slots=4, sessions=8)
    sizes = [len(one.turns) for one in trace.sessions(shape, 7)]

    class Instant:
        """Answers a second later; notes how many requests run."""

        running = 0
        asked = 0
        fewest = 4

        async def post(self, client: Client, decoder: str, body: bytes) -> Reply:
            self.running += 1
            self.asked += 1
            await asyncio.sleep(1)
            self.running -= 1
            return Reply(0.0, 0.0, 1.0, b"data: [DONE]\n\n")

    target = Instant()
    taken = simulated(trace.run(shape, 7, target))
    assert len(taken.total) == target.asked
    assert max(sizes[:4]) < target.asked < sum(sizes)
    # The first slot without a session had two or more; the others stop with their next answer.
    assert taken.seconds < 1.1 * target.asked / 4


def test_the_better_policy_is_the_oracle() -> None:
    def one(hits: tuple[float, float, float, float], uneven: float) -> dict[str, object]:
        names = ("gateway", "sglang-router", "greedy", "balanced")
        rest = {"imbalance": uneven, "first_p95_ms": 1.0, "total_p95_ms": 2.0}
        systems = {
            name: {"hit_percent": hit, **rest} for name, hit in zip(names, hits, strict=True)
        }
        return {"prefill_workers": 2, "pool": agents.POOL, "systems": systems}

    runs = [one((90, 40, 80, 91), 1.0), one((92, 50, 99, 93), 1.2), one((60, 20, 30, 50), 1.1)]
    (found,) = agents.medians(runs)
    assert found["hit_percent"] == {"gateway": 90, "router": 40, "oracle": 91}
    assert found["times_router"] == pytest.approx(2.25)
    assert found["imbalance"]["gateway"] == 1.1
    assert agents.default_hits([found]) == found["hit_percent"]


async def test_what_hangs_up_ends_its_request(engines: Fleet, folder: Path) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", engines.decode[0].port)
    body = b'{"messages":[{"role":"user","content":"x"}],"bootstrap_host":"127.0.0.1",'
    body += b'"bootstrap_port":%d,"bootstrap_room":1}' % engines.prefill[0].bootstrap_port
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    running_now = await load_of(engines)
    while not running_now:
        running_now = await load_of(engines)
    writer.close()
    while running_now:
        running_now = await load_of(engines)
    assert await reader.read() == b""


async def load_of(engines: Fleet) -> int:
    """Running requests of the first decode worker, as it reports them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", engines.decode[0].port)
    writer.write(b"GET /get_load HTTP/1.1\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(answer.partition(b'"num_reqs":')[2].partition(b",")[0])
