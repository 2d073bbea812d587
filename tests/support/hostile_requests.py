"""Requests that try every field of the three routes with values of every kind, from a seed.

`request(seed, vocabulary, context_length)` is the same route and body on every call. Most bodies
are nearly valid, so that what one field does is not hidden behind the refusal of another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Body = dict[str, Any]
CHAT, COMPLETIONS, GENERATE = ROUTES = ("/v1/chat/completions", "/v1/completions", "/generate")
_Make = Callable[["_Source"], Any]

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_TEXTS = (
    *(
        "",
        "x",
        "hello there",
        " ",
        "\n",
        "\0",
        "a\0b",
        "漢字",
        "👍🏽",
        "\ufeff",
        "\u202e",
        "<|im_end|>",
    ),
    *(
        "true",
        "null",
        "-1",
        "1e9",
        "../../etc/passwd",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "%s%n",
        "a" * 5000,
    ),
)
_NUMBERS = (
    *(0, 1, -1, 2, 7, 16, 127, 128, 255, 256, 1000, 65535, 10**6, 2**30, 2**31 - 1, 2**31),
    *(-(2**31), 2**32, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 2**70, 10**40),
    *(0.0, -0.0, 0.5, 1.0, 1.5, 1e-6, 1e-7, 1e-40, 1e-300, 1e30, 1e39, 1e300, 1.7e308, -1e300),
)
_STOP_REGEXES = (
    *(
        "a",
        "b+",
        r"[.!?]\s*$",
        "(a+)+b",
        "(a|a)*b",
        "(.*)*x",
        "a{60}c",
        "(",
        "[",
        "*",
        "(?P<n>a)(?P=n)",
    ),
    *(
        r"\d{1,4}-",
        "(a?){40}a{40}",
        "((a{1,99}){1,99}){1,99}",
        "(?i)STOP",
        "x" * 257,
        r"(?<!a)b",
        ".*",
    ),
    *("a{99999}", "(ab){60000}", "a" * 250, "(?:)", "\0", r"\Z", "$", "^", "(?=(.+)+x)", "(?R)"),
)
_REGEXES = (
    *(
        "a{60}c",
        "[a-c]{2,4}",
        "(",
        "(a+)+b",
        "a{1000}",
        "(a{100}){100}",
        r"\d+",
        "[^\\n]*",
        "(?=a)b",
        "\\",
    ),
    *(
        ".{0,100000}",
        "(?i)yes|no",
        "",
        "\0",
        "a|b|c",
        "[z-a]",
        r"\p{L}+",
        r"(\w+ ){3}",
        "^a$",
        "(((((",
    ),
)
_EBNFS = (
    *('root ::= "yes" | "no"', "root ::=", "x", 'root ::= root "a"', "root ::= root", 'a ::= "b"'),
    *(
        'root ::= "a" root | "a"',
        'root ::= (("a"*)*)*',
        'root ::= "\\u0000"',
        "root ::= [a-z]{1,5}",
    ),
)
_SCHEMAS: Sequence[Any] = (
    SCHEMA, {}, True, False, {"type": "x"}, {"$ref": "#"}, {"$ref": "#/$defs/a"},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, {"enum": []}, {"enum": [1, "a"]},
    {"type": "array", "minItems": 10**9}, {"type": "string", "pattern": "(a+)+b"},
    {"type": "string", "pattern": "("}, {"type": "string", "minLength": 10, "maxLength": 2},
    {"type": "integer", "minimum": 10, "maximum": 2}, {"type": "integer", "minimum": -(2**70)},
    {"properties": {"a": 5}}, {"type": ["object", "null"]}, {"allOf": []}, {"anyOf": [{}]},
    {"not": {}}, {"const": None}, {"type": "object", "additionalProperties": {"$ref": "#"}},
    {"type": "object", "properties": {f"p{i}": SCHEMA for i in range(40)}},
)  # fmt: skip


class _Source(random.Random):
    """Random values for one request."""

    def __init__(self, seed: int, vocabulary: int, context_length: int) -> None:
        super().__init__(seed)
        self.vocabulary, self.context_length = vocabulary, context_length

    def number(self) -> Any:
        vocabulary, context = self.vocabulary, self.context_length
        near = (vocabulary - 1, vocabulary, vocabulary + 1, context - 1, context, context + 1)
        return self.choice((*_NUMBERS, *near, self.randrange(-5, 20), self.uniform(-3, 3)))

    def token(self) -> Any:
        vocabulary = self.vocabulary
        if self.random() < 0.9:
            return self.randrange(vocabulary)
        odd = (
            -1,
            -2,
            vocabulary,
            vocabulary + 1,
            200_000,
            2**31,
            2**63,
            2**70,
            1.5,
            None,
            True,
            "5",
        )
        return self.choice(odd)

    def tokens(self, most: int = 12) -> Any:
        return [self.token() for _ in range(self.randrange(most))]

    def words(self) -> str:
        return " ".join(
            self.choice(("the", "of", "ein", "x1", "{}", "\n", "é", "ok."))
            for _ in range(self.randrange(1, 30))
        )

    def text(self) -> str:
        return self.choice((*_TEXTS, self.words()))

    def anything(self, depth: int = 0) -> Any:
        """A JSON value of any kind."""
        kinds: list[Callable[[], Any]] = [
            self.number, self.text, lambda: None, lambda: True, lambda: False, self.tokens,
        ]  # fmt: skip
        if depth < 3:
            kinds += [
                lambda: [self.anything(depth + 1) for _ in range(self.randrange(4))],
                lambda: {self.text(): self.anything(depth + 1) for _ in range(self.randrange(3))},
            ]
        if depth == 0:
            kinds.append(lambda: nested(self.choice((10, 63, 64, 65, 500)), self.choice("[{")))
        return self.choice(kinds)()

    def batch(self, one: _Make) -> Any:
        """A value, or now and then a list as a batch would have it."""
        if self.random() < 0.85:
            return one(self)
        return [one(self) for _ in range(self.randrange(4))]


def nested(levels: int, bracket: str) -> Any:
    """Lists or objects in each other."""
    value: Any = []
    for _ in range(levels):
        value = [value] if bracket == "[" else {"a": value}
    return value


def _of(*choices: Any) -> _Make:
    return lambda source: source.choice(choices)


def _between(low: float, high: float) -> _Make:
    return lambda source: source.choice((low, high, source.uniform(low, high)))


def _count(low: int, high: int) -> _Make:
    return lambda source: source.randint(low, high)


def _texts(choices: Sequence[str]) -> _Make:
    def make(source: _Source) -> Any:
        if source.random() < 0.6:
            return source.choice(choices)
        return [source.choice(choices) for _ in range(source.choice((0, 1, 2, 3, 32, 33)))]

    return make


def _biases(source: _Source) -> Any:
    keys = [source.choice((str(source.token()), "x", "-0", "1e3", "\uff15")) for _ in range(3)]
    return {key: source.choice((0, 1, -100, 100.5, 1e30, 1e31, -1e300)) for key in keys}


def _format(source: _Source) -> Any:
    schema = source.choice(_SCHEMAS)
    return source.choice(
        (
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
            {"type": "json_schema", "json_schema": {"schema": schema}},
            {"type": "json_schema", "json_schema": source.anything()},
            {"type": "json_schema", "schema": schema},
            {"type": "json_schema"},
            {"type": source.anything()},
            {"type": "structural_tag", "structures": [], "triggers": []},
            {
                "type": "structural_tag",
                "structures": [{"begin": "<f>", "schema": schema, "end": "</f>"}],
                "triggers": ["<f"],
            },
            {"type": "structural_tag", "structures": source.anything(), "triggers": ["<"]},
            {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}},
            {"type": "structural_tag", "format": source.anything()},
            source.anything(),
        )
    )


def _message(source: _Source) -> Any:
    role = source.choice(("user", "user", "system", "assistant", "tool", "developer", "banana", 5))
    content = source.choice(
        (
            source.words(), source.words(), source.text(), None, [],
            [{"type": "text", "text": "x"}], [{"type": "text"}],
            [{"type": "thinking", "thinking": "hm"}], source.anything(),
        )
    )  # fmt: skip
    message = {"role": role, "content": content}
    if source.random() < 0.1:
        arguments = source.choice(
            (
                '{"a": 1}',
                "{",
                "[]",
                {"a": 1},
                "[" * 500 + "]" * 500,
                '{"a":' * 200 + "1" + "}" * 200,
            )
        )
        function = {"name": "f", "arguments": arguments}
        message["tool_calls"] = [{"id": "c", "type": "function", "function": function}]
    if source.random() < 0.05:
        message[source.choice(("name", "tools", "prefix", "phase"))] = source.anything()
    return message


def _messages(source: _Source) -> Any:
    if source.random() < 0.7:
        return [{"role": "user", "content": source.words()}]
    return [_message(source) for _ in range(source.randrange(1, 4))]


def _tools(source: _Source) -> Any:
    function = {"name": "f", "description": "d", "parameters": source.choice(_SCHEMAS)}
    return source.choice(
        (
            [{"type": "function", "function": function}],
            [{"type": "function", "function": {**function, "name": source.anything()}}],
            [{"function": {"name": "g"}}],
            [],
            [source.anything()],
        )
    )


def _template_kwargs(source: _Source) -> Any:
    names = (
        "messages", "tools", "add_generation_prompt", "enable_thinking", "conversation", "self",
        "chat_template", "tokenize", "return_dict", "bos_token", "range", "x", "loop", "",
        "spaces_between_special_tokens", "reasoning_effort", "documents", "message", "namespace",
    )  # fmt: skip
    return source.choice(
        ({}, {source.choice(names): source.anything()}, {"enable_thinking": False})
    )


def _prompt(source: _Source) -> Any:
    def tokens(source: _Source) -> Any:
        if source.random() < 0.15:
            return source.tokens(20)
        length = source.choice((1, 2, 15, 16, 17, 40, source.context_length - 1))
        if source.random() < 0.95:
            length = min(length, 60)
        return [source.randrange(source.vocabulary) for _ in range(length)]

    def one(source: _Source) -> Any:
        return source.words() if source.random() < 0.5 else tokens(source)

    choice = source.random()
    if choice < 0.8:
        return one(source)
    if choice < 0.95:
        return [one(source) for _ in range(source.randrange(4))]
    if choice < 0.98:
        return source.text()
    return "word " * source.choice((source.context_length, 20 * source.context_length))


# Field -> a value that is right, or nearly.
_SAMPLING: dict[str, _Make] = {
    "temperature": _between(0, 2),
    "top_p": _between(0.01, 1),
    "top_k": _of(-1, 0, 1, 5, 10**6),
    "min_p": _between(0, 1),
    "frequency_penalty": _between(-2, 2),
    "presence_penalty": _between(-2, 2),
    "repetition_penalty": _between(0, 2),
    "n": _of(0, 1, 1, 2, 3, 129),
    "stop": _texts(_TEXTS),
    "stop_token_ids": lambda source: source.tokens(),
    "stop_regex": _texts(_STOP_REGEXES),
    "regex": _of(*_REGEXES),
    "ebnf": _of(*_EBNFS),
    "ignore_eos": _of(True, False),
    "skip_special_tokens": _of(True, False),
    "no_stop_trim": _of(True, False),
    "logit_bias": _biases,
    "custom_params": lambda source: source.choice(
        ({}, {"a": 1}, {"a": {"b": {"c": 1}}}, {"thinking_budget": source.number()})
    ),
    "watermark": _of({}, {"enabled": True}, {"enabled": False}, {"key": "k"}, {"x": 1}),
}
_EVERYWHERE: dict[str, _Make] = {
    "stream": _of(True, False),
    "rid": _of("r", "r" * 300, "a\nb", ["r"], ["r", "s"]),
    "session_id": _of("s", "", "s" * 300, 5),
    "extra_key": _of("k", "", "k" * 300, ["k"], ["k", "l"]),
    "cache_salt": _of("s", "", "a\0b", ["s", "t"]),
    "priority": _of(0, 5, -5, 2**31),
    "hints": _of({}, {"pin": 5}, {"release": True}, {"next": "a"}, {"next": "zz"}, {"pin": -1}),
    "custom_logit_processor": _of("", "x", '{"callable": "00"}'),
    "lora_path": _of(None, "", "x", [None]),
    "session_params": _of({}, {"id": "s"}, {"id": None, "offset": -5}),
    "return_hidden_states": _of(False, True, "last", [], [False], [True], ["last", False]),
    "routed_dp_rank": _of(None, 0, 5),
    "bootstrap_room": _of(None, 5, [5]),
    "custom_labels": _of(None, {}, {"a": "b"}, {"model_name": "x"}),
    "return_sampling_mask": _of(True, False),
    "sampling_logprobs_mode": _of("selected", "support", "x"),
    "return_routed_experts": _of(True, False),
    "modalities": _of([], ["image"], "x"),
    "mm_processor_kwargs": _of({}, {"a": 1}),
    "unknown_field": lambda source: source.anything(),
}
_OPENAI: dict[str, _Make] = {
    **_SAMPLING,
    **_EVERYWHERE,
    "seed": _of(0, 5, -(2**63), 2**63 - 1, 2**63),
    "min_tokens": _of(0, 1, 3, 10**6),
    "stream_options": _of({"include_usage": True}, {"include_usage": None}, {}, {"x": 1}),
    "user": _of("u", ""),
    "response_format": _format,
    "return_token_ids": _of(True, False),
    "return_cached_tokens_details": _of(True, False),
    "return_spec_tokens_details": _of(True, False),
    "background": _of(True, False),
    "metadata": lambda source: source.anything(),
}
FIELDS: dict[str, dict[str, _Make]] = {
    COMPLETIONS: {
        **_OPENAI,
        "prompt": _prompt,
        "best_of": _of(0, 1, 1, 2),
        "echo": _of(True, False),
        "logprobs": lambda source: source.choice((0, 1, 5, source.vocabulary)),
        "suffix": lambda source: source.text(),
        "json_schema": lambda source: json.dumps(source.choice(_SCHEMAS)),
    },
    CHAT: {
        **_OPENAI,
        "messages": _messages,
        "input_ids": lambda source: source.tokens(),
        "max_completion_tokens": _of(1, 2, 8),
        "logprobs": _of(True, False),
        "top_logprobs": lambda source: source.choice((0, 1, 5, source.vocabulary)),
        "tools": _tools,
        "tool_choice": _of(
            "auto", "none", "required", "x", {"type": "function", "function": {"name": "f"}}, {}
        ),
        "parallel_tool_calls": _of(True, False),
        "reasoning_effort": _of("none", "low", "max", 0.5, 2, "x"),
        "reasoning": _of({"effort": "low"}, {"enabled": True}, {"effort": [1]}, "x", {}),
        "thinking": lambda source: source.anything(),
        "continue_final_message": _of(True, False),
        "separate_reasoning": _of(True, False),
        "stream_reasoning": _of(True, False),
        "chat_template_kwargs": _template_kwargs,
        "return_meta_info": _of(True, False),
        "return_prompt_token_ids": _of(True, False),
        "return_flat_raw_output_top_logprobs": _of(True, False),
        "task": _of("action", "x"),
        "video_config": _of({}, {"a": 1}),
    },
    GENERATE: {
        **_EVERYWHERE,
        "text": _prompt,
        "input_ids": _prompt,
        "sampling_params": lambda source: source.batch(_sampling_params),
        "return_logprob": lambda source: source.batch(_of(True, False)),
        "logprob_start_len": lambda source: source.batch(_of(-1, 0, -2, 5)),
        "top_logprobs_num": lambda source: source.batch(
            lambda one: one.choice((0, 1, 5, one.vocabulary))
        ),
        "token_ids_logprob": lambda source: source.batch(lambda one: one.tokens()),
        "return_text_in_logprobs": _of(True, False),
        "return_flat_raw_top_logprobs": _of(True, False),
        "return_flat_raw_output_top_logprobs": _of(True, False),
        "return_flat_raw_top_logprobs_b64": _of(True, False),
        "return_entropy": _of(True, False),
        "return_prompt_token_ids": _of(True, False),
        "max_thinking_tokens": _of(None, 5),
        "require_reasoning": _of(True, False),
        "log_metrics": _of(True, False),
        "no_logs": _of(True, False),
        "input_embeds": _of(None, [], [[0.5]]),
        "image_data": _of(None, "", [], "x"),
        "received_time": _of(None, 5.0),
        "routing_key": _of("k", 5),
        "conversation_id": _of("c", ["c"]),
        "background": _of(False, True),
        "watermark": _SAMPLING["watermark"],
    },
}
SAMPLING_PARAMS: dict[str, _Make] = {
    **_SAMPLING,
    "max_new_tokens": _count(0, 8),
    "min_new_tokens": _of(0, 1, 3, 10**6),
    "json_schema": lambda source: json.dumps(source.choice(_SCHEMAS)),
    "structural_tag": lambda source: json.dumps(_format(source)),
    "spaces_between_special_tokens": _of(True, False),
    "stream_interval": _of(0, 1, 5),
    "sampling_seed": _of(0, 5, 2**63),
    "beam_width": _of(1, 2, 0),
    "is_normalized": _of(True, False),
    "stop_strs": _texts(_TEXTS),
    "unknown": lambda source: source.anything(),
}
_SIZE = {COMPLETIONS: "max_tokens", CHAT: "max_tokens", GENERATE: "max_new_tokens"}


def _sampling_params(source: _Source) -> Any:
    params: Body = {"max_new_tokens": source.randint(1, 6)}
    _add(source, params, SAMPLING_PARAMS, source.choice((0, 1, 1, 2, 3)))
    return params


def _add(source: _Source, body: Body, fields: dict[str, _Make], count: int) -> None:
    """Give `body` some of the fields: mostly right values, else null or any value at all."""
    for name in source.sample(sorted(fields), count):
        choice = source.random()
        if choice < 0.65:
            body[name] = fields[name](source)
        elif choice < 0.72:
            body[name] = None
        elif choice < 0.86:
            body[name] = source.number()
        else:
            body[name] = source.anything()


def request(seed: int, vocabulary: int, context_length: int) -> tuple[str, Body]:
    """The route and the body without its `model`; JSON can carry every value of it."""
    source = _Source(seed, vocabulary, context_length)
    route = source.choice(ROUTES)
    body: Body = {"max_tokens": source.randint(1, 6)}
    if route == GENERATE:
        body = {"sampling_params": _sampling_params(source)}
        body[source.choice(("text", "input_ids"))] = _prompt(source)
    elif route == CHAT:
        body["messages"] = _messages(source)
    else:
        body["prompt"] = _prompt(source)
    _add(source, body, FIELDS[route], source.choice((0, 1, 1, 1, 2, 2, 3, 6)))
    if source.random() < 0.03:
        body[_SIZE[route]] = source.number()
    return route, body
