"""SGLang classes the plugin builds on: each seam with what it relies on, named when it changes."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sglang.srt.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from sglang.srt.managers.io_struct import (
    AbortReq,
    GenerateReqInput,
    ParseFunctionCallReq,
    SeparateReasoningReqInput,
)
from sglang.srt.managers.load_snapshot import LoadSnapshot
from sglang.srt.sampling.sampling_params import SamplingParams

from ps_sglang.engine.compat import memory, platform, srt
from ps_sglang.gateway.bodies import (
    anthropic_request,
    engine_fields,
    fields,
    responses_request,
)
from ps_sglang.gateway.bodies.validation import UNSUPPORTED
from ps_sglang.gateway.workers.probe import DEFAULT_TIMING
from ps_sglang.launch.environment import fork_server_environment
from ps_sglang.launch.spec import LOOPBACK

RELIED_ON: dict[tuple[Any, str], tuple[str, ...]] = {
    (srt.CommonKVManager, "__init__"): (
        "self", "args", "disaggregation_mode", "server_args", "is_mla_backend",
    ),
    (srt.CommonKVManager, "_room_notify_targets"): ("self", "bootstrap_room"),
    (srt.CommonKVManager, "_connect"): ("self", "endpoint", "is_ipv6"),
    (srt.CommonKVManager, "parse_kv_status_message"): ("self", "msg"),
    (srt.CommonKVManager, "conclude_failure"): (
        "self", "bootstrap_room", "failure_reason", "targets",
    ),
    (srt.CommonKVManager, "build_receiver_registration_message"): ("self",),
    (srt.CommonKVManager, "build_receiver_metadata_message"): (
        "self", "bootstrap_room", "required_dst_info_num", "kv_indices", "aux_index",
        "state_indices", "decode_prefix_len", "is_dummy", "device_kv_indices",
    ),
    (srt.CommonKVSender, "send"): (
        "self", "kv_indices", "state_indices", "num_kv_tokens", "indices_event",
    ),
    (srt.CommonKVReceiver, "send_metadata"): (
        "self", "kv_indices", "aux_index", "state_indices", "decode_prefix_len", "destination",
        "device_kv_indices",
    ),
    (srt.CommonKVReceiver, "_poll"): ("self",),
    (srt.CommonKVReceiver, "_clear"): ("self",),
    (srt.UnifiedRadixCache, "match_prefix"): ("self", "params"),
    (srt.UnifiedRadixCache, "checkpoint"): ("self", "req", "up_to", "kwargs"),
    (srt, "match_kv_cache"): ("req", "tree_cache", "token_ids", "cow_mamba", "max_prefix_len"),
    (srt, "prepare_abort"): ("req", "error_message", "status_code"),
    (srt, "multinomial_with_seed"): ("logprobs", "seed", "positions"),
    (srt.TorchNativeAttnBackend, "_run_sdpa_forward_extend"): (
        "self", "query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices",
        "seq_lens", "extend_prefix_lens", "extend_seq_lens", "encoder_lens", "scaling",
        "enable_gqa", "causal", "is_cross_attn", "sliding_window_size",
    ),
    (srt.TorchNativeAttnBackend, "_run_sdpa_forward_decode"): (
        "self", "query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices",
        "seq_lens", "encoder_lens", "scaling", "enable_gqa", "causal", "is_cross_attn",
        "sliding_window_size",
    ),
    (srt.Sampler, "_sample_from_probs"): (
        "self", "probs", "sampling_info", "positions", "simple_sampling_case",
    ),
    (srt, "register_attention_backend"): ("name",),
    (srt, "register_sampler_backend"): ("backend", "factory"),
    (srt, "register_radix_cache_backend"): ("name", "factory"),
    (srt, "create_unified_radix_cache"): ("ctx", "cache_class"),
    (memory.MHATokenToKVPool, "_create_buffers_normal"): ("self",),
    (memory.MHATokenToKVPool, "_kv_buffer_shapes"): ("self",),
    (platform.SRTPlatform, "get_kv_pool_cls"): ("self", "kind"),
    (platform.SRTPlatform, "get_default_attention_backend"): ("self",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "name"), RELIED_ON, ids=lambda part: getattr(part, "__name__", part)
)
def test_signature(owner: Any, name: str) -> None:
    parameters_now = tuple(inspect.signature(getattr(owner, name)).parameters)
    assert parameters_now == RELIED_ON[owner, name], f"{owner.__name__}.{name} changed"


def test_request_fields() -> None:
    """The hooks read and write these attributes of SGLang's request."""
    source = inspect.getsource(srt.Req)
    for field in (
        "origin_input_ids", "output_ids", "full_untruncated_fill_ids", "extend_end", "prefix_len",
        "cached_tokens", "cached_tokens_device", "cached_tokens_host", "already_computed",
        "skip_radix_cache_insert", "metadata_buffer_index", "pending_bootstrap", "to_finish",
        "reasoning_tokens", "_is_reasoning_over", "_think_end_match_len", "_think_start_match_len",
        "disagg_decode_prefix_len", "decode_batch_idx", "hidden_states_tensor", "grammar",
        "return_sampling_mask",
    ):  # fmt: skip
        assert f"self.{field}" in source, f"Req.{field} is gone"


