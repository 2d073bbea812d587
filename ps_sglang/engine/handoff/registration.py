"""A worker whose KV pool Mooncake cannot reach ends at its start, not at its first handoff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ps_sglang.engine.hooking import around


@around(
    "distributed.device_communicators.mooncake_transfer_engine.MooncakeTransferEngine.batch_register",
    "self", "ptrs", "lengths",
)  # fmt: skip
def batch_register(original: Any, engine: Any, ptrs: Sequence[int], lengths: Sequence[int]) -> int:
    """Around `MooncakeTransferEngine.batch_register`: a failure ends the start.

    The stock code logs it at DEBUG, and every transfer then fails. Raises RuntimeError.
    """
    code = int(original(engine, ptrs, lengths))
    if code != 0:
        raise RuntimeError(
            f"Mooncake cannot register {len(ptrs)} buffers of {sum(lengths) / 1e9:.1f} GB for "
            f"transfers (code {code}), so no page could move. For RDMA load the kernel module "
            "nvidia_peermem and allow locked memory (ulimit -l unlimited); MC_FORCE_TCP=1 does "
            "without both, slowly"
        )
    return code
