"""Models, health, metrics and SGLang's informational routes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ps_sglang.gateway.config import LogFormat
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.telemetry.log import FORMATTERS
from tests.gateway.gateway_setup import Setup, running
from tests.support.standin_engine import Plan


async def get(gateway: Setup, path: str) -> tuple[int, Any]:
    async with gateway.http.get(gateway.url + path) as response:
        return response.status, await response.json()


async def samples(gateway: Setup, path: str = "/metrics") -> dict[tuple[str, str], float]:
    """Values of all metrics by name and `worker` (or `decoder`) label; all must parse."""
    async with gateway.http.get(gateway.url + path) as response:
        assert response.status == 200
        text = await response.text()
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a family is split, which Prometheus refuses"
    return {
        (one.name, one.labels.get("worker", one.labels.get("decoder", ""))): one.value
        for family in families
        for one in family.samples
        if "bucket" not in one.name
    }


async def test_models(gateway: Setup) -> None:
    status, answer = await get(gateway, "/v1/models")
    assert (status, answer["object"]) == (200, "list")
    card = answer["data"][0]
    assert card.pop("created") > 0
    assert card == {
        "id": "a",
        "object": "model",
        "owned_by": "ps_sglang",
        "root": "a",
        "parent": "base",
        "max_model_len": 100,
    }
    status, answer = await get(gateway, "/models/b/v1/models")
    assert [card["id"] for card in answer["data"]] == ["b"]
    assert (await get(gateway, "/models/b/v1/models/b"))[1]["id"] == "b"
    for path in ("/models/b/v1/models/a", "/v1/models/c", "/models/c/v1/models"):
        status, answer = await get(gateway, path)
        assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_health(gateway: Setup) -> None:
    status, answer = await get(gateway, "/health")
    assert (status, answer["status"]) == (200, "ok")
    workers = [(w["name"], w["role"], w["decoder"], w["healthy"]) for w in answer["workers"]]
    assert workers == [
        ("prefill-0", "prefill", None, True),
        ("a-0", "decode", "a", True),
        ("b-0", "decode", "b", True),
    ]


async def test_health_without_a_worker_of_one_decoder(gateway: Setup) -> None:
    await gateway.decode("b").stop()
    status, answer = await get(gateway, "/health")
    assert (status, answer["status"]) == (503, "unavailable")
    assert [worker["healthy"] for worker in answer["workers"]] == [True, True, False]
    assert (await get(gateway, "/models/a/health"))[0] == 200
    assert (await get(gateway, "/models/b/health"))[0] == 503


async def test_health_while_workers_start(gateway: Setup) -> None:
    gateway.prefill.ready = False
    assert (await get(gateway, "/health"))[0] == 503
    assert (await get(gateway, "/models/a/health"))[0] == 503
    gateway.prefill.ready = True
    assert (await get(gateway, "/health"))[0] == 200


async def test_health_needs_only_one_worker_of_each_kind(replicated: Setup) -> None:
    await replicated.cluster.prefill[0].stop()
    await replicated.cluster.decode["a"][1].stop()
    assert (await get(replicated, "/health"))[0] == 200
    await replicated.cluster.prefill[1].stop()
    assert (await get(replicated, "/health"))[0] == 503


async def test_workers_metrics_are_merged(gateway: Setup) -> None:
    found = await samples(gateway)
    for worker in ("prefill-0", "a-0", "b-0"):
        assert found["sglang:requests_total", worker] == 7
        assert found["ps_sglang_handoff_bytes_total", worker] == 4096
        assert found["ps_sglang_worker_up", worker] == 1
    assert ("ps_sglang_worker_up", "b-0") not in await samples(gateway, "/models/a/metrics")


async def test_metrics_without_a_worker(gateway: Setup) -> None:
    await gateway.decode("b").stop()
    gateway.decode("a").metrics = "no { metrics"
    found = await samples(gateway)
    up = [found["ps_sglang_worker_up", name] for name in ("prefill-0", "a-0", "b-0")]
    assert up == [1, 0, 0]
    assert ("sglang:requests_total", "b-0") not in found


async def test_own_metrics(gateway: Setup) -> None:
    body = {"model": "a", "prompt": "x" * 1024}
    await gateway.post("/v1/completions", body)
    async with gateway.http.post(
        gateway.url + "/v1/completions", json={**body, "stream": True}
    ) as response:
        await response.read()
    found = await samples(gateway)
    assert found["ps_sglang_gateway_requests_total", "a"] == 2
    assert found["ps_sglang_gateway_request_seconds_count", "a"] == 2
    assert found["ps_sglang_gateway_time_to_first_token_seconds_count", "a"] == 1
    assert found["ps_sglang_gateway_pending_requests", "a"] == 0
    async with gateway.http.get(gateway.url + "/metrics") as response:
        text = await response.text()
    name = "ps_sglang_gateway_prompt_tokens_total"
    # The stand-in takes a word for a token, and tells that it held one.
    assert f'{name}{{held="yes",worker="prefill-0"}} 2.0' in text
    assert f'{name}{{held="no",worker="prefill-0"}} 0.0' in text


async def test_only_served_prompts_are_counted_and_each_once(gateway: Setup) -> None:
    body = {"model": "a", "prompt": "one two three"}
    for route, more in (("", {"n": 3}), ("/models/b", {"n": 2, "model": "b", "stream": True})):
        async with gateway.http.post(
            gateway.url + route + "/v1/completions", json={**body, **more}
        ) as response:
            assert response.status == 200
            await response.read()
    gateway.decode().plan = Plan(refuse=(400, {"message": "no"}))
    assert (await gateway.post("/v1/completions", body))[0] == 400
    gateway.decode().plan = Plan(cut_after=1)
    async with gateway.http.post(
        gateway.url + "/v1/completions", json={**body, "stream": True}
    ) as response:
        assert "error" in await response.text()
    async with gateway.http.get(gateway.url + "/metrics") as response:
        text = await response.text()
    name = "ps_sglang_gateway_prompt_tokens_total"
    assert f'{name}{{held="yes",worker="prefill-0"}} 2.0' in text
    assert f'{name}{{held="no",worker="prefill-0"}} 4.0' in text


async def test_a_prompt_is_counted_when_its_prefill_leg_ends_last(gateway: Setup) -> None:
    step = gateway.prefill.plan.step = asyncio.Semaphore(0)
    body = {"model": "a", "prompt": "one two three"}
    assert (await gateway.post("/v1/completions", body))[0] == 200
    name = "ps_sglang_gateway_prompt_tokens_total"
    assert (name, "prefill-0") not in await samples(gateway)
    for _ in range(3):
        step.release()
    while 'held="no",worker="prefill-0"} 2.0' not in await text_of(gateway, "/metrics"):
        pass


async def text_of(gateway: Setup, path: str) -> str:
    async with gateway.http.get(gateway.url + path) as response:
        return await response.text()


async def test_failures_are_counted_and_logged(
    gateway: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ps_sglang.gateway")
    caplog.handler.setFormatter(FORMATTERS[LogFormat.TEXT]())
    gateway.decode().plan.die_after = 1
    headers = {"x-request-id": "mine"}
    body = {"model": "a", "prompt": "x", "stream": True}
    url = gateway.url + "/v1/completions"
    async with gateway.http.post(url, json=body, headers=headers) as response:
        await response.read()
    line = caplog.text.splitlines()[-1]
    rid = gateway.decode().requests[0]["rid"].removesuffix("-00")
    start = f" ps_sglang.gateway mine rid={rid} model=a route=/v1/completions status=503 ms="
    assert start in line
    async with gateway.http.get(gateway.url + "/metrics") as response:
        text = await response.text()
    counted = 'requests_total{decoder="a",route="/v1/completions",status="503"} 1.0'
    assert counted in text


async def test_a_client_that_hangs_up_is_logged_and_counted(gateway: Setup) -> None:
    logged: asyncio.Queue[str] = asyncio.Queue()
    handler = logging.Handler()
    handler.emit = lambda record: logged.put_nowait(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ps_sglang.gateway")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        gateway.decode().plan.hang = True
        body = {"model": "a", "prompt": "x"}
        request = asyncio.create_task(gateway.post("/v1/completions", body))
        await gateway.decode().saw(1)
        request.cancel()
        assert "status=499" in await logged.get()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    async with gateway.http.get(gateway.url + "/metrics") as response:
        assert 'status="499"} 1.0' in await response.text()


@pytest.mark.parametrize(
    "path", ["/get_model_info", "/model_info", "/get_server_info", "/server_info"]
)
async def test_sglangs_information_comes_from_the_decoders_worker(
    gateway: Setup, path: str
) -> None:
    for asked in (f"/models/b{path}", f"{path}?model=b"):
        status, answer = await get(gateway, asked)
        assert (status, answer["model_path"], answer["path"]) == (200, "/models/b-0", path)
    status, answer = await get(gateway, path)
    assert status == 400
    assert "a, b" in answer["error"]["message"]
    assert (await get(gateway, f"{path}?model=c"))[0] == 404
    await gateway.decode("b").stop()
    status, answer = await get(gateway, f"/models/b{path}")
    assert (status, answer["error"]["code"]) == (503, "worker_unreachable")


async def test_information_of_the_only_decoder() -> None:
    async with running(decoders=("solo",), replicas=2) as gateway:
        await gateway.decode("solo").stop()
        assert (await get(gateway, "/get_model_info"))[1]["model_path"] == "/models/solo-1"


async def test_flush_cache(gateway: Setup) -> None:
    async with gateway.http.post(gateway.url + "/models/a/flush_cache") as response:
        assert response.status == 200
    assert [worker.flushed for worker in gateway.cluster.workers] == [0, 1, 0]
    body = {"model": "a", "prompt": "x" * 1024}
    await gateway.post("/v1/completions", body)
    cache_index = gateway.app[GATEWAY].cache_index
    prompt = cache_index.prompts.prompt(body["prompt"])
    assert "prefill-0" in cache_index.match(prompt)
    async with gateway.http.get(gateway.url + "/flush_cache") as response:
        assert response.status == 200
    assert [worker.flushed for worker in gateway.cluster.workers] == [1, 2, 1]
    assert "prefill-0" not in cache_index.match(prompt)
    await gateway.decode("b").stop()
    async with gateway.http.post(gateway.url + "/flush_cache") as response:
        assert response.status == 400
        assert "decode worker 'b-0'" in await response.text()


@pytest.mark.model
async def test_sglangs_own_client(gateway: Setup) -> None:
    def program() -> list[str]:
        # Imported here, because it takes seconds.
        from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
        from sglang.lang.interpreter import StreamExecutor
        from sglang.lang.ir import SglSamplingParams

        backend = RuntimeEndpoint(f"{gateway.url}/models/b")
        assert backend.get_model_name() == "/models/b-0"
        assert backend.get_server_info()["path"] == "/server_info"
        backend.flush_cache()
        executor = StreamExecutor(backend, {}, SglSamplingParams(), None, stream=False)
        executor.text_ = "one two"
        params = SglSamplingParams(max_new_tokens=2)
        whole, meta_info = backend.generate(executor, params)
        assert meta_info["prompt_tokens"] == 2
        streamed = "".join(text for text, _ in backend.generate_stream(executor, params))
        executor.end()
        return [whole, streamed]

    assert await asyncio.to_thread(program) == ["b-x-0 b-x-1 "] * 2


async def test_readiness(gateway: Setup) -> None:
    """What is known of the workers decides; here a request finds out that they are gone."""

    async def ready(path: str = "/ready") -> tuple[int, Any]:
        return await get(gateway, path)

    both = {"status": "ok", "prefill": ["prefill-0"], "decoders": ["a", "b"]}
    assert await ready() == (200, both)
    await gateway.decode("b").stop()
    await gateway.post("/generate", {"model": "b", "text": "x"})
    assert await ready() == (200, {**both, "decoders": ["a"]})
    assert [(await ready(f"/models/{name}/ready"))[0] for name in "ab"] == [200, 503]
    gateway.app[GATEWAY].pool.prefill[0].draining = True
    assert (await ready())[0] == 503
    gateway.app[GATEWAY].pool.prefill[0].draining = False
    gateway.app[GATEWAY].pool.prefill[0].refused = "another worker"
    assert (await ready())[0] == 503
    gateway.app[GATEWAY].pool.prefill[0].refused = None
    await gateway.prefill.stop()
    await gateway.post("/generate", {"model": "a", "text": "x"})
    assert await ready() == (
        503,
        {"status": "unavailable", "prefill": [], "decoders": ["a"]},
    )
    assert (await get(gateway, "/health"))[0] == 503
