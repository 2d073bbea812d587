"""What a worker publishes about itself, and the check that a request is meant for it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from ps_sglang.cluster_key import from_environment
from ps_sglang.contract import model_facts, trained_on, weights_digest
from ps_sglang.contract.served_template import served_template_digest
from ps_sglang.engine.access import AsgiApp, Json, Send, guarded
from ps_sglang.engine.compat.srt import server_app
from ps_sglang.engine.hooking import after, before
from ps_sglang.engine.lora.adapters import folders, registered
from ps_sglang.engine.output_ids import OutputIdsInStream
from ps_sglang.engine.settings import BASE_FINGERPRINT
from ps_sglang.errors import PsSglangError
from ps_sglang.events.messages import PUBLISHER
from ps_sglang.events.publisher import WorkerEventPublisher
from ps_sglang.worker_info import HEADER, KEY, OTHER_PROCESS, WorkerInfo

_INCARNATION: Final = "ps_sglang_incarnation"
"""The incarnation's name in what the scheduler sends to the server once it is ready."""
_ENGINE_SETTINGS: Final = (
    "page_size",
    "kv_cache_dtype",
    "dtype",
    "disaggregation_transfer_backend",
)


class _Served:
    """What `WorkerInfo` has of the checkpoint that this process serves."""

    info: Json | None = None


@after("managers.scheduler.Scheduler.get_init_info", "self")
def get_init_info(info: Json, scheduler: Any) -> Json:
    """After `Scheduler.get_init_info`: add the incarnation, the same as the event stream's."""
    publisher = scheduler.kv_events_publisher.kv_event_publisher
    events = publisher if isinstance(publisher, WorkerEventPublisher) else None
    return {**info, _INCARNATION: secrets.token_hex(8) if events is None else events.incarnation}


@before(
    "entrypoints.http_server._setup_and_run_http_server",
    "server_args",
    "tokenizer_manager",
    "template_manager",
    "port_args",
    "scheduler_infos",
    "subprocess_watchdog",
    "execute_warmup_func",
    "launch_callback",
)
def setup_and_run_http_server(
    server_args: Any, _tokenizer_manager: Any, _template_manager: Any, _port_args: Any,
    scheduler_infos: list[Json], *_args: Any, **_kwargs: Any,
) -> None:  # fmt: skip
    """Before `http_server._setup_and_run_http_server`: say who answers, and ask for the key.

    The incarnation goes into every answer.
    """
    # Read when the weights have just been: somebody may write others into the folder later.
    serves(Path(server_args.model_path))
    incarnation = scheduler_infos[0].setdefault(_INCARNATION, secrets.token_hex(8))
    app = server_app()
    build, key = app.build_middleware_stack, from_environment(os.environ)
    # Outside of all others, as their answers must name it as well.
    app.build_middleware_stack = lambda: IncarnationCheck(
        guarded(OutputIdsInStream(build()), key, incarnation), incarnation
    )


class IncarnationCheck:
    """An ASGI middleware: answers name this process, and requests for another are refused."""

    def __init__(self, app: AsgiApp, incarnation: str) -> None:
        self._app = app
        self._incarnation = incarnation.encode()
        self._header = (HEADER.encode(), self._incarnation)

    async def __call__(
        self, scope: Json, receive: Callable[[], Awaitable[Json]], send: Send
    ) -> None:
        """Serve one connection or request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_named(message: Json) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), self._header]
            await send(message)

        meant = next((value for name, value in scope["headers"] if name == self._header[0]), None)
        if meant is None or meant == self._incarnation:
            await self._app(scope, receive, send_named)
        else:
            await _refuse(send_named, meant, self._incarnation)


async def _refuse(send: Send, meant: bytes, here: bytes) -> None:
    error = {
        "message": f"This request is for incarnation {meant.decode('latin-1')!r} of a worker; "
        f"here is {here.decode()!r}.",
        "type": "invalid_request_error",
        "param": None,
        "code": "other_process",
    }
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": OTHER_PROCESS, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


@after("utils.common.build_server_info", "server_args", "scheduler_info")
def build_server_info(info: Json, server_args: Any, scheduler_info: Json) -> Json:
    """After `build_server_info`: add the worker's `WorkerInfo`."""
    if (incarnation := scheduler_info.get(_INCARNATION)) is None:
        return info  # a server of another kind, without an incarnation
    checkpoint = _Served.info or serves(Path(server_args.model_path))
    base = {"base fingerprint": os.environ.get(BASE_FINGERPRINT)}
    engine = {name: info[name] for name in _ENGINE_SETTINGS}
    if server_args.chat_template:
        engine["chat template"] = served_template_digest(server_args.chat_template)
    events = _event_addresses(info["kv_events_config"])
    role = info["disaggregation_mode"]
    worker = WorkerInfo(
        incarnation=incarnation,
        role=role,
        model=info["served_model_name"],
        capacity=scheduler_info["max_total_num_tokens"],
        bootstrap_port=info["disaggregation_bootstrap_port"] if role == "prefill" else None,
        events=events.get("endpoint"),
        events_control=events.get("replay_endpoint"),
        context_length=info["context_length"],
        tp_size=info["tp_size"],
        adapters=registered(),
        adapter_folders=folders(),
        **{**checkpoint, "common": {**base, **checkpoint["common"], **engine}},
    )
    return {**info, KEY: msgspec.to_builtins(worker)}


def serves(folder: Path) -> Json:
    """From now on this process serves the checkpoint in `folder`; returns what is published."""
    try:
        _Served.info = {
            "weights": weights_digest(folder),
            "trained_on": trained_on(folder, os.environ.get(BASE_FINGERPRINT)),
            "common": model_facts(folder),
        }
    except PsSglangError as error:
        _Served.info = {"problem": str(error), "common": {}}
    return _Served.info


def _event_addresses(config: str | None) -> Json:
    """The addresses of the event stream, as the command line has them; empty without one."""
    events = json.loads(config or "{}")
    return events if events.get("publisher") == PUBLISHER else {}
