"""/decoders: adapters share a worker; they come, go and are replaced while requests run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.gateway.gateway_setup import Setup, running
from tests.support.standin_engine import CHAT, COMPLETIONS, GENERATE, Adapters, Plan, Worker

ADAPTERS = {"math": "/math", "code": "/code"}


@pytest.fixture
async def gateway() -> AsyncIterator[Setup]:
    """One prefill worker, a whole decoder `a`, an adapter worker with `math` and `code`."""
    async with running(decoders=("a",), adapters=ADAPTERS) as setup:
        yield setup


@pytest.fixture
async def replicas() -> AsyncIterator[Setup]:
    """One prefill worker and two adapter workers with `math`."""
    async with running(decoders=(), adapters={"math": "/math"}, replicas=2) as setup:
        yield setup


def lora(gateway: Setup, number: int = 0) -> Worker:
    return gateway.cluster.lora[number]


def adapters(gateway: Setup, number: int = 0) -> Adapters:
    found = lora(gateway, number).adapters
    assert found is not None
    return found


async def call(gateway: Setup, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with gateway.http.request(method, gateway.url + path, json=body) as response:
        return response.status, await response.json()


async def refused(gateway: Setup, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """Status and message of a call that must be refused, in OpenAI's format."""
    status, answer = await call(gateway, method, path, body)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    return status, answer["error"]["message"]


async def listed(gateway: Setup) -> dict[str, Any]:
    _, answer = await call(gateway, "GET", "/decoders")
    return {one["name"]: one for one in answer["decoders"]}


async def ask(gateway: Setup, model: str) -> tuple[int, str]:
    """Status, and who answered."""
    status, answer = await gateway.post(COMPLETIONS, {"model": model, "prompt": "one two"})
    return status, answer["choices"][0]["text"].partition("-")[0] if status == 200 else ""


async def was_asked(worker_adapters: Adapters, worker: Worker, count: int) -> None:
    """Wait until the worker was told to load or unload this often."""
    async with worker.arrived:
        await worker.arrived.wait_for(lambda: len(worker_adapters.asked) >= count)


# Who answers.


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, GENERATE])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_decode_request_alone_names_the_adapter(
    gateway: Setup, path: str, stream: bool
) -> None:
    prompts: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": "x"}]},
        COMPLETIONS: {"prompt": "x"},
    }
    body = {"stream": stream, **prompts.get(path, {"text": "x"})}
    model = {} if path == GENERATE else {"model": "math"}
    prefix = "/models/math" if path == GENERATE else ""
    async with gateway.http.post(gateway.url + prefix + path, json={**body, **model}) as response:
        assert response.status == 200
        text = await response.text()
    assert "math@1-" in text
    assert lora(gateway).requests[0]["lora_path"] == "math@1"
    assert "lora_path" not in gateway.prefill.requests[0]
    if path != GENERATE and not stream:
        assert json.loads(text)["model"] == "math"


async def test_the_base_and_whole_decoders_name_no_adapter(gateway: Setup) -> None:
    assert await ask(gateway, "base") == (200, "base")
    assert await ask(gateway, "a") == (200, "a")
    assert await ask(gateway, "code") == (200, "code@1")
    assert [one.get("lora_path") for one in lora(gateway).requests] == [None, "code@1"]


async def test_clients_choose_no_adapter_themselves(gateway: Setup) -> None:
    body = {"model": "math", "prompt": "x", "lora_path": "code@1"}
    status, message = await refused(gateway, "POST", COMPLETIONS, body)
    assert (status, "`model` chooses the decoder" in message) == (400, True)


async def test_all_lists_know_the_adapters(gateway: Setup) -> None:
    _, models = await call(gateway, "GET", "/v1/models")
    assert [card["id"] for card in models["data"]] == ["a", "base", "math", "code"]
    _, workers = await call(gateway, "GET", "/workers")
    assert [one["decoders"] for one in workers["workers"]] == [[], ["a"], ["base", "math", "code"]]
    assert (await call(gateway, "GET", "/models/math/ready"))[1]["decoders"] == ["math"]
    assert (await call(gateway, "GET", "/models/math/health"))[0] == 200
    body = {"model": "math", "prompt": "x"}
    _, route = await call(gateway, "POST", "/debug/route", body)
    assert route["decisions"][0]["chosen"] == {"prefill": "prefill-0", "decode": "lora-0"}
    assert (await listed(gateway))["math"] == {
        "name": "math",
        "kind": "adapter",
        "path": "/math",
        "weights": "w1:/math",
        "requests": 0,
        "workers": [{"name": "lora-0", "lora_name": "math@1", "state": "good", "problem": None}],
    }
    assert (await listed(gateway))["a"]["kind"] == "model"


