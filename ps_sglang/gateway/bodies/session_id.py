"""The conversation that a request belongs to, as its client names it."""

from __future__ import annotations

from ps_sglang.gateway.errors import BadRequest

HEADER = "x-session-id"
_LONGEST = 256


def read(in_body: object, in_header: str | None) -> str | None:
    """The session that a request names, by the header or the body's `session_id`.

    One that sends both must send the same. Raises BadRequest.
    """
    if in_body is not None and not isinstance(in_body, str):
        raise BadRequest(f"`session_id` must be a text, not {in_body!r}.", param="session_id")
    if in_body is not None and in_header is not None and in_body != in_header:
        raise BadRequest(
            f"The body's `session_id` is {in_body!r}, but the header `{HEADER}` says "
            f"{in_header!r}: send one of them, or the same in both.",
            param="session_id",
        )
    session_id = in_header if in_body is None else in_body
    if session_id is not None and not (
        session_id and len(session_id) <= _LONGEST and session_id.isprintable()
    ):
        raise BadRequest(
            f"A session id must have 1 to {_LONGEST} printable characters, not {session_id!r}.",
            param="session_id",
        )
    return session_id
