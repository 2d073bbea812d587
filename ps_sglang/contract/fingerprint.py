"""The fingerprint of a base: which model made a KV cache, whatever its folder is called.

    fingerprint = "ps1:" + H(shape, [(name, dtype, shape, H(bytes)) for each tensor by name])

with H = blake2b-256. It is equal for the same weights split into other files, and differs if one
bit of a weight, or one item of the config that changes the KV (see `shape`), differs.

`lm_head.weight` is left out: it makes no KV, and a checkpoint with tied embeddings stores it or
not as its writer liked.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ps_sglang.contract.files import digest
from ps_sglang.contract.shape import read_shape
from ps_sglang.contract.tensors import Tensor, read_tensors, weight_files
from ps_sglang.errors import CheckpointError
from ps_sglang.home import home
from ps_sglang.progress import progress

SCHEME = "ps1"
_MAKES_NO_KV = frozenset({"lm_head.weight"})
# Bytes hashed at a time; hashlib lets other threads run during each piece.
_PIECE = 16 << 20
# About 3 s of hashing on two slow cores: from here on a person is told what takes the time.
_WORTH_A_LINE = 2 << 30
# Of each tensor a digest of the weights reads so many pieces, of so many bytes, evenly spread.
_SAMPLES, _SAMPLE = 16, 4096


def base_fingerprint(folder: Path) -> str:
    """The fingerprint of the checkpoint in `folder`, `ps1:` and 64 hex digits.

    Reads every weight once; later calls take the digest from the cache folder as long as each
    weight file keeps its path, size, modification time and inode. Raises CheckpointError.
    """
    weights = _remembered(folder) or _remember(folder, _weights_digest(folder))
    return digest(SCHEME, [read_shape(folder).as_dict(), weights])


def weights_digest(folder: Path) -> str:
    """`w1:` and a digest that tells checkpoints apart without reading them whole.

    It takes the name, type and shape of every tensor and up to 64 KiB of its bytes: training
    changes a tensor everywhere, or not at all. A small one is read whole. Raises CheckpointError.
    """
    tensors = [tensor for _, tensor in sorted(read_tensors(folder).items())]
    try:
        entries = [[t.name, t.dtype, t.shape, _sample_digest(t)] for t in tensors]
    except OSError as error:
        raise CheckpointError(f"cannot read the weights in {folder}: {error}") from error
    return digest("w1", entries)


def _sample_digest(tensor: Tensor) -> str:
    hasher = hashlib.blake2b(digest_size=32)
    size = tensor.end - tensor.start
    step = max(_SAMPLE, (size - _SAMPLE) // (_SAMPLES - 1))
    with tensor.file.open("rb", buffering=0) as handle:
        for start in range(tensor.start, tensor.end, step):
            hasher.update(os.pread(handle.fileno(), min(_SAMPLE, tensor.end - start), start))
    return hasher.hexdigest()


def _weights_digest(folder: Path) -> str:
    tensors = [t for name, t in sorted(read_tensors(folder).items()) if name not in _MAKES_NO_KV]
    size = sum(tensor.end - tensor.start for tensor in tensors)
    if size >= _WORTH_A_LINE:
        progress(f"fingerprinting {folder} ({size / 1e9:.1f} GB, once)")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(_tensor_digest, tensors)
        entries = [[t.name, t.dtype, t.shape, d] for t, d in zip(tensors, digests, strict=True)]
    return digest("weights", entries)


def _tensor_digest(tensor: Tensor) -> str:
    hasher = hashlib.blake2b(digest_size=32)
    with (
        tensor.file.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        for start in range(tensor.start, tensor.end, _PIECE):
            with view[start : min(start + _PIECE, tensor.end)] as piece:
                hasher.update(piece)
    return hasher.hexdigest()


def _remembered(folder: Path) -> str | None:
    try:
        record = json.loads(_record_path(folder).read_text(encoding="utf-8"))
        return str(record["weights"]) if record["files"] == _files_state(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never seen, or an unreadable record: hash again


def _remember(folder: Path, weights: str) -> str:
    path = _record_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"folder": str(folder.resolve()), "files": _files_state(folder), "weights": weights}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as handle:
        json.dump(record, handle)
    Path(handle.name).replace(path)
    return weights


def _record_path(folder: Path) -> Path:
    key = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=16).hexdigest()
    return home() / "fingerprints" / f"{key}.json"


def _files_state(folder: Path) -> list[list[Any]]:
    states = [(file.name, file.stat()) for file in weight_files(folder)]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in states]