async def test_metrics_are_by_decoder(gateway: Setup) -> None:
    await ask(gateway, "math")
    async with gateway.http.get(gateway.url + "/metrics") as response:
        text = await response.text()
    assert 'ps_sglang_gateway_requests_total{decoder="math",route="/v1/completions"' in text


async def test_a_worker_that_is_ill_makes_all_its_decoders_unavailable(gateway: Setup) -> None:
    lora(gateway).ready = False
    assert (await call(gateway, "GET", "/models/math/health"))[0] == 503
    assert (await call(gateway, "GET", "/models/a/health"))[0] == 200


async def test_a_second_decoders_turn_moves_nothing(gateway: Setup) -> None:
    """One tree for all decoders of the worker: what was pulled once is there."""
    prompt = " ".join(["word"] * 400)
    for model in ("math", "code"):
        await gateway.post(COMPLETIONS, {"model": model, "prompt": prompt, "max_tokens": 1})
    body = {"model": "code", "prompt": prompt}
    _, route = await call(gateway, "POST", "/debug/route", body)
    (candidate,) = route["decisions"][0]["candidates"]
    assert candidate["terms"]["move"] == candidate["terms"]["new"] == 0


async def test_a_prefetch_is_the_bases(gateway: Setup) -> None:
    body = {"model": "math", "prompt": "one two", "hints": {"next": "code"}}
    assert (await gateway.post(COMPLETIONS, body))[0] == 200
    await lora(gateway).saw(2)
    answer, prefetch = lora(gateway).requests
    assert (answer["lora_path"], prefetch["model"]) == ("math@1", "code")
    assert "lora_path" not in prefetch


# Adding.


async def test_an_added_decoder_serves(replicas: Setup) -> None:
    body = {"name": "new", "path": "/new"}
    status, answer = await call(replicas, "POST", "/decoders", body)
    assert (status, answer["weights"]) == (201, "w1:/new")
    assert [one["lora_name"] for one in answer["workers"]] == ["new@1", "new@1"]
    for number in (0, 1):
        assert adapters(replicas, number).asked == ["load new@1 /new"]
    assert await ask(replicas, "new") == (200, "new@1")


async def test_a_decoder_serves_when_all_workers_have_it(replicas: Setup) -> None:
    gate = adapters(replicas, 1).gate = asyncio.Semaphore(0)
    body = {"name": "new", "path": "/new"}
    adding = asyncio.create_task(call(replicas, "POST", "/decoders", body))
    await was_asked(adapters(replicas, 1), lora(replicas, 1), 1)
    assert await ask(replicas, "new") == (404, "")
    assert await ask(replicas, "math") == (200, "math@1")
    status, message = await refused(replicas, "POST", "/decoders", body)
    assert (status, "'new' is being added" in message) == (409, True)
    gate.release()
    assert (await adding)[0] == 201
    assert await ask(replicas, "new") == (200, "new@1")


async def test_what_one_worker_refuses_is_undone_on_the_others(replicas: Setup) -> None:
    adapters(replicas, 1).refuse["/new"] = "rank 64: the worker takes at most 16"
    body = {"name": "new", "path": "/new"}
    status, message = await refused(replicas, "POST", "/decoders", body)
    assert status == 409
    assert message == "decode worker 'lora-1': rank 64: the worker takes at most 16"
    assert "new@1" not in adapters(replicas, 0).here
    assert await ask(replicas, "new") == (404, "")
    adapters(replicas, 1).refuse.clear()
    assert (await call(replicas, "POST", "/decoders", body))[0] == 201


async def test_a_folder_that_differs_between_machines(replicas: Setup) -> None:
    adapters(replicas, 1).weights["/new"] = "w1:other"
    body = {"name": "new", "path": "/new"}
    status, message = await refused(replicas, "POST", "/decoders", body)
    assert (status, "lora-0 w1:/new, lora-1 w1:other" in message) == (409, True)
    for number in (0, 1):
        assert list(adapters(replicas, number).here) == ["math@1"]


async def test_a_worker_that_is_gone_while_a_decoder_is_added(replicas: Setup) -> None:
    await lora(replicas, 1).stop()
    status, message = await refused(replicas, "POST", "/decoders", {"name": "new", "path": "/new"})
    assert (status, "'lora-1' is unreachable" in message) == (503, True)
    assert "Nothing has changed: try again when it is back" in message
    assert list(adapters(replicas, 0).here) == ["math@1"]


async def test_an_adapter_without_a_manifest_is_the_callers_wish(gateway: Setup) -> None:
    for wish in (False, True):
        body = {"name": f"new{wish}", "path": "/new", "allow_unverified": wish}
        assert (await call(gateway, "POST", "/decoders", body))[0] == 201
    told = [one.get("x-ps-sglang-allow-unverified") for one in adapters(gateway).headers]
    assert told == [None, "1"]


