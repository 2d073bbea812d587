"""How large a request may be: what a full context can need, and no more."""

from __future__ import annotations

from ps_sglang.gateway.errors import BadRequest
from ps_sglang.gateway.index.prompt import Prompt

LEAST_BODY_BYTES = 2**20
MOST_BODY_BYTES = 16 * 2**20
"""Ten times the usual text of 256k tokens: what is larger would hold up the other requests."""
_ESCAPED = 6
"""Bytes of JSON that a byte of text may take, written as \\u0001."""
_USUAL_LONGEST = 128
"""The longest token of the usual tokenizers, in bytes: a run of spaces."""


def most_body_bytes(context_length: int, longest_token: int | None) -> int:
    """The bytes of JSON that a text which fills the context can take, within fixed bounds.

    The lower one leaves room for batches of short prompts.
    """
    needed = context_length * (longest_token or _USUAL_LONGEST) * _ESCAPED
    return min(max(needed, LEAST_BODY_BYTES), MOST_BODY_BYTES)


def check_fits(prompt: Prompt, longest_token: int | None, context_length: int, name: str) -> None:
    """Refuse a text that has more tokens than the context holds, whatever they are.

    Only of a prompt whose bytes are those of its tokens is this known: a chat template may drop
    what the messages say.
    """
    if longest_token is None or not prompt.exact:
        return
    least = -(-len(prompt.text) // longest_token)
    if least >= context_length:
        raise BadRequest(
            f"`{name}` is {len(prompt.text)} bytes of text, at least {least} tokens (the longest "
            f"has {longest_token} bytes), but the context holds {context_length} tokens with the "
            "answer: shorten it.",
            param=name,
            code="context_length_exceeded",
        )
