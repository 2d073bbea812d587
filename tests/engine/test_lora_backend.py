"""The LoRA backend for CPUs: W + scaling * B A of each row's adapter, and the base's rows as is."""

from __future__ import annotations

import argparse
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.lora.backend.lora_registry import get_backend_from_name
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.server_args import ServerArgs
from torch import Tensor

from ps_sglang.engine import lora
from ps_sglang.engine.lora.backend import GroupedLoRABackend
from ps_sglang.engine.lora.pool import Unpinned

SLOTS, RANK = 5, 8
CPU = torch.device("cpu")
# Inputs, and where the slices begin and end: q, k, v; o; gate, up; sizes that no vector divides.
SHAPES = {
    "qkv": (64, (0, 96, 112, 128)),
    "o": (96, (0, 64)),
    "gate_up": (64, (0, 160, 320)),
    "odd": (37, (0, 5, 19, 52)),
}


class Layer:
    """A linear layer with the pool's slots, filled as SGLang fills them."""

    def __init__(self, backend: GroupedLoRABackend, inputs: int, offsets: tuple[int, ...]) -> None:
        self.backend, self.offsets, self.slices = backend, offsets, len(offsets) - 1
        self.weight = torch.randn(offsets[-1], inputs)
        # What an adapter before has left behind must not show.
        self.a = torch.randn(SLOTS, self.slices * RANK, inputs)
        pool = SimpleNamespace(
            dtype=torch.float32, B_buffer={"layer": [torch.randn(SLOTS, offsets[-1], RANK)]}
        )
        backend.adopt(pool)
        self.b = pool.B_buffer["layer"][0]
        self.b.copy_(torch.randn(SLOTS, offsets[-1], RANK))
        self.updates: dict[int, Tensor] = {}

    def fill(self, slot: int, rank: int, scaling: float, targeted: bool = True) -> None:
        """Put another adapter into a slot; one that does not target the layer is zeros."""
        a, b = self.a[slot, : self.slices * rank], self.b[slot, :, :rank]
        a.copy_(torch.randn_like(a) if targeted else torch.zeros_like(a))
        b.copy_(torch.randn_like(b) if targeted else torch.zeros_like(b))
        pieces = [
            b[self.offsets[piece] : self.offsets[piece + 1]].double()
            @ a[piece * rank : (piece + 1) * rank].double()
            for piece in range(self.slices)
        ]
        self.updates[slot] = scaling * torch.cat(pieces)

    def __call__(self, x: Tensor, base: Tensor | None = None, **changed: Any) -> Tensor:
        output = x @ self.weight.T if base is None else base
        return self.backend.forward_with_base(
            self, x, lambda: output, self.a, self.b, torch.tensor(self.offsets), self.offsets,
            **changed,
        )  # fmt: skip

    def reference(self, x: Tensor, slots: list[int]) -> Tensor:
        rows = [
            (self.weight.double() + self.updates.get(slot, 0.0)) @ row.double()
            for row, slot in zip(x, slots, strict=True)
        ]
        return torch.stack(rows) if rows else torch.zeros(0, self.offsets[-1]).double()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def backend() -> GroupedLoRABackend:
    return GroupedLoRABackend(SLOTS, CPU, server_args=None)


