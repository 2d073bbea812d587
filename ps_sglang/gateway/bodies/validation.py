"""What the gateway refuses before any worker hears of the request, beyond single values.

Prompts of every form, and the features that a disaggregated engine of text models does not have:
these are refused by name, unless the field asks for what is done anyway. The checks of all other
fields stand in `fields`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from ps_sglang.gateway.bodies.checks import Body, Limits, check_ids, kind
from ps_sglang.gateway.bodies.reading import MOST_LEVELS, deeper_than
from ps_sglang.gateway.errors import BadRequest

PRIORITIES = range(-(2**31), 2**31)
MAX_MESSAGES = 8192  # with the parts of their contents; a chat template takes its time for each
MAX_SAMPLES = 2048  # prompts times n of one request; OpenAI's limit on prompts

_ROUTING = "is set by the gateway, not by clients"
_NO_LORA = "is not for clients: `model` chooses the decoder, a whole model or an adapter"
_NO_MEDIA = "is not supported: this gateway serves text models"
_NO_PROMPT_LOGPROBS = (
    "asks for logprobs of the prompt, which are not supported: the prompt is prefilled by the base "
    "model, which computes no logits. Logprobs of the output are available"
)
_NO_ROUTING_OF_EXPERTS = "is not supported: the prompt is computed on another worker"
_NO_REASONING_SWITCH = "is not supported: use the chat route with `reasoning_effort`"
_INTERNAL = "is for the engine itself, not for clients"
_NO_SESSION = "is not supported: send the whole prompt, its cached prefix is found by content"
UNSUPPORTED = {
    "bootstrap_host": _ROUTING,
    "bootstrap_port": _ROUTING,
    "bootstrap_room": _ROUTING,
    "bootstrap_pair_key": _ROUTING,
    "decode_tp_size": _ROUTING,
    "routed_dp_rank": _ROUTING,
    "data_parallel_rank": _ROUTING,
    "disagg_prefill_dp_rank": _ROUTING,
    "kv_hints": _ROUTING,
    "http_worker_ipc": _ROUTING,
    "best_of": "is not supported: use `n` and choose among the answers",
    "background": "is not supported: a request ends when its client hangs up",
    "return_hidden_states": "is not supported: the prompt's hidden states are the base model's",
    "prompt_logprobs": _NO_PROMPT_LOGPROBS,
    "return_flat_raw_top_logprobs": _NO_PROMPT_LOGPROBS,
    "multi_item_delimiter_indices": _NO_PROMPT_LOGPROBS,
    "token_indices_to_pool": _NO_PROMPT_LOGPROBS,
    "lora_path": _NO_LORA,
    "lora_id": _NO_LORA,
    "session_params": _NO_SESSION,
    "modalities": _NO_MEDIA,
    "mm_hashes": _NO_MEDIA,
    "mm_content_hashes": _NO_MEDIA,
    "mm_processor_kwargs": _NO_MEDIA,
    "images_config": _NO_MEDIA,
    "video_config": _NO_MEDIA,
    "use_audio_in_video": _NO_MEDIA,
    "max_dynamic_patch": _NO_MEDIA,
    "min_dynamic_patch": _NO_MEDIA,
    "image_max_dynamic_patch": _NO_MEDIA,
    "video_max_dynamic_patch": _NO_MEDIA,
    "need_wait_for_mm_inputs": _NO_MEDIA,
    "num_items_assigned": _NO_MEDIA,
    "encoder_urls": _NO_MEDIA,
    "return_bytes": _NO_MEDIA,
    "return_routed_experts": _NO_ROUTING_OF_EXPERTS,
    "routed_experts_start_len": _NO_ROUTING_OF_EXPERTS,
    "return_indexer_topk": _NO_ROUTING_OF_EXPERTS,
    "return_entropy": "is not supported: use `logprobs`",
    "require_reasoning": _NO_REASONING_SWITCH,
    "custom_labels": "is not supported: metrics are labelled by the gateway",
    "log_metrics": "is not supported: every request is counted",
    "no_logs": "is not supported: what is logged is the operator's choice",
    "external_trace_header": _INTERNAL,
    "received_time": _INTERNAL,
    "image_data": _NO_MEDIA,
    "video_data": _NO_MEDIA,
    "audio_data": _NO_MEDIA,
    "input_embeds": "is not supported: send text or token ids",
    "positional_embed_overrides": "is not supported: send text or token ids",
}
# What is done anyway; so are false, null, an empty value, and a list of these for a batch.
_DONE_ANYWAY = {"best_of": 1, "routed_experts_start_len": 0, "log_metrics": True}
_MEDIA_WORDS = ("image", "audio", "video", "file")


def refuse_unsupported(body: Body) -> None:
    """Raise BadRequest for a field that asks for what this cluster cannot give."""
    for name in UNSUPPORTED.keys() & body.keys():
        if not _asks_for_nothing(name, body[name]):
            raise BadRequest(
                f"`{name}` {UNSUPPORTED[name]}.", param=name, code="unsupported_parameter"
            )


def _asks_for_nothing(name: str, value: Any) -> bool:
    if isinstance(value, list):
        return all(one is None or one is False for one in value)
    if value is None or value is False or value in ("", {}):
        return True
    usual = _DONE_ANYWAY.get(name)
    return usual is not None and type(value) is type(usual) and bool(value == usual)


def refuse_echoed_logprobs(body: Body) -> None:
    """OpenAI's way to ask for the prompt's logprobs."""
    if body.get("echo") and body.get("logprobs") is not None:
        raise BadRequest(
            f"`echo` with `logprobs` {_NO_PROMPT_LOGPROBS}.",
            param="echo",
            code="unsupported_parameter",
        )


def refuse_prompt_logprobs(body: Body) -> None:
    """SGLang's way to ask for the prompt's logprobs."""
    starts = body.get("logprob_start_len")
    starts = starts if isinstance(starts, list) else [starts]
    asks = body.get("return_logprob")
    asks = any(asks) if isinstance(asks, list) else asks
    if asks and any(isinstance(start, int) and start >= 0 for start in starts):
        raise BadRequest(
            f"`logprob_start_len` >= 0 {_NO_PROMPT_LOGPROBS}: leave it out or send -1. A program's "
            "select and gen(choices=...) run on ps_sglang.frontend.PrefillShareBackend.",
            param="logprob_start_len",
            code="unsupported_parameter",
        )


def messages(body: Body) -> list[Body]:
    """The chat's messages: at least one, each an object, text only."""
    value = body.get("messages")
    if not isinstance(value, list) or not value:
        raise BadRequest(
            f"`messages` must be a list of at least one message, not {kind(value)}.",
            param="messages",
        )
    parts = sum(len(content) for content in map(_content, value) if isinstance(content, list))
    if len(value) + parts > MAX_MESSAGES:
        raise BadRequest(
            f"`messages` has {len(value)} messages and {parts} parts; at most {MAX_MESSAGES} may "
            "come in one request.",
            param="messages",
        )
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadRequest(
                f"`messages[{number}]` must be an object, not {kind(message)}.", param="messages"
            )
        _refuse_media(message, number)
        _check_calls(message, number)
    return value


