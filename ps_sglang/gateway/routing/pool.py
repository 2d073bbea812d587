"""The workers that the gateway knows now, and the decoders that they serve.

The configuration gives the first ones; others join and leave at run time, and so do adapters.
Everything here belongs to the thread of the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker, Worker
from ps_sglang.gateway.errors import ModelNotFound, NoWorker
from ps_sglang.gateway.routing.decoder_state import AdapterSource, DecoderState
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, Decode, Prefill, W, WorkerState
from ps_sglang.worker_info import WorkerInfo


class WorkerPool:
    """The workers by name and by role, in the order in which they joined, and what they serve.

    `key` is the cluster's, with which they are asked.
    Register functions in `joined` and `left` to be called with workers that come and go.
    """

    def __init__(self, workers: Iterable[Worker] = (), key: ClusterKey | None = None) -> None:
        self._key = key
        self.joined: list[Callable[[AnyWorkerState], None]] = []
        self.left: list[Callable[[AnyWorkerState], None]] = []
        self._worker_states: dict[str, AnyWorkerState] = {}
        self._prefill: tuple[Prefill, ...] = ()
        self._decode: tuple[Decode, ...] = ()
        self._served: dict[str, DecoderState] = {}
        self._ever_served: set[str] = set()
        self._retired: set[DecoderState] = set()
        self._versions: dict[str, int] = {}
        for worker in workers:
            self.add(worker)

    def __iter__(self) -> Iterator[AnyWorkerState]:
        return iter((*self._prefill, *self._decode))

    def __len__(self) -> int:
        return len(self._worker_states)

    def requests(self) -> tuple[int, int]:
        """Workers' unfinished requests, and all that the workers here now have had."""
        loads = [worker_state.load for worker_state in self._worker_states.values()]
        return sum(load.requests for load in loads), sum(load.chosen for load in loads)

    def get(self, name: str) -> AnyWorkerState | None:
        """The worker of that name, if there is one."""
        return self._worker_states.get(name)

    @property
    def adapter_workers(self) -> tuple[Decode, ...]:
        """The decode workers that take LoRA decoders."""
        return tuple(one for one in self._decode if one.worker.adapters is not None)

    @property
    def prefill(self) -> tuple[Prefill, ...]:
        """All prefill workers."""
        return self._prefill

    @property
    def decoders(self) -> Mapping[str, DecoderState]:
        """The decoders that have at least one worker, in whatever state, by name."""
        return self._served

    def served(self, decoder: str) -> DecoderState:
        """The decoder of that name; raises ModelNotFound."""
        try:
            return self._served[decoder]
        except KeyError:
            raise ModelNotFound(decoder, self._served) from None

    def has_served(self, decoder: str) -> bool:
        """Whether a decoder of that name is here or was."""
        return decoder in self._ever_served

    def decode(self, decoder: str | None = None) -> tuple[Decode, ...]:
        """The decode workers that serve one decoder, or all of them."""
        if decoder is None:
            return self._decode
        return self._served[decoder].workers if decoder in self._served else ()

    def next_version(self, decoder: str) -> int:
        """A version that no adapter of this decoder has had on any worker."""
        version = self._versions[decoder] = self._versions.get(decoder, 0) + 1
        return version

    def publish(self, served: DecoderState) -> None:
        """New requests for the name go there from now on; what had it before is withdrawn."""
        if (before := self._served.get(served.name)) is not None:
            self._retired.add(before)
        self._served[served.name] = served
        self._ever_served.add(served.name)

    def withdraw(self, served: DecoderState) -> None:
        """No new request goes to the decoder; `forget` it at last."""
        self._retired.add(self._served.pop(served.name))

    def forget(self, served: DecoderState) -> None:
        """A decoder that was withdrawn has no request any more."""
        self._retired.discard(served)

    def withdrawn(self, decoder: str) -> list[DecoderState]:
        """What had that name and is yet to be forgotten."""
        return [served for served in self._retired if served.name == decoder]

    def restarted(self, worker_state: Decode) -> None:
        """The worker has lost the adapters of decoders that were withdrawn."""
        for served in self._retired:
            served.leave(worker_state)

    def add(self, worker: Worker, facts: WorkerInfo | None = None) -> AnyWorkerState:
        """A worker joins, with its WorkerInfo; raises ValueError if its name is taken."""
        if worker.name in self._worker_states:
            raise ValueError(f"there is a worker {worker.name!r} already")
        worker_state: AnyWorkerState
        if isinstance(worker, PrefillWorker):
            worker_state = WorkerState(worker, facts, self._key)
            self._prefill = (*self._prefill, worker_state)
        else:
            worker_state = WorkerState(worker, facts, self._key)
            self._decode = (*self._decode, worker_state)
            self._serve(worker_state)
        self._worker_states[worker.name] = worker_state
        for listener in self.joined:
            listener(worker_state)
        return worker_state

    def remove(self, name: str) -> AnyWorkerState:
        """A worker leaves, whatever it still works on; raises KeyError if there is none."""
        worker_state = self._worker_states.pop(name)
        self._prefill = tuple(one for one in self._prefill if one is not worker_state)
        self._decode = tuple(one for one in self._decode if one is not worker_state)
        if isinstance(worker_state.worker, DecodeWorker):
            self._leave(worker_state, (*self._served.values(), *self._retired))
        for listener in self.left:
            listener(worker_state)
        return worker_state

    def without_adapters(self, worker_state: Decode) -> None:
        """The worker has no adapter, as far as is known."""
        self._leave(worker_state, [one for one in self._served.values() if one.source is not None])

    def _leave(self, worker_state: Decode, decoders: Iterable[DecoderState]) -> None:
        for served in decoders:
            served.leave(worker_state)
        self._served = {name: one for name, one in self._served.items() if one.is_held}

    def _had_version(self, decoder: str, version: int) -> None:
        self._versions[decoder] = max(version, self._versions.get(decoder, 0))

    def _serve(self, worker_state: Decode) -> None:
        worker = worker_state.worker
        decoder = worker.decoder
        self._ever_served.update((decoder, *(one.decoder for one in worker.adapters or ())))
        self._served.setdefault(decoder, DecoderState(decoder)).join(worker_state)
        digests = (worker_state.facts and worker_state.facts.adapters) or {}
        for adapter in worker.adapters or ():
            source = AdapterSource(adapter.path, digests.get(adapter.name))
            self._had_version(adapter.decoder, adapter.version)
            served = self._served.setdefault(adapter.decoder, DecoderState(adapter.decoder, source))
            served.join(worker_state, adapter.name)

    def prefill_candidates(self, tried: Collection[str] = ()) -> Sequence[Prefill]:
        """The prefill workers that a request may go to; raises NoWorker if there is none."""
        return _candidates(self._prefill, tried, "prefill worker")

    def decode_candidates(
        self, served: DecoderState, tried: Collection[str] = ()
    ) -> Sequence[Decode]:
        """The decode workers of a decoder that a request may go to; raises NoWorker."""
        title = f"decode worker of {served.name!r}"
        return _candidates(served.workers, tried, title, served.problems)


def _candidates(
    worker_states: Sequence[WorkerState[W]],
    tried: Collection[str],
    title: str,
    problems: Mapping[WorkerState[W], str] | None = None,
) -> Sequence[WorkerState[W]]:
    """Those that take requests, else broken ones; never one that was tried or cannot be asked.

    `problems` are of workers that are none of them.
    """
    good = [one for one in worker_states if one.takes_requests]
    if tried:
        good = [one for one in good if one.name not in tried]
    if good:
        return good
    left = [one for one in worker_states if one.can_be_asked and one.name not in tried]
    if left:
        return left
    states = [
        f"{one.name} is {'not answering' if one.name in tried else one.state}"
        + (f" ({one.refused})" if one.refused else "")
        for one in worker_states
    ]
    states += [f"{one.name} does not serve it ({text})" for one, text in (problems or {}).items()]
    raise NoWorker(f"No {title} is available: {', '.join(states) or 'there is none'}.")
