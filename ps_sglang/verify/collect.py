"""Ask the cluster: the requests of the script, phase by phase, with what came back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ps_sglang.progress import OnProgress
from ps_sglang.verify.client import GatewayAnswer, GatewayClient, Message, RequestFailed
from ps_sglang.verify.prompts import ANSWER_LENGTH, AT_ONCE, Ask, Chat, Conversation, Script, Tokens

Render = Callable[[tuple[Message, ...]], Tokens]


@dataclass(frozen=True)
class Exchange:
    """One request and its outcome: an answer, or the reason why there is none.

    `prompt` is what the decoder should have read, as token ids.
    """

    phase: str
    decoder: str
    prompt: Tokens
    outcome: GatewayAnswer | str


def collect(
    client: GatewayClient, script: Script, render: Render, on_progress: OnProgress
) -> list[Exchange]:
    """Run the whole script, one phase after the other; `render` is the reference's template."""
    phases: dict[str, Callable[[], list[Exchange]]] = {
        "cold": lambda: [_single(client, "cold", ask) for ask in script.singles],
        "warm": lambda: [_single(client, "warm", ask) for ask in script.singles],
        f"{AT_ONCE} at once": lambda: _crowd(client, script.crowd),
        "conversations": lambda: [
            turn for talk in script.conversations for turn in _converse(client, talk)
        ],
        "chat API": lambda: [_chat(client, chat, render) for chat in script.chats],
    }
    exchanges: list[Exchange] = []
    for phase, run in phases.items():
        began = time.monotonic()
        of_phase = run()
        on_progress(f"{phase}: {len(of_phase)} requests, {time.monotonic() - began:.1f} s")
        exchanges += of_phase
    return exchanges


def _single(client: GatewayClient, phase: str, ask: Ask) -> Exchange:
    outcome = _outcome(partial(client.generate, ask.decoder, ask.prompt, ANSWER_LENGTH))
    return Exchange(phase, ask.decoder, ask.prompt, outcome)


def _crowd(client: GatewayClient, asks: Iterable[Ask]) -> list[Exchange]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(partial(_single, client, f"{AT_ONCE} at once"), asks))


def _converse(client: GatewayClient, conversation: Conversation) -> Iterator[Exchange]:
    """Each turn's prompt is all that was said before, by whichever decoder, plus the new text."""
    history: Tokens = ()
    for number, (decoder, text) in enumerate(conversation.turns, start=1):
        turn = _single(client, f"conversation, turn {number}", Ask(decoder, history + text))
        yield turn
        history = turn.prompt + (
            turn.outcome.tokens if isinstance(turn.outcome, GatewayAnswer) else ()
        )


def _chat(client: GatewayClient, chat: Chat, render: Render) -> Exchange:
    outcome = _outcome(partial(client.chat, chat.decoder, chat.messages, ANSWER_LENGTH))
    return Exchange("chat API", chat.decoder, render(chat.messages), outcome)


def _outcome(ask: Callable[[], GatewayAnswer]) -> GatewayAnswer | str:
    try:
        return ask()
    except RequestFailed as error:
        return str(error)
