"""What the gateway asks of one adapter worker: to load a LoRA decoder, and to unload it.

The worker compares an adapter with its base before it loads anything, and refuses a misfit by name.
"""

from __future__ import annotations

from typing import Any, Final

import aiohttp

from ps_sglang.gateway.errors import (
    DecoderRefused,
    GatewayBusy,
    GatewayError,
    OtherProcess,
    WorkerUnreachable,
    engine_error,
    reaching,
    require_process,
)
from ps_sglang.gateway.routing.decoder_state import AdapterSource
from ps_sglang.gateway.routing.worker_state import Decode
from ps_sglang.gateway.workers import admission
from ps_sglang.worker_info import HEADER, UNVERIFIED_HEADER

LOAD_SECONDS: Final = 300.0
"""Ends a hang: an adapter is read in a second, and other changes of the worker wait for it."""


async def load(
    http: aiohttp.ClientSession,
    worker_state: Decode,
    name: str,
    source: AdapterSource,
    incarnation: str | None,
) -> str:
    """Have a process load an adapter under SGLang's `name`; returns the digest of its weights.

    Raises DecoderRefused, or another GatewayError if the worker cannot be asked.
    """
    unverified = {UNVERIFIED_HEADER: "1"} if source.allow_unverified else {}
    body = {"lora_name": name, "lora_path": source.path}
    await _post(http, worker_state, "/load_lora_adapter", body, incarnation, unverified)
    digest = (await _digests(http, worker_state, incarnation)).get(name)
    if digest is None:
        title = worker_state.worker.title
        raise DecoderRefused(f"{title} does not name {name} among its adapters", status=502)
    return digest


async def unload(
    http: aiohttp.ClientSession, worker_state: Decode, name: str, incarnation: str | None
) -> None:
    """Have a process forget an adapter; returns when its requests with it have ended.

    Raises DecoderRefused, or another GatewayError if the worker cannot be asked.
    """
    await _post(http, worker_state, "/unload_lora_adapter", {"lora_name": name}, incarnation, {})


async def _digests(
    http: aiohttp.ClientSession, worker_state: Decode, incarnation: str | None
) -> dict[str, str]:
    try:
        facts = await admission.ask(http, worker_state.worker.url, worker_state.key)
    except GatewayBusy:
        raise
    except GatewayError as error:
        raise WorkerUnreachable(worker_state.worker, error.message) from error
    if facts is None or facts.incarnation != incarnation:
        raise OtherProcess(worker_state.worker)
    return facts.adapters or {}


async def _post(
    http: aiohttp.ClientSession,
    worker_state: Decode,
    path: str,
    body: dict[str, Any],
    incarnation: str | None,
    headers: dict[str, str],
) -> None:
    worker = worker_state.worker
    if incarnation is not None:
        headers = {**headers, HEADER: incarnation}
        if worker_state.key is not None:
            headers |= worker_state.key.request_headers(incarnation)
    deadline = aiohttp.ClientTimeout(total=LOAD_SECONDS)
    with reaching(worker):
        async with http.post(
            worker.url + path, json=body, headers=headers, timeout=deadline
        ) as response:
            require_process(worker, incarnation, response.headers.get(HEADER))
            content = await response.read()
    if response.status != 200:
        problem = engine_error(response.status, content)
        status = 409 if response.status == 400 else 502
        raise DecoderRefused(f"{worker.title}: {problem.message}", status=status)