async def test_names_that_are_taken(gateway: Setup) -> None:
    for name, mend in (
        ("math", "`ps-sglang decoders replace`"), ("a", "whole model"), ("base", "whole model"),
    ):  # fmt: skip
        status, message = await refused(
            gateway, "POST", "/decoders", {"name": name, "path": "/new"}
        )
        assert (status, mend in message, "another" in message) == (409, True, True)
    assert not adapters(gateway).asked


async def test_a_cluster_without_an_adapter_worker() -> None:
    async with running() as gateway:
        body = {"name": "new", "path": "/new"}
        status, message = await refused(gateway, "POST", "/decoders", body)
        assert (status, "No worker of this cluster takes adapters" in message) == (409, True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "`name`"),
        ([], "object"),
        ({"name": "x"}, "path"),
        ({"name": "x", "path": ""}, "`path`"),
        ({"name": "", "path": "/x"}, "`name`"),
        ({"name": "x/y", "path": "/x"}, "'x/y'"),
        ({"name": "x\ny", "path": "/x"}, "printable"),
        ({"name": "..", "path": "/x"}, "'..'"),
        ({"name": "x:y", "path": "/x"}, "'x:y'"),
        ({"name": "x", "path": "/x", "rank": 3}, "rank"),
    ],
)
async def test_a_wrong_body(gateway: Setup, body: Any, said: str) -> None:
    status, message = await refused(gateway, "POST", "/decoders", body)
    assert (status, said in message) == (400, True)


# Removing.


