"""A plugin for a worker under test: pages copied from a prefill worker's pool arrive wrong.

The file that `SPOIL_PAGES` names holds how many more batches are to be spoiled.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ps_sglang.engine.transfer.memory import HostRows

SPOIL_PAGES = "SPOIL_PAGES"


def register() -> None:
    """Called by SGLang as by any plugin."""
    left = Path(os.environ[SPOIL_PAGES])
    whole = HostRows.copy_from

    def copy_from(self: HostRows, source: HostRows, source_rows: Any, rows: Any) -> bytes:
        count = int(left.read_text())
        if count == 0:
            return whole(self, source, source_rows, rows)
        left.write_text(str(count - 1))
        return whole(self, source, source_rows[::-1].copy(), rows)

    HostRows.copy_from = copy_from  # type: ignore[method-assign]


def install(folder: Path) -> None:
    """Make `folder` one that, on PYTHONPATH, has SGLang load this plugin."""
    info = folder / "spoil_pages-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spoil-pages\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nspoil_pages = spoil_pages:register\n"
    )
