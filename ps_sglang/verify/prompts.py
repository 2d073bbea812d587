"""Which 64 requests verify sends: fixed, so that two runs on one cluster ask the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from ps_sglang.verify.client import Message
from ps_sglang.verify.texts import AGENTS, CHATS, CODE, CONVERSATIONS, ENGLISH, SHORT

Tokens = tuple[int, ...]
Encode = Callable[[str], Tokens]

ANSWER_LENGTH: Final = 24
AT_ONCE: Final = 8
_SINGLES: Final = 16
_LONG_SINGLES: Final = 4
_SHARED_CONTEXTS: Final = 4
_PARAGRAPHS: Final = 12
_SEED: Final = 20250601


@dataclass(frozen=True)
class Ask:
    """One request: the decoder and the prompt's token ids."""

    decoder: str
    prompt: Tokens


@dataclass(frozen=True)
class Conversation:
    """Texts that come before each turn's answer; the turn's decoder says the answer."""

    turns: tuple[tuple[str, Tokens], ...]


@dataclass(frozen=True)
class Chat:
    """One request through the OpenAI API, as messages."""

    decoder: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Script:
    """Everything that is asked: 16 cold and the same 16 warm, 16 in crowds of 8, 2 conversations
    of 6 turns, 4 chats: 64 requests, spread evenly over the decoders."""

    singles: tuple[Ask, ...]
    crowd: tuple[Ask, ...]
    conversations: tuple[Conversation, ...]
    chats: tuple[Chat, ...]


def script(decoders: Sequence[str], encode: Encode, longest: int) -> Script:
    """The script for `decoders`; no prompt but a conversation's is longer than `longest` tokens."""
    dice = random.Random(_SEED)

    def cut(text: str) -> Tokens:
        return encode(text)[:longest]

    return Script(
        singles=tuple(
            Ask(decoder, cut(text))
            for decoder, text in zip(cycle(decoders), _singles(dice), strict=False)
        ),
        crowd=tuple(
            Ask(decoder, cut(text))
            for decoder, text in zip(cycle(decoders), _crowd(dice), strict=False)
        ),
        conversations=tuple(
            Conversation(
                tuple(
                    (decoders[(start + turn) % len(decoders)], encode(text))
                    for turn, text in enumerate(texts)
                )
            )
            for start, texts in enumerate(CONVERSATIONS)
        ),
        chats=tuple(
            Chat(decoder, chat) for decoder, chat in zip(cycle(decoders), CHATS, strict=False)
        ),
    )


def _singles(dice: random.Random) -> list[str]:
    """16 texts: the very short ones, some of each kind, and long ones."""
    some = dice.sample((*ENGLISH, *CODE, *AGENTS), _SINGLES - len(SHORT) - _LONG_SINGLES)
    return [*SHORT, *some, *(_long(dice) for _ in range(_LONG_SINGLES))]


def _crowd(dice: random.Random) -> list[str]:
    """16 texts: the same four beginnings under four questions each, so that prefixes are shared
    between requests that are in flight at once."""
    contexts = [_long(dice, paragraphs) for paragraphs in range(1, 1 + _SHARED_CONTEXTS)]
    endings = dice.sample((*ENGLISH, *AGENTS), 4)
    texts = [f"{context}\n\n{ending}" for context in contexts for ending in endings]
    dice.shuffle(texts)
    return texts


def _long(dice: random.Random, paragraphs: int = _PARAGRAPHS) -> str:
    """Several hundred tokens, if it has as many paragraphs as there are by default."""
    return "\n\n".join(dice.sample((*ENGLISH, *CODE, *AGENTS), paragraphs))
