"""Counters of the handoff, exported on each worker's own `/metrics`.

They are created on first use: SGLang decides between single- and multi-process mode of
`prometheus_client` by an environment variable that must be set before its first import.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

from ps_sglang.wires import Refusal

if TYPE_CHECKING:
    from prometheus_client import Counter


class HandoffFailure(StrEnum):
    """Why a decode worker did not get its pages; one that gave up itself has not failed."""

    UNREACHABLE = "unreachable"
    """The prefill worker could not be found."""
    LOST = "lost"
    """The prefill worker died, fell silent or came back as another process."""
    STALLED = "stalled"
    """The prefill worker is there, and no page comes."""
    ABORTED = "aborted"
    """The prefill worker gave the request up, or was told to."""
    REFUSED = "refused"
    """The prefill worker has other tokens for it, or none."""
    DAMAGED = "damaged"
    """Pages came damaged, twice."""
    MALFORMED = "malformed"
    """What came were not the pages that were asked for."""


@cache
def _counter(name: str, help_text: str, *labels: str) -> Counter:
    from prometheus_client import Counter

    return Counter(f"ps_sglang_{name}", help_text, labels)


def prefilled(*, computed: int, cached: int) -> None:
    """A prefill worker has a request's base prefix: tokens it computed, tokens its tree held."""
    _counter("prefill_requests", "Requests whose base prefix this worker served").inc()
    tokens = _counter("prefill_tokens", "Base prefix tokens, by where their KV was", "source")
    tokens.labels("computed").inc(computed)
    tokens.labels("tree").inc(cached)


def prefill_skipped(*, cached: int) -> None:
    """A prefill worker served a request without a forward pass; its tree held `cached` tokens."""
    prefilled(computed=0, cached=cached)
    _counter("prefill_skipped", "Requests that needed no forward pass of the base").inc()


def prefill_waited() -> None:
    """A request has waited for another one's prefill of the same prefix."""
    _counter("prefill_waited", "Requests that waited for a prefill of the same prefix").inc()


def handoff_started(*, pulled: int, held: int, size: int) -> None:
    """A decode worker asks for `pulled` tokens in `size` bytes, having `held` already."""
    _handoff(pulled=pulled, held=held)
    _counter("handoff_bytes", "Bytes of KV pulled from prefill workers").inc(size)


def handoff_skipped(*, tokens: int) -> None:
    """A decode worker's tree holds all `tokens` tokens of a base prefix."""
    _handoff(pulled=0, held=tokens)
    _counter("handoff_skipped", "Requests whose base prefix this worker's tree held whole").inc()


def handoff_failed(reason: HandoffFailure) -> None:
    """A decode worker did not get a base prefix."""
    _handoff_failures().labels(reason).inc()


@cache
def _handoff_failures() -> Counter:
    counter = _counter("handoff_failures", "Handoffs that failed on this decode worker", "reason")
    for reason in HandoffFailure:
        counter.labels(reason)  # a rate needs its first value, 0
    return counter


def transferred(what: str, path: str, amount: int) -> None:
    """The transfer backend counts: see `_TRANSFER` for what, by path (shm, tcp)."""
    labels = ("path",) if path else ()
    counter = _counter(f"transfer_{what}", _TRANSFER[what], *labels)
    (counter.labels(path) if path else counter).inc(amount)


_TRANSFER = {
    "batches": "Batches of KV pages received",
    "bytes": "Bytes of KV pages received",
    "damaged": "Batches of KV pages whose digest did not fit",
    "pulled_again": "Batches of KV pages pulled a second time",
    "expired": "Leases of KV pages that ended because the decode worker was dead",
}


def refused(socket: str, reason: Refusal, amount: int) -> None:
    """A listening socket of this worker turned connections, requests or messages away."""
    help_text = "Connections, requests and messages turned away, by socket and reason"
    _counter("refused", help_text, "socket", "reason").labels(socket, reason).inc(amount)


def _handoff(*, pulled: int, held: int) -> None:
    _counter("handoff_requests", "Requests that took over a base prefix").inc()
    _handoff_failures()
    tokens = _counter("handoff_tokens", "Base prefix tokens, by where they came from", "source")
    tokens.labels("pulled").inc(pulled)
    tokens.labels("tree").inc(held)
