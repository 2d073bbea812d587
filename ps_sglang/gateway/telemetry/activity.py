"""What the gateway remembers of the last turns, for the page that shows the cluster at work."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ps_sglang.gateway.index.branches import Use
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.telemetry.trace import Trace, Traces

MOST_TURNS: Final = 256
MOST_BYTES: Final = 4 << 20
"""The prompts of remembered turns have at most so many bytes, but for the last one's."""
SECONDS: Final = 600.0
"""How long a turn is remembered."""


@dataclass(frozen=True, slots=True)
class FinishedTurn:
    """One sample that its client has got; times in seconds, `at` a monotonic one.

    `first_token` is None where the answer was not streamed. `use` is the turn as the base-token
    tree sees it, None where its workers did not tell, or its prompt's bytes are not known.
    """

    at: float
    decoder: str
    first_token: float | None
    seconds: float
    use: Use | None


class Activity:
    """The turns that run and the last ones that ended; for the event loop's thread.

    `computed` are the prompt tokens that each worker has computed.
    """

    def __init__(
        self,
        traces: Traces,
        cache_index: CacheIndex,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._traces = traces
        self._clock = clock
        self._turns: deque[FinishedTurn] = deque()
        self._bytes = 0
        self._ended_tokens: Counter[str] = Counter()
        self.computed: Counter[str] = Counter()
        traces.concluded.append(self._concluded)
        cache_index.computed.append(self._computed)

    def left(self, worker: str) -> None:
        """A worker has left: another of its name begins anew."""
        del self.computed[worker], self._ended_tokens[worker]

    def running(self) -> list[Trace]:
        """The samples that have not ended, the oldest first."""
        return [trace for trace in self._traces if trace.total is None]

    def turns(self) -> Sequence[FinishedTurn]:
        """The last turns, the oldest first."""
        self._forget()
        return self._turns

    def produced(self) -> Counter[str]:
        """Output tokens by decode worker; those of a running stream by its events, about one each.

        What a worker says at the end of an answer holds, whether it was streamed or not.
        """
        counts = self._ended_tokens.copy()
        for trace in self._traces:
            counts[trace.route.decode.name] += trace.events
        return counts

    def _computed(self, worker: str, tokens: int) -> None:
        self.computed[worker] += tokens

    def _concluded(self, trace: Trace) -> None:
        self._ended_tokens[trace.route.decode.name] += trace.events
        if not trace.is_answered or trace.total is None:
            return
        prompt, found = trace.route.prompt, trace.found_tokens()
        turn = FinishedTurn(
            self._clock(),
            trace.decoder,
            None if trace.first is None else trace.first - trace.started,
            trace.total,
            None
            if found is None or not prompt.exact
            else Use(trace.decoder, prompt.text, prompt.salt, found),
        )
        self._turns.append(turn)
        self._bytes += _bytes(turn)
        self._forget()

    def _forget(self) -> None:
        oldest = self._clock() - SECONDS
        while self._turns and (
            self._turns[0].at < oldest
            or len(self._turns) > MOST_TURNS
            or (self._bytes > MOST_BYTES and len(self._turns) > 1)
        ):
            self._bytes -= _bytes(self._turns.popleft())


def _bytes(turn: FinishedTurn) -> int:
    return 0 if turn.use is None else len(turn.use.text)
