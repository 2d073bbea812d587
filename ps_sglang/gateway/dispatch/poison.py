"""Requests that workers died of: tried once more, alone, and then refused for a while.

A request in flight on a worker that died may be why, or may only have been there. It goes to one
more worker. There it is alone among those that are suspected, so that no other one is taken for
the cause if that worker dies, too. Two dead workers are proof enough: the request is refused, by
its digest, until REFUSED_SECONDS have passed. An answer clears it.

The digest is of what an engine computes with: prompts and parameters. It leaves out who asks, for
which decoder, and what a client varies from one try to the next.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import msgspec

from ps_sglang.gateway.bodies.requests import GenerationRequest
from ps_sglang.gateway.errors import PoisonRequest
from ps_sglang.gateway.routing.worker_state import AnyWorkerState

REFUSED_SECONDS: Final = 600.0
MOST: Final = 4096
"""Suspected and refused requests that are remembered; the oldest are forgotten first."""
SAME_DEATH_SECONDS: Final = 5.0
"""Losses of one worker this close together are one death: it takes longer to come back."""
PATIENCE_SECONDS: Final = 30.0
"""A suspect waits this long for its turn; a slow one before it must not hold up the others."""
PROBATION_SECONDS: Final = 1.0
"""A decode worker that works on a suspect for so long has survived it, as far as can be seen."""

_KEY: Final = os.urandom(32)
"""So that nobody can find out a prompt by its digest in a log."""
_NOT_ITS_OWN: Final = frozenset(
    (
        "rid",
        "model",
        "session_id",
        "priority",
        "user",
        "metadata",
        "cache_salt",
        "stream",
        "stream_options",
        "seed",
    )
)


class Suspect:
    """One client's request as a suspect: of n samples and of a batch there is one.

    `left` are the workers on which it was when they died or fell silent.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self.left: set[str] = set()

    @cached_property
    def digest(self) -> str:
        """Equal for requests with which an engine does the same."""
        bodies = [_own(sample.body) for sample in self._request.samples if sample.leads]
        content = msgspec.json.encode([self._request.endpoint.value, bodies], order="sorted")
        return hashlib.blake2b(content, key=_KEY, digest_size=16).hexdigest()


def _own(body: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in body.items() if name not in _NOT_ITS_OWN}
    params = kept.get("sampling_params")
    if isinstance(params, dict):
        kept["sampling_params"] = {k: v for k, v in params.items() if k != "sampling_seed"}
    return kept


@dataclass
class _Record:
    """What is known of a digest. `deaths`: workers' titles and when they died."""

    role: str
    deaths: list[tuple[str, float]] = field(default_factory=list)

    @property
    def is_poison(self) -> bool:
        return len(self.deaths) > 1


class Suspects:
    """What has been in flight on workers that died; for the event loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._turns: dict[str, asyncio.Lock] = {}

    def died(self, suspect: Suspect, worker_state: AnyWorkerState) -> bool:
        """The worker died with the request in flight. True if the request is poisonous now."""
        now = self._clock()
        record = self._record(suspect) or _Record(worker_state.worker.role)
        record.role = worker_state.worker.role
        title = worker_state.worker.title
        if not any(
            victim == title and now - at < SAME_DEATH_SECONDS for victim, at in record.deaths
        ):
            record.deaths.append((title, now))
        self._records[suspect.digest] = record
        self._records.move_to_end(suspect.digest)
        if len(self._records) > MOST:
            self._records.popitem(last=False)
        return record.is_poison

    def answered(self, suspect: Suspect) -> None:
        """The request got its whole answer: it is not why a worker died."""
        if self._records:
            self._records.pop(suspect.digest, None)

    def refuse_poison(self, suspect: Suspect) -> None:
        """Raise PoisonRequest if two workers died with such a request in flight."""
        record = self._record(suspect)
        if record is not None and record.is_poison:
            raise self.error(suspect, record)

    def error(self, suspect: Suspect, record: _Record | None = None) -> PoisonRequest:
        """The error for a poisonous request's client."""
        record = record or self._records[suspect.digest]
        left = record.deaths[-1][1] + REFUSED_SECONDS - self._clock()
        first, *_, last = (title for title, _ in record.deaths)
        return PoisonRequest(
            f"The request was in flight on {first} when it died, and on {last} when that died: it "
            f"is taken for the cause and refused for the next {max(left, 1):.0f} s "
            f"(digest {suspect.digest}). Change it before you send it again."
        )

    async def turn(self, suspect: Suspect, worker_states: Sequence[AnyWorkerState]) -> Turn | None:
        """Wait until no other suspect is on the worker of the role that died of the request.

        None if nothing is known against the request. The turn must be released.
        """
        record = self._record(suspect)
        if record is None:
            return None
        worker_state = next(one for one in worker_states if one.worker.role == record.role)
        turn = Turn(self._turns, worker_state)
        await turn.wait()
        return turn

    def _record(self, suspect: Suspect) -> _Record | None:
        if not self._records:  # then nothing costs a digest
            return None
        record = self._records.get(suspect.digest)
        if record is not None and self._clock() - record.deaths[-1][1] > REFUSED_SECONDS:
            del self._records[suspect.digest]
            return None
        return record


class Turn:
    """A suspect's time alone on a worker."""

    def __init__(self, locks: dict[str, asyncio.Lock], worker_state: AnyWorkerState) -> None:
        self.worker_state = worker_state
        self._lock = locks.setdefault(worker_state.name, asyncio.Lock())
        self._is_acquired = False

    async def wait(self) -> None:
        """Until the suspects before have gone, or for PATIENCE_SECONDS."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                self._is_acquired = await self._lock.acquire()
        except TimeoutError:
            return

    def prefilled(self) -> None:
        """The prefill worker has done its part; a decode worker is given a while longer."""
        if self.worker_state.worker.role == "prefill":
            self.release()
        else:
            self.end_soon()

    def end_soon(self) -> None:
        """Release it when the worker has survived the suspect."""
        asyncio.get_running_loop().call_later(PROBATION_SECONDS, self.release)

    def release(self) -> None:
        """The next suspect may come. May be called more than once."""
        if self._is_acquired:
            self._is_acquired = False
            self._lock.release()
