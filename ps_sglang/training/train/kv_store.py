"""Base KV kept between epochs: the base is frozen, so a prefix's KV never changes.

Both stores are bounded and never throw anything out. Every epoch asks for every prefix once, in
another order: then a store of a given size hits as often as it can if it keeps what it has.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ps_sglang.progress import progress
from ps_sglang.training.train.settings import TrainSettings

_SUFFIX: Final = ".safetensors"


def open_kv_store(settings: TrainSettings, fingerprint: str) -> KvStore | None:
    """The store that `settings` ask for; one on disk has a folder for each base and dtype."""
    limit = int(settings.keep_kv_gb * 1e9)
    if not limit:
        return None
    if settings.keep_kv_dir is None:
        return MemoryKvStore(limit)
    base = fingerprint.partition(":")[2][:32]
    return DiskKvStore(settings.keep_kv_dir / f"{base}-{settings.dtype}", limit)


class KvStore(Protocol):
    """One prefix's KV under its key: [layers, 2, KV heads, tokens, head dim], on the CPU."""

    def get(self, key: str) -> torch.Tensor | None: ...

    def put(self, key: str, kv: torch.Tensor) -> None:
        """Keep it if it fits under the bound."""

    def report(self) -> str:
        """How much is kept and how often that saved the base's work, for a person."""


class _Counts:
    """What both stores tell of themselves."""

    used_bytes = hits = misses = 0

    def report(self) -> str:
        return (
            f"kept base KV: {self.used_bytes / 1e9:.2f} GB; "
            f"{self.hits} of {self.hits + self.misses} prefixes needed no base"
        )


class MemoryKvStore(_Counts):
    """At most `limit` bytes in this process's memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_key: dict[str, torch.Tensor] = {}

    def get(self, key: str) -> torch.Tensor | None:
        kv = self._by_key.get(key)
        if kv is None:
            self.misses += 1
        else:
            self.hits += 1
        return kv

    def put(self, key: str, kv: torch.Tensor) -> None:
        if key not in self._by_key and self.used_bytes + kv.nbytes <= self._limit:
            self._by_key[key] = kv
            self.used_bytes += kv.nbytes


class DiskKvStore(_Counts):
    """At most `limit` bytes of files in `folder`, one a prefix.

    The files stay for later runs; `folder` must be of one base and one dtype. Processes may share
    it: a file appears whole, and the bound is then what each of them counted at its start.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limit = folder, limit
        self.used_bytes = sum(file.stat().st_size for file in folder.glob(f"*{_SUFFIX}"))

    def get(self, key: str) -> torch.Tensor | None:
        try:
            kv: torch.Tensor = load_file(self._file(key))["kv"]
        except (FileNotFoundError, SafetensorError):
            # A file that was cut off is as good as none.
            self._file(key).unlink(missing_ok=True)
            self.misses += 1
            return None
        self.hits += 1
        return kv

    def put(self, key: str, kv: torch.Tensor) -> None:
        if self.used_bytes + kv.nbytes > self._limit or self._file(key).exists():
            return
        try:
            with tempfile.TemporaryDirectory(dir=self._folder) as partial:
                written = Path(partial, "kv")
                save_file({"kv": kv}, written)
                self.used_bytes += written.stat().st_size
                written.replace(self._file(key))
        except (OSError, SafetensorError) as error:
            # Only speed is lost: go on without keeping more.
            self._limit = 0
            progress(f"keeps no more base KV in {self._folder}: {error}")

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"
