"""One data set in each form says the same; what no text can hold is named by its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ps_sglang.errors import DataError
from ps_sglang.training.train.attention import ATTENTION
from ps_sglang.training.train.base import BaseReader, FrozenBase
from ps_sglang.training.train.batches import conditioned_batch
from ps_sglang.training.train.examples import Encoder
from ps_sglang.training.train.losses import CacheConditioned
from ps_sglang.training.train.records import ChatRecord, read_data
from tests.training.train.train_setup import TOOL_TEMPLATE, tool_conversation, write_rows

USER = {"role": "user", "content": "Hi"}


def other_tool() -> dict[str, Any]:
    """A conversation whose arguments and schema have keys that the other one lacks."""
    row = tool_conversation()
    function = {"name": "add", "arguments": {"a": 1, "b": [{"q": 1}, {"r": 2}]}}
    row["messages"][2]["tool_calls"][0]["function"] = function
    properties = {"a": {"type": "integer", "minimum": 0}, "b": {"type": "array"}}
    parameters = {"type": "object", "properties": properties}
    described = {"name": "add", "description": "Add.", "parameters": parameters, "strict": True}
    row["tools"][0]["function"] = described
    return row


@pytest.fixture
def forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Form -> how it is named."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    rows = [tool_conversation(), other_tool()]
    table = datasets.Dataset.from_list(rows)
    first = table[0]["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert first["a"] is None, "the table invents nulls"
    table.to_parquet(tmp_path / "d.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"dev": table}).save_to_disk(tmp_path / "splits")
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "pq").mkdir()
    table.to_parquet(tmp_path / "org" / "pq" / "train.parquet")
    write_rows(tmp_path / "org" / "name" / "train.jsonl", rows)
    return {
        "jsonl": str(write_rows(tmp_path / "d.jsonl", rows)),
        "parquet": str(tmp_path / "d.parquet"),
        "saved": str(tmp_path / "saved"),
        "split of saved": f"{tmp_path / 'splits'}:dev",
        "parquet by name": "org/pq",
        "jsonl by name": "org/name",
    }


def test_each_form_has_the_same_tokens_and_loss(
    forms: dict[str, str], tiny: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny["base"])
    tokenizer.chat_template = TOOL_TEMPLATE
    base, decoder = (
        AutoModelForCausalLM.from_pretrained(tiny[name], attn_implementation=ATTENTION)
        for name in ("base", "a")
    )
    step = CacheConditioned(BaseReader(FrozenBase(base)))
    examples, losses = {}, {}
    for form, source in forms.items():
        encoded = Encoder(tokenizer, (2,), 2048, skip_long=False).encode(read_data(source))
        examples[form] = encoded.examples
        with torch.no_grad():
            losses[form] = step.losses(decoder, conditioned_batch(encoded.examples)).tolist()
    assert "null" not in tokenizer.decode(examples["jsonl"][0].prompt)
    assert len(examples) == 6
    for form in forms:
        assert examples[form] == examples["jsonl"], form
        assert losses[form] == losses["jsonl"], form


def test_nulls_that_json_has_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In JSON lines and in columns of JSON text; a table keeps no others."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    said = {"city": None, "deep": {"x": [None, {"y": None}]}}
    call = {"function": {"name": "f", "arguments": said}}
    rows = [{"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": None}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}]
    rows[0]["tools"] = tools  # type: ignore[assignment]
    text = json.loads(json.dumps(rows))
    text[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] = json.dumps(said)
    text[0]["tools"] = json.dumps(tools)
    datasets.Dataset.from_list(text).to_parquet(tmp_path / "d.parquet")
    for source in (write_rows(tmp_path / "d.jsonl", rows), tmp_path / "d.parquet"):
        [record] = read_data(str(source)).records
        assert isinstance(record, ChatRecord)
        assert record.messages[1]["tool_calls"][0]["function"]["arguments"] == said
        assert record.tools == tools


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a \ud800 b", "completion": "x"}, r"prompt holds a lone surrogate \(\\ud800\)"),
        ({"messages": [USER, {"role": "assistant", "content": "\udc00"}]},
         r"messages\[1\].content holds a lone surrogate"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}], "tools": [{"\ud800": 1}]},
         r"tools\[0\].\\ud800 holds a lone surrogate"),
        ({"prompt": "x", "completion": "a\0b"}, "completion holds a NUL"),
    ],
)  # fmt: skip
def test_what_no_text_can_hold(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    rows = [{"prompt": "x", "completion": "y"}, row]
    with pytest.raises(DataError, match=f"d.jsonl:2: {said}"):
        read_data(str(write_rows(tmp_path / "d.jsonl", rows)))


@pytest.mark.parametrize("depth", [101, 600, 20_000])
def test_nested_too_deeply(tmp_path: Path, depth: int) -> None:
    """As values and as JSON text within a call, at each depth at which something else gives up."""
    brackets = "[" * depth + "]" * depth
    call = '{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": %s}}]}'
    user = json.dumps(USER)
    file = tmp_path / "d.jsonl"
    for arguments in (f'{{"a": {brackets}}}', json.dumps(f'{{"a": {brackets}}}')):
        file.write_text(f'\n{{"messages": [{user}, {call % arguments}]}}\n')
        with pytest.raises(DataError, match=r"d.jsonl:2: .*(nested|must be a list of objects)"):
            read_data(str(file))


def test_brackets_in_a_text_are_text(tiny: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny["base"])
    brackets = "[" * 20_000
    rows = [{"messages": [USER, {"role": "assistant", "content": brackets}]}]
    data = read_data(str(write_rows(tmp_path / "d.jsonl", rows)))
    encoded = Encoder(tokenizer, (2,), 2048, skip_long=False).encode(data)
    assert encoded.cut == 1


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"d\.parquet could not be read"):
        read_data(str(tmp_path / "d.parquet"))
    table = datasets.Dataset.from_list([{"prompt": "x", "completion": "y"}])
    datasets.DatasetDict({"dev": table}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="has no split train, but dev; write folder:split"):
        read_data(str(tmp_path / "splits"))
