"""SGLang's LoRA backend `grouped`: on a CPU, each layer adds all adapters' products in one call.

SGLang keeps the adapters of running batches in a pool of slots: for every layer A as
[slots, slices * rank, inputs] and B as [slots, outputs, rank], both up to the largest rank, of
which an adapter uses the first rows (A) and columns (B). A layer that computes several projections
at once (q, k, v; gate, up) has a slice for each. Its `torch_native` backend takes a product of
PyTorch's for each adapter, slice and layer, which on a CPU costs more than the base model.

What a forward needs to know of its batch is worked out once: which rows belong to which slot.
Rows without an adapter are in no group, so they get exactly the base's output, at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ps_sglang.engine.compat.srt import BaseLoRABackend, generate_sequence_lengths
from ps_sglang.engine.lora.kernel import TOKENS, add_low_rank

_UNSUPPORTED_TARGETS: Final = frozenset({"embed_tokens", "lm_head"})
_MERGE: Final = "merge the adapter into a decoder of its own: ps-sglang merge"


@dataclass
class LoRABatch:
    """The rows of one forward by adapter, as the compiled loop takes them.

    `rows` is how many the forward has, with and without an adapter. SGLang reads and sets the two
    flags. `tensors` own what `address` points to.
    """

    rows: int
    has_active_lora: bool
    address: int
    tensors: tuple[Tensor, ...]
    is_prefill: bool = False


@dataclass(frozen=True)
class _Layer:
    """What the loop must know of a layer: where its weights are, how they are cut into slices."""

    a: Tensor
    b: Tensor
    address: int
    tensors: tuple[Tensor, ...]


class GroupedLoRABackend(BaseLoRABackend):  # type: ignore[misc]
    """All adapters of a batch in one call per layer; float32 on a CPU."""

    name = "grouped"
    # A batch without adapters takes the plain model's way through the layers.
    skip_inactive_lora_batches = True

    def __init__(self, max_loras_per_batch: int, device: torch.device, server_args: Any) -> None:
        """Raises ValueError on another device than a CPU."""
        del server_args
        super().__init__(max_loras_per_batch, device)
        if device.type != "cpu":
            raise ValueError(
                f"--lora-backend {self.name} is for CPUs, the model is on {device}: "
                "leave the flag away"
            )
        self._layers: dict[Any, _Layer] = {}

    @property
    def is_moe_lora(self) -> bool:
        """Whether a layer of experts has adapters, which SGLang sets: never."""
        return False

    @is_moe_lora.setter
    def is_moe_lora(self, value: bool) -> None:
        if value:
            raise ValueError(
                f"--lora-backend {self.name} has no adapters on layers of experts: {_MERGE}"
            )

    def validate_lora_targets(self, base_model: Any, target_modules: set[str]) -> None:
        """Raises ValueError for targets that are not linear layers of a transformer block."""
        del base_model
        if unsupported := sorted(_UNSUPPORTED_TARGETS & target_modules):
            raise ValueError(
                f"--lora-backend {self.name} has no adapters on {', '.join(unsupported)} "
                f"(--lora-target-modules): {_MERGE}"
            )

    def adopt(self, pool: Any) -> None:
        """Store the pool's B by rank: what is multiplied with one number lies side by side.

        SGLang goes on to see [slots, outputs, rank] of each layer, and fills slots as before.

        Raises ValueError if the pool does not hold float32.
        """
        if pool.dtype is not torch.float32:
            raise ValueError(
                f"--lora-backend {self.name} computes in float32, the model in {pool.dtype}: "
                "start with --dtype float32"
            )
        for layers in pool.B_buffer.values():
            for number, b in enumerate(layers):
                slots, outputs, rank = b.shape
                layers[number] = torch.zeros(slots, rank, outputs).transpose(1, 2)

    def prepare_lora_batch(
        self,
        forward_batch: Any,
        weight_indices: list[int],
        lora_ranks: list[int],
        scalings: list[float],
        use_decode_cuda_graph: bool,
        use_prefill_cuda_graph: bool = False,
    ) -> None:
        """Called before each forward; `weight_indices` are the requests' slots."""
        del use_decode_cuda_graph, use_prefill_cuda_graph
        self.prepare_lora_token_segments(
            segment_lens=generate_sequence_lengths(forward_batch, device="cpu").tolist(),
            weight_indices=weight_indices,
            lora_ranks=lora_ranks,
            scalings=scalings,
        )

    def prepare_lora_token_segments(
        self,
        *,
        segment_lens: Sequence[int],
        weight_indices: Sequence[int],
        lora_ranks: Sequence[int],
        scalings: Sequence[float],
    ) -> None:
        """Give each segment of the next forward's rows, one after another, the adapter of a slot.

        Slot -1, and a slot of rank 0, is the base alone. Ranks and scalings are by slot.
        """
        by_slot: dict[int, list[range]] = {}
        start = 0
        for length, slot in zip(segment_lens, weight_indices, strict=True):
            if slot >= 0 and lora_ranks[slot] > 0 and length > 0:
                by_slot.setdefault(slot, []).append(range(start, start + length))
            start += length
        self.batch_info = _batch(start, by_slot, lora_ranks, scalings)

    def forward_with_base(
        self,
        layer: Any,
        x: Tensor,
        base_fn: Callable[[], Tensor],
        lora_a: Tensor,
        lora_b: Tensor,
        output_offset: Tensor,
        offsets: tuple[int, ...],
        *,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
        kind: str = "linear",
        pruned_batch_info: Any = None,
    ) -> Tensor:
        """A layer's output [rows, outputs] for `x` [rows, inputs], adapters added.

        `offsets` are where the slices begin in the outputs, and where the last one ends.
        """
        del output_offset, kind, pruned_batch_info
        output = base_fn()
        batch: LoRABatch = self.batch_info
        if len(x) != batch.rows:
            raise RuntimeError(f"a batch of {batch.rows} rows met a layer with {len(x)}")
        known = self._layers.get(layer)
        if known is None or known.a is not lora_a or known.b is not lora_b:
            known = self._layers[layer] = _layer(lora_a, lora_b, offsets)
        if x.stride(1) != 1:
            x = x.contiguous()
        add_low_rank(
            x.data_ptr(), x.stride(0), output.data_ptr(), output.stride(0),
            known.address, batch.address,
        )  # fmt: skip
        # A row-parallel layer's A is cut like its inputs, so the products add up like the outputs.
        return output if all_reduce is None else all_reduce(output)