def _check_calls(message: Body, number: int) -> None:
    """Arguments of calls are JSON in a text: as deep as a body may be, and no deeper."""
    calls = message.get("tool_calls")
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(arguments, str):
            continue
        name = f"messages[{number}].tool_calls[{place}].function.arguments"
        try:
            value = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRequest(
                f"`{name}` must be a JSON object: {error}.", param="messages"
            ) from error
        if not isinstance(value, dict):
            raise BadRequest(
                f"`{name}` must be a JSON object, not {kind(value)}.", param="messages"
            )
        if deeper_than(value, MOST_LEVELS):
            raise BadRequest(
                f"`{name}` is nested in more than {MOST_LEVELS} levels.", param="messages"
            )


def _content(message: Any) -> Any:
    return message.get("content") if isinstance(message, dict) else None


def _refuse_media(message: Body, number: int) -> None:
    parts = message.get("content")
    for part in parts if isinstance(parts, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and any(word in kind for word in _MEDIA_WORDS):
            raise BadRequest(
                f"The content part of type `{kind}` in `messages[{number}]` {_NO_MEDIA}.",
                param="messages",
                code="unsupported_parameter",
            )


def prompts(body: Body, name: str, limits: Limits) -> tuple[list[Any], bool]:
    """The prompts in field `name`, and whether they came as a list of prompts.

    A prompt is a text or a list of the model's token ids; none may be empty.
    """
    value = body.get(name)
    if isinstance(value, list) and len(value) >= max(limits.context_length, MAX_SAMPLES + 1):
        # Too many for token ids, and for prompts: there is no need to look at each.
        _refuse_many(value, name, limits)
    listed = isinstance(value, list) and not _is_token_ids(value)
    prompts_: list[Any] = value if isinstance(value, list) and listed else [value]
    if not (all(isinstance(one, str) for one in prompts_) or all(map(_may_be_token_ids, prompts_))):
        raise BadRequest(
            f"`{name}` must be a text, a list of texts, a list of token ids or a list of lists of "
            f"token ids, not {kind(value)}.",
            param=name,
        )
    if not prompts_ or not all(prompts_):
        raise BadRequest(f"`{name}` must not be empty.", param=name)
    if len(prompts_) > MAX_SAMPLES:
        _refuse_many(prompts_, name, limits)
    for one in prompts_:
        if isinstance(one, list):
            _check_tokens(one, name, limits)
    return prompts_, listed


def chat_ids(body: Body, limits: Limits) -> None:
    """Check a chat's prompt as token ids, which may come beside its messages."""
    value = body.get("input_ids")
    if value is None:
        return
    if not _is_token_ids(value):
        raise BadRequest(
            f"`input_ids` must be a non-empty list of token ids, not {kind(value)}.",
            param="input_ids",
        )
    _check_tokens(value, "input_ids", limits)


def _check_tokens(ids: list[int], name: str, limits: Limits) -> None:
    if len(ids) >= limits.context_length:
        _refuse_many(ids, name, limits)
    check_ids(ids, name, limits)


def _refuse_many(values: list[Any], name: str, limits: Limits) -> NoReturn:
    if isinstance(values[0], int):
        raise BadRequest(
            f"`{name}` has {len(values)} tokens, but the context holds {limits.context_length} "
            "tokens with the answer.",
            param=name,
            code="context_length_exceeded",
        )
    raise BadRequest(
        f"`{name}` has {len(values)} prompts; at most {MAX_SAMPLES} may come in one request.",
        param=name,
    )


def objects(body: Body, name: str) -> list[Body] | Body:
    """An optional object or list of objects, an empty object if absent or null."""
    value = body.get(name)
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and all(one is None or isinstance(one, dict) for one in value):
        return [one or {} for one in value]
    raise BadRequest(f"`{name}` must be an object, not {kind(value)}.", param=name)


def _is_token_ids(value: object) -> bool:
    return bool(value) and _may_be_token_ids(value)


def _may_be_token_ids(value: object) -> bool:
    # `type() is int`, because JSON's true and false would pass isinstance.
    return isinstance(value, list) and all(type(one) is int for one in value)
