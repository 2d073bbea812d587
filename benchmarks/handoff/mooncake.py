"""Mooncake's transfer engine over TCP, driven as SGLang's `mooncake` backend does."""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

from benchmarks.handoff.blocks import blocks
from benchmarks.handoff.cases import Pages
from benchmarks.handoff.pool import Pool

HOW_TO_GET_IT: Final = (
    "pip install mooncake-transfer-engine-non-cuda, and Debian's libibverbs1 "
    "(apt-get install libibverbs1)"
)
_BLOCKS_AT_A_TIME: Final = 1024  # its TCP queue is full at 2,048


def missing() -> str | None:
    """Why Mooncake cannot be compared with, or None."""
    try:
        importlib.import_module("mooncake.engine")
    except ImportError as error:
        return f"{error}; to get it: {HOW_TO_GET_IT}"
    return None


class Engine:
    """One process's engine, with its pool registered."""

    polls = False  # it has threads for that

    def __init__(self, pool: Pool) -> None:
        os.environ["MC_FORCE_TCP"] = "1"
        os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
        self._engine: Any = importlib.import_module("mooncake.engine").TransferEngine()
        self._pool = pool
        if self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("Mooncake's transfer engine did not start")
        if self._engine.batch_register_memory(pool.addresses, pool.lengths) != 0:
            raise RuntimeError("Mooncake did not register the pool")
        self.address = f"127.0.0.1:{self._engine.get_rpc_port()}"

    def connect(self, peer: str) -> None:
        """Remember where pages go."""
        self._peer = peer

    def progress(self) -> None:
        """Nothing."""

    def send(self, pages: Pages, targets: list[int], target_pages: Pages, page_size: int) -> None:
        """Write pages into the peer's pool: all blocks of all buffers, or as many as it takes."""
        to_write = blocks(self._pool.addresses, pages, targets, target_pages, page_size)
        sources, places, lengths = (column.tolist() for column in to_write)
        for first in range(0, len(lengths), _BLOCKS_AT_A_TIME):
            some = slice(first, first + _BLOCKS_AT_A_TIME)
            if self._engine.batch_transfer_sync_write(
                self._peer, sources[some], places[some], lengths[some]
            ):
                raise RuntimeError("Mooncake refused a batch")
