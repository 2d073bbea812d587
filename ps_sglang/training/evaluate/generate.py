"""Greedy answers of a decoder of which a share of the prompt's KV comes from the base, in batches.

Rows of a batch differ in how much of the prompt is the base's and in how much is left to the
decoder. In the cache the base's part is padded on the right, the decoder's on the left, so that all
rows end, with their boundary token, in the same column:

    column     0 1 2 3 4 | 0 1 2 | 0 1 ...
    row 0      b b b b b | . d d | a a          b: base's KV      a: answer
    row 1      b b b . . | d d d | a a          d: decoder's      .: padding, never seen
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from ps_sglang.training.train.attention import LayerKv
from ps_sglang.training.train.base import FrozenBase

Tokens = tuple[int, ...]


class Generator:
    """Answers prompts with `decoder` on the KV of `base`; both on `device`, in one dtype.

    An answer ends before the first of the tokens `stops`, or after `max_new_tokens`. Of each prompt
    the decoder reads the boundary token and the `tail` tokens before it, whatever the share.
    """

    def __init__(
        self,
        base: Any,
        decoder: Any,
        stops: Collection[int],
        max_new_tokens: int,
        device: torch.device,
        tail: int = 0,
    ) -> None:
        self._base, self._decoder = FrozenBase(base), decoder
        self._stops, self._most, self._device = frozenset(stops), max_new_tokens, device
        self._tail = tail

    def answers(
        self, prompts: Sequence[Tokens], shares: Sequence[float]
    ) -> Iterator[tuple[float, list[Tokens]]]:
        """The answers to one batch of `prompts`, without their stop token, at each of `shares`.

        The base prefills once, for the largest of the shares.
        """
        prefix_lengths = [
            [shared_tokens(len(prompt), share, self._tail) for prompt in prompts]
            for share in shares
        ]
        prefix: list[LayerKv] = []
        if longest := max(max(counts) for counts in prefix_lengths):
            prefix = self._base.prefill(
                self._padded([prompt[:longest][: len(prompt) - 1] for prompt in prompts])
            )
        for share, counts in zip(shares, prefix_lengths, strict=True):
            yield share, self._greedy(prompts, counts, prefix)

    def _greedy(
        self, prompts: Sequence[Tokens], prefix_lengths: Sequence[int], prefix: list[LayerKv]
    ) -> list[Tokens]:
        with torch.inference_mode():
            rows = _Rows(self._decoder, prompts, prefix_lengths, prefix, self._device)
            logits = rows.read_prompts()
            answers: list[list[int]] = [[] for _ in prompts]
            going = list(range(len(prompts)))
            while True:
                best = logits.argmax(dim=-1)
                kept = []
                for index, (row, token) in enumerate(zip(going, best.tolist(), strict=True)):
                    if token not in self._stops:
                        answers[row].append(token)
                        if len(answers[row]) < self._most:
                            kept.append(index)
                if not kept:
                    return [tuple(tokens) for tokens in answers]
                if len(kept) < len(going):
                    rows.keep(kept)
                    best, going = best[kept], [going[index] for index in kept]
                logits = rows.read(best)

    def _padded(self, rows: Sequence[Tokens]) -> torch.Tensor:
        """[rows, longest], padded on the right."""
        longest = max(len(row) for row in rows)
        padded = [row + (0,) * (longest - len(row)) for row in rows]
        return torch.tensor(padded, device=self._device)


class _Rows:
    """The rows of a batch that still go on: their cache, what of it is no padding, and the
    position of each row's next token."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Tokens],
        prefix_lengths: Sequence[int],
        prefix: list[LayerKv],
        device: torch.device,
    ) -> None:
        """The KV of the first `prefix_lengths` tokens of each prompt is in `prefix`."""
        self._model, self._cache = model, DynamicCache()
        self._prefix_tokens = max(prefix_lengths)
        if self._prefix_tokens:
            for index, (keys, values) in enumerate(prefix):
                self._cache.update(
                    keys[:, :, : self._prefix_tokens], values[:, :, : self._prefix_tokens], index
                )
        rest = [prompt[count:] for prompt, count in zip(prompts, prefix_lengths, strict=True)]
        width = max(len(row) for row in rest)
        self._rest = torch.tensor([(0,) * (width - len(row)) + row for row in rest], device=device)
        lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        new_tokens = torch.tensor([[len(row)] for row in rest], device=device)
        columns = torch.arange(width, device=device)
        # [rows, columns of the cache]
        self._visible = torch.cat(
            [
                torch.arange(self._prefix_tokens, device=device) < lengths - new_tokens,
                columns >= width - new_tokens,
            ],
            dim=1,
        )
        # Padding before position 0 has no position; it is never seen.
        self._positions = (lengths - width + columns).clamp(min=0)

    def read_prompts(self) -> torch.Tensor:
        """Logits [rows, vocabulary] after the decoder's part of the prompts."""
        mask = _prompt_mask(self._visible, self._rest.shape[1])
        logits = self._forward(self._rest, mask, self._positions)
        self._positions = self._positions[:, -1:]
        return logits

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] after one more token of each row."""
        self._positions = self._positions + 1
        self._visible = torch.nn.functional.pad(self._visible, (0, 1), value=True)
        return self._forward(tokens[:, None], self._visible[:, None, None], self._positions)

    def keep(self, rows: list[int]) -> None:
        """Let all rows but these go."""
        index = torch.tensor(rows, device=self._visible.device)
        self._cache.batch_select_indices(index)
        self._visible, self._positions = self._visible[index], self._positions[index]

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        output = self._model(
            input_ids=ids,
            past_key_values=self._cache,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def shared_tokens(prompt: int, share: float, tail: int = 0) -> int:
    """How many of a prompt's tokens have their KV from the base: never the boundary token and the
    `tail` tokens before it."""
    return round(share * max(0, prompt - 1 - tail))


def _prompt_mask(visible: torch.Tensor, width: int) -> torch.Tensor:
    """What the decoder's part of the prompts sees, its last `width` columns being itself:
    [rows, 1, width, columns], bool."""
    cached = visible.shape[1] - width
    causal = torch.ones(width, width, dtype=torch.bool, device=visible.device).tril()
    return visible[:, None, None] & torch.nn.functional.pad(causal, (cached, 0), value=True)


def batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices in batches of at most `most` tokens after padding (or of one row), longest first.

    Longest first, so that what does not fit into memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= most:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
