"""The LoRA decoders of a worker: registered when it starts or at run time, loaded when asked for.

SGLang keeps at most `--max-loaded-loras` adapters in memory and reads one that it has put out again
at the next request for it. What the launcher gives a worker (settings.ADAPTERS) is registered the
same way, so that hundreds of them cost neither time at the start nor memory. SGLang loads any
tensors that happen to fit: so the contract is checked here, when an adapter is registered, and its
files must not have changed when they are read again (invariant I5).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ps_sglang.contract import AdapterLimits, adapter_digest, check_adapter
from ps_sglang.engine.compat.srt import LoRARef, LoRAUpdateOutput, get_lora, get_model
from ps_sglang.engine.hooking import after, around
from ps_sglang.engine.settings import (
    ADAPTERS,
    ALLOW_UNVERIFIED,
    BASE_FINGERPRINT,
    is_worker,
    model_roots,
)
from ps_sglang.errors import PsSglangError
from ps_sglang.model_roots import refusal
from ps_sglang.worker_info import UNVERIFIED_HEADER, split_adapter_name

Update = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class _Registered:
    folder: str
    digest: str


class _Server:
    """What this process has: `adapters` by the name that `adapter_name` makes, None if it is not
    the server of a worker that takes some. `loading` is held while one is read."""

    adapters: dict[str, _Registered] | None = None
    loading = asyncio.Lock()


def registered() -> dict[str, str] | None:
    """The digest of each adapter's weights by its name; None on a worker that takes none."""
    if _Server.adapters is None:
        return None
    return {name: adapter.digest for name, adapter in _Server.adapters.items()}


def folders() -> dict[str, str]:
    """The folder of each adapter by its name."""
    return {name: adapter.folder for name, adapter in (_Server.adapters or {}).items()}


@after("managers.tokenizer_manager.TokenizerManager.init_lora", "self")
def init_lora(_result: None, manager: Any) -> None:
    """After `TokenizerManager.init_lora`: register the decoders that the worker begins with.

    The launcher has compared them with the base.
    """
    if not (is_worker() and get_lora().enable_lora):
        return
    _Server.adapters = {}
    folders: dict[str, str] = json.loads(os.environ.get(ADAPTERS, "{}"))
    for name, folder in folders.items():
        _Server.adapters[name] = _Registered(folder, adapter_digest(Path(folder)))
        manager.lora_ref_cache[name] = LoRARef(lora_name=name, lora_path=folder, pinned=False)


@around("managers.tokenizer_manager.TokenizerManager.load_lora_adapter", "self", "obj", "_")
async def load_lora_adapter(original: Update, manager: Any, obj: Any, request: Any = None) -> Any:
    """Around `TokenizerManager.load_lora_adapter`: check the contract before anything is read.

    SGLang calls it, too, when it reads an adapter again, and once for each request that waits for
    it: all but the first are told that it is loaded, which SGLang takes as well.
    """
    if (adapters := _Server.adapters) is None:
        return await original(manager, obj, request)
    async with _Server.loading:
        if request is None and obj.lora_name in manager.lora_registry.get_all_adapters():
            message = f"{obj.lora_name} is already loaded"
            return LoRAUpdateOutput(success=False, error_message=message)
        return await _load(original, manager, adapters, obj, request)


async def _load(
    original: Update, manager: Any, adapters: dict[str, _Registered], obj: Any, request: Any
) -> Any:
    headers = {} if request is None else request.headers
    unverified = "1" in (headers.get(UNVERIFIED_HEADER), os.environ.get(ALLOW_UNVERIFIED))
    # In a thread: it reads and digests files, which would hold the event loop.
    try:
        adapter = await asyncio.to_thread(
            _checked, manager, adapters.get(obj.lora_name), obj, unverified
        )
    except (PsSglangError, ValueError) as error:
        return LoRAUpdateOutput(success=False, error_message=str(error))
    output = await original(manager, obj, request)
    if output.success:
        adapters[obj.lora_name] = adapter
    return output


