"""A decoder as it is served now: by which workers, and by which adapter on each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

from ps_sglang.gateway.routing.worker_state import Decode


class RequestCount:
    """Counts the requests that are inside its block, and tells when there is none."""

    def __init__(self) -> None:
        self.unfinished = 0
        self._idle = asyncio.Event()

    def begin(self) -> None:
        """One more is unfinished; `end` must follow."""
        self.unfinished += 1
        self._idle.clear()

    def end(self) -> None:
        """One that began has ended."""
        self.unfinished -= 1
        if not self.unfinished:
            self._idle.set()

    def __enter__(self) -> None:
        self.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    async def wait_idle(self) -> None:
        """Wait until no request is unfinished; at once if none is."""
        while self.unfinished:
            await self._idle.wait()


@dataclass(eq=False, slots=True)
class AdapterSource:
    """Where a LoRA decoder's weights come from.

    `path` is as workers see it. `digest` is that of the weights, None until a worker has said it.
    """

    path: str
    digest: str | None = None
    allow_unverified: bool = False


@dataclass(eq=False, slots=True)
class DecoderState:
    """What answers to one name, from one change of it to the next.

    A request keeps its DecoderState from its beginning to its end, with all its samples and
    attempts, and so gets one version of the decoder. `requests` counts them.

    `workers` are those that may be asked. A LoRA decoder has a `source`, and SGLang's name for it
    on each worker that should have it in `lora_names`; `problems` says why one of these does not
    serve it. Of a whole model the three are empty.
    """

    name: str
    source: AdapterSource | None = None
    workers: tuple[Decode, ...] = ()
    lora_names: dict[Decode, str] = field(default_factory=dict)
    problems: dict[Decode, str] = field(default_factory=dict)
    requests: RequestCount = field(default_factory=RequestCount)

    @property
    def is_held(self) -> bool:
        """Whether any worker has it, or should."""
        return bool(self.workers or self.lora_names)

    def join(self, worker_state: Decode, lora_name: str | None = None) -> None:
        """A worker serves it from now on."""
        self.workers = (*self.workers, worker_state)
        if lora_name is not None:
            self.lora_names[worker_state] = lora_name

    def leave(self, worker_state: Decode) -> None:
        """A worker has it no more."""
        self.workers = tuple(one for one in self.workers if one is not worker_state)
        self.lora_names.pop(worker_state, None)
        self.problems.pop(worker_state, None)

    def is_replaced_by(self, lora_names: Mapping[Decode, str]) -> bool:
        """Whether these are another version's: a worker has each under a name of its own."""
        return any(lora_names.get(one, name) != name for one, name in self.lora_names.items())

    def unlike(self, worker_state: Decode) -> set[str]:
        """The workers, by name, with other weights than this one: a swap reaches one by one."""
        if worker_state.facts is None:
            return set()
        weights = worker_state.facts.weights
        return {one.name for one in self.workers if one.facts and one.facts.weights != weights}

    def judge(self, worker_state: Decode, problem: str | None) -> None:
        """Whether a worker that should have the adapter can serve it: None if it can."""
        if problem is None:
            self.problems.pop(worker_state, None)
        else:
            self.problems[worker_state] = problem
        self.workers = tuple(one for one in self.lora_names if one not in self.problems)
