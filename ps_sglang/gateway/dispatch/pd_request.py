"""One sample on its two workers: the prefill and the decode request of SGLang's PD protocol.

Both get the client's body plus the bootstrap fields that let them find each other. The decode
request's answer is the client's; the prefill request's answer is read only for errors. Where the
decode worker is aggregated its request is the only one, without these fields. The decode request
alone names the decoder's adapter: the prompt is the base's (I1). A request
that is no longer wanted is ended twice: its connection is closed, and it is aborted by its id,
because SGLang 0.5.23 acts on a closed connection only after 2 to 4 seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ps_sglang import output_ids
from ps_sglang.gateway import ids
from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.continuation import resumed
from ps_sglang.gateway.bodies.engine_errors import (
    PrefillAnswer,
    answer_error,
    event_error,
    is_preamble,
)
from ps_sglang.gateway.bodies.samples import Sample
from ps_sglang.gateway.dispatch.background import Background, cancel
from ps_sglang.gateway.dispatch.prefill_request import PrefillRequest
from ps_sglang.gateway.dispatch.worker_client import WorkerClient
from ps_sglang.gateway.dispatch.worker_connection import WorkerResponse
from ps_sglang.gateway.dispatch.worker_sender import RequestContext, WorkerSender, refusal
from ps_sglang.gateway.errors import (
    GatewayError,
    Loss,
    WorkerFailed,
    WorkerUnreachable,
    reaching,
)
from ps_sglang.gateway.routing.router import Route
from ps_sglang.priority import encode_priority

# After the decode request's answer the prefill request has nothing left to do but to end.
PREFILL_GRACE_SECONDS = 30.0
# Both workers judge the same body. When one request has failed, the other has so long to fail too.
SETTLE_SECONDS = 1.0


class PrefillDecodeRequest:
    """The requests of one sample; the prefill request starts at once. `close` must be called.

    Use either `answer`, or `open_stream` and then `events`. They raise WorkerUnreachable (other
    workers may do), EngineError, WorkerFailed, GatewayBusy, or what `fail` was given. If both
    requests fail, the error is the cause, whichever fails first: see `_settled`.

    `had` are output tokens that the decoder puts out once more before it goes on. `output_ids` are
    those of its stream, as far as the worker has told.
    """

    def __init__(
        self,
        client: WorkerClient,
        background: Background,
        context: RequestContext,
        sample: Sample,
        route: Route,
        attempt: int,
        on_prefilled: Callable[[], None],
        trace_headers: Mapping[str, Mapping[str, str]],
        had: Sequence[int] = (),
    ) -> None:
        self._background = background
        self.context = context
        self.route = route
        # SGLang refuses an id that it still knows, from an attempt that it is just aborting.
        self.rid = f"{sample.rid}-{attempt:02d}"
        self._sender = WorkerSender(client, context, self.rid, trace_headers)
        self._on_prefilled = on_prefilled
        body = {
            **sample.body,
            "rid": self.rid,
            "priority": encode_priority(sample.body.get("priority") or 0, route.cached_tokens),
        }
        if route.prefill is not None:
            body["bootstrap_host"] = route.prefill.worker.bootstrap_host
            body["bootstrap_port"] = route.prefill.worker.bootstrap_port
            body["bootstrap_room"] = ids.room()
        self.output_ids: list[int] = []
        self._response: WorkerResponse | None = None
        self._splitter = sse.Splitter()
        self._error: GatewayError | None = None  # that the stream reported behind the last events
        self._answering = False
        self._decode_ended = False
        self._closed = False
        self._failure: GatewayError | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._on_served: Callable[[PrefillAnswer], None] | None = None
        self._prefill: PrefillRequest | None = None
        self._prefill_task: asyncio.Task[None] | None = None
        if route.prefill is not None:
            self._prefill = PrefillRequest(self._sender, route.prefill, body)
            self._prefill_task = asyncio.create_task(self._run_prefill(self._prefill))
        with_adapter = route.lora_name is not None and not context.only_prompt
        body = {**body, "lora_path": route.lora_name} if with_adapter else body
        self._body = resumed(context.endpoint, body, had)

    async def answer(self) -> bytes:
        """The decode request's whole JSON answer."""
        with self._interruptible():
            try:
                return await self._read_answer()
            except GatewayError as error:
                raise await self._settled(error) from None

    async def open_stream(self) -> list[bytes]:
        """Start the decode request's stream; returns its first events.

        The last of them is no preamble, see `is_preamble`: until then a failure can still be an
        HTTP status.
        """
        with self._interruptible():
            try:
                return await self._read_first()
            except GatewayError as error:
                raise await self._settled(error) from None

    async def events(self) -> list[bytes]:
        """The events that have come since, at least one; none after `[DONE]`."""
        if self._decode_ended:
            return []
        with self._interruptible():
            return await self._next_events()

    def fail(self, error: GatewayError) -> None:
        """End the sample with `error`, unless it has ended: whoever reads its answer gets it."""
        if self._failure is not None or self._decode_ended or self._closed:
            return
        self._failure = error
        if self._reader is not None:
            self._reader.cancel()
        else:
            # Nobody reads now, and perhaps never will: the client may have stopped reading.
            self._background.start(self.close())

    @property
    def prefill_has_ended(self) -> bool:
        """Whether the prefill request, if there is one, has answered, well or not."""
        return self._prefill is None or self._prefill.ended.is_set()

    def when_served(self, listener: Callable[[PrefillAnswer], None]) -> None:
        """Call `listener` once both requests were answered, with the prefill request's answer.

        It may come later than the decode request's.
        """
        self._on_served = listener
        self._notify_if_served()

    def _notify_if_served(self) -> None:
        listener = self._on_served
        answer = None if self._prefill is None else self._prefill.answer
        if self._decode_ended and listener is not None and answer is not None:
            self._on_served = None
            listener(answer)

    async def close(self) -> None:
        """End both requests; one that has not given its whole answer is aborted."""
        if self._closed:
            return
        self._closed = True
        if self._response is not None:
            self._response.close()
        prefill = self._prefill_task
        if self._decode_ended and prefill is not None and not prefill.done():
            self._background.start(self._finish(prefill))
            return
        if not self._decode_ended:
            self._background.start(self._sender.abort(self.route.decode))
        await self._end(prefill)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """In this block `fail` interrupts the task that runs it, which raises the error."""
        if self._failure is not None:
            raise self._failure
        task = asyncio.current_task()
        assert task is not None, "an answer is read inside a task"
        cancelled_before = task.cancelling()
        self._reader = task
        try:
            yield
        except asyncio.CancelledError:
            # As asyncio.timeout does: a cancellation by others is theirs, even at the same time.
            if self._failure is not None and task.uncancel() <= cancelled_before:
                raise self._failure from None
            raise
        finally:
            self._reader = None

    async def _run_prefill(self, prefill: PrefillRequest) -> None:
        try:
            await prefill.run()
        except GatewayError as error:
            if not isinstance(error, WorkerUnreachable):
                await asyncio.sleep(SETTLE_SECONDS)
            # Once the answer has begun, the prefill request has done its part.
            if not self._answering:
                self.fail(error)
        else:
            self._notify_if_served()
            self._handed_over()

    def _handed_over(self) -> None:
        self.route.handed_over()
        self._on_prefilled()

    async def _settled(self, error: GatewayError) -> GatewayError:
        """The cause of a failure of which the decode request says `error`.

        A refusal is the client's, and a lost connection speaks for itself. Any other failure may
        only follow from one of the prefill request. If both fail in the same words, before they
        had to do with each other, then the request is why.
        """
        prefill = self._prefill
        if prefill is None or isinstance(error, WorkerUnreachable) or error.status < 500:
            return error
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await prefill.ended.wait()
        cause = prefill.error
        if cause is None or (isinstance(cause, WorkerFailed) and cause.reason == error.message):
            return error
        return cause

    async def _finish(self, prefill: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait({prefill}, timeout=PREFILL_GRACE_SECONDS)
        finally:
            await self._end(prefill)

    async def _end(self, prefill: asyncio.Task[None] | None) -> None:
        # The caller may be cancelled at the `await`: everything that must happen comes first.
        self.route.release()
        if prefill is None:
            return
        if not prefill.done():
            self._background.start(self._sender.abort(self.route.prefills))
        await cancel(prefill)

    async def _read_answer(self) -> bytes:
        response = await self._open_decode()
        with reaching(self.route.decode.worker):
            content = await response.read()
        if error := answer_error(content):
            raise error
        self._decode_ended = True
        if self._prefill is None:
            self._handed_over()
        return content

    async def _read_first(self) -> list[bytes]:
        await self._open_decode()
        first: list[bytes] = []
        while not self._answering:
            events = await self._next_events()
            self._answering = not all(map(is_preamble, events))
            first += events
        if self._prefill is None:
            self._handed_over()
        return first

    async def _next_events(self) -> list[bytes]:
        assert self._response is not None, "open_stream() comes first"
        worker = self.route.decode.worker
        if self._error is not None:
            raise self._error
        with reaching(worker):
            while piece := await self._response.piece():
                if events := self._valid(self._splitter.events(piece)):
                    return events
        raise WorkerUnreachable(worker, "it ended the stream before [DONE]", Loss.TAKEN)

    def _valid(self, events: list[bytes]) -> list[bytes]:
        """Those up to `[DONE]`, or before a failure; raises that if none is before it."""
        valid: list[bytes] = []
        for told in events:
            new_ids, event = output_ids.split(told)
            self.output_ids += new_ids
            if error := event_error(event):
                if not valid:
                    raise error
                self._error = error
                return valid
            valid.append(event)
            if event == sse.DONE:
                self._decode_ended = True
                return valid
        return valid

    async def _open_decode(self) -> WorkerResponse:
        worker = self.route.decode.worker
        streamed = {output_ids.HEADER: "1"} if self._body.get("stream") else {}
        self._response = await self._sender.post(self.route.decode, self._body, streamed)
        if self._response.status != 200:
            with reaching(worker):
                content = await self._response.read()
            raise refusal(worker, self._response, content)
        return self._response
