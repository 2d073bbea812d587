"""Prompts of every form as bytes that address what the workers hold."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ps_sglang.gateway.config import NO_CHAT_FLAGS, ChatFlags
from ps_sglang.gateway.index.chat import ChatTemplate, NoChatText
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.texts import TokenTexts
from ps_sglang.gateway.index.vocabulary import NotAddressable, Vocabulary

log = logging.getLogger("ps_sglang.gateway")


class Prompts:
    """Makes prompts from what clients send, by the base's tokenizer.

    `problem` says why nothing is addressed exactly, `chat_problem` why chats are not; both None
    if all is well. Prompts that are not exact are routed by an estimate. `longest_token` is the
    most bytes that one token stands for, None where the tokenizer is not known.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | None = None,
        chat_template: ChatTemplate | None = None,
        *,
        problem: str | None = None,
        chat_problem: str | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._template = chat_template
        self.texts = TokenTexts(vocabulary.table if vocabulary is not None else ())
        self.longest_token = max(map(len, vocabulary.table)) if vocabulary is not None else None
        self.problem = problem
        self.chat_problem = problem or chat_problem

    @classmethod
    def load(cls, folder: str | None, chat: ChatFlags = NO_CHAT_FLAGS) -> Prompts:
        """Prompts for the tokenizer in `folder`; never fails, see `problem`."""
        if folder is None:
            return cls(problem="the gateway was given no tokenizer")
        try:
            vocabulary = Vocabulary.load(Path(folder))
        except NotAddressable as error:
            log.warning("what workers hold is estimated: tokenizer %s: %s", folder, error)
            return cls(problem=str(error))
        try:
            return cls(vocabulary, ChatTemplate.load(Path(folder), chat))
        except NoChatText as error:
            log.warning("what workers hold of chats is estimated: %s", error)
            return cls(vocabulary, chat_problem=str(error))

    def prompt(self, prompt: str | Sequence[int], salt: str = "") -> Prompt:
        """A text, or token ids, as `/generate` and `/v1/completions` take them."""
        if self._vocabulary is None:
            if isinstance(prompt, str):
                return Prompt(prompt.encode("utf-8", "replace"), salt, exact=False)
            text = "".join(f"{one} " for one in prompt).encode()
            return Prompt(text, salt, len(prompt), kind="tokens", exact=False)
        if isinstance(prompt, str):
            return Prompt(self._vocabulary.encode(prompt, special=True), salt)
        return Prompt(b"".join(self.texts.of(prompt)), salt, len(prompt), kind="tokens")

    def chat(self, body: Mapping[str, Any], salt: str = "") -> Prompt:
        """A chat completion's body; its `messages` must be there."""
        if body.get("input_ids"):
            return self.prompt(body["input_ids"], salt)
        if self._vocabulary is not None and self._template is not None:
            try:
                text, continued = self._template.render(body)
            except NoChatText:
                pass  # the worker will say why
            else:
                rendered = self._vocabulary.encode(text, special=False)
                more = self._vocabulary.encode(continued, special=False)
                return Prompt(rendered + more, salt, kind="chat")
        return Prompt(_as_json(body), salt, kind="chat", exact=False)


def _as_json(body: Mapping[str, Any]) -> bytes:
    """A chat that continues another is that one's continuation; tools come first in templates."""
    tools = body.get("tools")
    parts = [tools, *body["messages"]] if tools else body["messages"]
    return b"".join(msgspec.json.encode(part, order="deterministic") for part in parts)
