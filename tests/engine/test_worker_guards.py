"""Requests that no worker can take: each is refused by name, and nobody else notices (I6, I7).

They go to the workers themselves, to each role with both legs of a handoff, and to the gateway.
"""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny import CONTEXT_LENGTH, VOCAB_SIZE
from ps_sglang.launch import procfs
from tests.engine.plain_server import sglang_server, wait_until_healthy
from tests.engine.served import Launch, Models, Served, kinds
from tests.support.engine_client import assert_conserved, generate, in_work, together
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(500)]

Prompts = Callable[[int, int], list[list[int]]]
Body = dict[str, Any]

_ROOMS = count(700_000)
_DEADLINE_S = 30.0
GRAMMAR = 40
"""Texts of a schema that takes seconds to compile."""


def sampling(**params: Any) -> Body:
    return {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 3, **params}}


def native(**fields: Any) -> Body:
    return {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 3}, **fields}


DEEP: Any = {"a": {"b": {"c": {"d": 1}}}}
# What is refused, and a word of the reason. SGLang refuses a value of another type before the
# plugin sees it, and does not name the field.
NATIVE: dict[str, tuple[Body, str]] = {
    "id beyond the vocabulary": (native(input_ids=[VOCAB_SIZE, 5, 6]), "input_ids"),
    "id beyond it at the end": (native(input_ids=[5, 6, VOCAB_SIZE]), "input_ids"),
    "far beyond it": (native(input_ids=[5, 2**62]), "input_ids"),
    "negative id": (native(input_ids=[-1, 5]), "input_ids"),
    "beyond 64 bits": (native(input_ids=[2**70, 5]), "input_ids"),
    "one bad prompt of three": (native(input_ids=[[5, 6], [7, VOCAB_SIZE], [8, 9]]), "input_ids"),
    "empty prompt in a batch": (native(input_ids=[[5, 6], []]), ""),
    "empty text": (native(input_ids=None, text=""), ""),
    "no prompt": (native(input_ids=None), ""),
    "half a surrogate": (native(input_ids=None, text="a\ud800b"), "surrogate"),
    "text over the context": (native(input_ids=None, text="x" * 400_000), "context length"),
    "ids over the context": (native(input_ids=[5] * (CONTEXT_LENGTH + 1)), "context length"),
    "top logprobs": (native(return_logprob=True, top_logprobs_num=60_000), "top_logprobs_num"),
    "top logprobs unasked": (native(top_logprobs_num=60_000), "top_logprobs_num"),
    "negative top logprobs": (native(return_logprob=True, top_logprobs_num=-1), "top_logprobs_num"),
    "token logprobs": (native(return_logprob=True, token_ids_logprob=[VOCAB_SIZE]), "token_ids"),
    "negative start": (native(return_logprob=True, logprob_start_len=-7), "logprob_start_len"),
    "hidden states, a list": (native(return_hidden_states=[True, False]), "return_hidden_states"),
    "hidden states": (native(return_hidden_states=True), "hidden"),
    "ids of one request": (native(rid=["x"]), "rid"),
    "empty id": (native(rid=""), "rid"),
    "labels": (native(custom_labels={"team": "x"}), "custom_labels"),
    "embeddings": (native(positional_embed_overrides={"x": 1}), "positional_embed_overrides"),
    "input embeddings": (native(input_ids=None, input_embeds=[[0.5]]), "input_embeds"),
    "routed experts": (native(return_routed_experts=True), "return_routed_experts"),
    "delimiters": (native(multi_item_delimiter_indices=[1]), "multi_item_delimiter_indices"),
    "pooling": (native(token_indices_to_pool=[99]), "token_indices_to_pool"),
    "session": (native(session_params={"id": "x", "rid": 5}), "session_params"),
    "adapter id": (native(lora_id="x"), "lora_id"),
    "sampling mask": (native(return_sampling_mask=True), "sampling_mask"),
    "another's socket": (native(http_worker_ipc="ipc:///tmp/x"), "http_worker_ipc"),
    "salt of half a surrogate": (native(cache_salt="\udfff"), "surrogate"),
    "long salt": (native(cache_salt="x" * 5000), "cache_salt"),
    "priority": (native(priority=2**70), "priority"),
    "parameters as a list": (native(sampling_params=[]), "sampling_params"),
    "parameters of two": (native(sampling_params=[{}, {}]), "sampling_params"),
    "unknown parameter": (sampling(no_such_thing=1), "no_such_thing"),
    "inner parameter": (sampling(is_normalized=True), "is_normalized"),
    "n": (sampling(n=5_000_000), "n"),
    "n, negative": (sampling(n=-1), "n"),
    "n, a text": (sampling(n="3"), "n"),
    "temperature": (sampling(temperature=-1), "temperature"),
    "temperature, a text": (sampling(temperature="warm"), "f64"),
    "temperature, not a number": (sampling(temperature=float("nan")), ""),
    "top_k": (sampling(temperature=1, top_k=2**31), "top_k"),
    "top_k, a fraction": (sampling(temperature=1, top_k=2.5), "i64"),
    "top_p": (sampling(top_p=7), "top_p"),
    "tokens, a fraction": (sampling(max_new_tokens=5.5), "i64"),
    "interval": (sampling(stream_interval=0), "stream_interval"),
    "seed": (sampling(sampling_seed=2**63), "sampling_seed"),
    "beams": (sampling(beam_width=3), "beam_width"),
    "stop, numbers": (sampling(stop=[1, 2]), "expected a string"),
    "stop tokens": (sampling(stop_token_ids=[VOCAB_SIZE]), "stop_token_ids"),
    "stop tokens, infinite": (sampling(stop_token_ids=[1e300]), "i64"),
    "bias of an unknown token": (sampling(logit_bias={str(VOCAB_SIZE): 1}), "logit_bias"),
    "bias, infinite": (sampling(logit_bias={"5": 1e300}), "logit_bias"),
    "bias, a text": (sampling(logit_bias={"5": "high"}), "f64"),
    "bias, a list": (sampling(logit_bias=[1]), "expected a map"),
    "custom parameters": (sampling(custom_params=DEEP), "custom_params"),
    "stop pattern": (sampling(stop_regex="("), "stop_regex"),
    "large stop pattern": (sampling(stop_regex="((a{1000}){1000}){1000}"), "stop_regex"),
    "stop pattern, a number": (sampling(stop_regex=[5]), "expected a string"),
    "regex": (sampling(regex="("), ""),
    "deep regex": (sampling(regex="(" * 3000 + "a" + ")" * 3000), "regex"),
    "large regex": (sampling(regex="|".join(f"[a-z]{{{n}}}x" for n in range(300))), "regex"),
    "long regex": (sampling(regex="a" * 70_000), "regex"),
    "EBNF": (sampling(ebnf="root ::= ("), ""),
    "EBNF without an end": (sampling(ebnf="root ::= root"), ""),
    "schema, an object": (sampling(json_schema={"type": "object"}), "expected a string"),
    "schema, no JSON": (sampling(json_schema="{"), "json_schema"),
    "schema of itself": (sampling(json_schema='{"$ref":"#"}'), ""),
    "deep schema": (
        sampling(json_schema='{"type":"array","items":' * 3000 + "{}" + "}" * 3000), "json_schema",
    ),
    "two grammars": (sampling(regex="a", ebnf='root ::= "a"'), "Only one"),
    "structural tag": (sampling(structural_tag="[]"), ""),
}  # fmt: skip
# Found when the grammar is compiled, which the prefill worker has no part in. The gateway
# ends its leg; here it would wait for the decode worker.
OF_THE_ANSWER = {
    "regex", "EBNF", "EBNF without an end", "schema of itself", "a schema of itself",
    "structural tag",
}  # fmt: skip
# Found when tokens are sampled, after the handoff.
SAMPLED: dict[str, tuple[Body, str]] = {
    "grammar and least tokens": (sampling(max_new_tokens=9, min_new_tokens=9, regex="ab"), ""),
}
TRANSPORT: dict[str, tuple[Body, str]] = {
    "room beyond 63 bits": (native(bootstrap_room=2**63), "bootstrap_room"),
    "negative room": (native(bootstrap_room=-1), "bootstrap_room"),
    "port": (native(bootstrap_port=70_000), "bootstrap_port"),
    "empty host": (native(bootstrap_host=""), "bootstrap_host"),
    "rank": (native(disagg_prefill_dp_rank=5), "disagg_prefill_dp_rank"),
    "two samples": (sampling(n=2), "n"),
    "no room": (native(bootstrap_room=None), "room"),
    "a health check's name": (native(rid="HEALTH_CHECK_x"), "rid"),
    "rooms too few": (native(input_ids=[[5], [6]], bootstrap_room=[5]), ""),
}
CHAT: Body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
OPENAI: dict[str, tuple[str, Body, str]] = {
    "ids of a chat": ("chat/completions", {**CHAT, "input_ids": [5, VOCAB_SIZE, 6]}, "input_ids"),
    "top logprobs of a chat": (
        "chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 60_000}, "top_logprobs",
    ),
    "the template's own name": (
        "chat/completions", {**CHAT, "chat_template_kwargs": {"messages": "x"}}, "messages:",
    ),
    "the renderer's own name": (
        "chat/completions", {**CHAT, "chat_template_kwargs": {"conversation": 5}}, "conversation:",
    ),
    "tools that are none": (
        "chat/completions", {**CHAT, "chat_template_kwargs": {"tools": "x"}}, "tools:",
    ),
    "what the renderer refuses": (
        "chat/completions",
        {**CHAT, "chat_template_kwargs": {"return_assistant_tokens_mask": True}}, "",
    ),
    "a schema of itself": (
        "chat/completions",
        {
            **CHAT,
            "response_format": {
                "type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}},
            },
        },
        "",
    ),
    "a chat over the context": (
        "chat/completions",
        {**CHAT, "messages": [{"role": "user", "content": "x" * 400_000}]}, "context length",
    ),
    "ids of a completion": (
        "completions", {"prompt": [VOCAB_SIZE, 5, 6], "max_tokens": 2}, "input_ids",
    ),
    "logprobs of a completion": (
        "completions", {"prompt": "a", "max_tokens": 2, "logprobs": 60_000}, "logprobs",
    ),
    "stop pattern of a completion": (
        "completions", {"prompt": "a", "max_tokens": 2, "stop_regex": "("}, "stop_regex",
    ),
}  # fmt: skip


