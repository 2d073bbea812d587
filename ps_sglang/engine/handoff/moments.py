"""What a request's timeline needs beside SGLang's own time statistics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Moments:
    """Moments of a request's life by ``time.perf_counter``, SGLang's clock too; 0.0 is "not yet".

    `began`: the scheduler took the request up. `landed`: a decode worker has the base prefix.
    `first_output`: its first output token is there. `held`, `pulled` and `pulled_bytes` are as in
    the feed's TimelineRecord, `is_told` says that it has gone out.
    """

    began: float = field(default_factory=time.perf_counter)
    landed: float = 0.0
    first_output: float = 0.0
    held: int = 0
    pulled: int = 0
    pulled_bytes: int = 0
    is_told: bool = False
