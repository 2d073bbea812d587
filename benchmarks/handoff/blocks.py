"""How SGLang turns pages into the blocks that Mooncake and NIXL move."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.handoff.cases import TOKEN_BYTES, Pages

Int64s = npt.NDArray[np.int64]


def blocks(
    sources: list[int], pages: Pages, targets: list[int], target_pages: Pages, page_size: int
) -> tuple[Int64s, Int64s, Int64s]:
    """Address, target address and length in bytes of each block to copy.

    Pages that follow each other in both pools are one block in each of the buffers. `sources` and
    `targets` are the buffers' addresses, `pages` and `target_pages` page numbers, and `page_size`
    is in tokens.
    """
    breaks = np.flatnonzero((np.diff(pages) != 1) | (np.diff(target_pages) != 1)) + 1
    starts = np.concatenate(([0], breaks))
    width = page_size * TOKEN_BYTES
    lengths = np.diff(np.append(starts, len(pages))).astype(np.int64) * width
    places = [
        (np.array(buffers)[:, None] + numbers[starts].astype(np.int64) * width).ravel()
        for buffers, numbers in ((sources, pages), (targets, target_pages))
    ]
    return places[0], places[1], np.tile(lengths, len(sources))
