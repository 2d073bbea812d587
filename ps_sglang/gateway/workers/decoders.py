"""LoRA decoders come, go and are replaced while requests run; all adapter workers get the same.

To the workers a new version is another adapter. It is loaded beside the old one, then new requests
go to it, and the old one is unloaded when its last request has ended: no request meets an adapter
that is gone. While adapters of a worker change, a restart of it has to wait, and the other way
round (`WorkerState.changing`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

import aiohttp

from ps_sglang.gateway.errors import DecoderRefused, GatewayError, NoWorker, WorkerUnreachable
from ps_sglang.gateway.routing.decoder_state import AdapterSource, DecoderState
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, Decode
from ps_sglang.gateway.workers import adapters
from ps_sglang.worker_info import WorkerInfo, adapter_name

log = logging.getLogger("ps_sglang.gateway")


class DecoderChanges:
    """Loads and unloads the adapters of a pool's workers, and tells the pool who serves them."""

    def __init__(self, http: aiohttp.ClientSession, pool: WorkerPool) -> None:
        self._http = http
        self._pool = pool

    async def serve(self, name: str, source: AdapterSource) -> DecoderState:
        """Have all adapter workers load a decoder, and new requests for `name` go to it.

        If one refuses, or cannot be asked, nothing has changed: raises its GatewayError.
        """
        lora_name = adapter_name(name, self._pool.next_version(name))
        workers = self._pool.adapter_workers
        async with AsyncExitStack() as stack:
            for worker_state in workers:
                await stack.enter_async_context(worker_state.changing)
            # One that is just restarting loads it before it gets a request, see `restore`.
            processes = {
                one: one.incarnation
                for one in workers
                if self._is_here(one) and not (one.unheard or one.refused)
            }
            source.digest = await self._load(processes, lora_name, source)
            served = DecoderState(name, source)
            for worker_state in filter(self._is_here, workers):
                served.join(worker_state, lora_name)
            self._pool.publish(served)
        log.info("decoder %s is %s, as %s", name, source.path, lora_name)
        return served

    async def retire(self, served: DecoderState) -> None:
        """Unload a decoder that gets no new requests, when its last one has ended."""
        await served.requests.wait_idle()
        await asyncio.gather(*(self._retire(served, one) for one in list(served.lora_names)))
        self._pool.forget(served)

    async def restore(self, worker_state: AnyWorkerState, facts: WorkerInfo) -> None:
        """Bring a new process of a worker to the adapters that the worker should have.

        A decoder that this cannot be done for is not asked of the worker, see
        `DecoderState.problems`. Raises GatewayError if the process cannot be asked.
        """
        worker = next((one for one in self._pool.adapter_workers if one is worker_state), None)
        if worker is None:
            return
        here = facts.adapters or {}
        async with worker.changing:
            self._pool.restarted(worker)
            wanted = {
                served.lora_names[worker]: served
                for served in self._pool.decoders.values()
                if worker in served.lora_names
            }
            for name, served in wanted.items():
                problem = await self._restore(worker, facts.incarnation, served, here.get(name))
                served.judge(worker, problem)
                if problem is not None:
                    log.warning("%s serves no %s: %s", worker.worker.title, served.name, problem)
            for name in here.keys() - wanted.keys():
                await self._unload(worker, name, facts.incarnation)

    async def _restore(
        self, worker_state: Decode, incarnation: str, served: DecoderState, digest: str | None
    ) -> str | None:
        """Why the process cannot serve the decoder, of which it has the `digest`, if it cannot."""
        source, name = served.source, served.lora_names[worker_state]
        assert source is not None, "only adapters have names on workers"
        if digest is None:
            try:
                digest = await adapters.load(self._http, worker_state, name, source, incarnation)
            except DecoderRefused as error:
                return error.message
        if source.digest is None:
            source.digest = digest
        if digest != source.digest:
            return (
                f"it has other weights, {digest} instead of {source.digest}: give the worker those "
                "that it had and restart it, or replace the decoder"
            )
        return None

    async def _load(
        self, processes: Mapping[Decode, str | None], name: str, source: AdapterSource
    ) -> str:
        """Load an adapter everywhere or nowhere; returns the digest of its weights."""
        if not processes:
            states = ", ".join(f"{one.name} is {one.state}" for one in self._pool.adapter_workers)
            raise NoWorker(f"No worker can load an adapter now: {states}.")
        outcomes = await asyncio.gather(
            *(
                adapters.load(self._http, worker_state, name, source, incarnation)
                for worker_state, incarnation in processes.items()
            ),
            return_exceptions=True,
        )
        failures = [one for one in outcomes if isinstance(one, BaseException)]
        digests = [one for one in outcomes if isinstance(one, str)]
        if not failures and len(set(digests)) == 1:
            return digests[0]
        await self._unload_loaded(processes, outcomes, name)
        if failures:
            raise _with_mend(failures[0])
        titles = ", ".join(
            f"{worker_state.name} {digest}"
            for worker_state, digest in zip(processes, digests, strict=True)
        )
        raise DecoderRefused(
            f"{source.path} holds other weights on one worker's machine than on another's: {titles}"
        )

    async def _unload_loaded(
        self,
        processes: Mapping[Decode, str | None],
        outcomes: Iterable[str | BaseException],
        name: str,
    ) -> None:
        for (worker_state, incarnation), outcome in zip(processes.items(), outcomes, strict=True):
            if not isinstance(outcome, DecoderRefused):
                await self._unload(worker_state, name, incarnation)

    async def _retire(self, served: DecoderState, worker_state: Decode) -> None:
        async with worker_state.changing:
            # A restart, or its leaving, may have come before.
            if (name := served.lora_names.get(worker_state)) is not None:
                await self._unload(worker_state, name, worker_state.incarnation)

    async def _unload(self, worker_state: Decode, name: str, incarnation: str | None) -> None:
        try:
            await adapters.unload(self._http, worker_state, name, incarnation)
        except GatewayError as error:
            # No request names it any more, and a restart of the worker clears it away.
            log.warning("%s was not unloaded: %s", name, error.message)

    def _is_here(self, worker_state: Decode) -> bool:
        return self._pool.get(worker_state.name) is worker_state


def _with_mend(error: BaseException) -> BaseException:
    if not isinstance(error, WorkerUnreachable):
        return error
    problem = error.message.rstrip(".")
    return GatewayError(
        f"{problem}. Nothing has changed: try again when it is back, or have it leave "
        f"(`ps-sglang workers remove {error.worker.name}`).",
        status=error.status,
        code=error.code,
    )