def prepare(
    backend: GroupedLoRABackend, segments: list[tuple[int, int]], ranks: list[int],
    scalings: list[float],
) -> list[int]:  # fmt: skip
    """Prepare segments of (tokens, slot); the slot of each row, -1 where there is no adapter."""
    backend.prepare_lora_token_segments(
        segment_lens=[length for length, _ in segments],
        weight_indices=[slot for _, slot in segments],
        lora_ranks=ranks,
        scalings=scalings,
    )
    return [
        slot if slot >= 0 and ranks[slot] else -1
        for length, slot in segments
        for _ in range(length)
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_random_batches(backend: GroupedLoRABackend, shape: str, seed: int) -> None:
    """Slots of different ranks and targets, segments of any length, rows of the base between."""
    draw = random.Random(seed)
    layer = Layer(backend, *SHAPES[shape])
    ranks = [draw.randint(0, RANK) for _ in range(SLOTS)]
    scalings = [draw.choice([0.5, 1.0, 2.0]) for _ in range(SLOTS)]
    for round_ in range(3):  # the second and third replace what is in a slot
        for slot in range(SLOTS) if round_ == 0 else [draw.randrange(SLOTS)]:
            ranks[slot] = draw.randint(0, RANK) if round_ else ranks[slot]
            layer.fill(slot, ranks[slot], scalings[slot], targeted=draw.random() < 0.8)
        segments = [
            (draw.choice([0, 1, 1, 1, 2, 7, 40]), draw.randrange(-1, SLOTS))
            for _ in range(draw.randrange(12))
        ]
        slots = prepare(backend, segments, ranks, scalings)
        assert backend.batch_info.has_active_lora == any(slot >= 0 for slot in slots)
        x = torch.randn(len(slots), SHAPES[shape][0])
        output = layer(x)
        torch.testing.assert_close(output.double(), layer.reference(x, slots), rtol=2e-5, atol=2e-3)
        alone = [row for row, slot in enumerate(slots) if slot < 0]
        assert torch.equal(output[alone], (x @ layer.weight.T)[alone])


def test_a_row_does_not_depend_on_the_others(backend: GroupedLoRABackend) -> None:
    layer = Layer(backend, *SHAPES["qkv"])
    layer.fill(1, RANK, 2.0)
    layer.fill(3, 3, 0.5)
    ranks, scalings = [0, RANK, 0, 3, 0], [0.0, 2.0, 0.0, 0.5, 0.0]
    slots = prepare(backend, [(5, 1), (2, 3), (1, -1), (4, 1)], ranks, scalings)
    x = torch.randn(len(slots), 64)
    together = layer(x, torch.zeros(len(slots), 128))
    for row, slot in enumerate(slots):
        prepare(backend, [(1, slot)], ranks, scalings)
        assert torch.equal(layer(x[row : row + 1], torch.zeros(1, 128))[0], together[row])


def test_inputs_that_are_not_side_by_side(backend: GroupedLoRABackend) -> None:
    layer = Layer(backend, *SHAPES["o"])
    layer.fill(0, 4, 1.0)
    slots = prepare(backend, [(3, 0)], [4] + [0] * 4, [1.0] * SLOTS)
    for x in (torch.randn(3, 200)[:, 50:146], torch.randn(96, 3).T):
        torch.testing.assert_close(
            layer(x).double(), layer.reference(x, slots), rtol=2e-5, atol=2e-3
        )


def test_adapters_are_in_what_is_reduced(backend: GroupedLoRABackend) -> None:
    layer = Layer(backend, *SHAPES["o"])
    layer.fill(0, 4, 1.0)
    slots = prepare(backend, [(3, 0)], [4] + [0] * 4, [1.0] * SLOTS)
    x = torch.randn(3, 96)
    doubled = layer(x, all_reduce=lambda part: 2 * part)
    torch.testing.assert_close(
        doubled.double(), 2 * layer.reference(x, slots), rtol=2e-5, atol=2e-3
    )


@pytest.mark.parametrize(
    ("mode", "tokens", "rows"),
    [(ForwardMode.DECODE, None, [0, -1, 2]), (ForwardMode.EXTEND, [2, 1, 3], [0, 0, -1, 2, 2, 2])],
)
def test_the_rows_of_requests(
    backend: GroupedLoRABackend, mode: ForwardMode, tokens: Any, rows: list[int]
) -> None:
    layer = Layer(backend, *SHAPES["o"])
    layer.fill(0, 4, 1.0)
    layer.fill(2, 2, 3.0)
    batch = SimpleNamespace(
        forward_mode=mode, batch_size=3, extend_seq_lens_cpu=tokens,
        extend_seq_lens=tokens and torch.tensor(tokens),
    )  # fmt: skip
    backend.prepare_lora_batch(batch, [0, 1, 2], [4, 0, 2, 0, 0], [1.0, 0.0, 3.0, 0.0, 0.0], False)
    x = torch.randn(len(rows), 96)
    torch.testing.assert_close(layer(x).double(), layer.reference(x, rows), rtol=2e-5, atol=2e-3)


def test_a_batch_prepared_for_other_rows_is_an_error(backend: GroupedLoRABackend) -> None:
    layer = Layer(backend, *SHAPES["o"])
    prepare(backend, [(3, 0)], [4] * SLOTS, [1.0] * SLOTS)
    with pytest.raises(RuntimeError, match="a batch of 3 rows met a layer with 2"):
        layer(torch.randn(2, 96))


def test_what_it_cannot_do_is_refused_by_name(backend: GroupedLoRABackend) -> None:
    with pytest.raises(ValueError, match="for CPUs, the model is on cuda"):
        GroupedLoRABackend(SLOTS, torch.device("cuda"), server_args=None)
    with pytest.raises(ValueError, match=r"torch\.bfloat16: start with --dtype float32"):
        backend.adopt(SimpleNamespace(dtype=torch.bfloat16, B_buffer={}))
    with pytest.raises(ValueError, match=r"no adapters on embed_tokens, lm_head .*ps-sglang merge"):
        backend.validate_lora_targets(None, {"lm_head", "qkv_proj", "embed_tokens"})
    with pytest.raises(ValueError, match="layers of experts"):
        backend.is_moe_lora = True


def test_the_command_line_and_the_registry_know_it() -> None:
    lora.register()
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    args = parser.parse_args(["--model-path", "m", "--lora-backend", "grouped"])
    assert get_backend_from_name(args.lora_backend) is GroupedLoRABackend


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned here")
def test_nothing_is_pinned_without_cuda() -> None:
    with pytest.raises(RuntimeError):
        torch.zeros(2, pin_memory=True)
    with Unpinned():
        assert torch.zeros(2, dtype=torch.int32, pin_memory=True).dtype == torch.int32
        assert torch.tensor([1, 2], pin_memory=True).tolist() == [1, 2]
        assert torch.ones(2).pin_memory().tolist() == [1.0, 1.0]
