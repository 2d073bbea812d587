"""How much one API key may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class KeyLimits:
    """The limits of one key; None is unlimited.

    `requests_at_once` are answers that have not ended: `n` and a list of prompts ask for several.
    `queued_tokens` are those of prompts that wait to be prefilled.
    """

    requests_at_once: int | None = None
    requests_per_minute: int | None = None
    queued_tokens: int | None = None


UNLIMITED: Final = KeyLimits()
