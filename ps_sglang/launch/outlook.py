"""What a cluster can still serve when some of its workers have died."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.launch.spec import Role, WorkerSpec
from ps_sglang.workers.client import READY_STATES, WorkersClient

_ANSWER_S: Final = 5.0


@dataclass(frozen=True)
class Candidate:
    """A worker, the decoder that it serves if it does, and whether it gets requests."""

    url: str
    decoder: str | None
    able: bool = True


def outlook(candidates: Iterable[Candidate], dead: Collection[str]) -> str:
    """What is served without the workers whose URLs are `dead`, in words."""
    workers = list(candidates)
    available = [worker for worker in workers if worker.able and worker.url not in dead]
    if not any(worker.decoder is None for worker in available):
        return "no prefill worker is left, so nothing can be served"
    every = dict.fromkeys(worker.decoder for worker in workers if worker.decoder is not None)
    served = {worker.decoder for worker in available}
    if not (left := [name for name in every if name in served]):
        return "no decode worker is left, so nothing can be served"
    lost = [name for name in every if name not in served]
    return f"still served: {', '.join(left)}" + (f"; no longer: {', '.join(lost)}" if lost else "")


def candidates(url: str, workers: Iterable[WorkerSpec]) -> list[Candidate]:
    """The workers of the gateway at `url`; `workers`, if it does not answer."""
    try:
        listed = WorkersClient(url, _ANSWER_S).list()
    except UsageError:
        return [
            Candidate(worker.url, worker.model_name if worker.role is Role.DECODE else None)
            for worker in workers
        ]
    return [
        Candidate(worker["url"], worker["decoder"], worker["state"] in READY_STATES)
        for worker in listed
    ]
