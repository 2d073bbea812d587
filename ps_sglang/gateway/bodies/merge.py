"""One answer from the answers to single samples, as SGLang would have given it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.requests import GenerationRequest
from ps_sglang.gateway.bodies.samples import Endpoint, Sample
from ps_sglang.gateway.errors import EngineError

Json = dict[str, Any]


def answers(request: GenerationRequest, contents: Iterable[bytes]) -> bytes:
    """Merge whole JSON answers, given in the order of the request's samples."""
    decoded = [_decode(content) for content in contents]
    if request.endpoint is Endpoint.GENERATE:
        return msgspec.json.encode(decoded)
    choices = [
        {**choice, "index": sample.index}
        for sample, answer in zip(request.samples, decoded, strict=True)
        for choice in answer.get("choices", ())
    ]
    usage = merge_usage(
        (sample, answer.get("usage") or {})
        for sample, answer in zip(request.samples, decoded, strict=True)
    )
    return msgspec.json.encode({**decoded[0], "choices": choices, "usage": usage})


def merge_usage(parts: Iterable[tuple[Sample, Json]]) -> Json:
    """Add usages up: what the prompt costs once for each prompt, the rest for each sample."""
    prompt_tokens = completion_tokens = reasoning_tokens = 0
    cached: int | None = None
    for sample, usage in parts:
        completion_tokens += usage.get("completion_tokens") or 0
        reasoning_tokens += usage.get("reasoning_tokens") or 0
        if sample.leads:
            prompt_tokens += usage.get("prompt_tokens") or 0
            if details := usage.get("prompt_tokens_details"):
                cached = (cached or 0) + (details.get("cached_tokens") or 0)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "reasoning_tokens": reasoning_tokens,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
        "completion_tokens_details": (
            {"reasoning_tokens": reasoning_tokens} if reasoning_tokens else None
        ),
    }


class StreamMerger:
    """Interleaves the events of several samples into one stream."""

    def __init__(self, request: GenerationRequest) -> None:
        self._native = request.endpoint is Endpoint.GENERATE
        self._id: str | None = None
        self._usages: list[tuple[Sample, Json]] = []
        self._usage_chunk: Json | None = None

    def event(self, sample: Sample, event: bytes) -> bytes | None:
        """The event as the merged stream has it, or None if it has it only at its end."""
        chunk = sse.payload(event)
        if chunk is None:
            return event
        if self._native:
            return sse.event({**chunk, "index": sample.index})
        if self._id is None:
            self._id = chunk.get("id")
        chunk["id"] = self._id
        if chunk.get("usage") and not chunk.get("choices"):
            self._usages.append((sample, chunk["usage"]))
            self._usage_chunk = self._usage_chunk or chunk
            return None
        for choice in chunk.get("choices", ()):
            choice["index"] = sample.index
        return sse.event(chunk)

    def end(self) -> Iterator[bytes]:
        """The last events: usage, if the samples reported it, and `[DONE]`."""
        if self._usage_chunk is not None:
            yield sse.event({**self._usage_chunk, "usage": merge_usage(self._usages)})
        yield sse.DONE


def _decode(content: bytes) -> Json:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise EngineError(f"The engine's answer is no JSON object: {error}.", status=502) from error
