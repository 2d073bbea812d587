"""Prompts as the gateway addresses them are the tokens that the workers store."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer, normalizers, processors

from benchmarks import tiny
from ps_sglang.gateway.config import DecodeWorker
from ps_sglang.gateway.index import CacheIndex, PrefixMatch, Prompts
from tests.engine.served import Launch, Models, Served
from tests.engine.tree_mirror import TreeMirror
from tests.support.engine_client import post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

TEMPLATE = """{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{%- if message.name %} ({{ message.name }}){% endif %}
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}<{{ part.text }}>{% endfor %}{% endif %}
{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}
{%- if message.tool_call_id %}for {{ message.tool_call_id }}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{%- if enable_thinking is defined %} thinking: {{ enable_thinking }}{% endif %}
{%- if reasoning_effort %} {{ reasoning_effort }}{% endif %}
{%- endif %}"""
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "ä"}'}}
TEXT = "The user's  cafe\u0301 — <|im_end|> 漢字\U0001f44d\n"


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


CHATS: dict[str, dict[str, Any]] = {
    "turns": {
        "messages": [
            {"role": "system", "content": "Be kind."},
            _user("Hi"),
            {"role": "assistant", "content": "Hello!", "name": "A", "reasoning_content": "hm"},
            _user("Bye"),
        ]
    },
    "any text": {"messages": [_user(TEXT)]},
    "parts": {"messages": [_user([{"type": "text", "text": text} for text in ("one", TEXT)])]},
    "tools": {
        "tools": [TOOL],
        "messages": [
            _user("Look it up"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "found"}]},
        ],
    },
    "tools that are not to be used": {
        "tools": [TOOL],
        "tool_choice": "none",
        "messages": [_user("x")],
    },
    "one tool that is to be used": {
        "tools": [TOOL, {"type": "function", "function": {"name": "other", "strict": False}}],
        "tool_choice": {"type": "function", "function": {"name": "other"}},
        "messages": [_user("x")],
    },
    "an answer to be continued": {
        "messages": [_user("x"), {"role": "assistant", "content": "So, cafe\u0301"}],
        "continue_final_message": True,
    },
    "an answer last": {"messages": [_user("x"), {"role": "assistant", "content": "So"}]},
    "variables": {"messages": [_user("x")], "chat_template_kwargs": {"enable_thinking": True}},
    "effort": {"messages": [_user("x")], "reasoning_effort": "none"},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Served:
    """A base whose tokenizer puts a token before texts and normalizes, with a rich template."""
    make = tiny._tokenizer

    def tokenizer() -> Any:
        files = make()
        files.tokenizer.normalizer = normalizers.NFC()
        files.tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", pair="$A $B", special_tokens=[("<|im_start|>", 1)]
        )
        return files

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "_CHAT_TEMPLATE", TEMPLATE)
        patch.setattr(tiny, "_tokenizer", tokenizer)
        folders = tiny.make_tiny("llama", tmp_path_factory.mktemp("chatty"))
    return launch(Models(folders.pop("base"), folders), "a")


@pytest.fixture(scope="module")
def mirror(served: Served) -> Iterator[TreeMirror]:
    tree = TreeMirror(served.cluster.plan.workers[0].events, served.cluster.key)
    yield tree
    tree.close()


@pytest.fixture(scope="module")
def prompts(served: Served) -> Prompts:
    loaded = Prompts.load(str(served.models.base))
    assert (loaded.problem, loaded.chat_problem) == (None, None)
    return loaded


def _stored(mirror: TreeMirror, salt: str) -> list[int]:
    """The base prefix of a tenant's only prompt."""
    prefixes = [list(ids) for its, ids in mirror.resynchronize() if its == salt]
    return max(prefixes, key=len)


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_addresses_what_is_stored(
    name: str, served: Served, mirror: TreeMirror, prompts: Prompts
) -> None:
    body = CHATS[name]
    request = {**body, "max_tokens": 1, "cache_salt": name}
    answer = post(f"{served.cluster.url}/models/a/v1/chat/completions", request)
    _assert_addressed(prompts.chat(body).text, _stored(mirror, name), answer, prompts)


@pytest.mark.parametrize("text", [TEXT, " x", "two words"])
def test_a_text_addresses_what_is_stored(
    text: str, served: Served, mirror: TreeMirror, prompts: Prompts
) -> None:
    request = {"prompt": text, "max_tokens": 1, "cache_salt": text}
    answer = post(f"{served.cluster.url}/models/a/v1/completions", request)
    _assert_addressed(prompts.prompt(text).text, _stored(mirror, text), answer, prompts)


def _assert_addressed(text: bytes, stored: list[int], answer: Any, prompts: Prompts) -> None:
    assert len(stored) == answer["usage"]["prompt_tokens"] - 1
    spelled = b"".join(prompts.texts.of(stored))
    assert text[: len(spelled)] == spelled
    # All that is left is the boundary token, which no tree holds.
    assert text[len(spelled) :] in prompts.texts.of(range(tiny.VOCAB_SIZE))


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


async def test_both_workers_are_known_to_hold_it(served: Served, prompts: Prompts) -> None:
    body = {"messages": [_user("A question that nobody has asked before.")]}
    request = {**body, "max_tokens": 1, "cache_salt": "tenant"}
    url = f"{served.cluster.url}/models/a/v1/chat/completions"
    prompt = prompts.chat(body, "tenant")
    cache_index = CacheIndex(prompts, key=served.cluster.key)
    specs = served.cluster.plan.workers
    for spec in specs:
        events = (spec.events.publishes, spec.events.control)
        cache_index.add(DecodeWorker(spec.name, spec.url, spec.model_name, *events))
    await cache_index.start()
    try:
        answer = await asyncio.to_thread(post, url, request)
        tokens = answer["usage"]["prompt_tokens"] - 1
        ids = _tokenizer(served.models.base).encode(prompt.text.decode(), add_special_tokens=False)
        held = PrefixMatch(tokens, len(b"".join(prompts.texts.of(ids.ids[:-1]))))
        want = {spec.name: held for spec in specs}
        for _ in range(600):
            if cache_index.match(prompt) == want:
                break
            await asyncio.sleep(0.1)
        assert cache_index.match(prompt) == want
        assert all(cache_index.source(name).kind == "events" for name in want)
    finally:
        await cache_index.stop()


def test_the_gateway_says_that_it_knows(served: Served) -> None:
    with urllib.request.urlopen(f"{served.cluster.url}/metrics", timeout=60) as response:
        text = response.read().decode()
    found = {
        (
            sample.name.removeprefix("ps_sglang_gateway_index_"),
            *sample.labels.values(),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for worker in served.cluster.plan.workers:
        assert found["live", worker.name] == 1
        assert found["tokens", worker.name] > 0
    for kind in ("text", "tokens", "chat"):
        assert found["addressed", kind] == 1