def _batch(
    rows: int,
    by_slot: dict[int, list[range]],
    lora_ranks: Sequence[int],
    scalings: Sequence[float],
) -> LoRABatch:
    order, starts = [], [0]
    for segments in by_slot.values():
        for segment in segments:
            order.extend(segment)
        starts.append(len(order))
    tensors = [_integers(values) for values in (starts, by_slot, [lora_ranks[s] for s in by_slot])]
    tensors.append(torch.tensor([scalings[slot] for slot in by_slot], dtype=torch.float32))
    tensors.append(_integers(order))
    table = _integers([len(by_slot), *(tensor.data_ptr() for tensor in tensors)])
    return LoRABatch(rows, bool(by_slot), table.data_ptr(), (table, *tensors))


def _layer(a: Tensor, b: Tensor, offsets: Sequence[int]) -> _Layer:
    outputs = b.shape[1]
    assert b.stride() == (b[0].numel(), 1, outputs), "the pool's B is not stored by rank"
    assert offsets[-1] <= outputs, "slices do not fit into B"
    hidden = torch.empty(TOKENS * a.shape[1])
    table = _integers([
        a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(0), a.shape[2], outputs,
        len(offsets) - 1, hidden.data_ptr(), *offsets,
    ])  # fmt: skip
    return _Layer(a, b, table.data_ptr(), (table, hidden))


def _integers(values: Sequence[int] | dict[int, Any]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
