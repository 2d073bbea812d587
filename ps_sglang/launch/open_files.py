"""How many requests the system's limit of open files lets through."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Final

from ps_sglang.gateway.dispatch.descriptors import PER_SAMPLE, PER_WORKER, SPARE
from ps_sglang.open_files import ENOUGH

LOW: Final = 16_384
"""With fewer files than this the limit may be met before a GPU's workers are full."""


def hard_limit() -> int:
    """How many files a process may open once it has raised its own limit as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)


def few_files(limit: int, workers: int, processes: int) -> Iterator[str]:
    """What a low limit means for a gateway of so many `processes` before so many `workers`."""
    if limit >= LOW:
        return
    # A client's connection and one to each of two workers; an eighth is kept for refusals.
    left = max(limit - SPARE - PER_WORKER * workers, 0) * 7 // 8
    at_once = processes * (left // (1 + PER_SAMPLE))
    yield (
        f"this system lets a process open {limit} files, so that the gateway takes about {at_once} "
        f"requests at once and refuses more with 429; raise the hard limit (ulimit -Hn {8 * LOW}, "
        "LimitNOFILE= of systemd, --ulimit nofile= of docker)"
    )
