"""Where each request's time went, put together from what both of its workers tell.

Workers tell over their feeds when their part has ended (see TimelineRecord). A request's timeline
is written to the log and counted when all has been told, or a while after its end with what has.
A client that sends the header `x-timeline: 1` gets it with the answer.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ps_sglang.feed.messages import TimelineRecord
from ps_sglang.gateway.bodies.samples import Surface
from ps_sglang.gateway.config import Worker
from ps_sglang.gateway.routing.router import Route
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics

log = logging.getLogger("ps_sglang.timeline")

HEADER: Final = "x-timeline"
LATE_SECONDS: Final = 2.0
"""How long after its end a request's workers may still tell of it."""


@dataclass(eq=False, slots=True)
class Timeline:
    """One attempt at a sample: its workers, and what they have told so far."""

    rid: str
    decoder: str
    route: Route
    started: float
    awaited: set[str]
    told: dict[str, TimelineRecord] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    total: float | None = None
    late: asyncio.TimerHandle | None = None

    def stages(self) -> dict[str, float]:
        """Seconds of each stage that is known, in their order; the client waits for their sum.

        `queue`, `wait` (for another request's prefill of the same prefix) and `prefill` on the
        prefill worker; `pull` is what the decode worker waits for pages after that.
        """
        found: dict[str, float] = {}
        prefilled = 0.0
        if (prefill := self.told.get("prefill")) is not None:
            found |= {"queue": prefill.queue, "wait": prefill.wait, "prefill": prefill.prefill}
            prefilled = prefill.began + sum(found.values())
        if (decode := self.told.get("decode")) is not None:
            asked = decode.began + decode.queue
            # Two hosts' clocks may differ by more than a pull takes.
            found["pull"] = max(asked + decode.pull - max(asked, prefilled), 0.0)
            found |= {"first_step": decode.first_step, "decode": decode.decode}
        return {name: round(seconds, 6) for name, seconds in found.items()}

    def tokens(self) -> dict[str, int]:
        """Tokens of the base prefix by where they came from, and the bytes that were moved.

        `computed` by the base, held by the prefill worker's `tree`, held by the decode worker's
        `own` tree, `pulled` by it.
        """
        found: dict[str, int] = {}
        if (prefill := self.told.get("prefill")) is not None:
            found |= {"computed": prefill.computed, "tree": prefill.held}
        if (decode := self.told.get("decode")) is not None:
            found |= {"own": decode.held, "pulled": decode.pulled}
            found["pulled_bytes"] = decode.pulled_bytes
        return found

    def payload(self) -> dict[str, Any]:
        """The timeline as clients get it."""
        total = time.monotonic() - self.started if self.total is None else self.total
        return {
            "rid": self.rid,
            "prefill_worker": self.route.prefill.name,
            "decode_worker": self.route.decode.name,
            "seconds": {**self.stages(), "total": round(total, 6)},
            "tokens": self.tokens(),
        }


class Timelines:
    """The timelines of the requests that run or have just ended; for the event loop's thread."""

    def __init__(self, metrics: GatewayMetrics, late_seconds: float = LATE_SECONDS) -> None:
        self._metrics = metrics
        self._late_seconds = late_seconds
        self._open: dict[str, Timeline] = {}

    def __len__(self) -> int:
        """Timelines that are not concluded yet."""
        return len(self._open)

    def begin(self, rid: str, decoder: str, route: Route) -> Timeline:
        """A sample is being sent to its workers; `ended` must follow."""
        workers: tuple[Worker, Worker] = (route.prefill.worker, route.decode.worker)
        awaited = {worker.name for worker in workers if worker.feed is not None}
        timeline = Timeline(rid, decoder, route, time.monotonic(), awaited)
        self._open[rid] = timeline
        self._check(timeline)
        return timeline

    def tell(self, worker: str, record: TimelineRecord) -> None:
        """A worker tells of a request; of one that is not known it is dropped."""
        timeline = self._open.get(record.rid)
        if timeline is not None and worker in timeline.awaited:
            timeline.awaited.discard(worker)
            timeline.told[record.role] = record
            self._check(timeline)

    def ended(self, timeline: Timeline) -> None:
        """Nothing more happens for the request here. May be called more than once."""
        if timeline.total is None:
            timeline.total = time.monotonic() - timeline.started
            self._check(timeline)
            if timeline.rid in self._open:
                loop = asyncio.get_running_loop()
                timeline.late = loop.call_later(self._late_seconds, self._conclude, timeline)

    def _check(self, timeline: Timeline) -> None:
        if not timeline.awaited:
            timeline.complete.set()
            if timeline.total is not None:
                self._conclude(timeline)

    def _conclude(self, timeline: Timeline) -> None:
        if self._open.pop(timeline.rid, None) is None:
            return
        timeline.complete.set()
        if timeline.late is not None:
            timeline.late.cancel()  # it would keep all of this alive
        if not timeline.told:
            return
        stages, tokens = timeline.stages(), timeline.tokens()
        self._metrics.timeline(timeline.decoder, stages, tokens, timeline.route.shared_tokens)
        if log.isEnabledFor(logging.INFO):
            log.info("%s", _line(timeline, stages, tokens))


async def in_answer(surface: Surface, answer: bytes, timelines: Mapping[int, Timeline]) -> bytes:
    """A whole answer with the timelines of its samples, given by their places in it.

    OpenAI's answers get a list `timeline`, each of SGLang's own results its `timeline`.
    """
    told = await _payloads(timelines)
    content = msgspec.json.decode(answer)
    if surface is not Surface.GENERATE:
        content["timeline"] = told
    else:
        results = content if isinstance(content, list) else [content]
        for result, one in zip(results, told, strict=True):
            result["timeline"] = one
    return msgspec.json.encode(content)


async def last_chunk(surface: Surface, timelines: Mapping[int, Timeline]) -> dict[str, Any]:
    """A stream's chunk with the timelines of its samples; it has no choices."""
    told: dict[str, Any] = {"timeline": await _payloads(timelines)}
    return told if surface is Surface.GENERATE else {"choices": [], **told}


async def _payloads(timelines: Mapping[int, Timeline]) -> list[dict[str, Any]]:
    # What has not been told by then is left out.
    try:
        async with asyncio.timeout(LATE_SECONDS):
            for timeline in timelines.values():
                await timeline.complete.wait()
    except TimeoutError:
        pass
    return [timelines[index].payload() for index in sorted(timelines)]


def _line(timeline: Timeline, stages: Mapping[str, float], tokens: Mapping[str, int]) -> str:
    assert timeline.total is not None, "only what has ended is written to the log"
    times = {**stages, "total": timeline.total}
    return " ".join(
        (
            timeline.rid,
            f"model={timeline.decoder}",
            f"prefill_worker={timeline.route.prefill.name}",
            f"decode_worker={timeline.route.decode.name}",
            *(f"{name}_ms={seconds * 1000:.1f}" for name, seconds in times.items()),
            *(f"{name}={count}" for name, count in tokens.items()),
        )
    )
