"""Failures that an engine reports inside an answer whose HTTP status is 200.

SGLang 0.5.23 reports an abort without a status (a request aborted by id) as a normal answer, and
every failure of a stream as an event: `{"error": ...}`, or the finish reason "abort".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.errors import EngineError, streamed_error


class PrefillAnswer(NamedTuple):
    """Tokens of the base prefix by the prefill worker: all, and those it had cached."""

    tokens: int
    cached_tokens: int


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Meta(msgspec.Struct):
    prompt_tokens: int
    cached_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    meta_info: _Meta | None = None


def prefill_answer(content: bytes) -> PrefillAnswer | None:
    """What a prefill request's answer counts, None if it is not SGLang's."""
    try:
        answer = msgspec.json.decode(content, type=_Answer)
    except msgspec.DecodeError:
        return None
    if (meta := answer.meta_info) is not None:
        return PrefillAnswer(meta.prompt_tokens, meta.cached_tokens)
    if (usage := answer.usage) is None:
        return None
    details = usage.prompt_tokens_details
    return PrefillAnswer(usage.prompt_tokens, details.cached_tokens if details else 0)


def answer_error(content: bytes) -> EngineError | None:
    """The abort that a whole JSON answer reports, if it does."""
    # A quote inside generated text is escaped, so only a JSON string of that name matches.
    if b'"abort"' not in content:
        return None
    try:
        return _abort(msgspec.json.decode(content))
    except msgspec.DecodeError:
        return None


def event_error(event: bytes) -> EngineError | None:
    """The failure that an event of a stream reports, if it does."""
    if b'"abort"' not in event and b'"error"' not in event:
        return None
    content = sse.payload(event)
    if content is None:
        return None
    if content.get("error"):
        return streamed_error(content["error"])
    return _abort(content)


def is_preamble(event: bytes) -> bool:
    """Whether an event says nothing yet: the chat chunk that only opens the assistant's turn.

    SGLang sends it even when the request fails before its first token.
    """
    content = sse.payload(event) or {}
    choices = content.get("choices") or [{}]
    delta = choices[0].get("delta")
    if not isinstance(delta, dict) or choices[0].get("finish_reason"):
        return False
    return not any(value for name, value in delta.items() if name != "role")


def _abort(content: Any) -> EngineError | None:
    if not isinstance(content, dict):
        return None
    meta_info = content.get("meta_info") or {}
    for reason in (
        meta_info.get("finish_reason"),
        *(choice.get("finish_reason") for choice in content.get("choices") or ()),
    ):
        if reason == "abort" or (isinstance(reason, dict) and reason.get("type") == "abort"):
            return _abort_error(reason if isinstance(reason, dict) else {})
    return None


def _abort_error(reason: dict[str, Any]) -> EngineError:
    message = reason.get("message") or "the engine gives no reason"
    return EngineError.aborted(
        f"The engine aborted the request: {message}", reason.get("status_code")
    )
