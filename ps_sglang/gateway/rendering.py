"""Prompts as text for the router: what continues a prompt renders as its continuation."""

from collections.abc import Sequence
from typing import Any

import msgspec


def render_prompt(prompt: str | Sequence[int]) -> str:
    """A text as it is, token ids as decimal numbers."""
    return prompt if isinstance(prompt, str) else "".join(f"{token} " for token in prompt)


def render_chat(messages: Sequence[dict[str, Any]], tools: object) -> str:
    """A chat as its messages' JSON; tools first, where chat templates put them."""
    parts = [tools, *messages] if tools else messages
    return "".join(msgspec.json.encode(part, order="deterministic").decode() for part in parts)
