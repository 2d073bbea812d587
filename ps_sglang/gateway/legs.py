"""One sample on its two workers: the prefill leg and the decode leg of SGLang's PD protocol.

Both legs get the client's body plus the bootstrap fields that let them find each other. The decode
leg's answer is the client's; the prefill leg's answer is read only for errors. A leg that is no
longer wanted is ended twice: its connection is closed, and SGLang is told by request id, because
SGLang 0.5.23 acts on a closed connection only after 2 to 4 seconds.
"""

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec

from ps_sglang.gateway import sse
from ps_sglang.gateway.config import Worker
from ps_sglang.gateway.errors import WorkerFailed, WorkerUnreachable, engine_error
from ps_sglang.gateway.findings import answer_error, event_error, is_preamble
from ps_sglang.gateway.requests import Sample, Surface
from ps_sglang.gateway.routing import Route

ABORT_SECONDS = 5.0
# After the decode leg's answer the prefill leg has nothing left to do but to say so.
PREFILL_GRACE_SECONDS = 30.0

# What a client asks about the output. The prefill leg has none: it must not fail at reporting it.
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

_Result = TypeVar("_Result")


class Background:
    """Tasks that outlive the request that started them, but not the gateway."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work`, which must handle its own errors."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what still runs, and what it starts when it is cancelled; wait for the end."""
        while self._tasks:
            await cancel(*self._tasks)


@dataclass(frozen=True)
class Call:
    """What the samples of one client request have in common. `headers` go to the workers."""

    surface: Surface
    decoder: str
    headers: dict[str, str]


class Pair:
    """The two legs of one sample; the prefill leg starts at once. `close` must be called.

    Use either `answer`, or `open_stream` and then `events`. They raise WorkerUnreachable (another
    pair may do), EngineError or WorkerFailed.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        background: Background,
        call: Call,
        sample: Sample,
        route: Route,
        attempt: int,
        on_prefilled: Callable[[], None],
    ) -> None:
        self._session = session
        self._background = background
        self._call = call
        # SGLang refuses an id that it still knows, from an attempt that it is just aborting.
        self._rid = f"{sample.rid}-{attempt:02d}"
        self._route = route
        self._on_prefilled = on_prefilled
        self._body = {
            **sample.body,
            "rid": self._rid,
            "bootstrap_host": route.prefill.bootstrap_host,
            "bootstrap_port": route.prefill.bootstrap_port,
            "bootstrap_room": secrets.randbits(63),
        }
        self._response: aiohttp.ClientResponse | None = None
        self._events: AsyncIterator[bytes] | None = None
        self._decode_ended = False
        self._prefill = asyncio.create_task(self._run_prefill())

    async def answer(self) -> bytes:
        """The decode leg's whole JSON answer."""
        return await self._unless_prefill_fails(self._read_answer())

    async def open_stream(self) -> list[bytes]:
        """Start the decode leg's stream; returns its first events.

        They are more than one only where the first ones say nothing, see `is_preamble`: until
        then a failure can still be told by an HTTP status.
        """
        return await self._unless_prefill_fails(self._read_first_events())

    async def events(self) -> AsyncIterator[bytes]:
        """The events after those of `open_stream`, up to and with `[DONE]`."""
        assert self._events is not None, "open_stream() comes first"
        async for event in self._events:
            yield event

    async def close(self) -> None:
        """End both legs; one that has not given its whole answer is aborted."""
        if self._response is not None:
            self._response.close()
        if self._decode_ended and not self._prefill.done():
            self._background.start(self._finish_prefill())
            return
        if not self._decode_ended:
            self._tell_abort(self._route.decode)
        await self._end_prefill()

    async def _run_prefill(self) -> None:
        worker = self._route.prefill
        body = {name: value for name, value in self._body.items() if name not in _ABOUT_OUTPUT}
        response = await self._post(worker, body)
        async with response:
            with _reaching(worker):
                content = await response.read()
        error = (
            engine_error(response.status, content)
            if response.status != 200
            else answer_error(content)
        )
        if error is not None and error.status >= 500:
            status = 503 if error.status == 503 else 502
            raise WorkerFailed(worker, error.message, status=status) from error
        if error is not None:
            raise error
        self._route.prefilled()
        self._on_prefilled()

    async def _finish_prefill(self) -> None:
        try:
            await asyncio.wait({self._prefill}, timeout=PREFILL_GRACE_SECONDS)
        finally:
            await self._end_prefill()

    async def _end_prefill(self) -> None:
        # The caller may be cancelled at the `await`: everything that must happen comes first.
        self._route.release()
        if not self._prefill.done():
            self._tell_abort(self._route.prefill)
        await cancel(self._prefill)

    async def _unless_prefill_fails(self, decoding: Coroutine[Any, Any, _Result]) -> _Result:
        task = asyncio.create_task(decoding)
        try:
            await asyncio.wait({task, self._prefill}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._prefill.result()
            return await task
        finally:
            await cancel(task)

    async def _read_answer(self) -> bytes:
        response = await self._open_decode()
        with _reaching(self._route.decode):
            content = await response.read()
        if error := answer_error(content):
            raise error
        self._decode_ended = True
        return content

    async def _read_first_events(self) -> list[bytes]:
        response = await self._open_decode()
        self._events = self._read_events(response)
        first = []
        async for event in self._events:
            first.append(event)
            if not is_preamble(event):
                break
        return first

    async def _read_events(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        worker = self._route.decode
        with _reaching(worker):
            async for event in sse.read_events(response.content.iter_any()):
                if error := event_error(event):
                    raise error
                self._decode_ended = event == sse.DONE
                yield event
                if self._decode_ended:
                    return
        raise WorkerUnreachable(worker, "it ended the stream before [DONE]")

    async def _open_decode(self) -> aiohttp.ClientResponse:
        worker = self._route.decode
        self._response = await self._post(worker, self._body)
        if self._response.status != 200:
            with _reaching(worker):
                content = await self._response.read()
            raise engine_error(self._response.status, content)
        return self._response

    async def _post(self, worker: Worker, body: dict[str, Any]) -> aiohttp.ClientResponse:
        with _reaching(worker):
            return await self._session.post(
                worker.url + self._call.surface.value,
                data=io.BytesIO(msgspec.json.encode(body)),  # aiohttp writes it in pieces
                headers={**self._call.headers, "Content-Type": "application/json"},
            )

    def _tell_abort(self, worker: Worker) -> None:
        self._background.start(self._post_abort(worker))

    async def _post_abort(self, worker: Worker) -> None:
        # If this fails, the closed connection still ends the request, later.
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.post(
                worker.url + "/abort_request",
                json={"rid": self._rid},
                headers=self._call.headers,
                timeout=aiohttp.ClientTimeout(total=ABORT_SECONDS),
            ):
                pass


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, whatever they raise."""
    for task in tasks:
        task.cancel()
    # gather() also marks their exceptions as seen.
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _reaching(worker: Worker) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise WorkerUnreachable(worker, str(error) or type(error).__name__) from error
