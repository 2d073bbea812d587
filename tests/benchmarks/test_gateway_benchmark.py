"""The gateway benchmark: its engines are what they say, and all systems see the same trace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

from benchmarks.gateway import systems, trace
from benchmarks.gateway.__main__ import engine, running
from benchmarks.gateway.messages import Totals
from benchmarks.gateway.systems import Fleet
from benchmarks.gateway.tree import PageTree, page_hashes
from benchmarks.gateway.vocabulary import (
    CHAT_TEMPLATE,
    WordTokenizer,
    render,
    words,
    write_tokenizer,
)

PROMPT_TOKENS = 14_368  # of the small trace below with seed 7
SHAPE = trace.Shape(slots=2, sessions=3, turns=(3, 5), pause_seconds=0.001)


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


@pytest.mark.parametrize("name", ["gateway", "greedy", "balanced"])
async def test_all_see_the_same_prompts(engines: Fleet, folder: Path, name: str) -> None:
    systems.forget(engines)
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
    cycle = list(trace.roles(8))
    assert cycle[0] == cycle[7] == trace.PLANNER
    assert all(one != other for one, other in pairwise(cycle))


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
