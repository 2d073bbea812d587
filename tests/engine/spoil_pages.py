"""A plugin for a worker under test: pages arrive wrong from a prefill worker.

The folder that `SPOIL_PAGES` names has two files. They hold how many more batches are to be
spoiled: of those copied from the prefill worker's pool, and of those that come over TCP.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from ps_sglang.engine.transfer.memory import HostRows

SPOIL_PAGES: Final = "SPOIL_PAGES"
COPIED: Final = "copied"
OVER_TCP: Final = "over_tcp"


def spoil(folder: Path, *, copied: int = 0, over_tcp: int = 0) -> None:
    """Have that many batches spoiled from now on."""
    for name, batches in ((COPIED, copied), (OVER_TCP, over_tcp)):
        (folder / name).write_text(str(batches))


def left(folder: Path) -> tuple[int, int]:
    """How many batches are still to be spoiled: copied ones, and those over TCP."""
    return int((folder / COPIED).read_text()), int((folder / OVER_TCP).read_text())


def register() -> None:
    """Called by SGLang as by any plugin."""
    folder = Path(os.environ[SPOIL_PAGES])
    copy, scatter = HostRows.copy_from, HostRows.scatter

    def is_next(name: str) -> bool:
        count = int((folder / name).read_text())
        if count > 0:
            (folder / name).write_text(str(count - 1))
        return count > 0

    def copy_from(self: HostRows, source: HostRows, source_rows: Any, rows: Any) -> bytes:
        if is_next(COPIED):
            source_rows = source_rows[::-1].copy()
        return copy(self, source, source_rows, rows)

    def scatter_spoilt(self: HostRows, rows: Any, packed: Any) -> bytes:
        if len(rows) > 1 and is_next(OVER_TCP):  # metadata is a single row, and no page
            packed = np.frombuffer(packed, dtype=np.uint8)[::-1].copy()
        return scatter(self, rows, packed)

    HostRows.copy_from = copy_from  # type: ignore[method-assign]
    HostRows.scatter = scatter_spoilt  # type: ignore[method-assign]


def install(folder: Path) -> None:
    """Make `folder` one that, on PYTHONPATH, has SGLang load this plugin."""
    info = folder / "spoil_pages-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spoil-pages\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nspoil_pages = spoil_pages:register\n"
    )
