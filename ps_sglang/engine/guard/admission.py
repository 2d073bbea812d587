"""Hooks of the tokenizer manager: what a request holds is checked before the scheduler sees it.

SGLang answers a ValueError with status 400 on every route, and most other exceptions with 500.
Until a request is handed to the scheduler an exception in its preparation has one cause, the
request, so all of them become a ValueError here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from ps_sglang.engine.compat.srt import (
    HEALTH_CHECK_RID_PREFIX,
    DisaggregationMode,
    GenerateReqInput,
)
from ps_sglang.engine.guard import requests
from ps_sglang.engine.hooking import after, around

_SHORT_TEXT: Final = 4096
"""Characters up to which a text is tokenized at once: a thread would take longer."""
_RESERVED: Final = frozenset(
    {"add_generation_prompt", "conversation", "messages", "return_dict", "tokenize", "tools"}
)
"""What SGLang and transformers pass to `apply_chat_template` and to the template."""


class _Limits:
    """Limits of a prompt, by this process's tokenizer; None before it has one."""

    longest_text: int | None = None  # bytes
    context: int = 0


@after("managers.tokenizer_manager.TokenizerManager.init_tokenizer_and_processor", "self")
def init_tokenizer(_result: None, manager: Any) -> None:
    """After `TokenizerManager.init_tokenizer_and_processor`: the longest text that can fit."""
    _Limits.context = int(manager.context_len)
    if manager.tokenizer is not None and hasattr(manager.tokenizer, "get_vocab"):
        longest = max(len(token.encode()) for token in manager.tokenizer.get_vocab())
        _Limits.longest_text = longest * _Limits.context


def check_length(text: str) -> None:
    """Refuse a text that cannot fit, before it costs a tokenization.

    Raises ValueError if it has more bytes than a context full of the longest token.
    """
    most = _Limits.longest_text
    if most is None or len(text) * 4 <= most:  # a character has up to 4 bytes
        return
    if len(text) > most or len(text.encode()) > most:
        raise ValueError(
            f"The input ({len(text)} characters) is longer than the model's context length "
            f"({_Limits.context} tokens): no text of more than {most} bytes fits it."
        )


@contextmanager
def of_the_request(what: str) -> Iterator[None]:
    """Turn an exception that a request's content has caused into the 400 that it is.

    Raises ValueError in place of any other exception of Python's own kinds.
    """
    try:
        yield
    except ValueError:
        raise
    except (
        ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, AssertionError,
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}"[:500]
        raise ValueError(f"{what} ({reason})") from error


@around("managers.io_struct.GenerateReqInput.normalize_batch_and_arguments", "self")
def normalize_batch_and_arguments(original: Any, obj: Any) -> None:
    """Around `GenerateReqInput.normalize_batch_and_arguments`: check the shape of a request."""
    with of_the_request("the request's fields do not fit each other"):
        requests.check_shape(obj)
        several = isinstance(obj.sampling_params, list)
        for params in obj.sampling_params if several else [obj.sampling_params]:
            if params is not None and params.get("n", 1) is None:
                del params["n"]
        original(obj)
        for rid in [obj.rid] if obj.is_single else obj.rid:
            requests.CHECKS["rid"]("rid", rid)
        if not obj.is_single:
            for index in range(len(obj.rid)):
                obj[index]  # SGLang keeps it; a list that is too short shows here


@around(
    "managers.tokenizer_manager.TokenizerManager._validate_one_request", "self", "obj", "input_ids"
)
def validate_one_request(original: Any, manager: Any, obj: Any, input_ids: Any) -> None:
    """Around `TokenizerManager._validate_one_request`: check every field of one prompt."""
    with of_the_request("the request cannot be validated"):
        if isinstance(obj, GenerateReqInput):
            requests.check_sample(obj, input_ids, int(manager.model_config.vocab_size))
            labels = manager.metrics_collector.labels if manager.enable_metrics else {}
            requests.check_labels(obj.custom_labels, labels)
            _for_the_role(manager.config_value("disaggregation_mode"), obj)
        original(manager, obj, input_ids)


