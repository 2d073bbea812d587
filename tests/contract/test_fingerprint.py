from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ps_sglang.contract import base_fingerprint, fingerprint, weights_digest
from ps_sglang.errors import CheckpointError
from tests.contract.folder_parts import Build, tensors, write_json


def reshard(folder: Path, weights: dict[str, np.ndarray]) -> None:
    """Split `weights` over two files with an index, in place of the single file."""
    (folder / "model.safetensors").unlink()
    names = sorted(weights, reverse=True)
    files = {
        "model-00001-of-00002.safetensors": names[:1],
        "model-00002-of-00002.safetensors": names[1:],
    }
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    write_json(folder / "model.safetensors.index.json", index)


def test_form(build: Build) -> None:
    scheme, digest = base_fingerprint(build("base")).split(":")
    assert scheme == "ps1"
    assert len(bytes.fromhex(digest)) == 32


def test_does_not_depend_on_folder_or_shards(build: Build) -> None:
    one, split = build("one"), build("split")
    reshard(split, tensors())
    assert base_fingerprint(one) == base_fingerprint(split)


def test_does_not_depend_on_the_metadata_of_the_file(build: Build) -> None:
    one, other = build("one"), build("other")
    save_file(tensors(), other / "model.safetensors", metadata={"format": "pt"})
    assert base_fingerprint(one) == base_fingerprint(other)


def test_output_head_does_not_matter(build: Build) -> None:
    head = {"lm_head.weight": np.ones((12, 8), np.float32)}
    assert base_fingerprint(build("tied")) == base_fingerprint(
        build("with-head", weights=tensors() | head)
    )


def _flipped_bit() -> dict[str, np.ndarray]:
    weights = tensors()
    weights["model.norm.weight"].view(np.uint32)[-1] ^= 1
    return weights


def _renamed() -> dict[str, np.ndarray]:
    weights = tensors()
    weights["model.norm2.weight"] = weights.pop("model.norm.weight")
    return weights


def _reshaped() -> dict[str, np.ndarray]:
    weights = tensors()
    return weights | {"model.norm.weight": weights["model.norm.weight"].reshape(2, 4)}


def _same_bytes_other_dtype() -> dict[str, np.ndarray]:
    weights = tensors()
    return weights | {"model.norm.weight": weights["model.norm.weight"].view(np.int32)}


@pytest.mark.parametrize("change", [_flipped_bit, _renamed, _reshaped, _same_bytes_other_dtype])
def test_every_property_of_a_tensor_counts(build: Build, change: Any) -> None:
    assert base_fingerprint(build("one")) != base_fingerprint(build("other", weights=change()))


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rms_norm_eps": 1e-5},
        {"sliding_window": 32},
        {"hidden_act": "gelu"},
    ],
)
def test_config_that_changes_the_kv_counts(build: Build, config: dict[str, Any]) -> None:
    assert base_fingerprint(build("one")) != base_fingerprint(build("other", config=config))


def test_config_that_leaves_the_kv_alone_does_not_count(build: Build) -> None:
    config = {"transformers_version": "9", "use_cache": False, "torch_dtype": "bfloat16"}
    assert base_fingerprint(build("one")) == base_fingerprint(build("other", config=config))


def test_two_ways_to_write_a_number_are_one(build: Build) -> None:
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}}
    assert base_fingerprint(build("one")) == base_fingerprint(build("other", config=config))


def test_pieces_cover_every_byte(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    one, copy = build("one"), build("copy")
    whole = base_fingerprint(one)
    monkeypatch.setattr(fingerprint, "_PIECE", 12)  # divides no tensor's size
    assert base_fingerprint(copy) == whole
    assert base_fingerprint(build("other", weights=_flipped_bit())) != whole


def test_remembered_until_a_weight_file_changes(build: Build) -> None:
    """The record is what is read: a wrong one shows, and a touched file makes it worthless."""
    folder = build("base")
    true = base_fingerprint(folder)
    (record,) = (Path(os.environ["PS_SGLANG_HOME"]) / "fingerprints").iterdir()
    write_json(record, json.loads(record.read_text()) | {"weights": "weights:wrong"})
    assert base_fingerprint(folder) != true

    file = folder / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert base_fingerprint(folder) == true


def test_replaced_weights_are_read_again(build: Build) -> None:
    folder = build("base")
    before = base_fingerprint(folder)
    save_file(tensors(seed=1), folder / "model.safetensors")
    assert base_fingerprint(folder) != before


def test_unreadable_record_is_replaced(build: Build) -> None:
    folder = build("base")
    true = base_fingerprint(folder)
    (record,) = (Path(os.environ["PS_SGLANG_HOME"]) / "fingerprints").iterdir()
    record.write_text("{")
    assert base_fingerprint(folder) == true
    assert json.loads(record.read_text())["weights"].startswith("weights:")


def test_empty_tensor(build: Build) -> None:
    empty = {"model.empty": np.zeros((0, 8), np.float32)}
    assert base_fingerprint(build("one")) != base_fingerprint(
        build("other", weights=tensors() | empty)
    )


def test_cut_off_file(build: Build) -> None:
    folder = build("base")
    file = folder / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(
        CheckpointError, match=rf"model.safetensors is cut off: {size - 1} bytes of {size}"
    ):
        base_fingerprint(folder)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x02" + b"\0" * 7 + b"[]"])
def test_not_a_safetensors_file(build: Build, content: bytes) -> None:
    folder = build("base")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a"):
        base_fingerprint(folder)


def test_missing_shard(build: Build) -> None:
    folder = build("base")
    reshard(folder, tensors())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks the weight file model-00002-of-00002"):
        base_fingerprint(folder)


def test_tensor_stored_twice(build: Build) -> None:
    folder = build("base")
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    shutil.copy(folder / "part-1.safetensors", folder / "part-2.safetensors")
    with pytest.raises(CheckpointError, match=r"twice: in part-1\.safetensors and in part-2"):
        base_fingerprint(folder)


def test_weights_digest_is_that_of_the_weights(build: Build) -> None:
    one, split = build("one"), build("split")
    reshard(split, tensors())
    assert weights_digest(one) == weights_digest(split)
    assert weights_digest(one).startswith("w1:")
    assert weights_digest(build("flipped", weights=_flipped_bit())) != weights_digest(one)


def test_weights_digest_reads_samples_of_a_large_tensor(build: Build) -> None:
    """Its beginning, its end and what lies between; training changes all of it."""
    large = np.zeros((512, 1024), np.float32)

    def of(name: str, weight: np.ndarray) -> str:
        return weights_digest(build(name, weights=tensors() | {"lm_head.weight": weight}))

    first, last = large.copy(), large.copy()
    first[0, 0] = last[-1, -1] = 1
    digests = [of("z", large), of("f", first), of("l", last), of("t", large + 1e-3)]
    assert len(set(digests)) == 4


def test_weights_digest_of_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.safetensors"):
        weights_digest(tmp_path)
