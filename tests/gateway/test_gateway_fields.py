"""Every field: its range, null, its default, and what of it reaches an engine."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.gateway.bodies import fields, size
from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup, running
from tests.gateway.tokenizer_kinds import byte_level
from tests.support.standin_engine import CONTEXT_LENGTH, VOCABULARY

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
MESSAGES = [{"role": "user", "content": "x"}]
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"model": "a", "messages": MESSAGES},
    COMPLETIONS: {"model": "a", "prompt": "x"},
    GENERATE: {"model": "a", "text": "x"},
}
TABLES = {CHAT: fields.CHAT, COMPLETIONS: fields.COMPLETIONS, GENERATE: fields.GENERATE}
LAST = VOCABULARY - 1
# Field of /v1/completions and, by the same name, of sampling_params: (right, wrong, what is said).
SAMPLING: dict[str, tuple[list[Any], list[Any], str]] = {
    "temperature": ([0, 0.7, 100], [-0.1, 1e39, 2**130, "1", True, [1], {}], "number|from 0"),
    "top_p": ([1, 1e-3], [0, 1.1, -1, "1", 1e-300], "above 0 and at most 1"),
    "top_k": (
        [-1, 1, 5.0, 10**6, 2**31 - 1],
        [0, -2, 2**31, 2**70, 5.5, "5"],
        "2147483647, or -1|integer",
    ),
    "min_p": ([0, 1], [-0.1, 1.5, "0"], "from 0 to 1"),
    "frequency_penalty": ([-2, 2], [-2.1, 2.1, None], "from -2 to 2"),
    "presence_penalty": ([-2, 2], [-2.1, 2.1], "from -2 to 2"),
    "repetition_penalty": ([0.1, 2], [0, 2.1, -1, 1e-300], "from 1e-06 to 2"),
    "n": ([1, 3, 2.0], [0, 129, -1, 2**70, 1.5, True], "from 1 to 128|integer"),
    "stop": (["x", [], ["x", "y"]], [5, [5], [None], ["x"] * 33, "x" * 1025], "text|characters"),
    "stop_token_ids": (
        [[], [0, LAST]],
        [[LAST + 1], [-1], [None], 5, [True], [2**70], [[1]]],
        "token",
    ),
    "stop_regex": (
        ["x", ["x", r"\n+"], "(a+)+b", "[[a]"],
        ["(", "a**", ["x", "("], "x" * 257, "é" * 129, 5, [None]],
        "regular|bytes|texts",
    ),
    "regex": (["a{60}c", ""], [5, ["x"], "x" * 5000], "text|characters"),
    "ebnf": (['root ::= "x"'], [5, {}], "text"),
    "ignore_eos": ([True, False], ["true", 1], "true or false"),
    "skip_special_tokens": ([True, False], ["no", 0], "true or false"),
    "no_stop_trim": ([True], [0], "true or false"),
    "logit_bias": (
        [{}, {"5": -100, str(LAST): 1.5}],
        [
            {str(LAST + 1): 1},
            {"-1": 1},
            {"x": 1},
            {"5": 1e300},
            {"5": None},
            {"5": "1"},
            [],
            {"²": 1},
        ],
        "token ids|from -1e[+]30|object|number",
    ),
    "custom_params": (
        [{}, {"a": [1, "x"], "b": {"c": None}}],
        [5, {"a": {"b": {"c": 1}}}, {"a": [[1]]}, {"a": 2**70}, {"__sglang_x": 1}],
        "object|nested|64 bits|engine",
    ),
    "watermark": (
        [{"enabled": False}],
        [5, {"x": 1}, {"enabled": 1}, {"context_window": 0}],
        "object|field|true or false|from 1",
    ),
}
# (route, right fields, wrong fields, what is said)
OTHERS: list[tuple[str, str, list[Any], list[Any], str]] = [
    (
        COMPLETIONS,
        "prompt",
        [[0, LAST], [[5], [LAST]]],
        [[LAST + 1, 4, 3], [3, -1], [2**70], [[1], [LAST + 1]]],
        f"token id .* from 0 to {LAST}",
    ),
    (
        COMPLETIONS,
        "logprobs",
        [0, VOCABULARY],
        [-1, VOCABULARY + 1, 60000, 2**70, True, "5"],
        f"from 0 to {VOCABULARY}|integer",
    ),
    (
        COMPLETIONS,
        "max_tokens",
        [1, 2**31 - 1],
        [0, -1, 2**31, 2**70, 1e308, 5.5],
        "from 1 to|integer",
    ),
    (COMPLETIONS, "min_tokens", [0, 16], [-1, 17, 2**70], "from 0|at most `max_tokens`"),
    (COMPLETIONS, "seed", [-(2**63), 2**63 - 1], [2**63, 1.5], "from -9223372036854775808|integer"),
    (COMPLETIONS, "priority", [5], [2**31, 1.5, "x"], "from -2147483648|integer"),
    (COMPLETIONS, "rid", ["x"], ["a\nb", "x" * 257, ""], "printable"),
    (COMPLETIONS, "cache_salt", ["x", ""], ["a\0", "x" * 257, 5], "NUL|256"),
    (COMPLETIONS, "user", ["x"], [5, "x" * 257], "text|256"),
    (COMPLETIONS, "suffix", ["x"], [5], "text"),
    (COMPLETIONS, "echo", [False, True], ["x"], "true or false"),
    (COMPLETIONS, "json_schema", ['{"type": "object"}', "$$ANY$$"], ["{", "5", 5], "JSON|text"),
    (
        COMPLETIONS,
        "stream_options",
        [{"include_usage": None}, {}],
        [5, {"include_usage": "x"}],
        "object|true or false",
    ),
    (
        COMPLETIONS,
        "response_format",
        [{"type": "json_object"}, {"type": "text"}],
        [
            5,
            {},
            {"type": "x"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": 5}},
            {"type": "structural_tag"},
        ],
        "object|one of|missing|format",
    ),
    (CHAT, "input_ids", [[0, LAST]], [[LAST + 1], [-1], [], "x", [None]], "token id"),
    (CHAT, "logprobs", [True, False], [5, "x"], "true or false"),
    (
        CHAT,
        "top_logprobs",
        [0, VOCABULARY],
        [VOCABULARY + 1, 1000000, -1],
        f"from 0 to {VOCABULARY}",
    ),
    (CHAT, "max_completion_tokens", [1], [2**70, 0], "from 1 to"),
    (
        CHAT,
        "tools",
        [[], [{"type": "function", "function": {"name": "f"}}]],
        [5, [5], [{}], [{"function": {"name": 5}}]],
        "list of tools|object|name|text",
    ),
    (CHAT, "tool_choice", ["auto"], ["x", {}, 5, {"function": {}}], "one of|word"),
    (CHAT, "reasoning_effort", ["low", 0.5], ["x", 1.5, True], "one of|from 0|number"),
    (
        CHAT,
        "chat_template_kwargs",
        [{}, {"enable_thinking": False}],
        [
            5,
            [],
            {"messages": []},
            {"tools": "x"},
            {"add_generation_prompt": False},
            {"range": 5},
            {"spaces_between_special_tokens": "x"},
        ],
        "object|given|true or false",
    ),
    (
        CHAT,
        "messages",
        [MESSAGES],
        [
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}]
            for text in ("{", "[]", '{"a":' * 100 + "1" + "}" * 100)
        ],
        "arguments",
    ),
    (GENERATE, "return_logprob", [True, False], [5, "x", [True]], "true or false|list of 1"),
    (
        GENERATE,
        "top_logprobs_num",
        [0, VOCABULARY],
        [VOCABULARY + 1, -1, 2**70],
        f"from 0 to {VOCABULARY}",
    ),
    (GENERATE, "token_ids_logprob", [[0, LAST]], [[LAST + 1], [-1], [None], 5], "token"),
    (
        GENERATE,
        "return_hidden_states",
        [False, [], [False]],
        [True, "last", [True], ["last"], 1],
        "not supported",
    ),
    (GENERATE, "custom_labels", [{}], [{"a": "b"}], "not supported"),
    (GENERATE, "return_entropy", [False], [True], "not supported"),
    (GENERATE, "modalities", [[]], [["image"]], "not supported"),
    (GENERATE, "logprob_start_len", [-1], ["x", -2], "integer|from -1"),
]
PARAMS: list[tuple[str, list[Any], list[Any], str]] = [
    ("max_new_tokens", [0, 5], [-1, 2**31, 2**70, "x"], "from 0 to|integer"),
    ("min_new_tokens", [0, 128], [129, -1], "from 0|at most `sampling_params.max_new_tokens`"),
    ("sampling_seed", [5], [2**63, "x"], "from -9223372036854775808|integer"),
    ("json_schema", ["{}"], ["{", {}], "JSON|text"),
    ("structural_tag", ['{"structures": [], "triggers": []}'], ["{", "{}", 5], "JSON|format|text"),
    ("beam_width", [1], [2, 0], "from 1 to 1"),
    ("is_normalized", [], [True, False, 5], "is no sampling parameter"),
    ("stop_strs", [], [["x"]], "is no sampling parameter"),
    ("custom", [], [1], "is no sampling parameter"),
]


def flat(
    cases: list[tuple[str, str, list[Any], list[Any], str]],
) -> tuple[list[tuple[str, str, Any]], list[tuple[str, str, Any, str]]]:
    """Right and wrong values one by one; null is never wrong."""
    right = [(route, name, value) for route, name, good, _, _ in cases for value in good]
    wrong = [
        (route, name, value, said)
        for route, name, _, bad, said in cases
        for value in bad
        if value is not None
    ]
    return right, wrong


CASES = [
    *((route, name, *case) for route in (CHAT, COMPLETIONS) for name, case in SAMPLING.items()),
    *OTHERS,
    *((GENERATE, f"sampling_params.{name}", *case) for name, case in SAMPLING.items()),
    *((GENERATE, f"sampling_params.{name}", *case) for name, *case in PARAMS),
]
RIGHT, WRONG = flat(CASES)  # type: ignore[arg-type]


def body_of(route: str, name: str, value: Any) -> dict[str, Any]:
    outer, _, inner = name.partition(".")
    return {**VALID[route], outer: {inner: value} if inner else value}


async def test_right_values_are_taken(gateway: Setup) -> None:
    for route, name, value in RIGHT:
        status, answer = await gateway.post(route, body_of(route, name, value))
        assert status == 200, (route, name, value, answer)


async def test_wrong_values_are_refused_by_name(gateway: Setup) -> None:
    for route, name, value, said in WRONG:
        status, answer = await gateway.post(route, body_of(route, name, value))
        case = (route, name, value, answer)
        assert status == 400, case
        error = answer["error"]
        assert re.split(r"[.\[]", error["param"])[0] == name.partition(".")[0], case
        assert f"`{name}" in error["message"], case
        assert re.search(said, error["message"]), case
    assert not any(worker.requests for worker in gateway.cluster.workers)


@pytest.mark.parametrize("route", VALID)
async def test_null_is_not_given(gateway: Setup, route: str) -> None:
    """Every field at once, those of sampling_params as well: the engine hears of none."""
    own = {"messages", "prompt", "text"} & VALID[route].keys()
    names = (TABLES[route].keys() | {"hints", "session_id", "best_of", "lora_path", "x"}) - own
    nulls: dict[str, Any] = dict.fromkeys(names)
    await gateway.post(route, VALID[route])
    assert (await gateway.post(route, {**nulls, **VALID[route]}))[0] == 200
    if route == GENERATE:
        params = dict.fromkeys(fields.SAMPLING_PARAMS)
        for given in (params, None):
            body = {**nulls, **VALID[route], "sampling_params": given}
            assert (await gateway.post(route, body))[0] == 200
    first, *others = gateway.decode().requests
    for request in others:
        assert request.keys() == first.keys()
        assert request.get("sampling_params") == first.get("sampling_params")


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
async def test_an_unknown_field_is_ignored(gateway: Setup, route: str) -> None:
    odd = {"metadata": {"a": "b"}, "store": True, "x": [[5]]}
    assert (await gateway.post(route, {**VALID[route], **odd}))[0] == 200
    assert not odd.keys() & gateway.decode().requests[0].keys()


@pytest.mark.parametrize(
    ("route", "given", "said"),
    [
        (COMPLETIONS, {"regex": "x", "ebnf": "y"}, "`regex` and `ebnf`"),
        (CHAT, {"regex": "x", "response_format": {"type": "json_object"}}, "`response_format`"),
        (
            GENERATE,
            {"sampling_params": {"regex": "x", "json_schema": "{}"}},
            "`sampling_params.regex`",
        ),
        (GENERATE, {"return_flat_raw_output_top_logprobs": True, "stream": True}, "whole answers"),
        (GENERATE, {"watermark": {}, "sampling_params": {"watermark": {}}}, "not in both"),
    ],
)
async def test_what_cannot_be_together(
    gateway: Setup, route: str, given: dict[str, Any], said: str
) -> None:
    status, answer = await gateway.post(route, {**VALID[route], **given})
    assert status == 400
    assert said in answer["error"]["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
async def test_a_number_that_is_none(gateway: Setup, number: str) -> None:
    content = '{"model": "a", "prompt": "x", "temperature": %s}' % number  # noqa: UP031 - braces
    async with gateway.http.post(gateway.url + COMPLETIONS, data=content) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["param"] == "temperature"
    assert "must be finite" in error["message"]


@pytest.mark.parametrize("half", [r"\ud800", r"\udfff", r"a \ud83d b", r"\udc00\ud800"])
@pytest.mark.parametrize(
    ("route", "given", "place"),
    [
        (COMPLETIONS, lambda half: {"prompt": half}, "prompt"),
        (COMPLETIONS, lambda half: {"prompt": ["x", half]}, "prompt[1]"),
        (COMPLETIONS, lambda half: {"stop": half}, "stop"),
        (
            CHAT,
            lambda half: {"messages": [{"role": "user", "content": half}]},
            "messages[0].content",
        ),
        (CHAT, lambda half: {"tools": [{half: 5}]}, "tools[0]."),
        (GENERATE, lambda half: {"text": half}, "text"),
        (GENERATE, lambda half: {"sampling_params": {"stop": [half]}}, "sampling_params.stop[0]"),
    ],
)
async def test_half_a_character_is_named(
    gateway: Setup, route: str, given: Any, place: str, half: str
) -> None:
    content = json.dumps({**VALID[route], **given("HALF")}).replace("HALF", half)
    async with gateway.http.post(gateway.url + route, data=content) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["param"] == place.partition("[")[0].partition(".")[0]
    assert f"`{place}" in error["message"]
    assert "send both halves" in error["message"]


@pytest.mark.parametrize("levels", [65, 500, 20_000])
async def test_a_body_that_is_nested_too_deeply(gateway: Setup, levels: int) -> None:
    content = '{"model": "a", "prompt": "x", "x": ' + "[" * levels + "]" * levels + "}"
    async with gateway.http.post(gateway.url + COMPLETIONS, data=content) as response:
        assert response.status == 400
        assert "nested too deeply" in (await response.json())["error"]["message"]


def write_tokenizer(folder: Path, chat_template: str) -> str:
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(chat_template)
    return str(folder)


@pytest.fixture
async def exact(tmp_path: Path) -> AsyncIterator[Setup]:
    """A gateway that knows its tokenizer."""
    folder = write_tokenizer(tmp_path, "{{ messages[0].content }}")
    async with running(tokenizer=folder) as setup:
        yield setup


async def test_a_text_that_cannot_fit(exact: Setup) -> None:
    """As many bytes as the longest tokens of a full context have are a text that might fit."""
    longest = exact.app[GATEWAY].cache_index.prompts.longest_token
    assert longest is not None
    most = "x" * (longest * (CONTEXT_LENGTH - 1))
    for route, name in ((COMPLETIONS, "prompt"), (GENERATE, "text")):
        assert (await exact.post(route, {**VALID[route], name: most}))[0] == 200
        for over in (most + "x", ["x", most + "x"]):
            status, answer = await exact.post(route, {**VALID[route], name: over})
            assert status == 400
            assert answer["error"]["code"] == "context_length_exceeded"
            assert answer["error"]["param"] == name
    chat = {"messages": [{"role": "user", "content": most + "x"}]}
    status, answer = await exact.post(CHAT, {**VALID[CHAT], **chat})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert len(exact.decode().requests) == 2


async def test_a_template_may_drop_what_messages_say(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, "{{ messages[-1].content }}")
    async with running(tokenizer=folder) as gateway:
        long = {"role": "user", "content": "x" * 50_000}
        body = {**VALID[CHAT], "messages": [long, {"role": "user", "content": "y"}]}
        assert (await gateway.post(CHAT, body))[0] == 200


async def test_of_a_chat_that_is_not_known_the_size_is_not(tmp_path: Path) -> None:
    """The template refuses it here; what it is on a worker, the worker says."""
    folder = write_tokenizer(tmp_path, "{{ raise_exception('no') }}")
    async with running(tokenizer=folder) as gateway:
        body = {**VALID[CHAT], "messages": [{"role": "user", "content": "x" * 50_000}]}
        assert (await gateway.post(CHAT, body))[0] == 200


async def test_many_messages_and_many_prompts(gateway: Setup) -> None:
    for route, given in (
        (CHAT, {"messages": MESSAGES * 8193}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 8192}]}),
        (COMPLETIONS, {"prompt": ["x"] * 2049}),
        (COMPLETIONS, {"prompt": ["x"] * 20_000}),
    ):
        status, answer = await gateway.post(route, {**VALID[route], **given})
        assert status == 400
        assert "at most" in answer["error"]["message"]


def test_bodies_are_bounded_by_what_a_context_can_need() -> None:
    assert size.most_body_bytes(100, 10) == 2**20
    assert size.most_body_bytes(8192, 81) == 8192 * 81 * 6
    assert size.most_body_bytes(10**6, 128) == 16 * 2**20
    assert size.most_body_bytes(8192, None) == 8192 * 128 * 6
