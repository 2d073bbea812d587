"""A trace before a system, until it ends."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from math import ceil
from typing import Any, Final, Literal

from benchmarks.agents.workload import Session
from benchmarks.simulate.domain import Domain
from benchmarks.simulate.hardware import Steps
from benchmarks.simulate.request import PAGE, Request
from ps_sglang.errors import UsageError

System = Literal["shared", "stock-pd", "unified"]
SYSTEMS: Final[tuple[System, ...]] = ("shared", "stock-pd", "unified")


@dataclass(frozen=True)
class Cluster:
    """What serves, on `prefill` + `decoders` * `decode` GPUs whatever the system.

    `shared`: all prefill workers for all decoders. `stock-pd`: as many prefill workers for each
    model alone. `unified`: the GPUs of both are whole servers. `host_tokens`: what each shared
    prefill worker keeps in host memory of what its pool let go.
    """

    system: System
    decoders: int
    prefill: int
    decode: int = 1
    host_tokens: int = 0

    def __post_init__(self) -> None:
        if min(self.decoders, self.prefill, self.decode) < 1:
            raise UsageError("there must be at least one decoder, prefill and decode worker")
        if self.system != "shared" and self.prefill % self.decoders:
            raise UsageError(
                f"{self.prefill} prefill workers cannot be divided among {self.decoders} models"
            )


class Simulator:
    """Runs sessions before a cluster; `most` sessions at a time, the others wait to begin."""

    def __init__(self, cluster: Cluster, steps: Steps, most: int | None = None) -> None:
        self.now = 0.0
        self._cluster, self._steps, self._most = cluster, steps, most
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._places: dict[int, tuple[int, int]] = {}  # session -> its next turn, its context
        self._began: dict[int, float] = {}
        self._waiting: list[Session] = []
        self._peak = 0
        self.ended: list[Request] = []
        self._session_seconds: list[float] = []
        self._domains = self._build()

    def _build(self) -> list[Domain]:
        one, names = self._cluster, range(self._cluster.decoders)
        if one.system == "shared":
            host = one.host_tokens // PAGE
            return [
                Domain(
                    self, self._steps, names, one.prefill, one.decode, self._end, host_pages=host
                )
            ]
        each = one.prefill // one.decoders
        if one.system == "stock-pd":
            return [
                Domain(self, self._steps, [name], each, one.decode, self._end) for name in names
            ]
        return [
            Domain(self, self._steps, [name], each + one.decode, 0, self._end, whole=True)
            for name in names
        ]

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Do something at a time; what is due at once is done in the order of asking."""
        heapq.heappush(self._due, (time, next(self._numbers), act))

    def run(self, trace: Sequence[Session]) -> dict[str, Any]:
        """All sessions until they end; the figures."""
        for session in trace:
            self.at(session.start, lambda session=session: self._arrive(session))  # type: ignore[misc]
        while self._due:
            self.now, _, act = heapq.heappop(self._due)
            act()
        asked = sum(len(session.turns) for session in trace)
        assert len(self.ended) == asked, f"{asked - len(self.ended)} requests never ended"
        return self._figures(trace)

    def _arrive(self, session: Session) -> None:
        if self._most is not None and len(self._places) >= self._most:
            self._waiting.append(session)
            return
        self._began[session.number] = session.start
        self._places[session.number] = (0, session.system)
        self._peak = max(self._peak, len(self._places))
        self._ask(session)

    def _ask(self, session: Session) -> None:
        place, context = self._places[session.number]
        turn = session.turns[place]
        prompt = context + turn.added
        self._places[session.number] = (place + 1, prompt + turn.output)
        domain = self._domains[0 if len(self._domains) == 1 else turn.decoder]
        domain.serve(Request(session, turn, prompt, self.now))

    def _end(self, request: Request) -> None:
        request.last_step = 0
        self.ended.append(request)
        request.asked, request.first, request.route = (
            self.now - request.asked,
            request.first - request.asked,
            None,
        )
        request.names = []
        session = request.session
        place, _ = self._places[session.number]
        if place < len(session.turns):
            self.at(self.now + session.turns[place].pause, lambda: self._ask(session))
            return
        del self._places[session.number]
        self._session_seconds.append(self.now - self._began.pop(session.number))
        if self._waiting:
            # The first in line begins in its place.
            self._arrive(self._waiting.pop(0))

    def _figures(self, trace: Sequence[Session]) -> dict[str, Any]:
        seconds = self.now - trace[0].start
        prompt = sum(one.base for one in self.ended)
        computed = sum(one.computed for one in self.ended)
        output = sum(one.turn.output for one in self.ended)
        prefill = [one for domain in self._domains for one in domain.prefill.values()]
        decode = [one for domain in self._domains for one in domain.decode.values()]
        return {
            **asdict(self._cluster),
            "sessions": len(trace),
            "requests": len(self.ended),
            "seconds": seconds,
            "turn_s": percentiles([one.asked for one in self.ended]),
            "session_s": percentiles(self._session_seconds),
            "ttft_s": percentiles([one.first for one in self.ended]),
            "output_tokens_per_s": output / seconds,
            "total_tokens_per_s": (output + prompt) / seconds,
            "prompt_tokens": prompt,
            "computed_tokens": computed,
            "loaded_tokens": sum(one.loaded for one in self.ended),
            "hit_ratio": 1 - computed / prompt,
            "moved_tokens": sum(one.moved for one in self.ended),
            "prefill_pool_peak": max(one.peak / one.tree.capacity for one in prefill),
            "decode_pool_peak": max((one.peak / one.tree.capacity for one in decode), default=None),
            "prefill_busy": sum(one.busy for one in prefill) / len(prefill) / seconds,
            "decode_busy": sum(one.busy for one in decode) / max(len(decode), 1) / seconds,
            "sessions_peak": self._peak,
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The smallest values that so many percent do not exceed."""
    ordered = sorted(values)
    return {
        f"p{percent}": ordered[ceil(percent / 100 * len(ordered)) - 1] for percent in (50, 95, 99)
    }
