"""A small engine that speaks the PD protocol of SGLang 0.5.23 over HTTP, for the gateway's tests.

`Cluster` holds workers that listen on ports of their own. A request waits for the other one of its
bootstrap room, as in a real handoff. A worker's `plan` says how its next requests go; what it saw
is in `requests`, `hung_up` and `aborted`. An answer is the words `<decoder>-<seed>-<number>`, or
`<adapter>-<seed>-<number>` if the request named an adapter. A word's token id is its number + 100.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ps_sglang import output_ids
from ps_sglang.cluster_key import CHALLENGE_HEADER, PROOF_HEADER, PROOF_PATH, ClusterKey
from ps_sglang.events.messages import AllBlocksCleared, KvEventBatch, Snapshot
from ps_sglang.events.publisher import Command, WorkerEventPublisher
from ps_sglang.gateway.config import Adapter, DecodeWorker, GatewayConfig, PrefillWorker
from ps_sglang.worker_info import HEADER, OTHER_PROCESS, adapter_name
from tests.support import standin_routes

Body = dict[str, Any]
CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
CONTEXT_LENGTH, VOCABULARY = 100, 500
ANY_PORT = "tcp://127.0.0.1:0"
BASE = "ps1:base"
COMMON: Body = {"base fingerprint": BASE, "layers": 3, "page_size": 1, "dtype": "float32"}
METRICS = """# HELP sglang:requests_total Requests.
# TYPE sglang:requests_total counter
sglang:requests_total{model_name="m"} 7.0
# HELP ps_sglang_handoff_bytes_total Bytes.
# TYPE ps_sglang_handoff_bytes_total counter
ps_sglang_handoff_bytes_total 4096.0
"""


@dataclass
class Plan:
    """How a worker treats its requests."""

    refuse: tuple[int, Any] | None = None  # answer with this status and JSON
    refuse_from: int = 0  # ... but only from this request on, counted from 0
    hang: bool = False  # never answer
    hang_after_handoff: bool = False
    lost_prefill: asyncio.Event | None = None  # when set, the handoff fails, as the engine says
    dies_of: str | None = None  # a request with this in it ends the whole worker
    bite: asyncio.Event | None = None  # ... once this is set
    gate: asyncio.Event | None = None  # other requests wait for this
    die: bool = False  # break the connection off instead of answering
    die_after: int | None = None  # ... after this many tokens
    abort: Body | None = None  # end with this finish reason instead of the first token
    abort_after: int | None = None  # ... after this many tokens
    stream_error: Body | None = None  # send this error as the first event
    cut_after: int | None = None  # end the stream cleanly, but without [DONE]
    garbage: bytes | None = None  # answer this with status 200
    step: asyncio.Semaphore | None = None  # each token waits for a permit
    choose_from: int = 100  # the first token id that it would choose
    together: int = 1  # so many tokens in one event
    tells_ids: bool = True  # of output tokens, if the gateway asks
    obeys_ids: bool = True  # puts out what the request has had
    deltas: list[Body] | None = None  # what chats say, piece by piece, instead of words
    finish: Body = field(default_factory=lambda: {"finish_reason": "stop"})  # ... and their end


@dataclass
class _Room:
    prefill: asyncio.Event = field(default_factory=asyncio.Event)
    decode: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Adapters:
    """The LoRA decoders of a worker: those it starts with, and those it has, by name and folder.

    `refuse` says why a folder is not loaded, `gate` lets loads through one by one. `running` counts
    requests, and `at_unload` how many an adapter still had when it was to be unloaded. `weights`
    are in folders whose digest is not their own name's.
    """

    environment: dict[str, str]
    here: dict[str, str] = field(init=False)
    refuse: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Semaphore | None = None
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: Counter[str] = field(default_factory=Counter)
    at_unload: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.here = dict(self.environment)

    def digests(self) -> dict[str, str]:
        """What the worker publishes."""
        return {name: self.weights.get(path, f"w1:{path}") for name, path in self.here.items()}


class Worker:
    """One engine process of a cluster; `decoder` is None for a prefill worker.

    `adapters` is None for a worker that takes none; `aggregated`: it serves requests alone.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        decoder: str | None,
        adapters: dict[str, str] | None = None,
        *,
        aggregated: bool = False,
    ) -> None:
        self.cluster, self.name, self.decoder = cluster, name, decoder
        self.adapters = None if adapters is None else Adapters(adapters)
        self.aggregated = aggregated
        self.plan = Plan()
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.arrived = asyncio.Condition()
        self.hung_up: list[str] = []
        self.aborted: list[str] = []
        self.ready = True
        self.silent = False  # as a stopped process: it takes connections and never answers
        self.engine_silent = False  # ... and here only the engine behind the server is stopped
        self.health_asked, self.health_given_up = asyncio.Event(), asyncio.Event()
        self.incarnation = secrets.token_hex(8)
        self.named = True  # its answers say which process gives them
        # What it says of itself; None for a server without the plugin.
        role = "decode" if decoder else "prefill"
        self.facts: Body | None = {
            "role": "null" if aggregated else role,
            "model": decoder or "base",
            "weights": f"w1:{decoder or 'base'}",
            "trained_on": decoder and BASE,
            "common": dict(COMMON),
            "bootstrap_port": None if decoder else 9000,
            "capacity": 1000,
        }
        self.misdirected = 0  # requests that were for another process
        self.key = cluster.key  # None for a worker that does not ask for one
        self.turned_away = 0  # requests without the key
        self.told: list[str] = []  # by which paths it told of itself
        self.weights: list[str] = []  # what it was told to load
        self.running = 0
        self.running_at_load: list[int] = []  # how many requests it had then
        self.refuse_weights: str | None = None
        self.load: asyncio.Semaphore | None = None  # each load waits for a permit
        self.flushed = 0
        self.questions: list[tuple[str, Any]] = []  # bodies by path, of what generates nothing
        self.confused = False  # ... and is answered with 500
        self.metrics = METRICS
        self.url = ""
        self.dead = asyncio.Event()
        self.publisher: WorkerEventPublisher | None = None
        self.commands: list[Command] = []  # what it was commanded over its event stream
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=2**30, middlewares=[self._addressed])
        for path in (CHAT, COMPLETIONS, GENERATE):
            app.router.add_post(path, self._generate)
        app.router.add_post("/abort_request", self._abort)
        app.router.add_post("/flush_cache", self._flush)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        app.router.add_post("/update_weights_from_disk", self._update_weights)
        app.router.add_post("/load_lora_adapter", self._load_adapter)
        app.router.add_post("/unload_lora_adapter", self._unload_adapter)
        for path in ("/get_model_info", "/model_info", "/get_server_info", "/server_info"):
            app.router.add_get(path, self._info)
        standin_routes.add_routes(app.router, self)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @web.middleware
    async def _addressed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == PROOF_PATH:
            return self._sign(request, web.Response(status=204))
        if request.path != "/ready" and not self._is_let_in(request):
            self.turned_away += 1
            return self._sign(request, web.Response(status=401))
        if request.headers.get(HEADER, self.incarnation) != self.incarnation and self.named:
            self.misdirected += 1
            return self._sign(request, web.Response(status=OTHER_PROCESS))
        response = await handler(request)
        return response if response.prepared else self._sign(request, response)

    def _is_let_in(self, request: web.Request) -> bool:
        authorization = request.headers.get("Authorization", "")
        return self.key is None or self.key.opens(authorization, self.incarnation)

    def _sign(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        """Say who answers, and prove it if asked."""
        if self.named:
            response.headers[HEADER] = self.incarnation
        challenge = request.headers.get(CHALLENGE_HEADER)
        if challenge is not None and self.key is not None:
            response.headers[PROOF_HEADER] = self.key.proof(challenge, self.incarnation)
        return response

    def publish(self, endpoint: str = ANY_PORT, control: str = ANY_PORT) -> None:
        """Publish events. A snapshot says that nothing is cached."""
        loop = asyncio.get_running_loop()
        self.publisher = WorkerEventPublisher(
            endpoint=endpoint, replay_endpoint=control, key=self.key
        )
        self.incarnation = self.publisher.incarnation

        def command(one: Command) -> None:
            loop.call_soon_threadsafe(self._take, one)

        self.publisher.on_command(command)

    def _take(self, command: Command) -> None:
        if isinstance(command, Snapshot):
            assert self.publisher is not None
            self.publisher.publish(KvEventBatch(0.0, [AllBlocksCleared()]))
        else:
            self.cluster.background(self._note(self.commands, command))

    async def was_told(self, count: int) -> list[Command]:
        """Wait until this many commands came; returns all."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.commands) >= count)
        return self.commands

    async def stop(self) -> None:
        if self.publisher is not None:
            self.publisher.shutdown()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        """Another process of the worker takes its place; its adapters are those of its start."""
        port = self.port
        await self.stop()
        self.incarnation = secrets.token_hex(8)
        if self.adapters is not None:
            self.adapters.here = dict(self.adapters.environment)
        await self.start(port)

    async def saw(self, count: int) -> None:
        """Wait until this many generation requests have arrived."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= count)

    async def saw_hang_up_of_connection(self) -> None:
        """Wait until a request was given up, whether its abort was told or not."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: self.hung_up)

    async def saw_hang_up(self, count: int = 1) -> None:
        """Wait until this many requests were given up and their abort was told."""
        async with self.arrived:
            await self.arrived.wait_for(
                lambda: len(self.hung_up) >= count and len(self.aborted) >= count
            )

    async def _note(self, seen: list[Any], item: Any) -> None:
        seen.append(item)
        async with self.arrived:
            self.arrived.notify_all()

    async def _abort(self, request: web.Request) -> web.Response:
        await self._note(self.aborted, (await request.json())["rid"])
        return web.Response()

    async def _flush(self, request: web.Request) -> web.Response:
        self.flushed += 1
        return web.Response(text="Cache flushed.\n")

    async def _ready(self, request: web.Request) -> web.Response:
        if self.silent:
            await asyncio.Event().wait()
        return web.Response(status=200 if self.ready else 503)

    async def _health(self, request: web.Request) -> web.Response:
        self.health_asked.set()
        if self.silent or self.engine_silent:
            try:
                await asyncio.Event().wait()
            finally:
                self.health_given_up.set()
        return web.Response(status=200 if self.ready else 503)

    async def _update_weights(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.running_at_load.append(self.running)
        await self._note(self.weights, body["model_path"])
        if self.load is not None:
            await self.load.acquire()
        assert not body["flush_cache"]
        message = self.refuse_weights or "Succeeded to update model weights."
        answer = {"success": self.refuse_weights is None, "message": message}
        return web.json_response(answer, status=200 if answer["success"] else 400)

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert self.adapters is not None
        self.adapters.headers.append(dict(request.headers))
        await self._note(self.adapters.asked, f"load {body['lora_name']} {body['lora_path']}")
        if self.adapters.gate is not None:
            await self.adapters.gate.acquire()
        if body["lora_name"] in self.adapters.here:
            return _adapters_answer(f"{body['lora_name']} is loaded already")
        if (problem := self.adapters.refuse.get(body["lora_path"])) is not None:
            return _adapters_answer(problem)
        self.adapters.here[body["lora_name"]] = body["lora_path"]
        return _adapters_answer(None)

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        assert self.adapters is not None
        await self._note(self.adapters.asked, f"unload {name}")
        self.adapters.at_unload.append(self.adapters.running[name])
        if self.adapters.here.pop(name, None) is None:
            return _adapters_answer(f"{name} is not loaded")
        return _adapters_answer(None)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _info(self, request: web.Request) -> web.Response:
        await self._note(self.told, request.path)
        return web.json_response(
            {
                "model_path": f"/models/{self.name}",
                "path": request.path,
                "ps_sglang": self.facts
                and {
                    "incarnation": self.incarnation,
                    "adapters": self.adapters and self.adapters.digests(),
                    "adapter_folders": self.adapters.here if self.adapters else {},
                    **self.facts,
                },
            }
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.headers.append(dict(request.headers))
        if any(known["rid"] == body["rid"] for known in self.requests):
            # As SGLang does with the id of a request that it has not finished aborting.
            return web.json_response({"error": {"message": "Duplicate request ID"}}, status=400)
        await self._note(self.requests, body)
        name = body.get("lora_path")
        if name is not None and (self.adapters is None or name not in self.adapters.here):
            problem = f"The following requested LoRA adapters are not loaded: {name}"
            return web.json_response({"error": {"message": problem}}, status=400)
        self.running += 1
        if name is not None:
            assert self.adapters is not None
            self.adapters.running[name] += 1
        try:
            return await self._run(request, body)
        except asyncio.CancelledError:
            self.hung_up.append(body["rid"])
            self.cluster.background(self._note_hang_up())
            raise
        finally:
            self.running -= 1
            if name is not None:
                assert self.adapters is not None
                self.adapters.running[name] -= 1

    async def _note_hang_up(self) -> None:
        async with self.arrived:
            self.arrived.notify_all()

    async def _run(self, request: web.Request, body: Body) -> web.StreamResponse:
        plan = self.plan
        if plan.hang or self.silent or self.engine_silent:
            await asyncio.Event().wait()
        if plan.dies_of is not None and plan.dies_of in json.dumps(body):
            if plan.bite is not None:
                await plan.bite.wait()
            await self.die()
            await asyncio.Event().wait()
        elif plan.gate is not None:
            await plan.gate.wait()
        if plan.die:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if plan.refuse is not None and len(self.requests) > plan.refuse_from:
            status, content = plan.refuse
            text = content if isinstance(content, str) else json.dumps(content)
            return web.Response(status=status, text=text, content_type="application/json")
        if plan.lost_prefill is not None:
            await plan.lost_prefill.wait()
            problem = {"message": "Lost connection with prefill instance"}
            return web.json_response({"error": problem}, status=500)
        await self._hand_off(body)
        if plan.hang_after_handoff:
            await asyncio.Event().wait()
        if plan.garbage is not None:
            return web.Response(body=plan.garbage, content_type="application/json")
        name = body.get("lora_path") or self.decoder or "base"
        answer = _Answer(request.path, name, body, plan)
        if plan.deltas is not None:
            answer = _Speech(request.path, name, body, plan)
        if body.get("stream"):
            return await self._stream(request, answer, plan)
        for _ in range(answer.length):
            if plan.step is not None:
                await plan.step.acquire()
        return web.json_response(answer.whole(plan.abort))

    async def die(self) -> None:
        """As a process that is killed: nobody listens, and all its connections break."""
        assert self._runner is not None
        assert self._runner.server is not None
        for site in self._runner.sites:
            await site.stop()
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        self.dead.set()

    async def _hand_off(self, body: Body) -> None:
        if self.aggregated:
            assert not any(name.startswith("bootstrap") for name in body)
            return
        assert isinstance(body["bootstrap_port"], int)
        assert body["bootstrap_host"]
        room = self.cluster.rooms[body["bootstrap_room"]]
        mine, other = (
            (room.prefill, room.decode) if self.decoder is None else (room.decode, room.prefill)
        )
        assert not mine.is_set(), "two samples share a bootstrap room"
        mine.set()
        await other.wait()

    async def _stream(
        self, request: web.Request, answer: _Answer, plan: Plan
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self._sign(request, response)
        await response.prepare(request)
        if plan.stream_error is not None:
            await response.write(_event({"error": plan.stream_error}))
            await response.write(b"data: [DONE]\n\n")
            return response
        for event in answer.opening():
            await response.write(_event(event))
        told = plan.tells_ids and output_ids.HEADER in request.headers
        for number in range(0, answer.length, plan.together):
            if plan.abort is not None and number == (plan.abort_after or 0):
                await response.write(_event(answer.aborted(plan.abort)))
                await response.write(b"data: [DONE]\n\n")
                return response
            if number == plan.die_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if number == plan.cut_after:
                return response
            if plan.step is not None:
                await plan.step.acquire()
            after = min(number + plan.together, answer.length)
            ids = output_ids.comment(answer.ids[number:after]) if told else b""
            await response.write(ids + _event(answer.tokens(number, after)))
        for event in answer.closing():
            await response.write(_event(event))
        await response.write(b"data: [DONE]\n\n")
        return response


def _adapters_answer(problem: str | None) -> web.Response:
    content = {"success": problem is None, "error_message": problem}
    return web.json_response(content, status=200 if problem is None else 400)


def _event(content: Body) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


class _Answer:
    """What a worker says to one sample, in the shape of its route."""

    def __init__(self, path: str, decoder: str, body: Body, plan: Plan) -> None:
        self.path, self.body = path, body
        params = body.get("sampling_params") or {}
        assert body.get("n", 1) == 1, "the gateway must split n > 1"
        assert params.get("n", 1) == 1, "the gateway must split n > 1"
        prompt: Any = body.get("prompt", body.get("text", body.get("input_ids")))
        if path == CHAT:
            prompt = " ".join(str(message.get("content")) for message in body["messages"])
        assert isinstance(prompt, str) or all(isinstance(one, int) for one in prompt)
        self.prompt_tokens = len(prompt.split() if isinstance(prompt, str) else prompt)
        seed = body.get("seed", params.get("sampling_seed", "x"))
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        wanted = most or params.get("max_new_tokens") or 3
        self.length = min(wanted, CONTEXT_LENGTH)  # the engine shortens it, too
        own = (params if path == GENERATE else body).get("custom_params") or {}
        had = own.get(output_ids.PARAM, []) if plan.obeys_ids else []
        chosen = [plan.choose_from + number for number in range(len(had), self.length)]
        self.ids = [*had, *chosen]
        self.words = [f"{decoder}-{seed}-{token - 100} " for token in self.ids]

    @property
    def text(self) -> str:
        return "".join(self.words)

    def usage(self) -> Body:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.length,
            "total_tokens": self.prompt_tokens + self.length,
            "prompt_tokens_details": {"cached_tokens": 1},
            "reasoning_tokens": 0,
        }

    def whole(self, abort: Body | None) -> Body:
        if self.path == GENERATE:
            reason = abort or {"type": "length", "length": self.length}
            return self._native(self.text, reason, self.length)
        said: Body = {"text": self.text}
        if self.path == CHAT:
            said = {"message": {"role": "assistant", "content": self.text}}
        choice = {"index": 0, **said, "finish_reason": "abort" if abort else "length"}
        return {**self._head(False), "choices": [choice], "usage": self.usage()}

    def opening(self) -> Iterator[Body]:
        if self.path == CHAT:
            yield self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def tokens(self, number: int, after: int) -> Body:
        """The event of the tokens from `number` to before `after`."""
        if self.path == GENERATE:
            reason = {"type": "length", "length": self.length} if after == self.length else None
            return self._native("".join(self.words[:after]), reason, after)
        words = "".join(self.words[number:after])
        return self._chunk({"delta": {"content": words}} if self.path == CHAT else {"text": words})

    def closing(self) -> Iterable[Body]:
        if self.path == GENERATE:
            return
        yield self._chunk({"delta": {}} if self.path == CHAT else {"text": ""}, "length")
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield {**self._head(True), "choices": [], "usage": self.usage()}

    def aborted(self, reason: Body) -> Body:
        if self.path == GENERATE:
            return self._native("", reason, 0)
        return self._chunk({"delta": {}} if self.path == CHAT else {"text": ""}, "abort")

    def _native(self, text: str, finish_reason: Body | None, tokens: int) -> Body:
        meta_info = {
            "id": self.body["rid"],
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "cached_tokens": 1,
            "finish_reason": finish_reason,
        }
        return {"text": text, "output_ids": self.ids[:tokens], "meta_info": meta_info}

    def _head(self, chunk: bool) -> Body:
        kind = "text_completion" if self.path == COMPLETIONS else "chat.completion"
        suffix = ".chunk" if chunk and self.path == CHAT else ""
        return {
            "id": self.body["rid"],
            "object": kind + suffix,
            "created": 1,
            "model": self.body["model"],
        }

    def _chunk(self, said: Body, finish_reason: str | None = None) -> Body:
        choice = {"index": 0, **said, "finish_reason": finish_reason}
        chunk = {**self._head(True), "choices": [choice]}
        if (self.body.get("stream_options") or {}).get("continuous_usage_stats"):
            chunk["usage"] = self.usage()
        return chunk


class _Speech(_Answer):
    """A chat's answer that a test has written, in pieces."""

    def __init__(self, path: str, decoder: str, body: Body, plan: Plan) -> None:
        super().__init__(path, decoder, body, plan)
        assert plan.deltas is not None
        self.deltas, self.finish = plan.deltas, plan.finish
        self.length = len(self.deltas)
        self.ids = [*range(100, 100 + self.length)]

    def whole(self, abort: Body | None) -> Body:
        message: Body = {"role": "assistant", "content": None}
        calls: list[Body] = []
        for delta in self.deltas:
            for name in ("content", "reasoning_content"):
                if name in delta:
                    message[name] = (message.get(name) or "") + delta[name]
            for part in delta.get("tool_calls", ()):
                function = part["function"]
                if function.get("name"):
                    calls.append({**part, "function": {**function, "arguments": ""}})
                calls[-1]["function"]["arguments"] += function.get("arguments", "")
        choice = {"index": 0, "message": {**message, "tool_calls": calls or None}, **self.finish}
        return {**self._head(False), "choices": [choice], "usage": self.usage()}

    def tokens(self, number: int, after: int) -> Body:
        assert after == number + 1
        return self._chunk({"delta": self.deltas[number]})

    def closing(self) -> Iterable[Body]:
        last, usage = super().closing()
        last["choices"][0].update(self.finish)
        return last, usage


class Cluster:
    """Prefill and decode workers that can hand off to each other."""

    def __init__(self) -> None:
        self.rooms: defaultdict[int, _Room] = defaultdict(_Room)
        self.prefill: list[Worker] = []
        self.decode: dict[str, list[Worker]] = {}
        self.lora: list[Worker] = []  # those that serve adapters on the base
        self.extra: list[Worker] = []
        self.key: ClusterKey | None = None
        self.model_roots: tuple[str, ...] = ()
        self.key_file: Path | None = None
        self.tokenizer: str | None = None  # the folder of the base's, if the gateway has it
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, name: str, decoder: str | None, **options: Any) -> Worker:
        """One more worker, which the gateway has not been told of."""
        worker = Worker(self, name, decoder, **options)
        await worker.start()
        self.extra.append(worker)
        return worker

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        prefill: int = 1,
        decoders: Iterable[str] = ("a", "b"),
        replicas: int = 1,
        events: bool = False,
        tokenizer: str | None = None,
        adapters: dict[str, str] | None = None,
        aggregated: bool = False,
        keyed: bool = True,
        model_roots: tuple[str, ...] = ("/",),
    ) -> AsyncIterator[Cluster]:
        """`adapters` are decoders, with their folders, of `replicas` further workers.

        `keyed`: its workers and the gateway share a key.
        """
        cluster = cls()
        folder = TemporaryDirectory(prefix="standin-")
        if keyed:
            cluster.key, cluster.key_file = ClusterKey.make(), Path(folder.name) / "cluster.key"
            cluster.key.save(cluster.key_file)
        cluster.tokenizer, cluster.model_roots = tokenizer, model_roots
        cluster.prefill = [Worker(cluster, f"prefill-{i}", None) for i in range(prefill)]
        for number, worker in enumerate(cluster.prefill):
            assert worker.facts is not None
            worker.facts["bootstrap_port"] = 9000 + number
        cluster.decode = {
            name: [Worker(cluster, f"{name}-{i}", name) for i in range(replicas)]
            for name in decoders
        }
        if adapters is not None:
            environment = {adapter_name(name, 1): path for name, path in adapters.items()}
            cluster.lora = [
                Worker(cluster, f"lora-{i}", "base", environment, aggregated=aggregated)
                for i in range(replicas)
            ]
        try:
            for worker in cluster.workers:
                await worker.start()
                if events:
                    worker.publish()
            yield cluster
        finally:
            await asyncio.gather(*(one.stop() for one in [*cluster.workers, *cluster.extra]))
            folder.cleanup()

    @property
    def workers(self) -> list[Worker]:
        decode = (one for workers in self.decode.values() for one in workers)
        return [*self.prefill, *decode, *self.lora]

    def background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def config(self) -> GatewayConfig:
        """The gateway's configuration for this cluster."""
        return GatewayConfig(
            host="127.0.0.1",
            port=0,
            base="base",
            context_length=CONTEXT_LENGTH,
            vocabulary=VOCABULARY,
            prefill=tuple(
                PrefillWorker(worker.name, worker.url, "127.0.0.1", 9000 + number, *_events(worker))
                for number, worker in enumerate(self.prefill)
            ),
            decode=tuple(
                DecodeWorker(worker.name, worker.url, name, *_events(worker))
                for name, workers in self.decode.items()
                for worker in workers
            )
            + tuple(map(_adapter_worker, self.lora)),
            tokenizer=self.tokenizer,
            is_aggregated=not self.prefill,
            cluster_key_file=None if self.key_file is None else str(self.key_file),
            model_roots=self.model_roots,
        )


def _adapter_worker(worker: Worker) -> DecodeWorker:
    assert worker.adapters is not None
    names = worker.adapters.environment.items()
    adapters = tuple(Adapter(name.removesuffix("@1"), path) for name, path in names)
    return DecodeWorker(
        worker.name,
        worker.url,
        "base",
        *_events(worker),
        adapters=adapters,
        aggregated=worker.aggregated,
    )


def _events(worker: Worker) -> tuple[str | None, str | None]:
    """Where a worker publishes, and where it can be asked."""
    if worker.publisher is None:
        return None, None
    return worker.publisher.endpoint, worker.publisher.control
