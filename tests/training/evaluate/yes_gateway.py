"""A gateway whose decoder `a` says `yes` to everything."""

from __future__ import annotations

import threading
from typing import Any

from tests.support.standin_gateway import Json, RefusedError, StandInGateway


class YesGateway(StandInGateway):
    """`refuse_after` is the number of answers after which each request fails.

    `read_as` is put in front of every prompt's token ids.
    """

    def __init__(
        self,
        tokenizer: Any,
        refuse_after: int = 1000,
        read_as: tuple[int, ...] = (),
        room: int = 2048,
    ) -> None:
        super().__init__(("a",), max_model_len=room)
        self._tokenizer, self._refuse_after, self._read_as = tokenizer, refuse_after, read_as
        self._one_at_a_time = threading.Lock()  # as a tokenizer must be used

    def chat(self, body: Json) -> Json:
        if len(self.asked) > self._refuse_after:
            raise RefusedError(503, "worker decode-a is gone")
        with self._one_at_a_time:
            prompt = self._tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=True
            )["input_ids"]
            said = self._tokenizer("yes").input_ids
        choice = {
            "message": {"content": "yes"},
            "prompt_token_ids": [*self._read_as, *prompt],
            "response_token_ids": [*said, 2],
        }
        return {"choices": [choice]}
