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
    """What a key has unfinished here, and its requests of late; `posts` came to this process."""

    usage: Unfinished = field(default_factory=Unfinished)
    bucket: TokenBucket = field(default_factory=TokenBucket)
    posts: int = 0
    per_minute: int = 0


Elsewhere = dict[str, dict[int, Unfinished]]
"""What is unfinished at other processes, by key and process; the empty key stands for all."""


class Admission:
    """A request that was admitted; it counts until its block ends.

    `changed` is called when what is unfinished has changed.
    """

    __slots__ = ("_answers", "_changed", "_usages", "_waiting")

    def __init__(
        self,
        usages: tuple[Unfinished, ...],
        prompt_tokens: Sequence[int],
        changed: Callable[[], None] | None = None,
    ) -> None:
        self._usages = usages
        self._answers = len(prompt_tokens)
        self._waiting = dict(enumerate(prompt_tokens))
        self._changed = changed

    def prefilled(self, answer: int) -> None:
        """The prompt of the answer at that place waits no more. May be called more than once."""
        tokens = self._waiting.pop(answer, None)
        if tokens is not None:
            self._count(0, -1, -tokens)

    def __enter__(self) -> Self:
        self._count(self._answers, self._answers, sum(self._waiting.values()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        queued, tokens = len(self._waiting), sum(self._waiting.values())
        self._waiting.clear()
        self._count(-self._answers, -queued, -tokens)

    def _count(self, requests: int, queued: int, tokens: int) -> None:
        for usage in self._usages:
            usage.requests += requests
            usage.queued += queued
            usage.queued_tokens += tokens
        if self._changed is not None:
            self._changed()


class RequestLimiter:
    """Admits requests; for the thread of the event loop.

    `decode_workers` tells how many there are. `elsewhere` counts, too; whoever fills it sets
    `changed`, which is called with each key of which something has changed here.
    """

    def __init__(
        self,
        limits: GatewayLimits,
        decode_workers: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = Unfinished()
        self.elsewhere: Elsewhere = {}
        self.changed: Callable[[str], None] | None = None
        self._limits = limits
        self._decode_workers = decode_workers
        self._clock = clock
        self._keys: defaultdict[str, _Key] = defaultdict(_Key)

    def rate(self, principal: Principal) -> Rate | None:
        """Count one more request of a key; None if it may send as many as it likes."""
        per_minute = principal.limits.requests_per_minute
        if per_minute is None:
            return None
        key = self._keys[principal.name]
        rate = key.bucket.take(per_minute, self._clock())
        if not rate.wait:
            key.posts, key.per_minute = key.posts + 1, per_minute
            if self.changed is not None:
                self.changed(principal.name)
        return rate

    def posted_elsewhere(self, key: str, posts: int, per_minute: int) -> None:
        """So many requests of a key were counted at another process."""
        bucket, now = self._keys[key].bucket, self._clock()
        for _ in range(posts):
            bucket.take(per_minute, now)

    def of_key(self, key: str) -> tuple[Unfinished, int, int]:
        """What a key, or all for the empty one, has unfinished here; its requests, and its rate."""
        if not key:
            return self.total, 0, 0
        one = self._keys[key]
        return one.usage, one.posts, one.per_minute

    @property
    def used_keys(self) -> Sequence[str]:
        """Those that have been used here, and the empty one."""
        return ("", *self._keys)

    def admit(self, principal: Principal, prompt_tokens: Sequence[int]) -> Admission:
        """Admit a request with one answer for each of `prompt_tokens`, to be used as a block.

        These are the tokens of the answer's prompt, 0 where another answer has the same. Raises
        LimitExceeded, or BadRequest for what could never be admitted.
        """
        answers, tokens = len(prompt_tokens), sum(prompt_tokens)
        limits = self._limits
        workers = max(self._decode_workers(), 1)
        here, total = "This gateway", self._everywhere("", self.total)
        _check(here, "requests at once", limits.max_concurrent_requests, total.requests, answers)
        queue = limits.max_queued_requests or QUEUED_PER_WORKER * workers
        _check(here, "queued requests", queue, total.queued, answers)
        _check(here, "queued tokens", limits.max_queued_tokens, total.queued_tokens, tokens)
        if not principal.name:
            return Admission((self.total,), prompt_tokens, self._change_of(""))
        own, usage = principal.limits, self._keys[principal.name].usage
        key = self._everywhere(principal.name, usage)
        name = f"The key {principal.name!r}"
        _check(name, "requests at once", own.requests_at_once, key.requests, answers)
        _check(name, "queued tokens", own.queued_tokens, key.queued_tokens, tokens)
        changed = self._change_of("", principal.name)
        return Admission((self.total, usage), prompt_tokens, changed)

    def _everywhere(self, key: str, here: Unfinished) -> Unfinished:
        others = self.elsewhere.get(key)
        if not others:
            return here
        used = (here, *others.values())
        return Unfinished(
            sum(one.requests for one in used),
            sum(one.queued for one in used),
            sum(one.queued_tokens for one in used),
        )

    def _change_of(self, *keys: str) -> Callable[[], None] | None:
        changed = self.changed
        if changed is None:
            return None

        def tell() -> None:
            for key in keys:
                changed(key)

        return tell


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
