"""Where each request's time went, put together from the spans of its workers.

Workers publish a Span when their part has ended. A request's trace is written to the log and
counted when all spans are there, or a while after its end with what is there. Where traces are
exported, it goes there, too.
A client that sends the header `x-timeline: 1` gets it with the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from ps_sglang.events.messages import Span
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.routing.router import Route
from ps_sglang.gateway.telemetry.lines import one_word
from ps_sglang.gateway.telemetry.log import FIELDS, about, current_request
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics

log = logging.getLogger("ps_sglang.timeline")

HEADER: Final = "x-timeline"
LATE_SECONDS: Final = 2.0
"""How long after its end a request's spans may still come."""


class ExportedSpans(Protocol):
    """The spans of an attempt as another system gets them, see `otel`."""

    def end(self, trace: Trace) -> None:
        """All is known that will be known of the attempt."""
        ...


@dataclass(eq=False, slots=True)
class Trace:
    """One attempt at a sample: its workers, and their spans so far.

    `awaited` are the spans that are yet to come, by worker and role. `exported` are its spans where
    traces are exported, and `failure` is why it failed, by an error's code. `first` is when a
    stream gave its first event, a monotonic time, and `events` how many it gave. `is_answered`: the
    client has it all.
    """

    rid: str
    decoder: str
    route: Route
    started: float
    awaited: set[tuple[str, str]]
    exported: ExportedSpans | None = None
    request_id: str = field(default_factory=current_request)
    failure: str | None = None
    spans: dict[str, Span] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    total: float | None = None
    late: asyncio.TimerHandle | None = None
    session: str | None = None
    first: float | None = None
    events: int = 0
    is_answered: bool = False

    def workers(self) -> dict[str, str | None]:
        """The names of its workers; an aggregated one is its decode worker."""
        prefill = self.route.prefill
        return {
            "prefill_worker": None if prefill is None else prefill.name,
            "decode_worker": self.route.decode.name,
        }

    def stages(self) -> dict[str, float]:
        """Seconds of each stage that is known, in their order; the client waits for their sum.

        `queue`, `wait` (for another request's prefill of the same prefix) and `prefill` on the
        prefill worker; `pull` is what the decode worker waits for pages after that. An aggregated
        worker's `prefill` lasts until the first output token, which `decode` follows.
        """
        seconds_of: dict[str, float] = {}
        prefilled = 0.0
        if (prefill := self.spans.get("prefill")) is not None:
            seconds_of |= {"queue": prefill.queue, "wait": prefill.wait, "prefill": prefill.prefill}
            prefilled = prefill.began + sum(seconds_of.values())
        decode = self.spans.get("decode")
        if decode is not None and self.route.prefill is None:
            seconds_of["decode"] = decode.decode
        elif decode is not None:
            asked = decode.began + decode.queue
            # Two hosts' clocks may differ by more than a pull takes.
            seconds_of["pull"] = max(asked + decode.pull - max(asked, prefilled), 0.0)
            seconds_of |= {"first_step": decode.first_step, "decode": decode.decode}
        return {name: round(seconds, 6) for name, seconds in seconds_of.items()}

    def tokens(self) -> dict[str, int]:
        """Tokens of the base prefix by where they came from, and the bytes that were moved.

        `computed` by the base, held by the `tree` of the worker that prefills, held by the decode
        worker's `own` tree, `pulled` by it.
        """
        counts: dict[str, int] = {}
        if (prefill := self.spans.get("prefill")) is not None:
            counts |= {"computed": prefill.computed, "tree": prefill.held}
        decode = self.spans.get("decode")
        if decode is not None and self.route.prefill is not None:
            counts |= {"own": decode.held, "pulled": decode.pulled}
            counts["pulled_bytes"] = decode.pulled_bytes
        return counts

    @property
    def output_tokens(self) -> int:
        """How many tokens the decode worker generated, as far as is known."""
        decode = self.spans.get("decode")
        return 0 if decode is None else decode.output

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Note the error that leaves this block."""
        try:
            yield
        except GatewayError as error:
            self.failure = error.code or str(error.status)
            raise
        except BaseException as error:
            self.failure = type(error).__name__
            raise

    def found_tokens(self) -> int | None:
        """Tokens of the base prefix that need not be computed, None if its workers did not tell."""
        tokens = self.tokens()
        parts = ("computed", "tree") if self.route.prefill is None else ("own", "pulled")
        if "computed" not in tokens or parts[1] not in tokens:
            return None
        return max(sum(tokens[part] for part in parts) - tokens["computed"], 0)

    def payload(self) -> dict[str, Any]:
        """The trace as clients get it."""
        total = time.monotonic() - self.started if self.total is None else self.total
        return {
            "rid": self.rid,
            **self.workers(),
            "seconds": {**self.stages(), "total": round(total, 6)},
            "tokens": self.tokens(),
        }


class Traces:
    """The traces of the requests that run or have just ended; for the event loop's thread.

    Register functions in `concluded` to be called with each one that is complete, or never will be.
    """

    def __init__(self, metrics: GatewayMetrics, late_seconds: float = LATE_SECONDS) -> None:
        self._metrics = metrics
        self._late_seconds = late_seconds
        self._open: dict[str, Trace] = {}
        self.concluded: list[Callable[[Trace], None]] = []

    def __len__(self) -> int:
        """Traces that are not concluded yet."""
        return len(self._open)

    def __iter__(self) -> Iterator[Trace]:
        """The traces that are not concluded yet, the oldest first."""
        return iter(self._open.values())

    def begin(
        self, rid: str, decoder: str, route: Route, exported: ExportedSpans | None = None
    ) -> Trace:
        """A sample is being sent to its workers; `ended` must follow."""
        by_role = {"prefill": route.prefills.worker, "decode": route.decode.worker}
        awaited = {
            (worker.name, role) for role, worker in by_role.items() if worker.events is not None
        }
        trace = Trace(rid, decoder, route, time.monotonic(), awaited, exported)
        self._open[rid] = trace
        self._check(trace)
        return trace

    def add(self, worker: str, span: Span) -> None:
        """A worker's span; that of an unknown request is dropped."""
        trace = self._open.get(span.rid)
        if trace is not None and (worker, span.role) in trace.awaited:
            trace.awaited.discard((worker, span.role))
            trace.spans[span.role] = span
            self._check(trace)

    def ended(self, trace: Trace) -> None:
        """Nothing more happens for the request here. May be called more than once."""
        if trace.total is None:
            trace.total = time.monotonic() - trace.started
            self._check(trace)
            if trace.rid in self._open:
                loop = asyncio.get_running_loop()
                trace.late = loop.call_later(self._late_seconds, self._conclude, trace)

    def close(self) -> None:
        """No span comes any more: conclude all that are still open."""
        for trace in list(self):
            self._conclude(trace)

    def _check(self, trace: Trace) -> None:
        if not trace.awaited:
            trace.complete.set()
            if trace.total is not None:
                self._conclude(trace)

    def _conclude(self, trace: Trace) -> None:
        if self._open.pop(trace.rid, None) is None:
            return
        for listener in self.concluded:
            listener(trace)
        trace.complete.set()
        if trace.late is not None:
            trace.late.cancel()  # it would keep all of this alive
        if trace.exported is not None:
            trace.exported.end(trace)
        if not trace.spans:
            return
        stages, tokens = trace.stages(), trace.tokens()
        route = trace.route
        self._metrics.traces.concluded(
            trace.decoder,
            stages,
            tokens,
            trace.output_tokens,
            route.shared_tokens,
            is_aggregated=route.prefill is None,
        )
        if log.isEnabledFor(logging.INFO):
            # The last span may have come long after the request's own task ended.
            with about(trace.request_id):
                _log(trace, stages, tokens)


