"""What the decoders must say, computed with Hugging Face transformers in float32 on the CPU.

The definition (invariant I1): the base's forward pass over x[0..n-2] gives the cache, the decoder
reads from the boundary token x[n-1] on. The control lets the decoder compute the prompt's KV too.

An answer is judged in one forward pass over all its tokens, not by generating it again: token i
is right if it is the reference's best one after the prompt and the answer's tokens before i. By
induction an answer whose tokens are all right is the reference's greedy output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from ps_sglang.contract import is_adapter
from ps_sglang.models.adapted import Adapted

Tokens = tuple[int, ...]
# Keys and values of one layer, each [1, KV heads, tokens, head dim].
_Layer = tuple[torch.Tensor, torch.Tensor]

# For one model; a prefix of 500 tokens of the demo models takes 23 MB.
_KEPT_PREFIXES: Final = 16


@dataclass(frozen=True)
class Scores:
    """The reference's view of an answer, one entry a token.

    `best`: the token it would have said, `gaps`: by how much that one's logit exceeds the second
    best one's, `behind`: by how much it exceeds that of the answer's own token, `logprobs`: the
    natural log of the probability of the answer's own token.
    """

    best: Tokens
    gaps: tuple[float, ...]
    behind: tuple[float, ...]
    logprobs: tuple[float, ...]


class Reference:
    """The base and its decoders, loaded in float32 (4 bytes a weight). Adapters take the base's.

    `dtype` is the number format to which the workers round the weights.
    """

    def __init__(self, base: Path, decoders: Mapping[str, Path], dtype: str = "float32") -> None:
        model = load(base, dtype)
        self._base = Prefixes(model)
        self._decoders = {
            name: Prefixes(Adapted(model, path) if is_adapter(path) else load(path, dtype))
            for name, path in decoders.items()
        }

    def shared(self, decoder: str, prompt: Tokens, answer: Tokens) -> Scores:
        """Judge `answer` with the base's KV under it: what the cluster must serve."""
        return self._scores(decoder, self._base, prompt, answer)

    def own(self, decoder: str, prompt: Tokens, answer: Tokens) -> Scores:
        """Judge `answer` with the decoder's own KV under it: the control."""
        return self._scores(decoder, self._decoders[decoder], prompt, answer)

    def _scores(self, decoder: str, reader: Prefixes, prompt: Tokens, answer: Tokens) -> Scores:
        cache = reader.cache(prompt[:-1])
        read = (prompt[-1], *answer[:-1])
        return _scores(_forward(self._decoders[decoder].model, read, cache, len(answer)), answer)


class Prefixes:
    """A model's caches of the last prefixes; a new one reuses the longest that it begins with."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._prefixes: dict[Tokens, list[_Layer]] = {}

    def cache(self, prefix: Tokens) -> DynamicCache:
        """A cache of exactly `prefix`, the caller's to write on."""
        if prefix not in self._prefixes:
            self._prefixes[prefix] = self._extend(prefix)
            if len(self._prefixes) > _KEPT_PREFIXES:
                del self._prefixes[next(iter(self._prefixes))]
        return _cache(self._prefixes[prefix], len(prefix))

    def _extend(self, prefix: Tokens) -> list[_Layer]:
        if not prefix:
            return []
        nearest = max(self._prefixes, key=lambda cached: common_length(cached, prefix), default=())
        reused = min(common_length(nearest, prefix), len(prefix) - 1)
        cache = _cache(self._prefixes[nearest] if reused else [], reused)
        _forward(self.model, prefix[reused:], cache, 1)
        return [(layer.keys, layer.values) for layer in cache.layers]


def load(folder: Path, dtype: str = "float32") -> Any:
    """The checkpoint in `folder` in float32, its weights rounded to `dtype`; for inference."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.float().eval()


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _cache(layers: Sequence[_Layer], length: int) -> DynamicCache:
    # Appending to a cache makes new tensors, so the held ones are safe.
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys[:, :, :length], values[:, :, :length], index)
    return cache


def _forward(model: Any, tokens: Tokens, cache: DynamicCache, last: int) -> torch.Tensor:
    """Logits [last, vocabulary] of the last tokens; `cache` grows by all of them."""
    with torch.inference_mode():
        output = model(
            torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=last
        )
    logits: torch.Tensor = output.logits[0]
    return logits


def _scores(logits: torch.Tensor, answer: Tokens) -> Scores:
    top, said = logits.topk(2, dim=-1), torch.tensor(answer)[:, None]
    best = top.values[:, 0]
    return Scores(
        best=tuple(top.indices[:, 0].tolist()),
        gaps=tuple((best - top.values[:, 1]).tolist()),
        behind=tuple((best - logits.gather(1, said)[:, 0]).tolist()),
        logprobs=tuple(logits.log_softmax(dim=-1).gather(1, said)[:, 0].tolist()),
    )
