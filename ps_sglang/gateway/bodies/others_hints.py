"""What clients of other gateways and engines tell under names of theirs, as this gateway's hints.

What means the same is done, what means nothing here is left out, and a value that cannot be is
refused. Hints of our own go before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ps_sglang.gateway.bodies.checks import Body, kind, shown
from ps_sglang.gateway.bodies.hints import MAX_PIN_SECONDS
from ps_sglang.gateway.bodies.validation import PRIORITIES
from ps_sglang.gateway.errors import BadRequest

PRIORITY_HEADER: Final = "x-smg-priority"
FINAL_HEADER: Final = "x-dynamo-session-final"

_TIERS: Final = {
    **dict.fromkeys(("auto", "default", "standard_only", "scale"), None),
    "priority": 1,
    "flex": -1,
}
_CLASSES: Final = {"system": 1, "interactive": 1, "default": None, "bulk": -1}
_LIFETIMES: Final = {"5m": 300.0, "1h": 3600.0}
_RETENTIONS: Final = {"in-memory": None, "in_memory": None, "24h": MAX_PIN_SECONDS}
UNUSED: Final = ("osl", "strict_priority", "latency_sensitivity")
"""Of `nvext.agent_hints`: taken, and without an effect."""


@dataclass(frozen=True)
class OthersHints:
    """`pin` and `priority` are as in Hints, `release` too.

    `prefetch`: the answer is brought to the same decoder again, for the turn that follows.
    """

    pin: float | None
    priority: int | None
    release: bool
    prefetch: bool


def read(body: Body, headers: Mapping[str, str]) -> OthersHints:
    """The hints of others, whose fields are taken out of `body`; raises BadRequest."""
    nvext = _object(body.pop("nvext", None), "nvext")
    agent = _object(nvext.get("agent_hints"), "nvext.agent_hints")
    tier = _choice(body.pop("service_tier", None), "service_tier", _TIERS)
    kept = _choice(body.pop("prompt_cache_retention", None), "prompt_cache_retention", _RETENTIONS)
    asked = _priority(agent.get("priority"))
    in_header = _choice(headers.get(PRIORITY_HEADER), PRIORITY_HEADER, _CLASSES)
    named = next((one for one in (asked, in_header, tier) if one is not None), None)
    lifetime = cache_lifetime({**body, "nvext": nvext})
    body.pop("cache_control", None)
    pins = [one for one in (lifetime, kept) if one is not None]
    return OthersHints(
        pin=min(max(pins), MAX_PIN_SECONDS) if pins else None,
        priority=named,
        release=_flag(headers.get(FINAL_HEADER) == "true" or _is_final(nvext), FINAL_HEADER),
        prefetch=_flag(agent.get("speculative_prefill"), "nvext.agent_hints.speculative_prefill"),
    )


def _is_final(nvext: Body) -> Any:
    context = nvext.get("agent_context")
    return context.get("session_final") if isinstance(context, dict) else False


def cache_lifetime(body: Body) -> float | None:
    """For how many seconds the longest `cache_control` asks to keep what is before it.

    They stand at the whole body, in `nvext`, and at tools, messages and their parts, in Anthropic's
    form as in that of chats. Raises BadRequest.
    """
    found = [_lifetime(one) for one in _cache_controls(body) if one is not None]
    return max(found, default=None)


def _cache_controls(body: Body) -> Iterator[Any]:
    yield body.get("cache_control")
    yield _object(body.get("nvext"), "nvext").get("cache_control")
    ahead = [body.get(name) for name in ("system", "tools", "messages")]
    for listed in ahead:
        for one in listed if isinstance(listed, list) else ():
            if isinstance(one, dict):
                yield one.get("cache_control")
                ahead.append(one.get("content"))


def _lifetime(control: Any) -> float:
    control = _object(control, "cache_control")
    if control.get("type", "ephemeral") != "ephemeral":
        raise BadRequest(
            f"`cache_control.type` must be 'ephemeral', not {shown(control['type'])}.",
            param="cache_control",
        )
    seconds = _choice(control.get("ttl", "5m"), "cache_control.ttl", _LIFETIMES)
    return _LIFETIMES["5m"] if seconds is None else seconds


def _priority(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value not in PRIORITIES:
        raise BadRequest(
            "`nvext.agent_hints.priority` must be an integer of 32 bits, not " + shown(value) + ".",
            param="nvext",
        )
    return value


def _object(value: Any, name: str) -> Body:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(
            f"`{name}` must be an object, not {kind(value)}.", param=name.partition(".")[0]
        )
    return value


def _choice(value: Any, name: str, choices: Mapping[str, Any]) -> Any:
    if value is None:
        return None
    if not isinstance(value, str) or value not in choices:
        words = ", ".join(map(repr, choices))
        raise BadRequest(
            f"`{name}` must be one of {words}, not {shown(value)}.", param=name.partition(".")[0]
        )
    return choices[value]


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise BadRequest(
            f"`{name}` must be true or false, not {shown(value)}.", param=name.partition(".")[0]
        )
    return bool(value)