OFF, ON = "overlap off", "overlap on the decode workers"


@pytest.fixture(scope="module", params=kinds([ON], [OFF]))
def served(request: pytest.FixtureRequest, llama: Models, launch: Launch) -> Served:
    overlap = () if request.param == OFF else ("--no-disable-overlap-schedule",)
    return launch(llama, "a", "b", decode_engine_args=overlap)


@pytest.fixture(scope="module")
def processes(served: Served) -> dict[str, set[int]]:
    """The processes of every worker, before anything was asked."""
    return _processes(served)


def _processes(served: Served) -> dict[str, set[int]]:
    return {
        worker.name: {worker.pid, *procfs.descendants(worker.pid)}
        for worker in served.cluster.workers
    }


def answer(url: str, body: Body) -> tuple[int, str]:
    """Status and text of an answer, whatever it is; status 0 if there is none in time."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_DEADLINE_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except TimeoutError:
        return 0, "no answer"


def legs(served: Served, decoder: str) -> list[tuple[str, Body]]:
    """The workers' addresses, and what the gateway adds to the bodies of both."""
    prefill, *decode = served.cluster.plan.workers
    (worker,) = [spec for spec in decode if spec.model_name == decoder]
    room = next(_ROOMS)
    handshake = {
        "rid": f"hostile-{room}-x",
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": room,
    }
    return [(prefill.url, handshake), (worker.url, handshake)]


