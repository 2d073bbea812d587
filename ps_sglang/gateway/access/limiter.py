"""Counts what is at work and what waits, in all and by key, and refuses what is too much.

Nothing waits here: a request that is admitted goes to its workers at once, where the highest
priority and the longest cached prefix go first. What is refused costs nobody else anything.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ps_sglang.gateway.access.principal import Principal
from ps_sglang.gateway.access.rates import Rate, TokenBucket
from ps_sglang.gateway.errors import BadRequest, LimitExceeded
from ps_sglang.gateway.limits import QUEUED_PER_WORKER, GatewayLimits


@dataclass(slots=True)
class Unfinished:
    """What is unfinished: answers, those whose prompt waits, and the tokens of these prompts."""

    requests: int = 0
    queued: int = 0
    queued_tokens: int = 0


@dataclass(slots=True)
class _Key:
    usage: Unfinished = field(default_factory=Unfinished)
    bucket: TokenBucket = field(default_factory=TokenBucket)


class Admission:
    """A request that was admitted; it counts until its block ends."""

    __slots__ = ("_answers", "_usages", "_waiting")

    def __init__(self, usages: tuple[Unfinished, ...], prompt_tokens: Sequence[int]) -> None:
        self._usages = usages
        self._answers = len(prompt_tokens)
        self._waiting = dict(enumerate(prompt_tokens))

    def prefilled(self, answer: int) -> None:
        """The prompt of the answer at that place waits no more. May be called more than once."""
        tokens = self._waiting.pop(answer, None)
        if tokens is not None:
            self._unqueue(1, tokens)

    def __enter__(self) -> Self:
        queued, tokens = self._answers, sum(self._waiting.values())
        for usage in self._usages:
            usage.requests += queued
            usage.queued += queued
            usage.queued_tokens += tokens
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unqueue(len(self._waiting), sum(self._waiting.values()))
        self._waiting.clear()
        for usage in self._usages:
            usage.requests -= self._answers

    def _unqueue(self, answers: int, tokens: int) -> None:
        for usage in self._usages:
            usage.queued -= answers
            usage.queued_tokens -= tokens


class RequestLimiter:
    """Admits requests; for the thread of the event loop.

    `decode_workers` tells how many there are.
    """

    def __init__(
        self,
        limits: GatewayLimits,
        decode_workers: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = Unfinished()
        self._limits = limits
        self._decode_workers = decode_workers
        self._clock = clock
        self._keys: defaultdict[str, _Key] = defaultdict(_Key)

    def rate(self, principal: Principal) -> Rate | None:
        """Count one more request of a key; None if it may send as many as it likes."""
        per_minute = principal.limits.requests_per_minute
        if per_minute is None:
            return None
        return self._keys[principal.name].bucket.take(per_minute, self._clock())

    def admit(self, principal: Principal, prompt_tokens: Sequence[int]) -> Admission:
        """Admit a request with one answer for each of `prompt_tokens`, to be used as a block.

        These are the tokens of the answer's prompt, 0 where another answer has the same. Raises
        LimitExceeded, or BadRequest for what could never be admitted.
        """
        answers, tokens = len(prompt_tokens), sum(prompt_tokens)
        limits = self._limits
        workers = max(self._decode_workers(), 1)
        here, total = "This gateway", self.total
        _check(here, "requests at once", limits.max_concurrent_requests, total.requests, answers)
        queue = limits.max_queued_requests or QUEUED_PER_WORKER * workers
        _check(here, "queued requests", queue, total.queued, answers)
        _check(here, "queued tokens", limits.max_queued_tokens, total.queued_tokens, tokens)
        if not principal.name:
            return Admission((total,), prompt_tokens)
        own, key = principal.limits, self._keys[principal.name].usage
        name = f"The key {principal.name!r}"
        _check(name, "requests at once", own.requests_at_once, key.requests, answers)
        _check(name, "queued tokens", own.queued_tokens, key.queued_tokens, tokens)
        return Admission((total, key), prompt_tokens)


def refuse_rate(principal: Principal, rate: Rate) -> LimitExceeded:
    """What a request gets that came too soon."""
    return LimitExceeded(
        f"The key {principal.name!r} may send {rate.limit} requests a minute, and has sent them",
        limit="requests a minute",
        retry_after=max(math.ceil(rate.wait), 1),
    )


def _check(who: str, what: str, limit: int | None, used: int, more: int) -> None:
    if limit is None or used + more <= limit:
        return
    if more > limit:
        raise BadRequest(
            f"The request needs {more} {what}, with each answer to each prompt counted, and "
            f"{who[0].lower()}{who[1:]} has at most {limit}: make it smaller, or split it."
        )
    raise LimitExceeded(f"{who} has reached its limit of {limit} {what}", limit=what)
