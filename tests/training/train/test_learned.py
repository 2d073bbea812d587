"""Marks for messages that shall not be learned: honoured or refused, never passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ps_sglang.errors import DataError
from ps_sglang.training.train.data_report import report
from ps_sglang.training.train.examples import Encoded, Encoder
from ps_sglang.training.train.records import read_data
from tests.training.train.train_setup import write_rows

END = 2  # <|im_end|>
USER = {"role": "user", "content": "Hi"}
FIRST, SECOND = ({"role": "assistant", "content": text} for text in ("one", "two"))


@pytest.fixture
def tokenizer(tiny: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny["base"])


def encode(tokenizer: Any, tmp_path: Path, *rows: dict[str, Any]) -> Encoded:
    data = read_data(str(write_rows(tmp_path / "d.jsonl", list(rows))))
    return Encoder(tokenizer, (END,), 2048, skip_long=False).encode(data)


def answers(tokenizer: Any, encoded: Encoded) -> list[str]:
    return [tokenizer.decode(answer.ids) for one in encoded.examples for answer in one.answers]


@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"loss": 0},
     {"loss_mask": 0.0}, {"trainable": False}, {"loss_weight": 0}, {"weight": 0, "train": None}],
)  # fmt: skip
def test_an_answer_that_is_marked_is_read_and_not_learned(
    tokenizer: Any, tmp_path: Path, mark: dict[str, Any]
) -> None:
    row = {"messages": [USER, FIRST | mark, USER, SECOND | dict.fromkeys(mark, 1)]}
    encoded = encode(tokenizer, tmp_path, row)
    assert answers(tokenizer, encoded) == ["two<|im_end|>"]
    [example] = encoded.examples
    # The mark itself is in no prompt.
    prompt = tokenizer.apply_chat_template(
        [USER, FIRST, USER], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(example.prompt) == prompt
    assert "  not learned: 1 answer marked so" in list(report(encoded, 2048))


def test_a_row_that_is_marked(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"messages": [USER, FIRST], "weight": 0},
        {"prompt": "x", "completion": "y", "train": False},
        {"messages": [USER, SECOND], "weight": 1, "loss_mask": None},
    ]
    encoded = encode(tokenizer, tmp_path, *rows)
    assert answers(tokenizer, encoded) == ["two<|im_end|>"]
    assert encoded.unlearned == 2
    with pytest.raises(DataError, match="no answer is left to learn"):
        encode(tokenizer, tmp_path, *rows[:2])


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"weight": 0.5}, "weight must be 0 or 1, false or true"),
        ({"weight": 2}, "weight must be 0 or 1"),
        ({"weight": "0"}, "weight must be 0 or 1, .* not '0'"),
        ({"train": "false"}, "train must be 0 or 1"),
        ({"loss_mask": [0, 1]}, "loss_mask must be 0 or 1"),
        ({"mask": True}, "mask is a mark that cannot be honoured; write weight: 0 or 1"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]},
         "train_detail is a mark that cannot"),
        ({"weight": 0, "train": True}, "weight and train contradict each other"),
    ],
)  # fmt: skip
def test_a_mark_that_is_not_plain(tmp_path: Path, mark: dict[str, Any], said: str) -> None:
    good = {"messages": [USER, FIRST]}
    for row, where in (
        ({"messages": [USER, FIRST | mark]}, r"messages\[1\]\."),
        (good | mark, ""),
        ({"prompt": "x", "completion": "y"} | mark, ""),
    ):
        with pytest.raises(DataError, match=rf"d.jsonl:2: {where}{said}"):
            read_data(str(write_rows(tmp_path / "d.jsonl", [good, row])))


def test_a_mark_on_another_message(tokenizer: Any, tmp_path: Path) -> None:
    encode(tokenizer, tmp_path, {"messages": [USER | {"weight": 0}, FIRST]})
    with pytest.raises(DataError, match=r"messages\[0\].weight is 1, but only an assistant's"):
        encode(tokenizer, tmp_path, {"messages": [USER | {"weight": 1}, FIRST]})
