"""A worker's circuit breaker: when to stop sending it requests, and when to try again.

    closed --(unreachable | FAILURES failed requests | MISSES missed probes)--> open
    open --(back-off over, a probe succeeds)--> half-open
    half-open --(a request succeeds | SUCCESSES probes succeed)--> closed
    half-open --(any failure)--> open, for twice as long

Users see the states as good, broken and trial. An open worker gets probes only, so that no
request is spent on one that does not even answer a probe; a half-open one gets one request at a
time. The back-off doubles with each opening from
SHORTEST_SECONDS to LONGEST_SECONDS, and starts again only after a request has succeeded: a worker
that answers every probe and fails every request is tried ever more rarely. Jitter keeps several
gateways, or several workers of one that came back, from being probed in step.

A worker that has never answered is still starting, and cannot break: its breaker gets no outcomes.

What a failure tells decides how many it takes. A refused or broken connection is certain: there is
no server. A missed deadline may be a busy machine, a failed request may be the request's own fault.
"""

from __future__ import annotations

from collections.abc import Callable

from ps_sglang.gateway.routing.worker_state import BreakerState

FAILURES = 5  # failed requests in a row
MISSES = 2  # missed probes in a row
SUCCESSES = 3  # probes in a row that close a half-open breaker nobody sends a request to
SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = 30.0
JITTER = 0.25  # a back-off is this part longer at most


class Breaker:
    """The breaker of one worker. It does nothing by itself: it gets outcomes, and is asked.

    `clock` gives seconds and `random` numbers from 0 to 1.
    """

    def __init__(self, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._state = BreakerState.CLOSED
        self._back_off = SHORTEST_SECONDS  # of the next opening
        self._failures = 0
        self._misses = 0
        self._probes = 0  # that succeeded since it is half-open
        self._retry_at = 0.0
        self.reason = ""

    @property
    def state(self) -> BreakerState:
        """The state now."""
        return self._state

    @property
    def seconds_to_retry(self) -> float:
        """How long an open breaker still wants no probe; 0 if it may be probed."""
        if self._state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._retry_at - self._clock())

    def unreachable(self, reason: str) -> None:
        """A request or probe was refused its connection, or lost it: nobody serves there."""
        self._open(reason)

    def request_failed(self, reason: str) -> None:
        """The worker answered a request, but with a failure of its own."""
        self._failures += 1
        if self._state is BreakerState.HALF_OPEN or self._failures >= FAILURES:
            self._open(reason)

    def request_succeeded(self) -> None:
        """The worker did what it was asked to. For an open breaker such requests are old ones."""
        if self._state is not BreakerState.OPEN:
            self._close()
            self._back_off = SHORTEST_SECONDS

    def restarted(self) -> None:
        """Another process is the worker now: what is known of the one before says little."""
        self._state = BreakerState.HALF_OPEN
        self._back_off = SHORTEST_SECONDS
        self._failures = self._misses = self._probes = 0

    def probe_missed(self, reason: str) -> None:
        """A probe got no answer, or one of failure, before its deadline."""
        self._misses += 1
        if self._state is not BreakerState.CLOSED or self._misses >= MISSES:
            self._open(reason)

    def probe_succeeded(self) -> None:
        """A probe got its answer."""
        self._misses = 0
        if self._state is BreakerState.OPEN and not self.seconds_to_retry:
            self._state = BreakerState.HALF_OPEN
            self._probes = 0
        elif self._state is BreakerState.HALF_OPEN:
            self._probes += 1
            if self._probes >= SUCCESSES:
                self._close()

    def _open(self, reason: str) -> None:
        # What fails while it is open was sent before: the back-off goes on, and is not doubled.
        if self._state is BreakerState.OPEN and self.seconds_to_retry:
            return
        self._retry_at = self._clock() + self._back_off * (1 + JITTER * self._random())
        self._back_off = min(LONGEST_SECONDS, 2 * self._back_off)
        self._state = BreakerState.OPEN
        self.reason = reason

    def _close(self) -> None:
        self._state = BreakerState.CLOSED
        self._failures = self._misses = 0
        self.reason = ""
