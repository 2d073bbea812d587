"""New weights for a running decode worker, whose cache stays valid.

A decode worker's tree holds the base's KV only (I2), so another decoder of the same base finds
every prefix warm. SGLang loads the weights in place, after all requests of the worker have ended
and before the next begins. It does not look at them first: it would load any tensors that happen to
fit. So the contract is checked here, before anything is read into memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ps_sglang.contract import check_replacement
from ps_sglang.contract.tensors import weight_files
from ps_sglang.engine.compat.srt import DisaggregationMode, get_model
from ps_sglang.engine.hooking import around
from ps_sglang.engine.settings import ALLOW_UNVERIFIED, BASE_FINGERPRINT, model_roots
from ps_sglang.engine.worker_info import serves
from ps_sglang.errors import PsSglangError
from ps_sglang.model_roots import refusal

log = logging.getLogger(__name__)

Answer = tuple[bool, str, int]
"""Whether it succeeded, the message, and how many requests were paused for it."""

_PREFILL_IS_FIXED = (
    "a prefill worker's weights are the base's, and every page in the cluster was computed with "
    "them: start a cluster for the other base"
)
_BROKE_OFF = "Failed to update weights"
"""How the message begins if some weights had been replaced (0.5.23)."""
_NO_FINGERPRINT = (
    f"the worker does not know its base: start it with {BASE_FINGERPRINT} in its environment"
)


@around(
    "managers.tokenizer_manager.TokenizerManager.update_weights_from_disk",
    "self", "obj", "request",
)  # fmt: skip
async def update_weights_from_disk(
    original: Callable[..., Awaitable[Answer]], manager: Any, obj: Any, request: Any = None
) -> Answer:
    """Around `TokenizerManager.update_weights_from_disk`: check the contract, keep the cache."""
    mode = manager.config_value("disaggregation_mode")
    if mode == DisaggregationMode.NULL.value:
        return await original(manager, obj, request)
    if mode == DisaggregationMode.PREFILL.value:
        return False, _PREFILL_IS_FIXED, 0
    # In a thread: it reads a tokenizer and every tensor's header, which would hold the event loop.
    problem = await asyncio.to_thread(_problem, Path(manager.model_path), Path(obj.model_path))
    if problem is not None:
        return False, problem, 0
    obj.flush_cache = False
    succeeded, message, paused = await original(manager, obj, request)
    if not succeeded and message.startswith(_BROKE_OFF):
        # SGLang then loads the same checkpoint again, from its first tensor on, and calls it a
        # roll-back. As when its scheduler dies: a worker with unknown weights must not answer.
        log.critical("ending this worker, its weights are unknown: %s", message)
        os.kill(os.getpid(), signal.SIGQUIT)
    if succeeded:
        await asyncio.to_thread(serves, Path(obj.model_path))
    return succeeded, message, paused


@around(
    "managers.tokenizer_manager.TokenizerManager._update_model_path_info",
    "self", "model_path", "load_format",
)  # fmt: skip
def update_model_path_info(
    original: Callable[..., None], manager: Any, model_path: str, load_format: str
) -> None:
    """Around `TokenizerManager._update_model_path_info`: the decoder keeps its name.

    SGLang calls the server by the new checkpoint's path; clients know the decoder's name.
    """
    name = manager.served_model_name
    original(manager, model_path, load_format)
    manager.served_model_name = name


def _problem(current: Path, replacement: Path) -> str | None:
    """Why `replacement` may not be loaded, if it may not."""
    roots = model_roots(Path(get_model().model_path))
    if (problem := refusal(str(replacement), roots)) is not None:
        return problem
    fingerprint = os.environ.get(BASE_FINGERPRINT)
    if not fingerprint:
        return _NO_FINGERPRINT
    unverified = os.environ.get(ALLOW_UNVERIFIED) == "1"
    try:
        check_replacement(current, replacement, fingerprint, allow_unverified=unverified)
    except PsSglangError as error:
        return str(error)
    return next(filter(None, map(_damage, weight_files(replacement))), None)


def _damage(file: Path) -> str | None:
    """Why SGLang would stop in the middle of `file`, if it would."""
    try:
        with safe_open(file, framework="np"):  # checks every item of its header
            return None
    except SafetensorError as error:
        return f"{file} is damaged: {error}"
