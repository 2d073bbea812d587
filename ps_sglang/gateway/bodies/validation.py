"""What the gateway refuses before any worker hears of the request.

Only fields that the gateway itself reads are checked, and features that a disaggregated engine
does not have are refused by name. Everything else is the engine's to judge.
"""

from typing import Any

import msgspec

from ps_sglang.gateway.errors import BadRequest

Body = dict[str, Any]

MAX_N = 128
PRIORITIES = range(-(2**31), 2**31)
MAX_SAMPLES = 2048  # prompts times n of one request; OpenAI's limit on prompts
_SEEDS = range(-(2**63), 2**63)

_ROUTING = "is set by the gateway, not by clients"
_NO_LORA = "is not supported: decoders are whole models, chosen by `model`"
_NO_MEDIA = "is not supported: this gateway serves text models"
_NO_PROMPT_LOGPROBS = (
    "asks for logprobs of the prompt, which are not supported: the prompt is prefilled by the base "
    "model, which computes no logits. Logprobs of the output are available"
)
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
    "image_data": _NO_MEDIA,
    "video_data": _NO_MEDIA,
    "audio_data": _NO_MEDIA,
    "input_embeds": "is not supported: send text or token ids",
    "positional_embed_overrides": "is not supported: send text or token ids",
}
_MEDIA_WORDS = ("image", "audio", "video", "file")


def decode_body(content: bytes) -> Body:
    """The request's JSON object; raises BadRequest if it is anything else."""
    try:
        body = msgspec.json.decode(content)
    except RecursionError as error:
        raise BadRequest("The body's JSON is nested too deeply.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON in UTF-8: {error}.") from error
    if not isinstance(body, dict):
        raise BadRequest(f"The body must be a JSON object, not {_kind(body)}.")
    return body


def refuse_unsupported(body: Body) -> None:
    """Raise BadRequest for the first field that asks for what this cluster cannot give."""
    if UNSUPPORTED.keys().isdisjoint(body):
        return
    for name, reason in UNSUPPORTED.items():
        value = body.get(name)
        if not (value is None or value is False or value in ("", [], {})):
            raise BadRequest(f"`{name}` {reason}.", param=name, code="unsupported_parameter")


def refuse_echoed_logprobs(body: Body) -> None:
    """OpenAI's way to ask for the prompt's logprobs."""
    if boolean(body, "echo") and body.get("logprobs") is not None:
        raise BadRequest(
            f"`echo` with `logprobs` {_NO_PROMPT_LOGPROBS}.",
            param="echo",
            code="unsupported_parameter",
        )


def refuse_prompt_logprobs(body: Body) -> None:
    """SGLang's way to ask for the prompt's logprobs."""
    starts = body.get("logprob_start_len")
    starts = starts if isinstance(starts, list) else [starts]
    wanted = body.get("return_logprob")
    wanted = any(wanted) if isinstance(wanted, list) else wanted
    if wanted and any(isinstance(start, int) and start >= 0 for start in starts):
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
            f"`messages` must be a list of at least one message, not {_kind(value)}.",
            param="messages",
        )
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadRequest(
                f"`messages[{number}]` must be an object, not {_kind(message)}.", param="messages"
            )
        _refuse_media(message, number)
    return value


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


def prompts(body: Body, name: str) -> tuple[list[Any], bool]:
    """The prompts in field `name`, and whether they came as a list of prompts.

    A prompt is a text or a list of token ids; none may be empty.
    """
    value = body.get(name)
    listed = isinstance(value, list) and not _is_token_ids(value)
    found: list[Any] = value if isinstance(value, list) and listed else [value]
    if not (all(isinstance(one, str) for one in found) or all(map(_may_be_token_ids, found))):
        raise BadRequest(
            f"`{name}` must be a text, a list of texts, a list of token ids or a list of lists of "
            f"token ids, not {_kind(value)}.",
            param=name,
        )
    if not found or not all(found):
        raise BadRequest(f"`{name}` must not be empty.", param=name)
    return found, listed


def check_context(prompt: object, context_length: int, name: str) -> None:
    """Refuse token ids that leave no room for an answer. A text's length only the engine knows."""
    if isinstance(prompt, list) and len(prompt) >= context_length:
        raise BadRequest(
            f"`{name}` has {len(prompt)} tokens, but the context holds {context_length} tokens "
            "with the answer.",
            param=name,
            code="context_length_exceeded",
        )


def token_ids(body: Body, name: str) -> list[int] | None:
    """An optional list of token ids."""
    value = body.get(name)
    if value is None:
        return None
    if not _is_token_ids(value) or not value:
        raise BadRequest(
            f"`{name}` must be a non-empty list of token ids, not {_kind(value)}.", param=name
        )
    return list(value)


def boolean(body: Body, name: str) -> bool:
    """An optional boolean, False if absent or null."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadRequest(f"`{name}` must be true or false, not {_kind(value)}.", param=name)
    return value


def integer(body: Body, name: str, param: str | None = None) -> int | None:
    """An optional integer."""
    value = body.get(name)
    if value is None or type(value) is int:
        return value
    raise BadRequest(
        f"`{param or name}` must be an integer, not {_kind(value)}.", param=param or name
    )


def priority(body: Body) -> int | None:
    """An optional integer of 32 bits."""
    value = integer(body, "priority")
    if value is not None and value not in PRIORITIES:
        raise BadRequest(f"`priority` must fit 32 bits, not {value}.", param="priority")
    return value


def n_samples(body: Body, param: str = "n") -> int:
    """How many answers to each prompt, 1 if not given."""
    n = integer(body, "n", param)
    if n is None:
        return 1
    if not 1 <= n <= MAX_N:
        raise BadRequest(f"`{param}` must be from 1 to {MAX_N}, not {n}.", param=param)
    return n


def seed(body: Body, name: str, param: str | None = None) -> int | None:
    """An optional seed of 64 bits."""
    value = integer(body, name, param)
    if value is not None and value not in _SEEDS:
        raise BadRequest(f"`{param or name}` must fit 64 bits, not {value}.", param=param or name)
    return value


def check_max_tokens(body: Body, name: str, param: str | None = None, *, least: int = 1) -> None:
    """An optional limit of the answer's length, at least `least` tokens."""
    value = integer(body, name, param)
    if value is not None and value < least:
        raise BadRequest(
            f"`{param or name}` must be at least {least}, not {value}.", param=param or name
        )


def objects(body: Body, name: str) -> list[Body] | Body:
    """An optional object or list of objects, an empty object if absent."""
    value = body.get(name)
    if value is None:
        return {}
    if isinstance(value, dict) or (
        isinstance(value, list) and all(isinstance(one, dict) for one in value)
    ):
        return value
    raise BadRequest(f"`{name}` must be an object, not {_kind(value)}.", param=name)


def _is_token_ids(value: object) -> bool:
    return bool(value) and _may_be_token_ids(value)


def _may_be_token_ids(value: object) -> bool:
    # `type() is int`, because JSON's true and false would pass isinstance.
    return isinstance(value, list) and all(type(one) is int for one in value)


def _kind(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        dict: "an object",
    }
    if value is None:
        return "null or missing"
    if isinstance(value, list):
        return "a list of other things" if value else "an empty list"
    return names.get(type(value), type(value).__name__)
