from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.errors import DataError
from ps_sglang.training.train.records import ChatRecord, TextRecord, read_data
from tests.training.train.train_setup import conversations, write_rows

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello!"}
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
}
NOT_JSON = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{"}}


def test_both_forms(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "2 + 2 =", "completion": " 4"},
        {"messages": [USER, ANSWER]},
    ]
    data = read_data(str(write_rows(tmp_path / "d.jsonl", rows)))
    assert data.records == [
        TextRecord("d.jsonl:1", "2 + 2 =", " 4"),
        ChatRecord("d.jsonl:2", [USER, ANSWER], None),
    ]


def test_tool_calls_as_a_server_renders_them(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    tools = [{"type": "function", "function": {"name": "add"}}]
    result = {"role": "tool", "content": "3", "tool_call_id": "1"}
    rows = [{"messages": [USER, call, result, ANSWER], "tools": tools}]
    [record] = read_data(str(write_rows(tmp_path / "d.jsonl", rows))).records
    assert isinstance(record, ChatRecord)
    assert record.tools == tools
    assert record.messages[1]["content"] == ""
    assert record.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1, "b": 2}
    assert record.messages[2:] == [result, ANSWER]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "completion": ""}, "completion is empty; there is no answer to train"),
        ({"prompt": "x", "completion": " \n"}, "completion is empty"),
        ({"prompt": "", "completion": "x"}, "prompt is empty"),
        ({"prompt": "x"}, "completion must be a string, not missing"),
        ({"prompt": 7, "completion": "x"}, "prompt must be a string, not int 7"),
        ({"text": "x"}, "needs messages, or prompt and completion; has text"),
        ({}, "needs messages, or prompt and completion; has nothing"),
        ({"messages": []}, "messages must be a list of at least one message, not list"),
        ({"messages": "x"}, 'messages must be a list of at least one message, not str "x"'),
        ({"messages": ["x"]}, r'messages\[0\] must be an object, not str "x"'),
        ({"messages": [USER]}, r"messages\[0\].role is 'user'; the last must be an assistant's"),
        ({"messages": [ANSWER]}, "messages holds one answer and nothing that it answers"),
        (
            {"messages": [USER, ANSWER | {"content": ""}]},
            r"messages\[1\].content is empty; there is no answer to train",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\].content must be a string"),
        ({"messages": [USER | {"role": "human"}, ANSWER]}, r"messages\[0\].role is 'human'; one"),
        ({"messages": [USER, ANSWER], "tools": {"a": 1}}, "tools must be a list of objects, not"),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [{"function": {"name": "f"}}]}]},
            r"messages\[1\].tool_calls must be a list of objects with function.name",
        ),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [NOT_JSON]}]},
            r"messages\[1\].tool_calls must be",
        ),
    ],
)  # fmt: skip
def test_errors_name_line_and_field(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "x", "completion": "y"}, row]
    with pytest.raises(DataError, match=f"d.jsonl has 1 problem:\n  d.jsonl:2: {said}"):
        read_data(str(write_rows(tmp_path / "d.jsonl", rows)))


def test_lines_that_are_not_objects(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "x", "completion": "y"}\n\n{"prompt":\n[1]\n')
    with pytest.raises(DataError) as caught:
        read_data(str(file))
    _, third, fourth = str(caught.value).splitlines()
    assert third.startswith("  d.jsonl:3: is not JSON: ")
    assert fourth == "  d.jsonl:4: must be a JSON object, not list"


ROW = b'{"prompt": "\xc3\xa9", "completion": "y"}'
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "content",
    [BOM + ROW + b"\n" + ROW, ROW + b"\n" + BOM + ROW + b"\n", ROW + b"\r\n" + ROW + b"\r\n"],
    ids=["bom", "files with a bom in a row", "crlf"],
)
def test_marks_of_other_systems_are_no_part_of_a_row(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(content)
    data = read_data(str(file))
    assert data.records == [TextRecord(f"d.jsonl:{line}", "é", "y") for line in (1, 2)]
    file.write_bytes(ROW + b"\n" + ROW)
    assert data.digest == read_data(str(file)).digest


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ((ROW + b"\n" + ROW).decode().encode("utf-16"), 1, "'utf-16"),
        (ROW + b"\n" + ROW.decode().encode("latin-1"), 2, "'utf-8' codec can't decode byte 0xe9"),
        (ROW + b"\n" + ROW.replace(b"y", b"\0"), 2, "Invalid control character"),
        (ROW + b"\n" + ROW.replace(b"}", b', "n": ' + b"7" * 5000 + b"}"), 2, "Exceeds the limit"),
    ],
    ids=["utf-16", "latin-1", "nul", "5,000 digits"],
)
def test_other_encodings_are_refused_by_line(
    tmp_path: Path, content: bytes, line: int, said: str
) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"d.jsonl:{line}: is not JSON: {said}"):
        read_data(str(file))


def test_a_line_of_ten_megabytes_is_one_row(tmp_path: Path) -> None:
    prompt = "word " * 2_000_000
    rows: list[dict[str, Any]] = [{"prompt": prompt, "completion": "y"}]
    [record] = read_data(str(write_rows(tmp_path / "d.jsonl", rows))).records
    assert record == TextRecord("d.jsonl:1", prompt, "y")


def test_ten_problems_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 25 problems") as caught:
        read_data(str(write_rows(tmp_path / "d.jsonl", [{}] * 25)))
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 10 + 1
    assert lines[-1] == "  and 15 more"


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        read_data(str(write_rows(tmp_path / "d.jsonl", [])))


def test_no_file() -> None:
    with pytest.raises(DataError, match=r"no file ./none\.jsonl; give a \.jsonl file or"):
        read_data("./none.jsonl")


def test_digest_is_of_what_the_rows_say(tmp_path: Path) -> None:
    rows = conversations(3, seed=0)
    one = read_data(str(write_rows(tmp_path / "one.jsonl", rows))).digest
    file = tmp_path / "two.jsonl"
    file.write_text("\n".join(json.dumps(row, indent=None, ensure_ascii=False) for row in rows))
    assert read_data(str(file)).digest == one
    assert read_data(str(write_rows(file, rows[::-1]))).digest != one


def test_data_set_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder of that name for it, so this needs no hub. Its tables have every
    key in every row, empty where a row had none."""
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"messages": [USER, ANSWER | {"tool_calls": None}]},
        {"messages": [USER, ANSWER]},
    ]
    write_rows(folder / "test.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = read_data("org/name:test")
    assert data.records == [
        ChatRecord(f"org/name:test[{index}]", [USER, ANSWER], None) for index in range(2)
    ]


def test_data_set_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"could not be loaded.*give the path of a \.jsonl file"):
        read_data("nobody/nothing")