def ask_both(
    served: Served, path: str, body: Body, decode_only: bool, decoder: str = "a"
) -> list[tuple[int, str]]:
    """What each leg's worker says to one body; the decode worker alone if only it can refuse."""
    pair = legs(served, decoder)[1 if decode_only else 0 :]
    named = {"model": decoder} if path.startswith("/v1") else {}
    return together(
        [partial(answer, url + path, {**named, **shake, **body}) for url, shake in pair]
    )


def assert_unharmed(served: Served, processes: dict[str, set[int]], prompts: Prompts) -> None:
    """The same processes, nothing held, and exact answers."""
    assert_conserved(served.cluster)
    assert _processes(served) == processes
    for name in ("a", "b"):
        (ids,) = prompts(1, 20)
        want = expected(served.models.base, served.models.decoders[name], ids)
        assert generate(served.cluster, name, ids)["output_ids"] == want.tokens
    assert_conserved(served.cluster)


def found_wrong(answers: dict[str, list[tuple[int, str]]], expected: dict[str, str]) -> list[str]:
    """Every answer that is not a 400 with the wanted word, one line each."""
    return [
        f"{name}: {[(status, text[:300]) for status, text in answer]}"
        for name, answer in answers.items()
        if not all(status == 400 and expected[name] in text for status, text in answer)
    ]


