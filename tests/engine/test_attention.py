"""Attention on the CPU: the same rows as SGLang's own, and only the new ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch.utils._python_dispatch import TorchDispatchMode

from ps_sglang.engine.attention import IncrementalSdpaBackend

HEADS, KV_HEADS, SIZE = 6, 2, 16
POOL = 2_000
EXTEND = TorchNativeAttnBackend._run_sdpa_forward_extend
DECODE = TorchNativeAttnBackend._run_sdpa_forward_decode


class Batch:
    """Requests of (cached prefix, new tokens), their pages scattered over a pool."""

    def __init__(self, requests: list[tuple[int, int]], dtype: torch.dtype) -> None:
        source = torch.Generator().manual_seed(len(requests))
        self.requests = requests
        totals = [prefix + new for prefix, new in requests]
        self.query = torch.randn(
            sum(new for _, new in requests), HEADS, SIZE, generator=source, dtype=dtype
        )
        self.pools = torch.randn(2, POOL, KV_HEADS, SIZE, generator=source, dtype=dtype)
        slots = torch.randperm(POOL, generator=source)[: sum(totals)].split(totals)
        self.table = torch.zeros(len(requests) + 1, max(totals), dtype=torch.int32)
        for row, tokens in enumerate(slots, start=1):
            self.table[row, : len(tokens)] = tokens
        self.lengths = [
            torch.tensor(totals),
            *(torch.tensor([request[which] for request in requests]) for which in (0, 1)),
        ]

    def extend(self, function: Any, **changed: Any) -> torch.Tensor:
        return self._run(function, self.lengths, {"causal": True} | changed)

    def decode(self, function: Any, **changed: Any) -> torch.Tensor:
        return self._run(function, self.lengths[:1], {"causal": False} | changed)

    def _run(
        self, function: Any, lengths: list[torch.Tensor], options: dict[str, Any]
    ) -> torch.Tensor:
        output = torch.zeros_like(self.query)
        rows = torch.arange(1, len(self.requests) + 1)
        backend = object.__new__(IncrementalSdpaBackend)
        function(
            backend, self.query, output, *self.pools, self.table, rows, *lengths,
            **{"scaling": 0.3, "enable_gqa": True} | options,
        )  # fmt: skip
        return output


class QueryRows(TorchDispatchMode):  # type: ignore[misc]
    """Counts the rows that attention kernels are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            self.rows += args[0].shape[-2]
        return func(*args, **(kwargs or {}))


def _never(*args: Any, **kwargs: Any) -> torch.Tensor:
    raise AssertionError("left to SGLang")


extend = IncrementalSdpaBackend._run_sdpa_forward_extend
decode = IncrementalSdpaBackend._run_sdpa_forward_decode


@pytest.fixture
def stock_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's own code fails by name, so that it is seen where it is asked."""
    for name in ("_run_sdpa_forward_extend", "_run_sdpa_forward_decode"):
        monkeypatch.setattr(TorchNativeAttnBackend, name, _never)


DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "requests",
    [[(700, 1)], [(300, 77)], [(0, 65), (512, 64), (1, 1), (33, 200)], [(5, 0), (64, 3)]],
)
def test_a_prefills_rows_are_sglangs(requests: list[tuple[int, int]], dtype: torch.dtype) -> None:
    batch = Batch(requests, dtype)
    torch.testing.assert_close(batch.extend(extend), batch.extend(EXTEND))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decode_steps_rows_are_sglangs(dtype: torch.dtype) -> None:
    batch = Batch([(0, 1), (1, 1), (700, 1)], dtype)
    assert torch.equal(batch.decode(decode), batch.decode(DECODE))


def test_only_new_rows_are_computed() -> None:
    batch = Batch([(900, 100), (40, 1)], torch.float32)
    for function, rows in ((extend, 101), (EXTEND, 1041)):
        with QueryRows() as counted:
            batch.extend(function)
        assert counted.rows == rows


@pytest.mark.parametrize(
    "changed",
    [
        {"is_cross_attn": True, "encoder_lens": torch.tensor([3])},
        {"encoder_lens": torch.tensor([3])},
        {"sliding_window_size": 0},
    ],
    ids=lambda changed: " ".join(changed),
)
@pytest.mark.usefixtures("stock_refuses")
def test_what_is_left_to_sglang(changed: dict[str, Any]) -> None:
    batch = Batch([(10, 1)], torch.float32)
    for run, function in ((batch.extend, extend), (batch.decode, decode)):
        with pytest.raises(AssertionError, match="left to SGLang"):
            run(function, **changed)


@pytest.mark.usefixtures("stock_refuses")
def test_a_layer_that_is_not_causal_is_left_to_sglang() -> None:
    with pytest.raises(AssertionError, match="left to SGLang"):
        Batch([(10, 5)], torch.float32).extend(extend, causal=False)
