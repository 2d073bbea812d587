"""What a worker says of itself, and whom its server answers, on SGLang's own application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from ps_sglang.engine import worker_info
from ps_sglang.engine.compat.srt import server_app
from ps_sglang.engine.hooks import incompatibilities
from ps_sglang.events.publisher import WorkerEventPublisher
from ps_sglang.worker_info import HEADER, KEY, OTHER_PROCESS, WorkerInfo


@pytest.fixture
def app(tiny: dict[str, Path]) -> Iterator[Any]:
    """SGLang's application as it is just before it serves, of process `here`."""
    app = server_app()
    infos = [{"ps_sglang_incarnation": "here"}]
    args = SimpleNamespace(model_path=str(tiny["a"]), chat_template=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "build_middleware_stack", app.build_middleware_stack)
        patch.setattr(app, "middleware_stack", None)
        worker_info.setup_and_run_http_server(args, None, None, None, infos)
        yield app


@pytest.fixture
async def http(app: Any) -> Any:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        yield client


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/ready", 500)])
@pytest.mark.parametrize("headers", [{}, {HEADER: "here"}])
async def test_every_answer_names_the_process(
    http: httpx.AsyncClient, path: str, status: int, headers: dict[str, str]
) -> None:
    """Also one of a route that fails: nothing is set up here for /ready to ask."""
    answer = await http.get(path, headers=headers)
    assert (answer.status_code, answer.headers.get(HEADER)) == (status, "here")


async def test_what_is_for_another_process_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.get("/nothing", headers={HEADER: "gone"})
    assert (answer.status_code, answer.headers[HEADER]) == (OTHER_PROCESS, "here")
    assert answer.json()["error"]["code"] == "other_process"
    assert "incarnation 'gone'" in answer.json()["error"]["message"]


def test_the_scheduler_has_the_event_streams_incarnation() -> None:
    publisher = WorkerEventPublisher()
    try:
        info = worker_info.get_init_info({"status": "ready"}, _scheduler(publisher))
        assert info == {"status": "ready", "ps_sglang_incarnation": publisher.incarnation}
    finally:
        publisher.shutdown()


def test_a_scheduler_without_an_event_stream_has_one_of_its_own() -> None:
    first, other = (worker_info.get_init_info({}, _scheduler(None)) for _ in range(2))
    assert first != other


def _scheduler(publisher: Any) -> Any:
    return SimpleNamespace(kv_events_publisher=SimpleNamespace(kv_event_publisher=publisher))


INFO = {
    "page_size": 1,
    "kv_cache_dtype": "auto",
    "dtype": "float32",
    "disaggregation_transfer_backend": "zmq",
    "disaggregation_mode": "decode",
    "disaggregation_bootstrap_port": 8998,
    "served_model_name": "a",
    "context_length": None,
    "tp_size": 2,
    "kv_events_config": '{"publisher": "ps_sglang", "endpoint": "e", "replay_endpoint": "r"}',
}
SCHEDULER = {"ps_sglang_incarnation": "here", "max_total_num_tokens": 4096}


def _published(folder: Path, **info: Any) -> WorkerInfo:
    worker_info.serves(folder)
    args = SimpleNamespace(model_path=str(folder), chat_template=None)
    answer = worker_info.build_server_info({**INFO, **info}, args, SCHEDULER)
    return msgspec.convert(answer[KEY], WorkerInfo)


def test_what_a_worker_says_of_itself(tiny: dict[str, Path]) -> None:
    published = _published(tiny["a"])
    assert (published.incarnation, published.role, published.model) == ("here", "decode", "a")
    assert (published.events, published.events_control) == ("e", "r")
    assert published.bootstrap_port is None
    assert (published.capacity, published.tp_size) == (4096, 2)
    assert published.trained_on is not None
    assert published.trained_on.startswith("ps1:")
    assert {"base fingerprint", "tokenizer", "page_size"} <= set(published.common)
    prefill = _published(tiny["base"], disaggregation_mode="prefill", kv_events_config=None)
    assert (prefill.bootstrap_port, prefill.events, prefill.trained_on) == (8998, None, None)
    changed = {change.partition(":")[0] for change in published.changes(prefill)}
    assert changed == {
        "role", "weights", "trained on", "bootstrap port", "events", "events control",
    }  # fmt: skip


def test_other_weights_are_another_worker(tiny: dict[str, Path]) -> None:
    (change,) = _published(tiny["a"]).changes(_published(tiny["b"]))
    assert change.startswith("weights: wanted w1:")
    same = _published(tiny["a"])
    assert list(same.changes(msgspec.structs.replace(same, incarnation="x", capacity=1))) == []


def test_a_checkpoint_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    assert "no .safetensors file" in str(_published(tmp_path).problem)


def test_a_server_of_another_kind_says_nothing(tiny: dict[str, Path]) -> None:
    args = SimpleNamespace(model_path=str(tiny["a"]), chat_template=None)
    assert KEY not in worker_info.build_server_info(dict(INFO), args, {"max_total_num_tokens": 1})


def test_the_hooks_fit() -> None:
    assert incompatibilities() == []
