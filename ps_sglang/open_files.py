"""The system's limit of open files, which bounds how many connections a process can have."""

from __future__ import annotations

import resource
from typing import Final

ENOUGH: Final = 2**20
"""More are not asked for: some programs look at every number up to the limit."""


def raise_limit() -> int:
    """Raise the soft limit as far as this process may; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    return limit()


def limit() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else soft
