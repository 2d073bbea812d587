"""The tensors of a checkpoint, from the headers of its safetensors files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ps_sglang.contract.files import read_object
from ps_sglang.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# The format's own limit; a larger value means that the file is not a safetensors file.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: bytes `start` to `end` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that an engine loads from `folder`, sorted by name."""
    if (folder / _INDEX).is_file():
        shards = read_object(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{folder / _INDEX} has no weight_map")
        files = [folder / name for name in sorted(set(shards.values()))]
    elif (folder / _SINGLE).is_file():
        files = [folder / _SINGLE]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} has no .safetensors file; convert the checkpoint to safetensors first"
        )
    return files


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by name, however it is split over files."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        for tensor in read_header(file):
            if tensor.name in tensors:
                other = tensors[tensor.name].file.name
                raise CheckpointError(
                    f"{folder} holds tensor {tensor.name} twice: in {other} and in {file.name}"
                )
            tensors[tensor.name] = tensor
    return tensors


def read_header(file: Path) -> list[Tensor]:
    """Tensors of one file: 8 bytes of header length, the JSON header, then the data."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise CheckpointError(f"{file} is not a safetensors file")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        data = 8 + length
        tensors = [_tensor(file, name, entry, data) for name, entry in header.items()]
        size = file.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} lacks the weight file {file.name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error!r}") from error
    expected = max((tensor.end for tensor in tensors), default=data)
    if size < expected:
        raise CheckpointError(
            f"{file} is cut off: {size} bytes of {expected}; download or copy it again"
        )
    return tensors


def _tensor(file: Path, name: str, entry: dict[str, Any], data: int) -> Tensor:
    shape = tuple(int(size) for size in entry["shape"])
    start, end = (data + int(offset) for offset in entry["data_offsets"])
    if end - start < math.prod(shape) // 2:  # no dtype is narrower than 4 bits
        raise ValueError(f"tensor {name} has fewer bytes than its shape {list(shape)} needs")
    return Tensor(name, str(entry["dtype"]), shape, file, start, end)
