from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ps_sglang.contract import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from ps_sglang.contract.manifest import BaseReference, Score, Training
from ps_sglang.errors import ManifestError

FINGERPRINT = "ps1:" + "0" * 64
MANIFEST = Manifest(
    base=BaseReference(name="base", fingerprint=FINGERPRINT),
    tokenizer="tok1:0",
    chat_template=None,
    kv_cache_dtype="bfloat16",
    share_ratio=0.5,
    tail=16,
    tool_call_parser="hermes",
    reasoning_parser="deepseek-r1",
    training=Training(recipe="r", data_digest="d", settings={"steps": 3, "lr": 1e-4, "note": None}),
    scores=[Score(benchmark="b", metric="accuracy", value=0.25, examples=4)],
    stand_in=True,
)


def test_round_trip(tmp_path: Path) -> None:
    assert write_manifest(tmp_path, MANIFEST).name == MANIFEST_FILE
    assert read_manifest(tmp_path) == MANIFEST


def test_none_without_a_file(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


def write(folder: Path, change: dict[str, Any]) -> None:
    value = json.loads(msgspec.json.encode(MANIFEST)) | change
    (folder / MANIFEST_FILE).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stand_in": "yes"}, 'stand_in: Expected `bool`, got `str`, value "yes"'),
        ({"share_ratio": 1.5}, r"share_ratio: Expected `float` <= 1.0, value 1.5"),
        ({"tail": -1}, "tail: Expected `int` >= 0, value -1"),
        ({"base": {"name": 7, "fingerprint": FINGERPRINT}}, "base.name: .*, value 7"),
        ({"base": {"name": "b", "fingerprint": "ps2:0"}}, 'base.fingerprint: .*, value "ps2:0"'),
        ({"scores": [{"benchmark": "b", "metric": "m", "value": 1, "examples": 0}]},
         r"scores\[0\].examples: .*, value 0"),
        ({"training": {"recipe": "r", "settings": {"a": []}}}, r"training.settings.*value"),
        ({"base": {"name": "b"}}, "base: .*missing required field `fingerprint`"),
        ({"tool_call_parser": "herms"}, "tool_call_parser is 'herms', which .* one of .*, hermes"),
        ({"reasoning_parser": "hermes"}, "reasoning_parser is 'hermes', which .* one of .*, qwen3"),
        ({"tool_call_parser": 7}, "tool_call_parser: Expected `str | null`, got `int`, value 7"),
        ({"share_ration": 1}, "unknown field `share_ration`"),
    ],
)  # fmt: skip
def test_error_names_field_and_value(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write(tmp_path, change)
    with pytest.raises(ManifestError, match=said) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path / MANIFEST_FILE) in str(caught.value)


@pytest.mark.parametrize("schema", [2, 0, None, "1"])
def test_other_schema_is_refused_by_name(tmp_path: Path, schema: object) -> None:
    write(tmp_path, {"schema": schema, "from_the_future": True})
    with pytest.raises(
        ManifestError, match=f"schema is {schema!r}, but this ps-sglang reads schema 1"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(ManifestError, match="cannot read"):
        read_manifest(tmp_path)


def test_not_an_object(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text("[]")
    with pytest.raises(ManifestError, match="schema is None"):
        read_manifest(tmp_path)
