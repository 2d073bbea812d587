"""What engines refuse, as clients are told: FastAPI's texts, as SGLang 0.5.23 prints them."""

from __future__ import annotations

from typing import Any

import pytest

from ps_sglang.gateway.refusals import code_of, readable

GENERIC = "function-after[validate_thinking_parts_role(), ChatCompletionMessageGenericParam]"
USER = "function-after[validate_thinking_parts_role(), ChatCompletionMessageUserParam]"
PARTS = "list[union[TextPart,function-after[validate_payload(), ThinkingPart],AudioPart]]"
ROLES = "Value error, 'role' must be one of 'system', 'tool' (case-insensitive)."
STRING, LIST = "Input should be a valid string", "Input should be a valid list"
MISSING = "Field required"
NUMBER = "Input should be a number"
Problem = tuple[tuple[str | int, ...], str, Any]


def printed(*problems: Problem) -> str:
    """The message of FastAPI's RequestValidationError, and SGLang's second copy of it."""
    found = [
        {"type": "t", "loc": ("body", *place), "msg": text, "input": value}
        for place, text, value in problems
    ]
    lines = "\n".join(f"  {one}" for one in found)
    word = "error" if len(found) == 1 else "errors"
    place = '\n\n  File "/srv/http_server.py", line 1999, in f\n    POST /v1/chat/completions'
    return f"{len(found)} validation {word}:\n{lines}{place} {found}"


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        ([(("temperature",), NUMBER, "hot")], f"{NUMBER}, not 'hot'"),
        ([(("tools", 0, "function", "name"), STRING, 5)], f"{STRING}, not 5"),
        ([(("a", "list[str]"), LIST, 5), (("a", "str"), STRING, 5)], f"{LIST} or {STRING}, not 5"),
        ([(("a", "list[str]", 0), STRING, 1), (("a", "str"), STRING, [1])], f"{STRING}, not 1"),
        ([(("a",), "can't be", {"secret": "x" * 99})], "can't be"),
        ([(("a",), STRING, "it's \"so\"")], STRING),
        ([((), "not JSON", None)], "not JSON, not None"),
    ],
)  # fmt: skip
def test_place_reason_and_value(problems: list[Problem], told: str) -> None:
    text, param = readable(printed(*problems))
    assert text == (f"`{param}`: {told}" if param else told)


@pytest.mark.parametrize(
    ("problems", "place", "told"),
    [
        (  # a user's content that is a number
            [
                ((GENERIC, "role"), ROLES, "user"),
                ((GENERIC, "content", "str"), STRING, 5),
                ((GENERIC, "content", PARTS), LIST, 5),
                ((USER, "content", "str"), STRING, 5),
                ((USER, "content", PARTS), LIST, 5),
            ],
            "messages[1].content",
            f"{STRING} or {LIST}, not 5",
        ),
        (  # an unknown role
            [((GENERIC, "role"), ROLES, "x"), ((USER, "role"), "Input should be 'user'", "x")],
            "messages[1].role",
            "'role' must be one of 'system', 'tool' (case-insensitive) or Input should be 'user', "
            "not 'x'",
        ),
        (
            [((GENERIC, "role"), MISSING, {}), ((USER, "role"), MISSING, {})],
            "messages[1].role",
            MISSING,
        ),
        (  # a user without content
            [((GENERIC, "role"), ROLES, "user"), ((USER, "content"), MISSING, {})],
            "messages[1].content",
            MISSING,
        ),
        (  # an assistant's call without an id
            [
                ((GENERIC, "tool_calls", 0, "id"), STRING, 1),
                ((USER, "role"), "Input should be 'user'", "assistant"),
            ],
            "messages[1].tool_calls[0].id",
            f"{STRING}, not 1",
        ),
        (  # a text part without its text
            [
                ((GENERIC, "role"), ROLES, "user"),
                ((USER, "content", "str"), STRING, []),
                ((USER, "content", PARTS, 0, "TextPart", "text"), MISSING, {}),
                ((USER, "content", PARTS, 0, "ThinkingPart", "type"), "Input should be 'x'", ""),
            ],
            "messages[1].content[0].text",
            MISSING,
        ),
    ],
)  # fmt: skip
def test_of_the_alternatives_the_one_that_was_meant(
    problems: list[Problem], place: str, told: str
) -> None:
    at = [(("messages", 1, *rest), text, value) for rest, text, value in problems]
    assert readable(printed(*at)) == (f"`{place}`: {told}", place)


def test_a_text_of_the_clients_that_looks_like_a_problem_does_no_harm() -> None:
    for hostile in (
        "'loc': (,,), 'msg': ''",
        r"'loc': ('\x'), 'msg': '\x'",
        "'loc': (5), 'msg': 'x'",
    ):
        lines = f"1 validation error:\n  {{'loc': ('body', 'a'), 'msg': 'no', 'input': {hostile}}}"
        text, param = readable(lines)
        assert param == "a"
        assert text.startswith("`a`: no")


def test_many_problems_are_counted() -> None:
    text, _ = readable(printed(*((("stop", i), STRING, i) for i in range(1000))))
    assert text.count("stop[") == 5
    assert text.endswith("; and 995 more")


def test_other_texts_stay_as_they_are() -> None:
    for text in ("no such thing", "3 validation errors", "a\nb", ""):
        assert readable(text) == (text, None)
    assert readable("2 validation errors:\n  something else") == ("2 validation errors", None)


@pytest.mark.parametrize(
    "text",
    [
        "The input (9 tokens) is longer than the model's context length (8 tokens).",
        "Requested token count exceeds the model's maximum context length of 8 tokens. You ...",
        "Input length (9 tokens) exceeds the maximum allowed length (8 tokens). Use a shorter ...",
        "Request ps-1 exceeds the maximum number of tokens: 9 > 8",
    ],
)
def test_a_prompt_without_room_has_openais_code(text: str) -> None:
    assert (
        code_of(400, text)
        == code_of(400, f"The engine aborted: {text}")
        == ("context_length_exceeded")
    )
    assert code_of(500, text) is None
    assert code_of(400, "max_tokens exceeds 5") is None
