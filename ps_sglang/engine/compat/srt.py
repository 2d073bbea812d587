"""SGLang internals that the hooks, the tree and the transfer backend build on (0.5.23)."""

from __future__ import annotations

from typing import Any

from sglang.srt.arg_groups.choices import add_disagg_transfer_backend_choices
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.constrained.base_grammar_backend import InvalidGrammarObject
from sglang.srt.disaggregation.base.conn import KVArgs, KVPoll
from sglang.srt.disaggregation.common import conn as bootstrap_clients
from sglang.srt.disaggregation.common.conn import (
    AbortNotification,
    CommonKVBootstrapServer,
    CommonKVManager,
    CommonKVReceiver,
    CommonKVSender,
)
from sglang.srt.disaggregation.kv_events import EventPublisherFactory
from sglang.srt.disaggregation.utils import (
    FAKE_BOOTSTRAP_HOST,
    DisaggregationMode,
    KVClassType,
    TransferBackend,
    prepare_abort,
)
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.sampler import Sampler, multinomial_with_seed, register_sampler_backend
from sglang.srt.lora.backend.base_backend import BaseLoRABackend
from sglang.srt.lora.backend.lora_registry import register_lora_backend
from sglang.srt.lora.lora_registry import LoRARef
from sglang.srt.lora.utils import generate_sequence_lengths
from sglang.srt.managers.io_struct import AbortReq, GenerateReqInput, LoRAUpdateOutput
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISHED_MATCHED_REGEX, Req
from sglang.srt.managers.schedule_policy import CacheAwarePolicy
from sglang.srt.mem_cache.base_prefix_cache import (
    MatchPrefixParams,
    MatchResult,
)
from sglang.srt.mem_cache.common import match_kv_cache
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    create_unified_radix_cache,
    register_radix_cache_backend,
)
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import (
    get_device,
    get_disagg,
    get_exec,
    get_lora,
    get_model,
    get_serving,
)
from sglang.srt.sampling.penaltylib import BatchedMinNewTokensPenalizer
from sglang.srt.sampling.sampling_params import SamplingParams, sre_parse
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.network import NetworkAddress

__all__ = [
    "FAKE_BOOTSTRAP_HOST",
    "FINISHED_MATCHED_REGEX",
    "FINISH_ABORT",
    "HEALTH_CHECK_RID_PREFIX",
    "AbortNotification",
    "AbortReq",
    "BaseLoRABackend",
    "BatchedMinNewTokensPenalizer",
    "CacheAwarePolicy",
    "CommonKVBootstrapServer",
    "CommonKVManager",
    "CommonKVReceiver",
    "CommonKVSender",
    "DisaggregationMode",
    "EventPublisherFactory",
    "GenerateReqInput",
    "HookRegistry",
    "HookType",
    "InvalidGrammarObject",
    "KVArgs",
    "KVClassType",
    "KVPoll",
    "LoRARef",
    "LoRAUpdateOutput",
    "MatchPrefixParams",
    "MatchResult",
    "NetworkAddress",
    "RadixKey",
    "Req",
    "Sampler",
    "SamplingParams",
    "TorchNativeAttnBackend",
    "TransferBackend",
    "TreeCacheBuildContext",
    "UnifiedRadixCache",
    "add_disagg_transfer_backend_choices",
    "add_lora_backend_choices",
    "bootstrap_clients",
    "create_unified_radix_cache",
    "generate_sequence_lengths",
    "get_device",
    "get_disagg",
    "get_exec",
    "get_lora",
    "get_model",
    "get_serving",
    "match_kv_cache",
    "multinomial_with_seed",
    "prepare_abort",
    "register_attention_backend",
    "register_lora_backend",
    "register_radix_cache_backend",
    "register_sampler_backend",
    "server_app",
    "sre_parse",
]


def server_app() -> Any:
    """The ASGI application of SGLang's server; its module stays out of the other processes."""
    from sglang.srt.entrypoints.http_server import app

    return app


def add_lora_backend_choices(names: list[str]) -> None:
    """Let `--lora-backend` take more names; SGLang has such a function for its other back ends."""
    (field,) = ServerArgs.__annotations__["lora_backend"].__metadata__
    field.choices.extend(names)
