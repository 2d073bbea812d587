"""The conversation that a request belongs to, and those above it, by the names of many clients.

Each client has its own way to name an agent's conversation and the conversation that started it.
Several ways may come with one request, as where a client's framework adds its own; they must say
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ps_sglang.gateway.bodies.checks import Body, shown
from ps_sglang.gateway.errors import BadRequest

HEADER: Final = "x-session-id"
_LONGEST: Final = 256


@dataclass(frozen=True)
class SessionName:
    """A conversation's id, and those of the ones above it, the nearest first."""

    id: str
    ancestors: tuple[str, ...] = ()


def for_workers(tenant: str, id: str) -> str:
    """What workers call a tenant's conversation: another tenant's may have the same id.

    A client's id has no NUL.
    """
    return f"{tenant}\0{id}" if tenant else id


Headers = Mapping[str, str]


def read(body: Body, headers: Headers) -> SessionName | None:
    """The session that a request names, whose fields are taken out of `body`.

    Raises BadRequest where two ways differ. `prompt_cache_key` counts where nothing else names
    one: OpenAI's clients give one to many conversations that share a prefix.
    """
    named = [(place, name) for place, read_one in _WAYS if (name := read_one(body, headers))]
    key = _in_body(body, "prompt_cache_key")
    if not named:
        return None if key is None else SessionName(_checked(key, "`prompt_cache_key`"))
    first, session = named[0]
    for place, name in named:
        for id in (name.id, *name.ancestors):
            _checked(id, place)
        if name.id != session.id:
            raise _differ(first, session.id, place, name.id)
    above = [(place, name) for place, name in named if name.ancestors]
    if not above:
        return session
    for place, name in above[1:]:
        if name.ancestors[0] != above[0][1].ancestors[0]:
            raise _differ(above[0][0], above[0][1].ancestors[0], place, name.ancestors[0])
    return max((name for _, name in above), key=lambda name: len(name.ancestors))


def _ours(body: Body, headers: Headers) -> SessionName | None:
    return _plain(_in_body(body, "session_id"), _in_body(body, "parent_session_id"))


def _header(prefix: str) -> Callable[[Body, Headers], SessionName | None]:
    def read_one(body: Body, headers: Headers) -> SessionName | None:
        return _plain(
            headers.get(f"x-{prefix}session-id"), headers.get(f"x-{prefix}parent-session-id")
        )

    return read_one


def _dynamo(body: Body, headers: Headers) -> SessionName | None:
    nvext = body.get("nvext")
    context = nvext.get("agent_context") if isinstance(nvext, dict) else None
    if not isinstance(context, dict):
        return None
    return _plain(context.get("session_id"), context.get("parent_session_id"))


def _claude_code(body: Body, headers: Headers) -> SessionName | None:
    """Its agents share their session's id and have one of their own besides, but for the first."""
    session = headers.get("x-claude-code-session-id")
    agent = headers.get("x-claude-code-agent-id")
    if session is None or agent is None:
        return _plain(session, None)
    parent = headers.get("x-claude-code-parent-agent-id")
    above = () if parent in (None, agent) else (f"{session}:{parent}",)
    return SessionName(f"{session}:{agent}", (*above, session))


def _codex(body: Body, headers: Headers) -> SessionName | None:
    """Its threads share their session's id; the first one's own is that."""
    session = headers.get("session-id") or headers.get("session_id")
    thread = headers.get("thread-id") or session
    if thread is None:
        return None
    above = (headers.get("x-codex-parent-thread-id"), session)
    return SessionName(thread, tuple(dict.fromkeys(one for one in above if one and one != thread)))


_WAYS: Final[tuple[tuple[str, Callable[[Body, Headers], SessionName | None]], ...]] = (
    ("the body's `session_id`", _ours),
    (f"the header `{HEADER}`", _header("")),
    ("the header `x-dynamo-session-id`", _header("dynamo-")),
    ("`nvext.agent_context`", _dynamo),
    ("the header `x-claude-code-session-id`", _claude_code),
    ("the header `session-id`", _codex),
)


def _in_body(body: Body, name: str) -> str | None:
    value = body.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"`{name}` must be a text, not {shown(value)}.", param=name)
    return value


def _plain(id: Any, parent: Any) -> SessionName | None:
    if id is None:
        return None
    return SessionName(id, () if parent is None or parent == id else (parent,))


def _checked(id: Any, place: str) -> str:
    if not isinstance(id, str) or not (id and len(id) <= _LONGEST and id.isprintable()):
        raise BadRequest(
            f"A session id must have 1 to {_LONGEST} printable characters, not {shown(id)}. "
            f"It comes from {place}.",
            param="session_id",
        )
    return id


def _differ(first: str, id: str, second: str, other: str) -> BadRequest:
    return BadRequest(
        f"Of one session {first} says {shown(id)}, but {second} says {shown(other)}: send one of "
        "them, or the same in both.",
        param="session_id",
    )