def test_workers_refuse_by_name(
    served: Served, processes: dict[str, set[int]], prompts: Prompts
) -> None:
    cases = NATIVE | TRANSPORT
    differing = {
        name: ask_both(served, "/generate", body, name in OF_THE_ANSWER)
        for name, (body, _) in cases.items()
    }
    wrong = found_wrong(differing, {name: why for name, (_, why) in cases.items()})
    assert not wrong, "\n".join(wrong)
    assert_unharmed(served, processes, prompts)


def test_workers_refuse_openai_bodies(
    served: Served, processes: dict[str, set[int]], prompts: Prompts
) -> None:
    differing = {
        name: ask_both(served, f"/v1/{path}", body, name in OF_THE_ANSWER)
        for name, (path, body, _) in OPENAI.items()
    }
    wrong = found_wrong(differing, {name: why for name, (*_, why) in OPENAI.items()})
    assert not wrong, "\n".join(wrong)
    assert_unharmed(served, processes, prompts)


def test_gateway_refuses_too(
    served: Served, processes: dict[str, set[int]], prompts: Prompts
) -> None:
    url = served.cluster.url
    calls = {
        **{
            n: partial(answer, f"{url}/models/a/generate", body)
            for n, (body, _) in (NATIVE | SAMPLED).items()
            if n != "ids of one request"  # the gateway gives every sample an id of its own
        },
        **{
            n: partial(answer, f"{url}/v1/{path}", {"model": "a", **body})
            for n, (path, body, _) in OPENAI.items()
        },
    }
    outcomes = {name: call() for name, call in calls.items()}
    wrong = {name: got for name, got in outcomes.items() if not 400 <= got[0] < 500}
    assert not wrong, wrong
    assert_unharmed(served, processes, prompts)


def test_slow_stop_pattern_ends_its_request(
    served: Served, processes: dict[str, set[int]], prompts: Prompts
) -> None:
    """Python's `re` would take for ever; meanwhile another request of the worker goes on."""
    slow = sampling(max_new_tokens=60, regex="a{60}c", stop_regex="(a|aa)+b")
    (ids,) = prompts(1, 20)
    want = expected(served.models.base, served.models.decoders["a"], ids)
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(answer, f"{served.cluster.url}/models/a/generate", slow)
        assert generate(served.cluster, "a", ids)["output_ids"] == want.tokens
        status, text = refused.result()
    assert status == 400, text
    assert "stop_regex" in text
    assert_unharmed(served, processes, prompts)


