"""The fields of SGLang's own routes that generate nothing, with their checks.

`tests/engine/test_seams.py` compares with SGLang's own lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ps_sglang.gateway.bodies.checks import (
    Body,
    Check,
    Limits,
    Table,
    anything,
    boolean,
    check_ids,
    checked,
    one_of,
    refuse,
    text,
    texts,
)
from ps_sglang.gateway.bodies.formats import effort, template_kwargs, tool_choice, tools
from ps_sglang.gateway.bodies.validation import MAX_SAMPLES, messages
from ps_sglang.gateway.errors import BadRequest
from ps_sglang.sglang_names import AUTO, reasoning_parsers, tool_call_parsers


def _tokens(value: Any, name: str, limits: Limits) -> Any:
    """A list of token ids, or a list of such lists."""
    if not isinstance(value, list):
        refuse(name, value, "a list of token ids or a list of such lists")
    nested = bool(value) and isinstance(value[0], list)
    for place, ids in enumerate(value if nested else [value]):
        where = f"{name}[{place}]" if nested else name
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            refuse(where, ids, "a list of token ids")
        check_ids(ids, where, limits)
    return value


def _parser(names: Callable[[], Sequence[str]]) -> Check:
    """One of SGLang's parsers, by its name."""

    def check(value: Any, name: str, limits: Limits) -> Any:
        return one_of(*(one for one in names() if one != AUTO))(value, name, limits)

    return check


TOKENIZE: Final[Table] = {
    "prompt": texts(MAX_SAMPLES, text()),
    "messages": anything,
    "tools": tools,
    "tool_choice": tool_choice,
    "reasoning_effort": effort,
    "continue_final_message": boolean,
    "chat_template_kwargs": template_kwargs,
    "add_special_tokens": boolean,
    "add_generation_prompt": boolean,
}
DETOKENIZE: Final[Table] = {"tokens": _tokens, "skip_special_tokens": boolean}
PARSE_FUNCTION_CALL: Final[Table] = {
    "text": text(),
    "tools": tools,
    "tool_call_parser": _parser(tool_call_parsers),
}
SEPARATE_REASONING: Final[Table] = {
    "text": text(),
    "reasoning_parser": _parser(reasoning_parsers),
    "return_blocks": boolean,
}
LOAD_SECTIONS: Final = ("all", "core", "disagg", "lora", "memory", "queues", "spec")
ABORT: Final[Table] = {"rid": text(256), "abort_all": boolean}


def loads_query(query: Mapping[str, str]) -> dict[str, str]:
    """What /v1/loads may be asked for; raises BadRequest."""
    if query.get("format", "json") != "json":
        raise BadRequest(
            "`format` must be json; /metrics has all in Prometheus' format.", param="format"
        )
    for section in query.get("include", "all").split(","):
        if section.strip() not in LOAD_SECTIONS:
            names = ", ".join(LOAD_SECTIONS)
            refuse("include", section, f"some of {names}, with commas between them")
    rank = query.get("dp_rank", "0")
    if not (rank.isascii() and rank.isdecimal()):
        refuse("dp_rank", rank, "an integer from 0 on")
    return {name: query[name] for name in ("dp_rank", "include") if name in query}


def tokenize_fields(body: Body, limits: Limits) -> Body:
    """The fields of /tokenize: a `prompt`, or a chat; raises BadRequest."""
    fields = checked(body, TOKENIZE, limits)
    if ("prompt" in fields) == ("messages" in fields):
        raise BadRequest("Send exactly one of `prompt` and `messages`.", param="prompt")
    if "messages" in fields:
        messages(body)
    return fields


def plain_fields(body: Body, limits: Limits, table: Table, *needed: str) -> Body:
    """The fields of `table`, among which those that are `needed` must be; raises BadRequest."""
    fields = checked(body, table, limits)
    for name in needed:
        if name not in fields:
            raise BadRequest(f"`{name}` is missing.", param=name)
    return fields
