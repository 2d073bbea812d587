"""What follows a turn of a conversation: the hints that came with its request.

`next` brings the prompt and the answer to a worker of the decoder that speaks next: a request of
its own, for the base's KV only, whose output nobody reads. `pin` and `release` are sent to all
workers that the conversation has been on. All of it happens in the background, after the client has
its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from ps_sglang.events.control import EventStreamError
from ps_sglang.gateway import ids
from ps_sglang.gateway.bodies import hints
from ps_sglang.gateway.bodies.checks import Body
from ps_sglang.gateway.bodies.completion import Completion
from ps_sglang.gateway.bodies.requests import GenerationRequest
from ps_sglang.gateway.bodies.samples import Endpoint, Sample
from ps_sglang.gateway.dispatch.background import Background
from ps_sglang.gateway.dispatch.dispatcher import Dispatcher
from ps_sglang.gateway.dispatch.worker_sender import RequestContext
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.sessions import Session, TenantSessions
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics
from ps_sglang.gateway.telemetry.reasons import SESSION_ENDED

log = logging.getLogger("ps_sglang.gateway")

# Of a request's body, what decides the tokens of its prompt, and who shares them.
_ABOUT_PROMPT = (
    "model",
    "messages",
    "tools",
    "tool_choice",
    "chat_template_kwargs",
    "reasoning_effort",
    "prompt",
    "text",
    "input_ids",
    "cache_salt",
    "session_id",
    "priority",
)


class HintActions:
    """Acts on hints, and ends conversations."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        pool: WorkerPool,
        background: Background,
        sessions: TenantSessions,
        cache_index: CacheIndex,
        metrics: GatewayMetrics,
    ) -> None:
        self._dispatcher = dispatcher
        self._pool = pool
        self._background = background
        self._sessions = sessions
        self._cache_index = cache_index
        self._metrics = metrics

    def ended(
        self, request: GenerationRequest, context: RequestContext, completion: Completion | None
    ) -> None:
        """A request got its whole answer; `completion` is needed only for the hint `next`."""
        hints = request.hints
        if hints.next is not None or hints.pin is not None or hints.release:
            self._background.start(self._follow(request, context, completion))

    async def end_session(self, session: Session) -> int:
        """End a conversation and abort its running samples; returns how many those were."""
        ended = self.abort_session(session)
        await self._tell(session, self._cache_index.release)
        return ended

    def abort_session(self, session: Session) -> int:
        """As `end_session`, without a word to the workers."""
        error = session_ended(session)
        self._sessions.end(session, error)
        return self._dispatcher.interrupt(
            error, lambda pd_request: pd_request.context.session is session
        )

    async def _follow(
        self, request: GenerationRequest, context: RequestContext, completion: Completion | None
    ) -> None:
        hints, session = request.hints, context.session
        if hints.next is not None:
            await self._prefetch(request, context, hints.next, completion or {})
        if session is None or session.ended is not None:
            return
        if hints.release:
            self._sessions.end(session, session_ended(session))
            await self._tell(session, self._cache_index.release)
        elif (seconds := hints.pin) is not None:
            await self._tell(session, lambda worker, id: self._cache_index.pin(worker, id, seconds))

    async def _tell(self, session: Session, command: Callable[[str, str], Awaitable[None]]) -> None:
        workers = [one.name for one in session.visited if self._cache_index.has_events(one.name)]
        outcomes = await asyncio.gather(
            *(command(worker, session.worker_id) for worker in workers), return_exceptions=True
        )
        for worker, outcome in zip(workers, outcomes, strict=True):
            # It is advice: a worker that does not hear it evicts in its usual order.
            if isinstance(outcome, EventStreamError):
                log.info("worker %s was not told about a session: %s", worker, outcome)
            elif outcome is not None:
                raise outcome

    async def _prefetch(
        self,
        request: GenerationRequest,
        context: RequestContext,
        decoder: str,
        completion: Completion,
    ) -> None:
        prompts = self._cache_index.prompts
        sample = _continuation(request.samples[0], context.endpoint, decoder, completion, prompts)
        following = replace(
            request, decoder=decoder, stream=False, samples=(sample,), hints=hints.NONE
        )
        outcome = "done"
        try:
            served = self._pool.served(decoder)
            context = replace(context, decoder=served, only_prompt=True, prefilled=None, spans=None)
            await self._dispatcher.complete(following, context)
        except GatewayError as error:
            outcome = "failed"
            log.info("prefetch for %s failed: %s", decoder, error.message)
        self._metrics.prefetched(decoder, outcome)


def session_ended(session: Session) -> GatewayError:
    """What requests of a session get that has been ended."""
    return GatewayError(f"The session {session.id!r} has ended.", status=409, code=SESSION_ENDED)


def _continuation(
    sample: Sample, endpoint: Endpoint, decoder: str, completion: Completion, prompts: Prompts
) -> Sample:
    """A sample whose prompt is that of `sample` and its completion, and whose answer is short."""
    body = {name: sample.body[name] for name in _ABOUT_PROMPT if name in sample.body}
    salt = sample.prompt.salt
    if endpoint is Endpoint.CHAT:
        _extend_chat(body, completion)
        prompt = prompts.chat(body, salt)
    else:
        prompt = prompts.prompt(_extend(body, completion), salt)
    if endpoint is Endpoint.GENERATE:
        body["sampling_params"] = {"max_new_tokens": 0}
    else:
        body["model"] = decoder
        body["max_tokens"] = 1  # these routes know no answer without a token
    # Somebody waits for the others, and nobody for this one yet.
    body["priority"] = (body.get("priority") or 0) - 1
    return Sample(0, 0, True, f"next-{ids.unique()}", body, prompt)


def _extend_chat(body: Body, completion: Completion) -> None:
    message = completion.get("message")
    if message and not body.get("input_ids"):
        kept = {k: v for k, v in message.items() if k in _MESSAGE_FIELDS and v is not None}
        body["messages"] = [*body["messages"], kept]


def _extend(body: Body, completion: Completion) -> str | list[int]:
    """Add the completion to the body's prompt, and return that."""
    name = next(name for name in ("text", "prompt", "input_ids") if name in body)
    if isinstance(body[name], str):
        body[name] += completion.get("text") or ""
    else:
        body[name] = [*body[name], *(completion.get("output_ids") or ())]
    prompt: str | list[int] = body[name]
    return prompt


_MESSAGE_FIELDS = frozenset(("role", "content", "tool_calls"))