def _checked(
    manager: Any, known: _Registered | None, obj: Any, allow_unverified: bool
) -> _Registered:
    """The adapter that `obj` names; `known` is what the worker has under its name.

    Raises PsSglangError for one that must not be loaded, ValueError for such a name.
    """
    name, folder = obj.lora_name, obj.lora_path
    split_adapter_name(name)
    if known is None:
        problem = refusal(folder, model_roots(Path(get_model().model_path)))
        if problem is not None:
            raise ValueError(problem)
    digest = adapter_digest(Path(folder))
    adapter = _Registered(folder, digest)
    if known is None:
        lora = get_lora()
        check_adapter(
            Path(manager.model_path),
            Path(folder),
            os.environ[BASE_FINGERPRINT],
            allow_unverified=allow_unverified,
            limits=AdapterLimits(
                max_rank=lora.max_lora_rank,
                target_modules=tuple(lora.lora_target_modules),
                tool_call_parser=manager.server_args.tool_call_parser,
                reasoning_parser=manager.server_args.reasoning_parser,
            ),
        )
    elif known != adapter:
        raise ValueError(
            f"the adapter of {name} in {known.folder} is not the one that was added: its weights "
            f"were {known.digest}, in {folder} they are {digest}. Put the files back, or replace "
            "the decoder."
        )
    return adapter


@around("managers.tokenizer_manager.TokenizerManager.unload_lora_adapter", "self", "obj", "_")
async def unload_lora_adapter(original: Update, manager: Any, obj: Any, request: Any = None) -> Any:
    """Around `TokenizerManager.unload_lora_adapter`: forget the adapter, loaded or not.

    SGLang knows none that it has put out of memory, and would load it again if it were asked for.
    """
    if (adapters := _Server.adapters) is None:
        return await original(manager, obj, request)
    name = obj.lora_name
    if name not in adapters:
        known = ", ".join(adapters) or "none"
        message = f"there is no adapter {name!r} on this worker; there are: {known}"
        return LoRAUpdateOutput(success=False, error_message=message)
    manager.lora_ref_cache.pop(name, None)  # from now on a request for it is refused
    loaded = name in manager.lora_registry.get_all_adapters()
    if loaded or name in manager.pending_lora_unloads:
        output = await original(manager, obj, request)
        if not output.success:
            return output
    del adapters[name]
    return LoRAUpdateOutput(success=True)


class _PutOutError(ValueError):
    """The adapter was put out of memory between its loading and its use."""


@around("managers.tokenizer_manager.TokenizerManager._resolve_lora_path", "self", "obj")
async def resolve_lora_path(original: Update, manager: Any, obj: Any) -> None:
    """Around `TokenizerManager._resolve_lora_path`: load again what was put out meanwhile.

    Where more adapters are asked for than memory takes, another request's may take the place of
    this one's before this request has taken it into use.
    """
    while True:
        try:
            await original(manager, obj)
            return
        except _PutOutError:
            if obj.lora_path not in manager.lora_ref_cache:  # it was removed
                raise


@around("lora.lora_registry.LoRARegistry.acquire", "self", "lora_name")
async def acquire(original: Update, registry: Any, lora_name: Any) -> Any:
    """Around `LoRARegistry.acquire`: tell an adapter that is out of memory from other errors."""
    if isinstance(lora_name, str) and lora_name not in registry.get_all_adapters():
        raise _PutOutError(f"the adapter {lora_name} is not loaded, it may just be being removed")
    return await original(registry, lora_name)


@around("lora.lora_registry.LoRARegistry.lru_lora_name", "self", "exclude_pinned")
async def lru_lora_name(original: Update, registry: Any, exclude_pinned: bool = False) -> Any:
    """Around `LoRARegistry.lru_lora_name`: the least recently used adapter that is not in use.

    SGLang waits for all requests of the one that it puts out, and lets nothing load meanwhile.
    """
    for name, adapter in registry.get_all_adapters().items() if is_worker() else ():
        if not registry._counters[adapter.lora_id].value() and not adapter.pinned:
            return name
    return await original(registry, exclude_pinned)
