"""Ids that no two requests share. They are no secrets, so the system is not asked for each one."""

from __future__ import annotations

import random
from typing import Final

_numbers: Final = random.Random(random.SystemRandom().getrandbits(256))


def unique() -> str:
    """32 hexadecimal digits."""
    return f"{_numbers.getrandbits(128):032x}"


def room() -> int:
    """A bootstrap room, in which the prefill and decode request of a sample find each other."""
    return _numbers.getrandbits(63)
