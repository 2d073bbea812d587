"""NIXL with UCX, as SGLang's `nixl` backend uses it; on one host UCX picks shared memory."""

from __future__ import annotations

import importlib
import os
import secrets
import time
from typing import Any, Final

import numpy as np

from benchmarks.handoff.blocks import Int64s, blocks
from benchmarks.handoff.cases import Pages
from benchmarks.handoff.pool import Pool

HOW_TO_GET_IT: Final = "pip install nixl, and nixl-cu12 or nixl-cu13 like torch's CUDA"


def missing() -> str | None:
    """Why NIXL cannot be compared with, or None."""
    try:
        importlib.import_module("nixl._api")
    except ImportError as error:
        return f"{error}; to get it: {HOW_TO_GET_IT}"
    return None


class Agent:
    """One process's agent, with its pool registered."""

    polls = True

    def __init__(self, pool: Pool) -> None:
        os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
        api: Any = importlib.import_module("nixl._api")
        # Its progress threads spin, and would take the cores from all that is measured.
        config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self._agent = api.nixl_agent(secrets.token_hex(8), config)
        self._pool = pool
        regions = [
            (start, size, 0, "") for start, size in zip(pool.addresses, pool.lengths, strict=True)
        ]
        self._agent.register_memory(regions, "DRAM")
        self.address: bytes = self._agent.get_agent_metadata()

    def connect(self, peer: bytes) -> None:
        """Remember where pages go."""
        self._peer = self._agent.add_remote_agent(peer)

    def progress(self) -> None:
        """As SGLang's decode worker does to hear of notifications."""
        self._agent.get_new_notifs()

    def send(self, pages: Pages, targets: list[int], target_pages: Pages, page_size: int) -> None:
        """Write pages into the peer's pool: all blocks of all buffers in one transfer."""
        sources, places, lengths = blocks(
            self._pool.addresses, pages, targets, target_pages, page_size
        )
        handle = self._agent.initialize_xfer(
            "WRITE", self._described(sources, lengths), self._described(places, lengths), self._peer
        )
        state = self._agent.transfer(handle)
        while state == "PROC":
            time.sleep(0)
            state = self._agent.check_xfer_state(handle)
        self._agent.release_xfer_handle(handle)
        if state != "DONE":
            raise RuntimeError(f"NIXL ended a transfer with {state}")

    def _described(self, addresses: Int64s, lengths: Int64s) -> Any:
        rows = np.stack([addresses, lengths, np.zeros_like(lengths)], axis=1)
        return self._agent.get_xfer_descs(rows, "DRAM")