def annotated(kind: type) -> set[str]:
    """The fields of a request that a client can send; SGLang's private ones begin with `_`."""
    fields = {name for one in kind.__mro__ for name in vars(one).get("__annotations__", ())}
    return {name for name in fields if not name.startswith(("_", "model_"))}


# Filled by SGLang itself.
INTERNAL = {
    "stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len", "is_normalized",
    "ebnf_full_assistant",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "table", "elsewhere"),
    [
        (CompletionRequest, fields.COMPLETIONS, {"model", "session_id"}),
        (ChatCompletionRequest, fields.CHAT, {"model", "session_id"}),
        (GenerateReqInput, fields.GENERATE, {"session_id"}),
        (SamplingParams, fields.SAMPLING_PARAMS, INTERNAL),
        (TokenizeRequest, engine_fields.TOKENIZE, {"model"}),
        (DetokenizeRequest, engine_fields.DETOKENIZE, {"model"}),
        (ParseFunctionCallReq, engine_fields.PARSE_FUNCTION_CALL, {"rid"}),
        (SeparateReasoningReqInput, engine_fields.SEPARATE_REASONING, {"rid"}),
        (AbortReq, engine_fields.ABORT, {"finished_reason", "abort_message", "weight_versions"}),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_the_gateway_checks_every_field(
    kind: type, table: dict[str, Any], elsewhere: set[str]
) -> None:
    """A field that SGLang gains must get a check, or a reason to refuse it."""
    annotations = annotated(kind)
    assert not annotations - table.keys() - UNSUPPORTED.keys() - elsewhere
    # `reasoning` is read before SGLang makes its request of the body.
    assert not table.keys() - annotations - {"reasoning"}


def test_the_gateway_knows_what_loads_tell() -> None:
    assert set(engine_fields.LOAD_SECTIONS) == LoadSnapshot.VALID_SECTIONS


@pytest.mark.parametrize(
    ("kind", "module", "elsewhere"),
    [
        (AnthropicMessagesRequest, anthropic_request, {"messages"}),
        # Its id is the gateway's to give.
        (ResponsesRequest, responses_request, {"request_id"}),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_the_gateway_knows_every_field_of_translated_requests(
    kind: type, module: Any, elsewhere: set[str]
) -> None:
    known = {*module.FIELDS, *module.SAME, *module.UNSUPPORTED, *module.UNUSED}
    assert not annotated(kind) - known - UNSUPPORTED.keys() - elsewhere


def test_a_worker_is_unhealthy_no_sooner_than_the_gateway_gives_it_up(tmp_path: Path) -> None:
    """Else it breaks for new requests with one long step, in which it is well."""
    name = "SGLANG_HEALTH_CHECK_TIMEOUT"
    server = find_spec("sglang.srt.entrypoints.http_server")
    assert server is not None
    assert server.origin is not None
    assert f'os.getenv("{name}"' in Path(server.origin).read_text()
    variables = fork_server_environment({}, tmp_path, "LlamaForCausalLM", LOOPBACK, cpu=True)
    assert float(variables[name]) == DEFAULT_TIMING.engine_silence
