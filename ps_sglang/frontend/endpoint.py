"""One decoder of a cluster, as SGLang's frontend language sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.choices import ChoicesDecision, greedy_token_selection, token_length_normalized
from sglang.lang.interpreter import StreamExecutor

_SPECIAL = re.compile(r"[\\.^$|?*+()\[\]{}]")


class DecoderEndpoint(RuntimeEndpoint):  # type: ignore[misc]  # SGLang is not typed
    """SGLang's `RuntimeEndpoint`, but for what it builds on a forward pass that only reads.

    A decoder behind a shared prefill reads no prompt: there are no logprobs of prompt tokens.
    """

    def select(
        self,
        s: StreamExecutor,
        choices: Sequence[str],
        temperature: float,
        choices_method: Any,
    ) -> ChoicesDecision:
        """The choice that greedy decoding arrives at when it may say nothing but the choices.

        This is SGLang's greedy token selection, read off the decoder's output; it also stands in
        for `token_length_normalized`, the default. The meta info is that of a generation.

        Raises ValueError for another method, no choices, or a temperature above 0.
        """
        if choices_method not in (token_length_normalized, greedy_token_selection):
            raise ValueError(
                f"select(): {type(choices_method).__name__} needs logprobs of the prompt, which a "
                "cluster with shared prefill does not have; use sgl.greedy_token_selection"
            )
        if not choices or not all(choices) or temperature > 1e-5:
            raise ValueError(
                "select() takes choices that are not empty, and temperature 0, not "
                f"{list(choices)} and {temperature:g}"
            )
        answer = self._generate_http_request(s, _one_of(s.text_, choices))
        if answer["text"] not in choices:
            raise RuntimeError(f"select(): {answer['text']!r} is none of {list(choices)}")
        return ChoicesDecision(decision=answer["text"], meta_info=answer["meta_info"])


def _one_of(text: str, choices: Sequence[str]) -> dict[str, Any]:
    # A token is a byte at least; one more ends the answer.
    longest = max(len(choice.encode()) for choice in choices)
    pattern = "|".join(_SPECIAL.sub(r"\\\g<0>", choice) for choice in choices)
    params = {"max_new_tokens": longest + 1, "temperature": 0, "regex": f"({pattern})"}
    return {"text": text, "sampling_params": params, "return_logprob": True}
