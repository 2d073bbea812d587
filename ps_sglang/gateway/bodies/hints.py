"""What agent programs know about their next steps, and may tell with a request.

A request carries them as the object `hints` in its body, or as JSON in the header
`x-agent-hints`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ps_sglang.gateway.bodies.validation import PRIORITIES
from ps_sglang.gateway.errors import BadRequest

HEADER = "x-agent-hints"
MAX_PIN_SECONDS = 3600.0


class Hints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request's hints.

    `next`: the decoder that speaks next in this conversation; the prompt with the answer is
    brought to one of its workers as soon as the answer has ended. `pin`: for how many seconds the
    conversation's pages should outlive others. `release`: nothing continues this conversation, its
    pages go first. `priority`: higher goes first where requests wait.
    """

    next: str | None = None
    pin: float | None = None
    release: bool = False
    priority: int | None = None


NONE = Hints()


def read(in_body: object, in_header: str | None) -> Hints:
    """The hints of a request, from its body or its header; raises BadRequest."""
    if in_header is None:
        return NONE if in_body is None else _convert(in_body, "`hints`", "hints")
    if in_body is not None:
        raise BadRequest(
            f"Send hints in the body's `hints` or in the header `{HEADER}`, not in both.",
            param="hints",
        )
    try:
        content = msgspec.json.decode(in_header)
    except msgspec.DecodeError as error:
        raise BadRequest(f"The header `{HEADER}` is not valid JSON: {error}.") from error
    return _convert(content, f"The header `{HEADER}`", None)


def _convert(content: Any, place: str, param: str | None) -> Hints:
    try:
        if isinstance(content, dict):  # null is "not given", here as everywhere
            content = {name: value for name, value in content.items() if value is not None}
        hints = msgspec.convert(content, Hints)
    except msgspec.ValidationError as error:
        names = ", ".join(f"`{name}`" for name in Hints.__struct_fields__)
        raise BadRequest(
            f"{place} cannot be used: {error}. Known hints: {names}.", param=param
        ) from error
    if problem := _problem(hints):
        raise BadRequest(f"{place}: {problem}.", param=param)
    return hints


def _problem(hints: Hints) -> str | None:
    if hints.pin is not None and not 0 < hints.pin <= MAX_PIN_SECONDS:
        return f"`pin` must be above 0 and at most {MAX_PIN_SECONDS:.0f} seconds, not {hints.pin}"
    if hints.pin is not None and hints.release:
        return "`pin` keeps what `release` lets go; send one of them"
    if hints.next is not None and hints.release:
        return "`next` continues the conversation that `release` ends; send one of them"
    if hints.priority is not None and hints.priority not in PRIORITIES:
        return f"`priority` must fit 32 bits, not {hints.priority}"
    return None