async def in_answer(endpoint: Endpoint, answer: bytes, traces: Mapping[int, Trace]) -> bytes:
    """A whole answer with the traces of its samples, given by their places in it.

    OpenAI's answers get a list `timeline`, each of SGLang's own results its `timeline`.
    """
    payloads = await _payloads(traces)
    content = msgspec.json.decode(answer)
    if endpoint is not Endpoint.GENERATE:
        content["timeline"] = payloads
    else:
        results = content if isinstance(content, list) else [content]
        for result, payload in zip(results, payloads, strict=True):
            result["timeline"] = payload
    return msgspec.json.encode(content)


async def last_chunk(endpoint: Endpoint, traces: Mapping[int, Trace]) -> dict[str, Any]:
    """A stream's chunk with the traces of its samples; it has no choices."""
    chunk: dict[str, Any] = {"timeline": await _payloads(traces)}
    return chunk if endpoint is Endpoint.GENERATE else {"choices": [], **chunk}


async def _payloads(traces: Mapping[int, Trace]) -> list[dict[str, Any]]:
    # What has not come by then is left out.
    try:
        async with asyncio.timeout(LATE_SECONDS):
            for trace in traces.values():
                await trace.complete.wait()
    except TimeoutError:
        pass
    return [traces[index].payload() for index in sorted(traces)]


def _log(trace: Trace, stages: Mapping[str, float], tokens: Mapping[str, int]) -> None:
    assert trace.total is not None, "only what has ended is written to the log"
    workers = {role: name for role, name in trace.workers().items() if name is not None}
    times = {f"{name}_ms": s * 1000 for name, s in {**stages, "total": trace.total}.items()}
    counts = {**tokens, "output": trace.output_tokens}
    fields: dict[str, Any] = {"rid": trace.rid, "model": trace.decoder, **workers}
    text = " ".join(
        (
            one_word(trace.rid),
            *(f"{name}={value}" for name, value in fields.items() if name != "rid"),
            *(f"{name}={milliseconds:.1f}" for name, milliseconds in times.items()),
            *(f"{name}={count}" for name, count in counts.items()),
        )
    )
    fields |= {name: round(milliseconds, 1) for name, milliseconds in times.items()}
    log.info("%s", text, extra={FIELDS: {"message": "trace", **fields, **counts}})
