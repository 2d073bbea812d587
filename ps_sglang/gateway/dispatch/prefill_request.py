"""The prefill request of a sample: its answer is read only for errors, and for what it counts."""

from __future__ import annotations

import asyncio
from typing import Any

from ps_sglang.gateway.bodies.engine_errors import PrefillAnswer, answer_error, prefill_answer
from ps_sglang.gateway.dispatch.worker_sender import WorkerSender, refusal
from ps_sglang.gateway.errors import GatewayError, WorkerFailed, WorkerUnreachable, reaching
from ps_sglang.gateway.routing.worker_state import Prefill

# What a client asks about the output. The prefill request has none, and must not fail at it.
# Neither is it streamed, so that its failure is an HTTP status.
_ABOUT_OUTPUT = frozenset(
    (
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "return_logprob",
        "top_logprobs_num",
        "token_ids_logprob",
        "return_sampling_mask",
        "sampling_logprobs_mode",
        "return_flat_raw_output_top_logprobs",
        "return_flat_raw_top_logprobs_b64",
    )
)


class PrefillRequest:
    """A sample's request to its prefill worker, for `run`.

    `answer` and `error` are None until it has `ended`, and then one of them may still be: `answer`
    if it is not SGLang's.
    """

    def __init__(self, sender: WorkerSender, worker_state: Prefill, body: dict[str, Any]) -> None:
        self.answer: PrefillAnswer | None = None
        self.error: GatewayError | None = None
        self.ended = asyncio.Event()
        self._sender = sender
        self._worker_state = worker_state
        self._body = {name: value for name, value in body.items() if name not in _ABOUT_OUTPUT}

    async def run(self) -> None:
        """Send it; returns when it was answered. Raises GatewayError."""
        try:
            await self._read()
        except GatewayError as error:
            self.error = error
            raise
        finally:
            self.ended.set()

    async def _read(self) -> None:
        worker = self._worker_state.worker
        response = await self._sender.post(self._worker_state, self._body, {})
        with response, reaching(worker):
            content = await response.read()
        error = (
            refusal(worker, response, content) if response.status != 200 else answer_error(content)
        )
        if isinstance(error, WorkerUnreachable):
            raise error
        if error is not None and error.status >= 500:
            raise WorkerFailed(worker, error.message, engine_status=error.status) from error
        if error is not None:
            raise error
        self.answer = prefill_answer(content)
