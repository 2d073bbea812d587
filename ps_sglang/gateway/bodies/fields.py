"""Every field of the three routes that engines hear of, with its check.

SGLang ignores the fields that it does not know; here they are left out, so that nothing unchecked
reaches an engine. Of /generate's sampling parameters SGLang refuses unknown ones, and so does the
gateway. `tests/engine/test_seams.py` compares with SGLang's own lists.
"""

from __future__ import annotations

from typing import Final

from ps_sglang.gateway.bodies.checks import (
    FLOAT32_MAX,
    FLOAT32_TINY,
    INT32_MAX,
    Body,
    Limits,
    Table,
    anything,
    biases,
    boolean,
    checked,
    integer,
    number,
    object_of,
    one_of,
    rank,
    refuse,
    text,
    texts,
    token_ids,
)
from ps_sglang.gateway.bodies.formats import (
    LONGEST_GRAMMAR,
    LONGEST_REGEX,
    check_lengths,
    check_one_grammar,
    effort,
    enabled,
    plain_params,
    response_format,
    schema_text,
    stop_regex,
    structural_tag_text,
    template_kwargs,
    tool_choice,
    tools,
    watermark,
)
from ps_sglang.gateway.errors import BadRequest

MAX_N: Final = 128
_MOST_STOPS = 32  # SGLang's own bounds on stop texts and stop expressions
_LONGEST_STOP = 1024
_LONGEST_NAME = 256
# Logits plus a bias, divided by the lowest temperature that is not greedy (1e-6), must be finite.
_BIAS = 1e30
# Logits are divided by it.
_LEAST_REPETITION = 1e-6
_SEED = integer(-(2**63), 2**63 - 1)
_LIMIT = integer(1, INT32_MAX)

_SAMPLING: Table = {
    "temperature": number(0, FLOAT32_MAX),
    "top_p": number(FLOAT32_TINY, 1, "above 0 and at most 1"),
    "top_k": integer(1, INT32_MAX, also=-1),
    "min_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(_LEAST_REPETITION, 2),
    "n": integer(1, MAX_N),
    "stop": texts(_MOST_STOPS, text(_LONGEST_STOP)),
    "stop_token_ids": token_ids,
    "stop_regex": texts(_MOST_STOPS, stop_regex),
    "regex": text(LONGEST_REGEX),
    "ebnf": text(LONGEST_GRAMMAR),
    "ignore_eos": boolean,
    "skip_special_tokens": boolean,
    "no_stop_trim": boolean,
    "logit_bias": biases(_BIAS),
    "custom_params": plain_params,
    "watermark": watermark,
}

_ROUTED: Table = {
    "stream": boolean,
    "rid": anything,
    "extra_key": anything,
    "cache_salt": anything,
    "priority": integer(-(2**31), INT32_MAX),
    "custom_logit_processor": text(LONGEST_GRAMMAR),
}

_OPENAI: Table = {
    **_SAMPLING,
    **_ROUTED,
    "min_tokens": integer(0, INT32_MAX),
    "seed": _SEED,
    "stream_options": object_of({"include_usage": boolean, "continuous_usage_stats": boolean}),
    "user": text(_LONGEST_NAME),
    "response_format": response_format,
    "return_cached_tokens_details": boolean,
    "return_spec_tokens_details": boolean,
    "return_token_ids": boolean,
}

COMPLETIONS: Table = {
    **_OPENAI,
    "prompt": anything,
    "max_tokens": _LIMIT,
    "logprobs": rank,
    "echo": boolean,
    "suffix": text(),
    "json_schema": schema_text,
}