async def test_a_removed_decoder_is_gone_at_once_and_unloaded_with_its_last_request(
    gateway: Setup,
) -> None:
    step = lora(gateway).plan.step = asyncio.Semaphore(0)
    request = asyncio.create_task(ask(gateway, "math"))
    await lora(gateway).saw(1)
    removing = asyncio.create_task(call(gateway, "DELETE", "/decoders/math"))
    while "math" in await listed(gateway):
        pass
    status, answer = await gateway.post(COMPLETIONS, {"model": "math", "prompt": "x"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    status, message = await refused(gateway, "POST", "/decoders", {"name": "math", "path": "/x"})
    assert (status, "'math' is being removed" in message) == (409, True)
    assert not adapters(gateway).asked
    for _ in range(3):
        step.release()
    assert await request == (200, "math@1")
    assert await removing == (200, {"name": "math", "removed": True})
    assert (adapters(gateway).asked, adapters(gateway).at_unload) == (["unload math@1"], [0])
    assert (await call(gateway, "POST", "/decoders", {"name": "math", "path": "/x"}))[0] == 201
    lora(gateway).plan = Plan()
    assert await ask(gateway, "math") == (200, "math@2")


async def test_all_samples_of_a_request_outlive_a_removal(gateway: Setup) -> None:
    """The second is sent when the first is prefilled: by then the decoder is gone."""
    gateway.prefill.plan.gate = asyncio.Event()
    body = {"model": "math", "prompt": "x", "n": 2}
    request = asyncio.create_task(gateway.post(COMPLETIONS, body))
    await gateway.prefill.saw(1)
    removing = asyncio.create_task(call(gateway, "DELETE", "/decoders/math"))
    while "math" in await listed(gateway):
        pass
    gateway.prefill.plan.gate.set()
    status, answer = await request
    assert (status, len(answer["choices"])) == (200, 2)
    assert (await removing)[0] == 200
    assert adapters(gateway).at_unload == [0]


async def test_a_caller_that_hangs_up_does_not_stop_a_removal(gateway: Setup) -> None:
    step = lora(gateway).plan.step = asyncio.Semaphore(0)
    request = asyncio.create_task(ask(gateway, "math"))
    await lora(gateway).saw(1)
    removing = asyncio.create_task(call(gateway, "DELETE", "/decoders/math"))
    while "math" in await listed(gateway):
        pass
    removing.cancel()
    await asyncio.wait({removing})
    for _ in range(3):
        step.release()
    await request
    await was_asked(adapters(gateway), lora(gateway), 1)
    assert adapters(gateway).at_unload == [0]


async def test_a_client_that_hangs_up_holds_nothing_up(gateway: Setup) -> None:
    lora(gateway).plan.hang = True
    request = asyncio.create_task(ask(gateway, "math"))
    await lora(gateway).saw(1)
    removing = asyncio.create_task(call(gateway, "DELETE", "/decoders/math"))
    while "math" in await listed(gateway):
        pass
    request.cancel()
    assert (await removing)[0] == 200


async def test_removing_from_a_worker_that_is_gone(replicas: Setup) -> None:
    await lora(replicas, 1).stop()
    assert (await call(replicas, "DELETE", "/decoders/math"))[0] == 200
    assert adapters(replicas, 0).here == {}


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
async def test_what_cannot_be_removed_or_replaced(gateway: Setup, method: str) -> None:
    body = {"path": "/x"} if method == "PUT" else None
    status, message = await refused(gateway, method, "/decoders/none", body)
    assert (status, "'none' does not exist" in message) == (404, True)
    for name, why in (("a", "`ps-sglang workers swap`"), ("base", "is the base of the adapters")):
        status, message = await refused(gateway, method, f"/decoders/{name}", body)
        assert (status, why in message) == (409, True)


# Replacing.


async def test_a_replaced_decoder(gateway: Setup) -> None:
    status, answer = await call(gateway, "PUT", "/decoders/math", {"path": "/v2"})
    assert (status, answer["path"], answer["weights"]) == (200, "/v2", "w1:/v2")
    assert adapters(gateway).asked == ["load math@2 /v2", "unload math@1"]
    assert await ask(gateway, "math") == (200, "math@2")


async def test_what_runs_ends_with_what_it_began_with(gateway: Setup) -> None:
    step = lora(gateway).plan.step = asyncio.Semaphore(0)
    request = asyncio.create_task(ask(gateway, "math"))
    await lora(gateway).saw(1)
    replacing = asyncio.create_task(call(gateway, "PUT", "/decoders/math", {"path": "/v2"}))
    while (await listed(gateway))["math"]["path"] != "/v2":
        pass
    later = asyncio.create_task(ask(gateway, "math"))
    await lora(gateway).saw(2)
    status, message = await refused(gateway, "PUT", "/decoders/math", {"path": "/v3"})
    assert (status, "'math' is being replaced" in message) == (409, True)
    assert (await refused(gateway, "DELETE", "/decoders/math"))[0] == 409
    assert (await listed(gateway))["math"]["requests"] == 1
    for _ in range(6):
        step.release()
    assert await request == (200, "math@1")
    assert await later == (200, "math@2")
    assert (await replacing)[0] == 200
    assert adapters(gateway).at_unload == [0]


async def test_a_refused_replacement_changes_nothing(gateway: Setup) -> None:
    adapters(gateway).refuse["/v2"] = "base fingerprint: base ps1:x, decoder ps1:y"
    status, message = await refused(gateway, "PUT", "/decoders/math", {"path": "/v2"})
    assert (status, "base ps1:x, decoder ps1:y" in message) == (409, True)
    assert await ask(gateway, "math") == (200, "math@1")
    assert adapters(gateway).here == {"math@1": "/math", "code@1": "/code"}


async def test_replacing_under_load_loses_nothing(replicas: Setup) -> None:
    """Each answer is of the version that was served when it was sent, or of one after it."""
    answered: list[tuple[int, int]] = []

    async def client() -> None:
        while not done.is_set():
            sent_at = served[-1]
            status, by = await ask(replicas, "math")
            assert status == 200
            answered.append((sent_at, int(by.removeprefix("math@"))))
            assert answered[-1][1] <= served[-1] + 1

    served, done = [1], asyncio.Event()
    clients = [asyncio.create_task(client()) for _ in range(8)]
    for version in range(2, 8):
        status, _ = await call(replicas, "PUT", "/decoders/math", {"path": f"/v{version}"})
        assert status == 200
        served.append(version)
        for number in (0, 1):
            assert list(adapters(replicas, number).here) == [f"math@{version}"]
    done.set()
    await asyncio.gather(*clients)
    assert all(sent_at <= by for sent_at, by in answered)
    assert {by for _, by in answered} >= set(range(2, 7))
    for number in (0, 1):
        assert set(adapters(replicas, number).at_unload) == {0}


async def test_other_decoders_change_at_the_same_time(gateway: Setup) -> None:
    step = lora(gateway).plan.step = asyncio.Semaphore(0)
    request = asyncio.create_task(ask(gateway, "math"))
    await lora(gateway).saw(1)
    removing = asyncio.create_task(call(gateway, "DELETE", "/decoders/math"))
    assert (await call(gateway, "PUT", "/decoders/code", {"path": "/v2"}))[0] == 200
    assert not removing.done()
    for _ in range(3):
        step.release()
    await request
    assert (await removing)[0] == 200


async def test_an_adapter_worker_gets_no_other_weights(gateway: Setup) -> None:
    body = {"model_path": "/x"}
    status, message = await refused(gateway, "POST", "/workers/lora-0/swap", body)
    assert (status, "`ps-sglang decoders replace`" in message) == (400, True)
