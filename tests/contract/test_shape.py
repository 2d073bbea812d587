from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ps_sglang.contract.shape import ModelShape, read_shape
from ps_sglang.errors import CheckpointError
from tests.contract.folder_parts import CONFIG, Build, write_json


def shape_of(tmp_path: Path, config: dict[str, Any]) -> ModelShape:
    write_json(tmp_path / "config.json", config)
    return read_shape(tmp_path)


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in CONFIG.items() if key not in keys}


def test_old_and_new_rope_layouts_are_equal(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1}
    new = CONFIG | {"rope_parameters": {"rope_theta": 500000.0, **scaling}}
    old = without("rope_parameters") | {
        "rope_theta": 500000,
        "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1.0},
    }
    assert shape_of(tmp_path, new) == shape_of(tmp_path, old)
    assert shape_of(tmp_path, new).rope["rope_theta"] == 500000.0
    assert shape_of(tmp_path, new) != shape_of(tmp_path, old | {"rope_theta": 10000})


def test_rope_without_scaling_in_the_old_layout(tmp_path: Path) -> None:
    old = without("rope_parameters") | {"rope_theta": 10000.0, "rope_scaling": None}
    assert shape_of(tmp_path, old) == shape_of(tmp_path, CONFIG)


def test_rope_per_layer_type(tmp_path: Path) -> None:
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    shape = shape_of(tmp_path, CONFIG | {"rope_parameters": rope})
    assert shape.rope["full_attention"]["rope_theta"] == 1e6
    assert shape.rope["sliding_attention"]["rope_theta"] == 1e4


def test_defaults_are_derived(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, without("head_dim", "num_key_value_heads"))
    assert shape.head_dim == 2
    assert shape.kv_heads == 4


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    off = {"use_sliding_window": False, "sliding_window": 32, "layer_types": ["full_attention"] * 2}
    assert shape_of(tmp_path, CONFIG | off) == shape_of(tmp_path, CONFIG)
    assert shape_of(tmp_path, CONFIG | {"sliding_window": 32}).sliding_window == 32


def test_language_model_inside_a_multimodal_config(tmp_path: Path) -> None:
    nested = {"architectures": CONFIG["architectures"], "text_config": without("architectures")}
    assert shape_of(tmp_path, nested) == shape_of(tmp_path, CONFIG)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json has no {key}"):
        shape_of(tmp_path, without(key))


def test_wrong_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"wrong type.*'many'"):
        shape_of(tmp_path, CONFIG | {"num_hidden_layers": "many"})


def test_no_config(build: Build) -> None:
    folder = build("base")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"base is not a usable checkpoint: no config\.json"):
        read_shape(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_broken_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_shape(tmp_path)