def test_stop_patterns_still_stop(served: Served, prompts: Prompts) -> None:
    """The first pattern that is found in what was said, as SGLang has it."""
    (ids,) = prompts(1, 20)
    whole = generate(served.cluster, "a", ids, 24)
    expected = whole["text"][9:11]
    pattern = "".join(f"[{character}]" if character.isalnum() else "." for character in expected)
    stopped = generate(served.cluster, "a", ids, 24, sampling={"stop_regex": ["zzzz", pattern]})
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": pattern}
    assert whole["output_ids"][: len(stopped["output_ids"])] == stopped["output_ids"]
    assert len(stopped["output_ids"]) < len(whole["output_ids"])


def test_others_are_served_while_a_text_is_tokenized(
    served: Served, processes: dict[str, set[int]], prompts: Prompts
) -> None:
    """Texts that nearly fit by their bytes, and far larger ones, on the base's worker."""
    prefill = served.cluster.plan.workers[0]
    texts = ["word " * 5000] * 4 + ["x" * 20_000_000] * 4
    calls = [
        partial(answer, f"{prefill.url}/generate", native(input_ids=None, text=text))
        for text in texts
    ]
    assert {status for status, _ in together(calls)} == {400}
    assert in_work(prefill.url) == {}
    assert_unharmed(served, processes, prompts)


def test_others_are_served_while_a_grammar_compiles(
    served: Served, processes: dict[str, set[int]], prompts: Prompts
) -> None:
    """It takes seconds, in another thread than the scheduler's."""
    texts = {
        f"k{n}": {"type": "string", "minLength": n, "maxLength": n + 500} for n in range(GRAMMAR)
    }
    schema = json.dumps({"type": "object", "properties": texts, "required": list(texts)})
    (ids,) = prompts(1, 20)
    want = expected(served.models.base, served.models.decoders["a"], ids)
    served_meanwhile = 0
    with ThreadPoolExecutor(1) as pool:
        slow = sampling(json_schema=schema)
        compiling = pool.submit(answer, f"{served.cluster.url}/models/a/generate", slow)
        while not compiling.done():
            assert generate(served.cluster, "a", ids)["output_ids"] == want.tokens
            served_meanwhile += 1
    assert compiling.result()[0] == 200
    # One may come before it, and one may wait for its end.
    assert served_meanwhile > 3
    assert_unharmed(served, processes, prompts)


def test_a_tokenizer_with_a_token_more_than_its_model(llama: Models, tmp_path: Path) -> None:
    """Started by hand, as the launcher refuses it: the text is refused, and the worker stays."""
    model = shutil.copytree(llama.base, tmp_path / "model")
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    token = tokenizer["added_tokens"][0]
    # A tokenizer numbers what is added from its own vocabulary's end.
    first = max(tokenizer["model"]["vocab"].values()) + 1
    for token_id in range(first, VOCAB_SIZE + 1):
        text = "<|more|>" if token_id == VOCAB_SIZE else f"<|{token_id}|>"
        tokenizer["added_tokens"].append({**token, "id": token_id, "content": text})
    file.write_text(json.dumps(tokenizer))
    with sglang_server(model, tmp_path / "log") as url:
        wait_until_healthy(url)
        chat = {**CHAT, "messages": [{"role": "user", "content": "hi <|more|>"}]}
        for path, body in (
            ("/v1/chat/completions", chat),
            ("/generate", native(input_ids=None, text="a <|more|> b")),
        ):
            status, text = answer(url + path, body)
            assert (status, f"not {VOCAB_SIZE}" in text) == (400, True), text
        assert answer(f"{url}/v1/chat/completions", CHAT)[0] == 200
