"""The stand-in engines' tokenizer and chat template, exact and cheap.

The tokenizer is a real byte-level BPE in `tokenizer.json`, whose pre-tokenizer cuts at spaces and
line ends. Words never influence each other, nor do the messages of a chat, so each is tokenized
once and remembered.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PIECE: Final = " ?[^ \n<]+|[ \n<]"
_PIECES: Final = re.compile("|".join(map(re.escape, _SPECIAL)) + "|" + _PIECE)
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_ASSISTANT: Final = "<|im_start|>assistant\n"
_TURNS_REMEMBERED: Final = 20_000
_ONSETS: Final = (*"bcdfghklmnprstvw", "br", "cl", "dr", "fl", "gr", "pl", "st", "tr")
_RIMES: Final = (*"aeiou", "an", "el", "in", "or", "un", "ast", "ent", "ile", "ock", "ump")


def words(count: int = 2000) -> list[str]:
    """Distinct pronounceable words, the same on every call."""
    source = random.Random("words")
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = source.choice((1, 1, 2, 2))
        word = "".join(source.choice(_ONSETS) + source.choice(_RIMES) for _ in range(syllables))
        found[word] = None
    return list(found)


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; nearly every word is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # tokenizers' stubs leave this constructor untyped.
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=8192,
        min_frequency=1,
        special_tokens=[AddedToken(name, special=True) for name in _SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {word}" for word in words()], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 32768,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def render(messages: Sequence[Any]) -> str:
    """What CHAT_TEMPLATE makes of a chat that waits for the assistant."""
    return "".join(map(_turn, messages)) + _ASSISTANT


def _turn(message: Any) -> str:
    return f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"


class WordTokenizer:
    """Texts to token ids, as `tokenizer.json` in `folder` has them."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._known: dict[str, tuple[int, ...]] = {}
        self._turns: dict[tuple[str, str], list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        known = self._known
        ids: list[int] = []
        for piece in _PIECES.findall(text):
            found = known.get(piece)
            if found is None:
                found = tuple(self._tokenizer.encode(piece, add_special_tokens=False).ids)
                known[piece] = found
            ids += found
        return ids

    def encode_chat(self, messages: Sequence[Any]) -> list[int]:
        """The token ids of a chat, as of its `render`."""
        ids: list[int] = []
        for message in messages:
            key = (message["role"], message["content"])
            found = self._turns.get(key)
            if found is None:
                if len(self._turns) >= _TURNS_REMEMBERED:
                    self._turns.clear()
                found = self._turns[key] = self.encode(_turn(message))
            ids += found
        return ids + self.encode(_ASSISTANT)
