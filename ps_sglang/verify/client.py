"""The cluster as verify sees it: the gateway's HTTP API, through the standard library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.gateway_http import GatewayRefused, GatewayUnreachable, Json, call, no_gateway

Message = Mapping[str, str]

# A lone long prompt on a busy laptop takes seconds; this only ends a request that hangs.
_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True)
class GatewayAnswer:
    """What was generated: `prompt` and `tokens` are token ids, `first_logprob` the first one's."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    first_logprob: float


class RequestFailed(Exception):
    """The server refused one request, or answered something else than was asked for."""


class GatewayClient:
    """A gateway at `url`; greedy requests of a fixed length, whatever the model would stop at."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def context_lengths(self) -> dict[str, int]:
        """The longest prompt plus answer in tokens, by decoder served.

        Raises UsageError if no gateway answers at the URL.
        """
        try:
            models = self.call("/v1/models")["data"]
            return {model["id"]: int(model["max_model_len"]) for model in models}
        except (RequestFailed, KeyError, TypeError) as error:
            raise UsageError(no_gateway(self.url, error)) from error

    def generate(self, decoder: str, prompt: Sequence[int], length: int) -> GatewayAnswer:
        """`length` greedy tokens of `decoder` after the token ids `prompt`.

        Raises RequestFailed with the server's own reason.
        """
        params = {"max_new_tokens": length, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": list(prompt), "sampling_params": params, "return_logprob": True}
        answer = self.call(f"/models/{decoder}/generate", body)
        with _as_asked("/generate"):
            first = answer["meta_info"]["output_token_logprobs"][0][0]
            return GatewayAnswer(tuple(prompt), tuple(answer["output_ids"]), float(first))

    def chat(self, decoder: str, messages: Sequence[Message], length: int) -> GatewayAnswer:
        """As `generate`, but through the OpenAI API and the server's own chat template.

        Raises RequestFailed with the server's own reason.
        """
        body = {
            "model": decoder,
            "messages": list(messages),
            "max_tokens": length,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": True,
            "return_token_ids": True,
            "return_prompt_token_ids": True,
        }
        answer = self.call("/v1/chat/completions", body)
        with _as_asked("/v1/chat/completions"):
            choice = answer["choices"][0]
            return GatewayAnswer(
                tuple(choice["prompt_token_ids"]),
                tuple(choice["response_token_ids"]),
                float(choice["logprobs"]["content"][0]["logprob"]),
            )

    def call(self, path: str, body: Json | None = None) -> Json:
        """The answer to POST of `body` to `path`, or to GET without one.

        Raises RequestFailed with the server's own reason.
        """
        try:
            return call(self.url + path, body, timeout_s=_TIMEOUT_S)
        except (GatewayRefused, GatewayUnreachable) as error:
            raise RequestFailed(str(error)) from error


@contextmanager
def _as_asked(path: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError) as error:
        raise RequestFailed(f"the answer of {path} is not as asked for: {error!r}") from error
