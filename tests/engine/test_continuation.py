"""A decode worker is killed while it streams: each stream ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from ps_sglang.gateway_http import call
from ps_sglang.launch.cluster import Worker
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import assert_conserved, stream
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Json = dict[Any, Any]
Prompts = Callable[[int, int], list[list[int]]]
TOKENS = 400
EARLY = 8
"""Events that each stream has had when the worker is killed."""
USER = [{"role": "user", "content": "What is the weather in the town by the river?"}]
NUMBERS = {"type": "array", "items": {"enum": [12, 345]}, "minItems": 24, "maxItems": 30}
SCHEMA = {"type": "object", "properties": {"numbers": NUMBERS}, "required": ["numbers"]}
TOOL = {"type": "function", "function": {"name": "total", "parameters": SCHEMA}}
USAGE = {"stream_options": {"include_usage": True}}
GREEDY = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, **USAGE}
SEEDED = {**GREEDY, "temperature": 1.0, "seed": 7}
CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"


def cases(ids: list[int]) -> dict[str, tuple[str, Json]]:
    """A route and a body for each kind of stream."""
    greedy = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
    strict = {"name": "numbers", "schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": strict}
    structured = {"temperature": 1.0, "seed": 3, "max_tokens": 500, **USAGE}
    # A random model's thoughts end by chance only, and the grammar begins behind them.
    structured["chat_template_kwargs"] = {"enable_thinking": False}
    return {
        "greedy": (
            GENERATE, {"input_ids": ids, "sampling_params": greedy, "return_logprob": True},
        ),
        "seeded": (COMPLETIONS, {"prompt": ids, **SEEDED, "top_p": 0.9, "logprobs": 2}),
        "penalties": (
            COMPLETIONS,
            {"prompt": ids, **GREEDY, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
        ),
        "two samples": (
            CHAT, {"messages": USER, **SEEDED, "n": 2, "logprobs": True, "top_logprobs": 2},
        ),
        "thoughts": (
            CHAT, {"messages": USER, **GREEDY, "chat_template_kwargs": {"enable_thinking": True}},
        ),
        "schema": (CHAT, {"messages": USER, **structured, "response_format": form}),
        "call": (
            CHAT, {"messages": USER, **structured, "tools": [TOOL], "tool_choice": "required"},
        ),
    }  # fmt: skip


def whole(events: list[Json]) -> Json:
    """What a client makes of a stream, without what no two streams have in common."""
    answer: Json = {}
    for event in events:
        assert "error" not in event, event
        if "meta_info" in event:
            meta = event["meta_info"]
            answer = {"text": event["text"], "output_ids": event["output_ids"]}
            answer |= {name: meta[name] for name in ("completion_tokens", "finish_reason")}
            answer["logprobs"] = [one[1] for one in meta["output_token_logprobs"]]
            continue
        for choice in event["choices"]:
            said = answer.setdefault(choice["index"], {})
            _add(said, choice)
        if usage := event.get("usage"):
            answer["usage"] = usage["prompt_tokens"], usage["completion_tokens"]
    return answer


def _add(said: Json, choice: Json) -> None:
    delta = choice.get("delta") or {"content": choice.get("text")}
    for name in ("role", "content", "reasoning_content"):
        if delta.get(name):
            said[name] = said.get(name, "") + delta[name]
    for one in delta.get("tool_calls") or ():
        calls = said.setdefault("calls", {})
        parts = calls.setdefault(one["index"], {"name": "", "arguments": ""})
        for name in parts:
            parts[name] += one["function"].get(name) or ""
        said["named"] = said.get("named", 0) + bool(one.get("id"))
    logprobs = choice.get("logprobs") or {}
    known = [one["token"] for one in logprobs.get("content") or ()]
    said.setdefault("logprobs", []).extend(known or logprobs.get("tokens") or ())
    if choice.get("finish_reason"):
        assert "finish" not in said
        said["finish"] = choice["finish_reason"], choice.get("matched_stop")


def all_at_once(
    served: Served,
    decoder: str,
    asked: dict[str, tuple[str, Json]],
    when_begun: Callable[[], None] = lambda: None,
) -> dict[str, Json]:
    """The answers of all streams; `when_begun` is called while all are under way."""
    begun = Barrier(len(asked), when_begun)

    def read(path: str, body: Json) -> Json:
        events, waited = [], False
        for event in stream(served.cluster.url, decoder, path, body):
            events.append(event)
            samples = {choice["index"] for one in events for choice in one.get("choices", ())}
            # A call comes in few events: its name, and its arguments when they are whole.
            early = 2 if "tools" in body else EARLY
            if not waited and len(events) >= early and len(samples) in (0, body.get("n", 1)):
                waited = True
                begun.wait(60)
        assert waited, f"too short to be cut: {events}"
        return whole(events)

    with ThreadPoolExecutor(len(asked)) as pool:
        reading = {name: pool.submit(read, *one) for name, one in asked.items()}
        return {name: future.result() for name, future in reading.items()}


def continued(served: Served) -> int:
    with urllib.request.urlopen(f"{served.cluster.url}/metrics") as response:
        lines = response.read().decode().splitlines()
    found = [line for line in lines if line.startswith("ps_sglang_gateway_continued_streams_total")]
    return sum(int(float(line.rpartition(" ")[2])) for line in found)


def gather_on_one(served: Served) -> tuple[Worker, str]:
    """From now on all requests go to the first worker; returns it, and the URL of the other."""
    victim, other = [one for one in served.cluster.workers if one.name != "prefill-0"]
    url = f"{served.cluster.url}/workers/{other.name}"
    call(f"{url}/drain", {}, timeout_s=30)
    return victim, url


def kill(victim: Worker, other: str) -> None:
    call(f"{other}/resume", {}, timeout_s=30)
    os.killpg(victim.pid, signal.SIGKILL)


def with_stop(undisturbed: dict[str, Json], ids: list[int]) -> tuple[str, Json]:
    """A stream that ends at a text of several tokens, long after the worker was killed."""
    text = undisturbed["plain"][0]["content"]
    for start in range(len(text) * 3 // 4, len(text) - 8):
        stop = text[start : start + 6]
        if text.find(stop) == start:
            return COMPLETIONS, {"prompt": ids, **GREEDY, "stop": [stop]}
    raise AssertionError(f"no text of 6 characters is new in the last quarter of {text!r}")


def test_every_kind_of_stream_goes_on(llama: Models, launch: Launch, prompts: Prompts) -> None:
    served = launch(
        llama, "a", decode_replicas=2,
        engine_args=("--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3"),
        decode_engine_args=("--max-total-tokens", "16384"),  # so that all run together
    )  # fmt: skip
    (ids,) = prompts(1, 40)
    plain = {"plain": (COMPLETIONS, {"prompt": ids, **GREEDY})}
    asked = cases(ids)
    # All on one worker, which has compiled the grammars when the streams of the second round begin.
    victim, other = gather_on_one(served)
    asked["stop"] = with_stop(all_at_once(served, "a", plain), ids)
    want = all_at_once(served, "a", asked)
    # Without a seed the other worker would choose other tokens, which the gateway would not take.
    asked["unseeded"] = COMPLETIONS, {"prompt": ids, **GREEDY, "temperature": 1.0}
    answers = all_at_once(served, "a", asked, lambda: kill(victim, other))
    assert answers.pop("unseeded")["usage"] == (len(ids), TOKENS)
    assert answers == want
    # Some have ended when the last begins: how many depends on the machine.
    assert continued(served) > 0
    reference = expected(llama.base, llama.decoders["a"], ids, TOKENS)
    assert want["greedy"]["output_ids"] == reference.tokens
    assert want["stop"][0]["finish"][0] == "stop"
    assert "calls" in want["call"][0], want["call"]
    assert want["call"][0]["calls"][0]["name"] == "total"
    assert json.loads(want["schema"][0]["content"]).keys() == {"numbers"}
    assert_conserved(served.cluster, victim.name)


def test_streams_of_adapters_go_on(adapted: Models, launch: Launch, prompts: Prompts) -> None:
    served = launch(adapted, "a", decode_replicas=2)
    (ids,) = prompts(1, 40)
    asked = {name: one for name, one in cases(ids).items() if name in ("greedy", "seeded")}
    victim, other = gather_on_one(served)
    want = all_at_once(served, "a", asked)
    assert all_at_once(served, "a", asked, lambda: kill(victim, other)) == want
    assert continued(served)
    assert_conserved(served.cluster, victim.name)
    reference = expected(adapted.base, adapted.decoders["a"], ids, TOKENS)
    assert want["greedy"]["output_ids"] == reference.tokens
