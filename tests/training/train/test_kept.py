from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from ps_sglang.training.train.kv_store import DiskKvStore, MemoryKvStore, open_kv_store
from ps_sglang.training.train.settings import TrainSettings


def kv(tokens: int) -> torch.Tensor:
    """[layers, 2, KV heads, tokens, head dim], 128 bytes a token."""
    return torch.randn(2, 2, 1, tokens, 8)


def test_memory_is_bounded() -> None:
    kept = MemoryKvStore(1000)
    first = kv(5)
    for key, value in {"a": first, "b": kv(5), "c": kv(2)}.items():
        kept.put(key, value)
    assert kept.get("a") is first
    assert kept.get("b") is None
    assert kept.get("c") is not None
    assert kept.used_bytes == 7 * 128
    assert kept.report() == "kept base KV: 0.00 GB; 2 of 3 prefixes needed no base"


def test_disk_is_bounded_over_runs(tmp_path: Path) -> None:
    value = kv(5)
    DiskKvStore(tmp_path, 1000).put("a", value)
    kept = DiskKvStore(tmp_path, 1000)
    assert 5 * 128 <= kept.used_bytes <= 1000
    kept.put("b", kv(5))
    assert kept.get("b") is None
    held = kept.get("a")
    assert held is not None
    assert torch.equal(held, value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_was_cut_off_is_read_again_by_the_base(tmp_path: Path) -> None:
    kept = DiskKvStore(tmp_path, 10**6)
    kept.put("a", kv(5))
    file = tmp_path / "a.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert kept.get("a") is None
    kept.put("a", kv(5))
    assert kept.get("a") is not None


def test_full_disk_only_ends_the_keeping(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = DiskKvStore(tmp_path, 10**6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        kept.put("a", kv(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.startswith(f"ps-sglang: keeps no more base KV in {tmp_path}: ")
    assert list(tmp_path.iterdir()) == []
    kept.put("b", kv(1))
    assert kept.get("b") is None


def test_each_base_and_dtype_has_its_own_folder(tmp_path: Path) -> None:
    common = {"base": "b", "data": "d", "out": tmp_path, "keep_kv_gb": 1.0, "keep_kv_dir": tmp_path}
    for fingerprint in ("ps1:" + "0" * 64, "ps1:" + "1" * 64):
        for dtype in ("float32", "bfloat16"):
            kept = open_kv_store(TrainSettings(**common, dtype=dtype), fingerprint)  # type: ignore[arg-type]
            assert isinstance(kept, DiskKvStore)
            assert kept.get("a") is None
            kept.put("a", kv(1))
    assert len(list(tmp_path.iterdir())) == 4
