"""The frozen base: it prefills, nothing else, and its KV may be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ps_sglang.training.train.attention import BasePrefix, LayerKv
from ps_sglang.training.train.kv_store import KvStore


class Base(Protocol):
    def prefill(self, ids: torch.Tensor) -> list[LayerKv]:
        """The KV of `ids` [rows, tokens], every row from position 0 on, causal, no gradient."""


class FrozenBase:
    """A base with weights of its own."""

    def __init__(self, model: Any) -> None:
        self._model = model.requires_grad_(False).eval()

    def prefill(self, ids: torch.Tensor) -> list[LayerKv]:
        return _prefill(self._model, ids)


class AdaptedBase:
    """The base under a LoRA decoder: the same weights with the adapter switched off."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def prefill(self, ids: torch.Tensor) -> list[LayerKv]:
        with self._decoder.disable_adapter(), _evaluating(self._decoder):
            return _prefill(self._decoder.get_base_model(), ids)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """A model in training mode that checkpoints gradients would keep no KV."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _prefill(model: Any, ids: torch.Tensor) -> list[LayerKv]:
    # The inner model: nobody wants the base's logits. Not inference_mode: the decoder's backward
    # pass needs the values.
    with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
        cache = model.get_decoder()(input_ids=ids, use_cache=True).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


class BaseReader:
    """The base's KV of batches of prefixes, from what was kept where it was."""

    def __init__(self, base: Base, kv_store: KvStore | None = None) -> None:
        self._base, self._kv_store = base, kv_store

    def read(self, ids: torch.Tensor, lengths: torch.Tensor) -> BasePrefix:
        """`ids` [rows, tokens], padded on the right; `lengths` [rows]."""
        if self._kv_store is None:
            return BasePrefix(self._base.prefill(ids))
        return self._read_stored(self._kv_store, ids, lengths.tolist())

    def _read_stored(self, kv_store: KvStore, ids: torch.Tensor, lengths: list[int]) -> BasePrefix:
        keys = [_key(row[:n]) for row, n in zip(ids.cpu(), lengths, strict=True)]
        kv_by_row = {
            row: kv for row, key in enumerate(keys) if (kv := kv_store.get(key)) is not None
        }
        missing = [row for row in range(len(keys)) if row not in kv_by_row]
        if missing:
            longest = max(1, *(lengths[row] for row in missing))
            layers = self._base.prefill(ids[missing, :longest])
            fresh = {row: _row(layers, i, lengths[row]) for i, row in enumerate(missing)}
            for row, kv in fresh.items():
                kv_store.put(keys[row], kv)
            if not kv_by_row:
                return BasePrefix(layers)
            kv_by_row |= fresh
        return BasePrefix(_together([kv_by_row[row] for row in range(len(keys))], ids.device))


def _key(ids: torch.Tensor) -> str:
    return hashlib.blake2b(ids.to(torch.int32).numpy().tobytes(), digest_size=16).hexdigest()


def _row(layers: list[LayerKv], row: int, length: int) -> torch.Tensor:
    """One row's KV without padding: [layers, 2, KV heads, length, head dim]."""
    return torch.stack([torch.stack([part[row, :, :length] for part in kv]) for kv in layers]).cpu()


def _together(rows: list[torch.Tensor], device: torch.device) -> list[LayerKv]:
    """Rows of different lengths as one padded batch."""
    layers, two, heads, _, width = rows[0].shape
    longest = max(1, *(kv.shape[3] for kv in rows))
    # Zeros, not what lies in memory: NaN times an attention weight of 0 is NaN.
    batch = torch.zeros(
        (layers, two, len(rows), heads, longest, width), dtype=rows[0].dtype, device=device
    )
    for index, kv in enumerate(rows):
        batch[:, :, index, :, : kv.shape[3]].copy_(kv)
    return [(layer[0], layer[1]) for layer in batch]
