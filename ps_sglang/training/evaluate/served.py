"""Asking a running cluster, as a client of the OpenAI API does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from ps_sglang.errors import EvaluationError, UsageError
from ps_sglang.training.evaluate.generate import Tokens
from ps_sglang.training.evaluate.prompts import Question
from ps_sglang.verify.client import GatewayClient, RequestFailed


@dataclass(frozen=True)
class Reply:
    """What a server read as the prompt, what it said without the stop token, and as text."""

    prompt: Tokens
    tokens: Tokens
    text: str


class ServedDecoder:
    """One decoder behind a gateway; greedy, and no request is sent twice.

    `stops` are the tokens that end an answer: a server reports the one that did.
    """

    def __init__(
        self, url: str, name: str, stops: Sequence[int], max_new_tokens: int, at_once: int
    ) -> None:
        self._client, self._name = GatewayClient(url), name
        self._stops, self._most, self._at_once = frozenset(stops), max_new_tokens, at_once

    def check(self, prompts: Sequence[Tokens]) -> None:
        """Raises UsageError unless the gateway answers, and serves the decoder with room enough."""
        served = self._client.context_lengths()
        if self._name not in served:
            raise UsageError(
                f"the cluster at {self._client.url} does not serve {self._name}; it serves "
                f"{', '.join(served)}: name the decoder with --decoder NAME=PATH"
            )
        needed = max(len(prompt) for prompt in prompts) + self._most
        if needed > served[self._name]:
            raise UsageError(
                f"the cluster at {self._client.url} has room for {served[self._name]} tokens a "
                f"request, the longest prompt and its answer take {needed}; launch it with a "
                "longer --context-length"
            )

    def answers(
        self, asked: Sequence[Question], prompts: Sequence[Tokens]
    ) -> Iterator[tuple[int, Reply]]:
        """Index and reply of each question, in the order in which they come.

        Raises EvaluationError at the end for the first question that was refused or read as other
        tokens than `prompts`; what came till then has been given out.
        """
        problem: str | None = None
        with ThreadPoolExecutor(self._at_once) as pool:
            futures = {
                pool.submit(self._ask, question): index for index, question in enumerate(asked)
            }
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                index = futures[future]
                reply = _outcome(future)
                wrong = reply if isinstance(reply, str) else _misread(reply, prompts[index])
                if wrong is None and isinstance(reply, Reply):
                    yield index, reply
                elif problem is None:
                    problem = f"item {asked[index].item.id}: {wrong}"
                    for other in futures:
                        other.cancel()
        if problem is not None:
            raise EvaluationError(f"the cluster at {self._client.url} failed at {problem}")

    def _ask(self, question: Question) -> Reply:
        body = {
            "model": self._name,
            "messages": list(question.messages),
            "max_tokens": self._most,
            "temperature": 0,
            "return_token_ids": True,
            "return_prompt_token_ids": True,
        }
        answer = self._client.call("/v1/chat/completions", body)
        try:
            choice = answer["choices"][0]
            tokens = tuple(choice["response_token_ids"])
            text = choice["message"]["content"] or ""
            prompt = tuple(choice["prompt_token_ids"])
        except (KeyError, IndexError, TypeError) as error:
            raise RequestFailed(f"the answer lacks {error}") from error
        return Reply(prompt, tokens[:-1] if tokens and tokens[-1] in self._stops else tokens, text)


def _outcome(future: Future[Reply]) -> Reply | str:
    try:
        return future.result()
    except RequestFailed as error:
        return str(error)


def _misread(reply: Reply, prompt: Tokens) -> str | None:
    if reply.prompt == prompt:
        return None
    return (
        f"it read the prompt as {len(reply.prompt)} tokens that are not the {len(prompt)} of the "
        "decoder's own tokenizer and chat template; does it serve this very checkpoint?"
    )
