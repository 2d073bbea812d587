"""What each field of SGLang's `GenerateReqInput` may hold on a worker of this project.

All of its fields stand here, so that a field of a newer SGLang is noticed (tests/engine).
"""

from __future__ import annotations

from typing import Any, Final

from ps_sglang.engine.guard import sampling
from ps_sglang.engine.guard.checks import (
    BOOLEAN,
    INT64,
    Check,
    Integer,
    ListOf,
    Number,
    OneOf,
    Optional,
    Text,
    refuse,
)

_NAME: Final = Optional(Text(512))
_SALT: Final = Optional(Text(4096))
_FLAG: Final = Optional(BOOLEAN)
MOST_SAMPLES: Final = 1024
"""Prompts times `n` of one request to a worker."""

# Multimodal input, sessions, scoring and SGLang's own plumbing: a decoder on a shared base has no
# use for them, and several of them end a scheduler that was not started for them.
NOT_SERVED: Final = (
    "input_embeds", "image_data", "video_data", "audio_data", "mm_hashes", "mm_content_hashes",
    "use_audio_in_video", "video_config", "watermark", "return_routed_experts",
    "routed_experts_start_len", "return_indexer_topk", "modalities", "session_params", "lora_id",
    "positional_embed_overrides", "bootstrap_pair_key", "decode_tp_size", "disagg_prefill_dp_rank",
    "http_worker_ipc", "return_bytes", "return_entropy", "external_trace_header",
    "need_wait_for_mm_inputs", "num_items_assigned", "encoder_urls", "max_dynamic_patch",
    "min_dynamic_patch", "image_max_dynamic_patch", "video_max_dynamic_patch", "images_config",
    "mm_processor_kwargs", "multi_item_delimiter_indices", "token_indices_to_pool", "kv_hints",
    "return_flat_raw_top_logprobs", "return_flat_raw_output_top_logprobs",
    "return_flat_raw_top_logprobs_b64",
)  # fmt: skip

# Of one prompt, after SGLang has split a batch and filled in defaults.
CHECKS: Final[dict[str, Check]] = {
    "rid": Text(512, 1),
    "session_id": _NAME,
    "text": Optional(lambda field, value: Text(INT64)(field, value)),
    "return_logprob": _FLAG,
    "logprob_start_len": Optional(Integer(-1, INT64)),
    # A decode worker refuses it in its scheduler, where the prefill worker does not hear of it.
    "return_sampling_mask": Optional(OneOf((False,))),
    "sampling_logprobs_mode": Optional(OneOf(("selected", "support"))),
    "return_text_in_logprobs": _FLAG,
    "stream": _FLAG,
    "log_metrics": _FLAG,
    "return_hidden_states": OneOf((False, True, "last")),
    "lora_path": _NAME,
    "custom_logit_processor": Optional(Text(65_536)),
    "bootstrap_host": Optional(Text(255, 1)),
    "bootstrap_port": Optional(Integer(1, 65_535)),
    "bootstrap_room": Optional(Integer(0, INT64)),
    "routed_dp_rank": Optional(Integer(0, INT64)),
    "data_parallel_rank": Optional(Integer(0, INT64)),
    "routing_key": _NAME,
    "conversation_id": _NAME,
    "background": _FLAG,
    "require_reasoning": _FLAG,
    "max_thinking_tokens": Optional(Integer(0, INT64)),
    "priority": Optional(Integer(-INT64 - 1, INT64)),
    "extra_key": _SALT,
    "cache_salt": _SALT,
    "no_logs": _FLAG,
    "custom_labels": Optional(lambda field, value: None),  # see check_labels
    "return_prompt_token_ids": _FLAG,
    "received_time": Optional(Number(0, INT64)),
}
# Whose range is the model's.
OF_THE_MODEL: Final = ("input_ids", "sampling_params", "top_logprobs_num", "token_ids_logprob")


def check_shape(obj: Any) -> None:
    """Before SGLang splits a request into prompts: what is not served, and how many there are.

    Raises ValueError, which names the field.
    """
    defaults = type(obj).__dataclass_fields__
    for name in NOT_SERVED:
        value, default = getattr(obj, name), defaults[name].default
        # The chat route gives `modalities` an empty list.
        if value is not None and value is not default and (name, value) != ("modalities", []):
            refuse(name, "left out, as this worker does not serve it", value)
    params = obj.sampling_params
    every = params if isinstance(params, list) else [params]
    for item in every:
        if item is not None and not isinstance(item, dict):
            refuse("sampling_params", "an object, or a list with one for each prompt", params)
    counts = {(item or {}).get("n") or 1 for item in every} or {1}
    for count in counts:
        Integer(1, MOST_SAMPLES)("n", count)
    prompts = obj.text if obj.text is not None else obj.input_ids
    if obj.text == []:
        refuse("text", "a text, or a list with one at least", prompts)
    batch = isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], str | list)
    samples = (len(prompts) if batch else 1) * max(counts)
    if samples > MOST_SAMPLES:
        raise ValueError(
            f"the request asks for {samples} samples (prompts times `n`); "
            f"a worker takes {MOST_SAMPLES} at once."
        )
    if isinstance(params, list) and len(params) != (len(prompts) if batch else 1):
        refuse("sampling_params", "a list with one object for each prompt", params)


def check_sample(obj: Any, input_ids: Any, vocabulary: int) -> None:
    """One prompt of a request, against a model of `vocabulary` token ids.

    Raises ValueError, which names the field, what it must be and what it is.
    """
    for name, check in CHECKS.items():
        check(name, getattr(obj, name))
    check_ids("input_ids", input_ids, vocabulary)
    Optional(Integer(0, vocabulary))("top_logprobs_num", obj.top_logprobs_num)
    token = Integer(0, vocabulary - 1)
    Optional(ListOf(token, vocabulary))("token_ids_logprob", obj.token_ids_logprob)
    if not isinstance(obj.sampling_params, dict):
        refuse("sampling_params", "an object", obj.sampling_params)
    sampling.check(obj.sampling_params, vocabulary)


def check_ids(field: str, ids: Any, vocabulary: int) -> None:
    """Refuse token ids that the model has no embedding for (ValueError)."""
    if not ids:
        raise ValueError(f"`{field}` is empty: the prompt must have one token at least.")
    if min(ids) < 0 or max(ids) >= vocabulary:
        index, token = next(
            (index, token) for index, token in enumerate(ids) if not 0 <= token < vocabulary
        )
        raise ValueError(
            f"`{field}[{index}]` must be a token id from 0 to {vocabulary - 1} (the model's "
            f"vocabulary), not {token}. A text gives such an id if the tokenizer has tokens that "
            "the model lacks."
        )


def check_labels(labels: Any, metric_labels: Any) -> None:
    """Refuse labels that the worker's metrics were not made with (ValueError)."""
    if labels is None:
        return
    if not isinstance(labels, dict) or not set(labels) <= set(metric_labels):
        refuse("custom_labels", f"left out, or of the labels {sorted(metric_labels)}", labels)
    for name, value in labels.items():
        Text(512)(f"custom_labels[{name}]", value)
