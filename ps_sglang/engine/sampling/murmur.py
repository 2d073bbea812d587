"""MurmurHash3 of (seed, position, token) in NumPy, for CPUs without `sgl_kernel`.

SGLang derives a seeded token's noise from this hash (kernels/ops/sampling/murmur_hash.py) and on
a CPU takes it from a kernel library that needs CUDA's driver to load. The values are the same.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ps_sglang.engine.hooking import around

_Words = npt.NDArray[np.uint32]

_C1, _C2, _N = np.uint32(0xCC9E2D51), np.uint32(0x1B873593), np.uint32(0xE6546B64)
_KEY_BYTES: Final = 16  # 8 of seed, 4 of position, 4 of token


@around("sglang.kernels.ops.sampling.murmur_hash.murmur_hash32", "seed", "positions", "col_indices")
def murmur_hash32(
    original: Any, seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor
) -> torch.Tensor:
    """Around SGLang's `murmur_hash32`: compute the hashes without `sgl_kernel`.

    `seed` is `[n]` uint64, `positions` `[n]` int, and `col_indices` `[m]` int, the token ids. The
    hashes, one per request and token, are `[n, m]` uint32.
    """
    if seed.device.type != "cpu":
        return original(seed, positions, col_indices)
    seeds = seed.numpy().astype(np.uint64)
    state = np.zeros(len(seeds), dtype=np.uint32)
    for block in (seeds & np.uint64(0xFFFFFFFF), seeds >> np.uint64(32), positions.numpy()):
        state = _mix(state, block.astype(np.uint32))
    hashes = _mix(state[:, None], col_indices.numpy().astype(np.uint32)[None, :])
    return torch.from_numpy(_finish(hashes))


def _mix(state: _Words, block: _Words) -> _Words:
    block = _rotate(block * _C1, 15) * _C2
    return _rotate(state ^ block, 13) * np.uint32(5) + _N


def _rotate(words: _Words, by: int) -> _Words:
    return (words << np.uint32(by)) | (words >> np.uint32(32 - by))


def _finish(words: _Words) -> _Words:
    words = words ^ np.uint32(_KEY_BYTES)
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))
