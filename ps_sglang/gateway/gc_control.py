"""Keeps Python's long garbage collections out of requests' way.

A request leaves no reference cycles behind, so there is next to nothing to collect; but looking at
all that the index holds stops every request for 10 ms and more. So Python collects among the young
objects only, a tenth of a millisecond at a time, which takes the cycles of failures and of closed
connections. Everything is looked through when no request has come for a while and none is running,
or at last after MOST.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Final

YOUNG: Final = 1000
"""After so many new objects that Python may have to look at, it looks at these."""
LEAST: Final = 20
MOST: Final = 2000
"""Young collections between two of everything: when requests pause, and at last."""
_NEVER: Final = 2**31 - 1
_CHECK_SECONDS: Final = 1.0


async def collect_in_pauses(
    requests: Callable[[], tuple[int, int]], check_seconds: float = _CHECK_SECONDS
) -> None:
    """Runs until cancelled; after that Python collects as it did before.

    `requests` tells how many are unfinished and how many there have been.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what exists now stays
    gc.set_threshold(YOUNG, _NEVER, _NEVER)
    seen = -1
    try:
        while True:
            await asyncio.sleep(check_seconds)
            unfinished, so_far = requests()
            # Between two requests of many none is unfinished either: none may have come, too.
            pauses = not unfinished and so_far == seen
            seen = so_far
            _, young_collections, _ = gc.get_count()
            if young_collections >= MOST or (young_collections >= LEAST and pauses):
                gc.collect()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
