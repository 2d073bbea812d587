"""Every place in SGLang that the plugin hooks, in one list, with what it was written for."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ps_sglang.engine import attention, facts, feed, swap, timeline, waiting
from ps_sglang.engine.compat.srt import HookRegistry, HookType
from ps_sglang.engine.handoff import base_prefix, decode, prefill, priority
from ps_sglang.engine.sampling import murmur, seeds
from ps_sglang.engine.transfer import backend, serving

_SRT = "sglang.srt."
_DECODE = _SRT + "disaggregation.decode."
_PREBUILT = (
    _SRT + "disaggregation.decode_schedule_batch_mixin.ScheduleBatchDisaggregationDecodeMixin."
)
_SCHEDULER = _SRT + "managers.scheduler.Scheduler."


@dataclass(frozen=True)
class Hook:
    """One hooked function of SGLang.

    Attributes:
        target: dotted name, as ``HookRegistry`` takes it.
        kind: how the hook is applied.
        function: the hook (or the class that replaces a class).
        parameters: names of the target's parameters that the hook was written for.
    """

    target: str
    kind: HookType
    function: Callable[..., Any]
    parameters: tuple[str, ...]


HOOKS: tuple[Hook, ...] = (
    # Transfer backend zmq.
    Hook(
        _SRT + "disaggregation.utils.TransferBackend", HookType.REPLACE,
        backend.ExtendedTransferBackend, (),
    ),
    Hook(
        _SRT + "disaggregation.utils.get_kv_class", HookType.AROUND,
        backend.get_kv_class, ("transfer_backend", "class_type"),
    ),
    Hook(
        _SRT + "utils.network.get_zmq_socket_on_host", HookType.AROUND,
        serving.get_zmq_socket_on_host, ("context", "socket_type", "host", "restrict_peers"),
    ),
    # Both roles: the base prefix of a request.
    Hook(
        _SCHEDULER + "_create_generation_req", HookType.AROUND,
        base_prefix.create_generation_req, ("self", "recv_req", "args", "kwargs"),
    ),
    # Prefill worker.
    Hook(
        _SRT + "disaggregation.prefill.PrefillBootstrapQueue.create_sender", HookType.AROUND,
        prefill.create_sender, ("self", "req", "num_kv_heads"),
    ),
    Hook(
        _SRT + "disaggregation.prefill.PrefillBootstrapQueue.pop_bootstrapped", HookType.AROUND,
        prefill.pop_bootstrapped, ("self",),
    ),
    Hook(
        _SRT + "disaggregation.prefill.SchedulerDisaggregationPrefillMixin."
        "process_batch_result_disagg_prefill", HookType.AROUND,
        prefill.process_batch_result, ("self", "batch", "result"),
    ),
    Hook(
        _SCHEDULER + "get_new_batch_prefill", HookType.AROUND,
        prefill.get_new_batch_prefill, ("self", "running_batch"),
    ),
    Hook(
        _SRT + "managers.schedule_policy.SchedulePolicy.calc_priority", HookType.AFTER,
        priority.calc_priority, ("self", "waiting_queue", "running_batch", "processed_tokens"),
    ),
    # Decode worker, in the order of a request's life.
    Hook(
        _DECODE + "DecodePreallocQueue.add", HookType.AROUND,
        decode.add, ("self", "req", "is_retracted", "is_rebootstrap"),
    ),
    Hook(
        _DECODE + "DecodePreallocQueue.pop_preallocated", HookType.AROUND,
        priority.pop_preallocated, ("self", "rids_to_check", "pp_good_rids", "pp_bad_rids"),
    ),
    Hook(
        _DECODE + "DecodePreallocQueue._pre_alloc_fill_len", HookType.AROUND,
        decode.pre_alloc_fill_len, ("req",),
    ),
    Hook(
        _DECODE + "DecodePreallocQueue._rebootstrap_prefill_len", HookType.AROUND,
        decode.prefill_len, ("req",),
    ),
    Hook(
        _DECODE + "DecodePreallocQueue._required_admission_tokens", HookType.AROUND,
        decode.required_admission_tokens,
        ("self", "req", "allocated_tokens", "prefix_len", "retractable_tokens"),
    ),
    Hook(
        _DECODE + "DecodePreallocQueue._send_kv_metadata", HookType.AROUND,
        decode.send_kv_metadata,
        ("self", "decode_req", "kv_indices", "page_size", "state_indices", "metadata_kwargs"),
    ),
    Hook(
        _DECODE + "DecodeTransferQueue._commit_transfer_to_req", HookType.AROUND,
        decode.commit_transfer, ("self", "decode_req"),
    ),
    Hook(
        _PREBUILT + "prepare_for_prebuilt", HookType.AROUND,
        decode.prepare_for_prebuilt, ("self",),
    ),
    Hook(
        _PREBUILT + "process_prebuilt", HookType.AROUND,
        decode.process_prebuilt, ("self", "future_map"),
    ),
    Hook(
        _SRT + "managers.scheduler_components.batch_result_processor."
        "SchedulerBatchResultProcessor.process_batch_result_prebuilt", HookType.AROUND,
        decode.process_batch_result_prebuilt, ("self", "batch"),
    ),
    Hook(
        _SRT + "managers.schedule_batch.ScheduleBatch.cumulate_penalty_output_tokens",
        HookType.AROUND, decode.cumulate_penalty_output_tokens, ("self",),
    ),
    Hook(
        _SRT + "mem_cache.common.release_kv_cache", HookType.AROUND,
        decode.release_kv_cache, ("req", "tree_cache", "checkpoint"),
    ),
    # Seeds, on every worker that samples.
    Hook(
        _SRT + "sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch",
        HookType.AFTER, seeds.from_schedule_batch, ("batch", "vocab_size"),
    ),
    Hook(
        _SRT + "layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch", HookType.AROUND,
        seeds.sample_from_filtered_probs,
        (
            "probs", "top_ks", "top_ps", "min_ps", "need_min_p_sampling", "sampling_seed",
            "positions", "return_filtered_probs", "max_top_k",
        ),
    ),
    Hook(
        "sglang.kernels.ops.sampling.murmur_hash.murmur_hash32", HookType.AROUND,
        murmur.murmur_hash32, ("seed", "positions", "col_indices"),
    ),
    # The feed: KV events, hints about conversations, timelines.
    Hook(
        _SCHEDULER + "init_kv_events_publisher", HookType.AFTER,
        feed.init_kv_events_publisher, ("self",),
    ),
    Hook(
        _SCHEDULER + "_poll_timeout_aborts", HookType.AFTER, feed.poll_timeout_aborts, ("self",),
    ),
    Hook(
        _SCHEDULER + "process_input_requests", HookType.AROUND,
        feed.process_input_requests, ("self", "recv_reqs"),
    ),
    Hook(
        _SRT + "disaggregation.prefill.SchedulerDisaggregationPrefillMixin."
        "process_disagg_prefill_inflight_queue", HookType.AFTER,
        timeline.process_disagg_prefill_inflight_queue, ("self", "rids_to_check"),
    ),
    Hook(
        _SRT + "managers.scheduler_components.batch_result_processor."
        "SchedulerBatchResultProcessor.process_batch_result_decode", HookType.AFTER,
        timeline.process_batch_result_decode, ("self", "batch", "result"),
    ),
    # A worker in an elastic cluster: who it is, and new weights for it.
    Hook(_SCHEDULER + "get_init_info", HookType.AFTER, facts.get_init_info, ("self",)),
    Hook(
        _SRT + "entrypoints.http_server._setup_and_run_http_server", HookType.BEFORE,
        facts.setup_and_run_http_server,
        (
            "server_args", "tokenizer_manager", "template_manager", "port_args",
            "scheduler_infos", "subprocess_watchdog", "execute_warmup_func", "launch_callback",
        ),
    ),
    Hook(
        _SRT + "utils.common.build_server_info", HookType.AFTER,
        facts.build_server_info, ("server_args", "scheduler_info"),
    ),
    Hook(
        _SRT + "managers.tokenizer_manager.TokenizerManager.update_weights_from_disk",
        HookType.AROUND, swap.update_weights_from_disk, ("self", "obj", "request"),
    ),
    Hook(
        _SRT + "managers.tokenizer_manager.TokenizerManager._update_model_path_info",
        HookType.AROUND, swap.update_model_path_info, ("self", "model_path", "load_format"),
    ),
    # The portable CPU platform's attention.
    Hook(
        _SRT + "layers.attention.torch_native_backend.TorchNativeAttnBackend."
        "_run_sdpa_forward_extend", HookType.AROUND,
        attention.run_sdpa_forward_extend,
        (
            "self", "query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices",
            "seq_lens", "extend_prefix_lens", "extend_seq_lens", "encoder_lens", "scaling",
            "enable_gqa", "causal", "is_cross_attn", "sliding_window_size",
        ),
    ),
    Hook(
        _SRT + "layers.attention.torch_native_backend.TorchNativeAttnBackend."
        "_run_sdpa_forward_decode", HookType.AROUND,
        attention.run_sdpa_forward_decode,
        (
            "self", "query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices",
            "seq_lens", "encoder_lens", "scaling", "enable_gqa", "causal", "is_cross_attn",
            "sliding_window_size",
        ),
    ),
    # Waiting.
    Hook(
        _SRT + "disaggregation.common.conn.CommonKVManager.update_status", HookType.AFTER,
        waiting.ring, ("self", "bootstrap_room", "status"),
    ),
    Hook(_SCHEDULER + "init_idle_sleeper", HookType.AFTER, waiting.init_idle_sleeper, ("self",)),
    Hook(_SCHEDULER + "on_idle", HookType.AFTER, waiting.on_idle, ("self",)),
)  # fmt: skip


def misfits(hooks: Sequence[Hook] = HOOKS) -> list[str]:
    """What changed in SGLang's hooked functions, one sentence each; empty if nothing did."""
    return [text for hook in hooks if (text := _misfit(hook)) is not None]


def _misfit(hook: Hook) -> str | None:
    try:
        target = pkgutil.resolve_name(hook.target)
    except (ImportError, AttributeError) as error:
        return f"{hook.target} is gone ({error})"
    if isinstance(target, type):
        return None
    found = tuple(inspect.signature(target).parameters)
    if found != hook.parameters:
        return f"{hook.target} takes {found}, the hook was written for {hook.parameters}"
    return None


def install() -> None:
    """Hand every hook to SGLang's registry.

    Raises:
        SystemExit: a hooked function is not the one that its hook was written for.
    """
    changed = misfits()
    if changed:
        raise SystemExit("ps_sglang cannot hook this SGLang: " + "; ".join(changed))
    for hook in HOOKS:
        HookRegistry.register(hook.target, hook.function, hook.kind)
