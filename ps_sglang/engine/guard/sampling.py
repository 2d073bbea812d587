"""What `sampling_params` may hold: the ranges of SGLang's sampler and of the tensors it fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ps_sglang.engine.guard import grammars, patterns
from ps_sglang.engine.guard.checks import (
    BOOLEAN,
    FLOAT32,
    INT32,
    INT64,
    Check,
    Integer,
    ListOf,
    Number,
    OneOf,
    Text,
    refuse,
)
from ps_sglang.output_ids import PARAM

_STOPS: Final = 32
_STOP_LENGTH: Final = 4096
_ALL_TOKENS: Final = 2**30
"""SGLang's `top_k` for the whole vocabulary; it stands in an int32 tensor."""

_CHECKS: Final[dict[str, Check]] = {
    "max_new_tokens": Integer(0, INT32),
    "min_new_tokens": Integer(0, INT32),
    "n": Integer(1, INT32),
    "temperature": Number(0, FLOAT32),
    "top_p": Number(0, 1, above=True),
    "min_p": Number(0, 1),
    "frequency_penalty": Number(-2, 2),
    "presence_penalty": Number(-2, 2),
    "repetition_penalty": Number(0, 2, above=True),
    "sampling_seed": Integer(-INT64 - 1, INT64),
    "stream_interval": Integer(1, INT32),
    "stop": ListOf(Text(_STOP_LENGTH), _STOPS, bare=True),
    "stop_regex": ListOf(patterns.check, _STOPS, bare=True),
    "json_schema": grammars.json_schema,
    "regex": grammars.regex,
    "ebnf": grammars.ebnf,
    "structural_tag": grammars.json_schema,
    "ignore_eos": BOOLEAN,
    "skip_special_tokens": BOOLEAN,
    "spaces_between_special_tokens": BOOLEAN,
    "no_stop_trim": BOOLEAN,
    "ebnf_full_assistant": BOOLEAN,
}
# Beams share pages in a way that a handoff does not know; watermarks are the prompt's business too.
_NOT_SERVED: Final = ("beam_width", "watermark")
_CUSTOM_ITEMS: Final = 256
_CUSTOM_VALUE: Final = OneOf((True, False, None))


def check(params: Mapping[str, Any], vocabulary: int) -> None:
    """Refuse what SGLang's sampler cannot take; `vocabulary` is the number of token ids.

    Raises ValueError, which names the parameter, its range and the value.
    """
    token = Integer(0, vocabulary - 1)
    checks: dict[str, Check] = {**_CHECKS, "stop_token_ids": ListOf(token, vocabulary)}
    for name, value in params.items():
        if value is None:
            continue
        if name == "top_k":
            if value != -1 or type(value) is not int:
                Integer(1, _ALL_TOKENS)("top_k", value)
        elif name == "logit_bias":
            _logit_bias(value, token)
        elif name == "custom_params":
            _custom_params(value, token)
        elif name in _NOT_SERVED:
            if value not in (1, False):
                refuse(name, "left out, as this worker does not serve it", value)
        elif name in checks:
            checks[name](name, value)
        else:
            raise ValueError(f"`{name[:100]}` is no sampling parameter.")


def _logit_bias(value: Any, token: Integer) -> None:
    if not isinstance(value, dict):
        refuse("logit_bias", "an object from token id to number", value)
    for key, bias in value.items():
        ascii_digits = isinstance(key, str) and key.isascii() and key.isdigit()
        token("logit_bias", int(key) if ascii_digits and len(key) < 20 else key)
        Number(-FLOAT32, FLOAT32)(f"logit_bias[{key}]", bias)


def _custom_params(value: Any, token: Integer) -> None:
    """Texts, numbers, truth values, and flat lists and objects of them, as SGLang types it."""
    if not isinstance(value, dict) or len(value) > _CUSTOM_ITEMS:
        refuse("custom_params", f"an object of up to {_CUSTOM_ITEMS} items", value)
    for name, item in value.items():
        if name == PARAM:
            ListOf(token, INT32)(f"custom_params.{PARAM}", item)
            continue
        parts = item if isinstance(item, list) else [item]
        if isinstance(item, dict):
            parts = list(item.values())
        for part in parts:
            if isinstance(part, str):
                Text(_STOP_LENGTH)("custom_params", part)
            elif type(part) in (int, float):
                Number(-FLOAT32, FLOAT32)("custom_params", part)
            else:
                _CUSTOM_VALUE(f"custom_params[{name[:50]!r}]", part)
