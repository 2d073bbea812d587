"""On whose behalf a request is made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ps_sglang.gateway.access.limits import UNLIMITED, KeyLimits


class KeyRole(StrEnum):
    """What a key may do: a `user` generates and sees what is its own, an `admin` does all."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Principal:
    """Whoever has one key: its name in the keys file, its role, its tenant and its limits.

    Keys of one tenant share cached prompts, sessions and responses. Without keys the name is empty;
    the empty tenant is that of all who have none.
    """

    name: str
    role: KeyRole
    tenant: str
    limits: KeyLimits

    @property
    def is_admin(self) -> bool:
        """Whether it may do and see everything."""
        return self.role is KeyRole.ADMIN


ANONYMOUS: Final = Principal("", KeyRole.USER, "", UNLIMITED)
"""Whoever shows no key where none is needed."""
ANONYMOUS_ADMIN: Final = Principal("", KeyRole.ADMIN, "", UNLIMITED)
"""... from this machine, where nobody has keys."""
