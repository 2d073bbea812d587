"""How SGLang turns pages into the blocks that Mooncake and NIXL move."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.handoff.cases import TOKEN_BYTES, Pages

Int64s = npt.NDArray[np.int64]


def blocks(
    sources: list[int], pages: Pages, targets: list[int], target_pages: Pages, page_size: int
) -> tuple[Int64s, Int64s, Int64s]:
    """Pages that follow each other in both pools are one block in each of the buffers.

    Args:
        sources: addresses of the buffers.
        pages: numbers of the pages.
        targets: as `sources`, where they go.
        target_pages: as `pages`.
        page_size: tokens of a page.

    Returns:
        Address, target address and length of each block.
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
