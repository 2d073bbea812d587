"""What a cluster's processes hold of the machine, and whether they have given it back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ps_sglang.launch import procfs

# What may stay behind a fault: a few connections, threads of pools that have grown to their size,
# memory that allocators keep.
_SPARE: Final = {
    "processes": 0,
    "descriptors": 64,
    "sockets": 64,
    "threads": 16,
    "files": 8,
    "memory_mb": 150,
}
_MEMORY_GROWTH: Final = 1.15


@dataclass(frozen=True)
class Resources:
    """Of all processes of a cluster. `files` are in its temporary folder, `memory_mb` sums PSS."""

    processes: int
    descriptors: int
    sockets: int
    threads: int
    files: int
    memory_mb: int

    def not_back(self, before: Resources) -> list[str]:
        """What is more than it was `before`, by more than may stay."""
        was, now = asdict(before), asdict(self)
        return [
            f"{name}: {now[name]} after {was[name]}"
            for name, spare in _SPARE.items()
            if now[name] > was[name] * (_MEMORY_GROWTH if name == "memory_mb" else 1) + spare
        ]


def measure(pids: Sequence[int], temporary: Path) -> Resources:
    """As it is now."""
    opened = [link for pid in pids for link in _descriptors(pid)]
    return Resources(
        len(pids),
        len(opened),
        sum(link.startswith("socket:") for link in opened),
        sum(_entries(pid, "task") for pid in pids),
        sum(len(files) for _, _, files in os.walk(temporary)),
        round(sum(map(procfs.proportional_bytes, pids)) / 1e6),
    )


def _descriptors(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except OSError:
        return
    for number in numbers:
        try:
            yield os.readlink(f"{folder}/{number}")
        except OSError:  # closed meanwhile
            continue


def _entries(pid: int, folder: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/{folder}"))
    except OSError:
        return 0
