"""A trace before a system, until it ends."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from math import ceil, inf
from typing import Any, Final, Literal

from benchmarks.sessions.workload import Session
from benchmarks.studies.simulate.cores import Cores
from benchmarks.studies.simulate.domain import Domain, Group
from benchmarks.studies.simulate.hardware import Steps
from benchmarks.studies.simulate.request import PAGE, Request
from benchmarks.studies.simulate.worker import Worker
from ps_sglang.errors import UsageError

System = Literal["shared", "stock-pd", "unified"]
SYSTEMS: Final[tuple[System, ...]] = ("shared", "stock-pd", "unified")


@dataclass(frozen=True)
class Cluster:
    """What serves, on `prefill` + `decoders` * `decode` GPUs whatever the system.

    `shared`: all prefill workers for all decoders. `stock-pd`: as many prefill workers for each
    model alone. `unified`: the GPUs of both are whole servers. `host_tokens`: what each shared
    prefill worker keeps in host memory of what its pool let go. `prefill_pool` and `decode_pool`:
    a worker's tokens, where they are not those of the step times.
    """

    system: System
    decoders: int
    prefill: int
    decode: int = 1
    host_tokens: int = 0
    prefill_pool: int | None = None
    decode_pool: int | None = None
    page: int = PAGE

    def __post_init__(self) -> None:
        if min(self.decoders, self.prefill, self.decode) < 1:
            raise UsageError("there must be at least one decoder, prefill and decode worker")
        if self.system != "shared" and self.prefill % self.decoders:
            raise UsageError(
                f"{self.prefill} prefill workers cannot be divided among {self.decoders} models"
            )


@dataclass
class _Mark:
    """What has been counted at a moment."""

    time: float
    busy: dict[str, list[float]]
    links: dict[str, list[float]]


@dataclass
class _Window:
    """Of what figures are made: from when `first` sessions have begun to when `last` have."""

    first: int
    last: float
    opened: _Mark | None = None
    closed: _Mark | None = None
    begun: int = 0
    session_seconds: list[float] = field(default_factory=list)


class Simulator:
    """Runs sessions before a cluster; `most` sessions at a time, the others wait to begin."""

    def __init__(self, cluster: Cluster, steps: Steps, most: int | None = None) -> None:
        self.now = 0.0
        self._cluster, self._steps, self._most = cluster, steps, most
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._places: dict[int, tuple[int, int]] = {}  # session -> its next turn, its context
        self._began: dict[int, float] = {}
        self._waiting: deque[Session] = deque()
        self._peak = self._blocks = 0
        self.ended: list[Request] = []
        self._window = _Window(0, inf)
        self._cores = Cores(self, self._left(steps))
        self._domains = self._build()

    def _left(self, steps: Steps) -> float | None:
        """Cores for steps and requests."""
        if steps.cores is None:
            return None
        workers = self._cluster.prefill + self._cluster.decoders * self._cluster.decode
        if (left := steps.cores - steps.idle * workers) <= 0:
            raise UsageError(
                f"{workers} workers that each burn {steps.idle:.1%} of a core when idle leave "
                f"nothing of {steps.cores:g} cores"
            )
        return left

    def _build(self) -> list[Domain]:
        cluster = self._cluster
        each = cluster.prefill // cluster.decoders
        shared, whole = cluster.system == "shared", cluster.system == "unified"
        groups = (
            [range(cluster.decoders)] if shared else [[name] for name in range(cluster.decoders)]
        )
        prefill = cluster.prefill if shared else each + (cluster.decode if whole else 0)
        decode = 0 if whole else cluster.decode
        pool = self._steps.pool_tokens
        return [
            Domain(
                self,
                self._cores,
                self._steps,
                cluster.page,
                names,
                Group(prefill, cluster.prefill_pool or pool),
                Group(decode, cluster.decode_pool or pool),
                self._end,
                samples=not shared,
                whole=whole,
                host_pages=cluster.host_tokens // cluster.page if shared else 0,
            )
            for names in groups
        ]

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Do something at a time; what is due at once is done in the order of asking."""
        heapq.heappush(self._due, (time, next(self._numbers), act))

    def run(self, trace: Sequence[Session], warm_up: float | None = None) -> dict[str, Any]:
        """All sessions until they end; the figures.

        `warm_up`: figures count neither the time until this part of the sessions has begun nor
        that after the last one has. Without it they count all, the drain included.
        """
        if warm_up is not None:
            self._window = _Window(1 + int(warm_up * len(trace)), len(trace))
        else:
            self._window.opened = self._mark(trace[0].start)
        for session in trace:
            self.at(session.start, lambda session=session: self._arrive(session))  # type: ignore[misc]
        while self._due:
            self.now, _, act = heapq.heappop(self._due)
            act()
        asked = sum(len(session.turns) for session in trace)
        assert len(self.ended) == asked, f"{asked - len(self.ended)} requests never ended"
        return self._figures(trace)

    @property
    def routing_ms(self) -> float:
        """What a decision of the gateway took on this machine, in the mean."""
        return 1e3 * sum(domain.routing_s for domain in self._domains) / max(len(self.ended), 1)

    def _arrive(self, session: Session) -> None:
        if self._most is not None and len(self._places) >= self._most:
            self._waiting.append(session)
            return
        self._begin(session)

    def _begin(self, session: Session) -> None:
        window = self._window
        window.begun += 1
        if window.begun == window.first:
            window.opened = self._mark(self.now)
        if window.begun == window.last:
            window.closed = self._mark(self.now)
        # A wait to begin is the load's doing where there is a most, as nobody has asked yet.
        self._began[session.number] = self.now
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
        self.ended.append(request)
        request.ended = self.now
        request.route, request.names = None, []
        session = request.session
        place, _ = self._places[session.number]
        if place < len(session.turns):
            self.at(self.now + session.turns[place].pause, lambda: self._ask(session))
            return
        del self._places[session.number]
        began = self._began.pop(session.number)
        window = self._window
        if window.opened is not None and began >= window.opened.time:
            window.session_seconds.append(self.now - began)
        if self._waiting:
            # The first in line begins in its place.
            self._begin(self._waiting.popleft())

    def _mark(self, time: float) -> _Mark:
        self._blocks = max(self._blocks, sum(domain.blocks for domain in self._domains))
        workers = self._workers()
        return _Mark(
            time,
            {role: [worker.busy for worker in members] for role, members in workers.items()},
            {role: [worker.link_busy for worker in members] for role, members in workers.items()},
        )

    def _workers(self) -> dict[str, list[Worker]]:
        return {
            "prefill": [worker for domain in self._domains for worker in domain.prefill.values()],
            "decode": [worker for domain in self._domains for worker in domain.decode.values()],
        }

    def _figures(self, trace: Sequence[Session]) -> dict[str, Any]:
        window, workers = self._window, self._workers()
        opened, closed = window.opened, window.closed or self._mark(self.now)
        assert opened is not None
        seconds = closed.time - opened.time
        asked = [request for request in self.ended if opened.time <= request.asked <= closed.time]
        ended = [request for request in self.ended if opened.time < request.ended <= closed.time]
        output = sum(request.turn.output for request in ended)
        prompt = sum(request.base for request in ended)
        return {
            **asdict(self._cluster),
            "sessions": len(trace),
            "requests": len(self.ended),
            "seconds": self.now - trace[0].start,
            "drain_s": self.now - trace[-1].start,
            **_work(self.ended),
            "sessions_peak": self._peak,
            "index_blocks": self._blocks,
            **{f"{role}_pool_peak": _peak(members) for role, members in workers.items()},
            "window": {
                "seconds": seconds,
                "sessions_per_s": (window.begun - window.first) / seconds,
                "requests": len(ended),
                **_work(ended),
            },
            "turn_s": percentiles([request.ended - request.asked for request in asked]),
            "ttft_s": percentiles([request.first - request.asked for request in asked]),
            "session_s": percentiles(window.session_seconds),
            "requests_per_s": len(ended) / seconds,
            "output_tokens_per_s": output / seconds,
            "total_tokens_per_s": (output + prompt) / seconds,
            "hit_ratio": 1 - sum(request.computed for request in ended) / max(prompt, 1),
            **{f"{role}_busy": _part(opened.busy, closed.busy, role, seconds) for role in workers},
            **{
                f"{role}_link_busy": _part(opened.links, closed.links, role, seconds)
                for role in workers
            },
        }


def _work(requests: Sequence[Request]) -> dict[str, int]:
    return {
        "prompt_tokens": sum(request.base for request in requests),
        "computed_tokens": sum(request.computed for request in requests),
        "loaded_tokens": sum(request.loaded for request in requests),
        "moved_tokens": sum(request.moved for request in requests),
    }


def _peak(workers: Sequence[Worker]) -> float | None:
    return max((worker.peak / worker.tree.capacity for worker in workers), default=None)


def _part(
    before: dict[str, list[float]], after: dict[str, list[float]], role: str, seconds: float
) -> float:
    """How much of the time workers of a role were at it, in the mean."""
    return (sum(after[role]) - sum(before[role])) / max(len(after[role]), 1) / seconds


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The smallest values that so many percent do not exceed; of no values, nothing."""
    ordered = sorted(values)
    return {
        f"p{percent}": ordered[ceil(percent / 100 * len(ordered)) - 1]
        for percent in (50, 95, 99)
        if ordered
    }