CHAT: Table = {
    **_OPENAI,
    "messages": anything,
    "input_ids": anything,
    "max_tokens": _LIMIT,
    "max_completion_tokens": _LIMIT,
    "logprobs": boolean,
    "top_logprobs": rank,
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": boolean,
    "reasoning_effort": effort,
    "reasoning": object_of(
        {"effort": effort, "reasoning_effort": effort, "enabled": enabled, "enable": enabled}
    ),
    "thinking": anything,
    "task": one_of("action", "query", "authority", "domain", "title", "read_url"),
    "continue_final_message": boolean,
    "separate_reasoning": boolean,
    "stream_reasoning": boolean,
    "chat_template_kwargs": template_kwargs,
    "return_prompt_token_ids": boolean,
    "return_meta_info": boolean,
    "return_input_ids_in_sglext": boolean,
    "return_output_ids_in_sglext": boolean,
    "return_sampling_mask": boolean,
    "sampling_logprobs_mode": one_of("selected", "support"),
    "return_flat_raw_output_top_logprobs": boolean,
    "return_flat_raw_top_logprobs_b64": boolean,
}

GENERATE: Table = {
    **_ROUTED,
    "text": anything,
    "input_ids": anything,
    "sampling_params": anything,
    "return_logprob": boolean,
    "logprob_start_len": integer(-1, INT32_MAX),
    "top_logprobs_num": rank,
    "token_ids_logprob": token_ids,
    "return_sampling_mask": boolean,
    "sampling_logprobs_mode": one_of("selected", "support"),
    "return_text_in_logprobs": boolean,
    "return_flat_raw_output_top_logprobs": boolean,
    "return_flat_raw_top_logprobs_b64": boolean,
    "max_thinking_tokens": integer(0, INT32_MAX),
    "routing_key": text(_LONGEST_NAME),
    "conversation_id": text(_LONGEST_NAME),
    "return_prompt_token_ids": boolean,
    "watermark": watermark,
}

SAMPLING_PARAMS: Table = {
    **_SAMPLING,
    # SGLang programs ask for no tokens to have a prefix cached, before they fork for one.
    "max_new_tokens": integer(0, INT32_MAX),
    "min_new_tokens": integer(0, INT32_MAX),
    "json_schema": schema_text,
    "structural_tag": structural_tag_text,
    "spaces_between_special_tokens": boolean,
    "stream_interval": _LIMIT,
    "sampling_seed": _SEED,
    "beam_width": integer(1, 1),
}


def completions_fields(body: Body, limits: Limits) -> Body:
    """The fields of a completion, checked."""
    fields = checked(body, COMPLETIONS, limits)
    check_lengths({"max_tokens": 16, **fields}, "min_tokens", ("max_tokens",))
    check_one_grammar(fields)
    return fields


def chat_fields(body: Body, limits: Limits) -> Body:
    """The fields of a chat completion, checked."""
    fields = checked(body, CHAT, limits)
    check_lengths(fields, "min_tokens", ("max_completion_tokens", "max_tokens"))
    check_one_grammar(fields)
    return fields


def generate_fields(body: Body, limits: Limits) -> Body:
    """The fields of /generate for one prompt, checked, with its sampling parameters."""
    fields = checked(body, GENERATE, limits)
    # Only -1 asks for what there is, and that is the default.
    fields.pop("logprob_start_len", None)
    if fields.get("return_flat_raw_output_top_logprobs") and fields.get("stream"):
        raise BadRequest(
            "`return_flat_raw_output_top_logprobs` is for whole answers: leave `stream` out.",
            param="return_flat_raw_output_top_logprobs",
        )
    prefix = "sampling_params."
    params = fields.get("sampling_params") or {}
    if unknown := sorted(params.keys() - SAMPLING_PARAMS.keys()):
        names = ", ".join(sorted(SAMPLING_PARAMS))
        raise BadRequest(
            f"`{prefix}{unknown[0]}` is no sampling parameter; these are: {names}.",
            param=prefix + unknown[0],
        )
    params = checked(params, SAMPLING_PARAMS, limits, prefix)
    check_lengths({"max_new_tokens": 128, **params}, "min_new_tokens", ("max_new_tokens",), prefix)
    check_one_grammar(params, prefix)
    if fields.get("watermark") is not None and params.get("watermark") is not None:
        refuse("watermark", fields["watermark"], "in `sampling_params` or beside it, not in both")
    return {**fields, "sampling_params": params}
