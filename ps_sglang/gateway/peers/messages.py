"""What gateway processes tell each other, in msgpack. All are of one release, and of one user."""

from __future__ import annotations

from typing import Final

import msgspec

from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.errors import Loss
from ps_sglang.gateway.routing.worker_state import BreakerState
from ps_sglang.worker_info import WorkerInfo


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Its class's name comes first."""


class Hello(_Message, frozen=True):
    """Whose messages follow."""

    process: int


class Listening(_Message, frozen=True):
    """The owner serves clients on this port, and so do all others."""

    port: int


class Began(_Message, frozen=True):
    """A sample was sent to its workers; `number` is the sender's for it.

    `blocks` are its prompt's (`Prompt.blocks`). `prefill` is None on an aggregated worker.
    """

    number: int
    decoder: str
    prefill: str | None
    decode: str
    new_tokens: int
    moved_tokens: int
    blocks: tuple[int, ...]


class Settled(_Message, frozen=True):
    """Its prompt is prefilled and moved (`arrived`), or never will be."""

    number: int
    arrived: bool


class Ended(_Message, frozen=True):
    """Neither of its workers works on it any more."""

    number: int


class SessionPlaced(_Message, frozen=True):
    """A conversation goes on: `ancestors` are those above it, the nearest first.

    `decode` is its worker of each decoder; all that it has been on are `visited`.
    """

    tenant: str
    id: str
    ancestors: tuple[str, ...]
    prefill: str | None
    decode: dict[str, str]
    visited: tuple[str, ...]


class SessionOver(_Message, frozen=True):
    """A conversation has ended."""

    tenant: str
    id: str


class KeyUsage(_Message, frozen=True):
    """What is unfinished of a key, by its name, or of all for an empty one, at the sender's.

    `posts` counts the key's requests since the sender began, of `per_minute` that it may send.
    """

    key: str
    requests: int
    queued: int
    queued_tokens: int
    posts: int = 0
    per_minute: int = 0


class Forgotten(_Message, frozen=True):
    """A worker's cache was emptied."""

    worker: str


class WorkerIs(_Message, frozen=True):
    """A worker as the owner sees it; one of `prefill` and `decode` is None."""

    prefill: PrefillWorker | None
    decode: DecodeWorker | None
    info: WorkerInfo | None
    incarnation: str | None
    unheard: bool
    refused: str | None
    breaker: BreakerState
    draining: bool
    problem: str | None

    @property
    def worker(self) -> PrefillWorker | DecodeWorker:
        """Its address and role."""
        worker = self.prefill or self.decode
        assert worker is not None, "it is one of both"
        return worker


class WorkerLeft(_Message, frozen=True):
    """A worker is no more in the cluster."""

    name: str


class AdapterIs(_Message, frozen=True):
    """A LoRA decoder as the owner sees it, see `DecoderState`; its workers by their names.

    Another version of it has other `lora_names`.
    """

    decoder: str
    path: str
    digest: str | None
    lora_names: dict[str, str]
    problems: dict[str, str]


class AdapterLeft(_Message, frozen=True):
    """A LoRA decoder is served no more."""

    decoder: str


class AllWorkers(_Message, frozen=True):
    """The owner has told of all its workers, and their adapters."""


class RequestsTaken(_Message, frozen=True):
    """What a worker has unfinished is taken from it."""

    worker: str
    reason: str
    loss: Loss


class WorkerOutcome(_Message, frozen=True):
    """How a request went on a worker: `failure` is None if well.

    `is_unreachable`: the worker could not be reached. Else it failed where another did not.
    """

    worker: str
    failure: str | None
    is_unreachable: bool


class Nothing(_Message, frozen=True):
    """Whoever answers has heard all that was said before."""


class AbortRid(_Message, frozen=True):
    """Abort a tenant's samples of this `rid`."""

    rid: str
    tenant: str


class EndSession(_Message, frozen=True):
    """End a conversation, and abort its samples."""

    tenant: str
    id: str


class Withdrawn(_Message, frozen=True):
    """Whoever answers has no request left of a decoder that was replaced or removed."""

    decoder: str


class OwnMetrics(_Message, frozen=True):
    """Give the process's own metrics, in Prometheus' text format."""


class OwnShare(_Message, frozen=True):
    """Give the process's own `LiveShare`, in msgpack."""


Question = Nothing | AbortRid | EndSession | Withdrawn | OwnMetrics | OwnShare


class PeerQuestion(_Message, frozen=True):
    """A question; the answer has its number."""

    number: int
    question: Question


class PeerAnswer(_Message, frozen=True):
    """How many samples were aborted, or what was asked for."""

    process: int
    number: int
    count: int = 0
    content: bytes = b""


Message = (
    Hello
    | Listening
    | Began
    | Settled
    | Ended
    | SessionPlaced
    | SessionOver
    | KeyUsage
    | Forgotten
    | WorkerIs
    | WorkerLeft
    | AdapterIs
    | AdapterLeft
    | AllWorkers
    | RequestsTaken
    | WorkerOutcome
    | PeerQuestion
    | PeerAnswer
)

encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(list[Message]).decode