def _for_the_role(mode: str, obj: Any) -> None:
    """What a worker needs to know of the request on the other worker; raises ValueError."""
    if obj.log_metrics and obj.rid.startswith(HEALTH_CHECK_RID_PREFIX):
        raise ValueError(
            f"`rid` begins with {HEALTH_CHECK_RID_PREFIX}, as only the worker's own health checks "
            "do, which a busy worker does not answer: choose another."
        )
    if mode == DisaggregationMode.NULL.value:
        return
    if (obj.sampling_params.get("n") or 1) != 1:
        raise ValueError(
            "`n` must be 1 on a prefill or decode worker, as each sample has a handoff of its own: "
            "send the request to the gateway."
        )
    decodes = mode == DisaggregationMode.DECODE.value
    if decodes and obj.bootstrap_room is not None and not obj.bootstrap_host:
        raise ValueError(
            "`bootstrap_host` is missing: a decode worker asks it for the prompt's KV. Send the "
            "request to the gateway."
        )


@around(
    "managers.tokenizer_manager.TokenizerManager._create_tokenized_object",
    "self",
    "obj",
    "input_text",
    "input_ids",
    "input_embeds",
    "mm_inputs",
    "token_type_ids",
)
def create_tokenized_object(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `TokenizerManager._create_tokenized_object`: refuse parameters of a wrong type."""
    with of_the_request("the request cannot be prepared"):
        return original(*args, **kwargs)


@around(
    "managers.tokenizer_manager.TokenizerManager._tokenize_texts",
    "self",
    "texts",
    "is_cross_encoder",
)
async def tokenize_texts(
    original: Any, manager: Any, texts: Any, is_cross_encoder: bool = False
) -> Any:
    """Around `TokenizerManager._tokenize_texts`: refuse what cannot fit, leave the event loop free.

    SGLang tokenizes in the loop, so that one long text would hold all answers of the worker. The
    tokenizer lets go of the interpreter while it works.
    """
    for text in [texts] if isinstance(texts, str) else texts or ():
        if isinstance(text, str):
            requests.CHECKS["text"]("text", text)
            check_length(text)
    with of_the_request("the text cannot be tokenized"):
        work = original(manager, texts, is_cross_encoder)
        short = isinstance(texts, str) and len(texts) <= _SHORT_TEXT
        # SGLang's batching tokenizer waits in the loop, and has a thread of its own.
        if short or manager.async_dynamic_batch_tokenizer is not None:
            return await work
        return await asyncio.get_running_loop().run_in_executor(None, partial(_finish, work))


def _finish(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as result:
        return result.value
    raise RuntimeError("SGLang's tokenization waits for something")


@around(
    "entrypoints.openai.serving_chat.OpenAIServingChat._convert_to_internal_request",
    "self",
    "request",
    "raw_request",
)
def convert_chat(original: Any, serving: Any, request: Any, raw_request: Any = None) -> Any:
    """Around `OpenAIServingChat._convert_to_internal_request`: refuse what cannot be rendered."""
    if reserved := sorted(_RESERVED.intersection(request.chat_template_kwargs or ())):
        raise ValueError(
            f"`chat_template_kwargs` must not hold {', '.join(reserved)}: the server gives the "
            "chat template these itself, from the request's own fields."
        )
    with of_the_request(
        "the chat template cannot render this request: see messages, tools and chat_template_kwargs"
    ):
        return original(serving, request, raw_request)


@around(
    "entrypoints.openai.serving_completions.OpenAIServingCompletion._convert_to_internal_request",
    "self",
    "request",
    "raw_request",
)
def convert_completion(original: Any, serving: Any, request: Any, raw_request: Any = None) -> Any:
    """Around `OpenAIServingCompletion._convert_to_internal_request`: refuse what fails."""
    with of_the_request("the request cannot be converted"):
        return original(serving, request, raw_request)


@around(
    "entrypoints.openai.parallel_prompt_encode.parallel_prompt_encode",
    "tokenizer",
    "text",
    "encode_kwargs",
)
def encode_prompt(original: Any, tokenizer: Any, text: str, encode_kwargs: Any = None) -> Any:
    """Around `parallel_prompt_encode`: refuse a rendered chat that cannot fit."""
    requests.CHECKS["text"]("messages", text)
    check_length(text)
    return original(tokenizer, text, encode_kwargs)
