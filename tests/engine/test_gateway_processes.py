"""Two gateway processes before real workers: adapters come for both, and each may be killed."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ps_sglang.decoders.client import DecodersClient
from tests.engine.served import Launch, Models, Served, supervised
from tests.engine.test_supervision import assert_serves_again, kill
from tests.support.engine_client import RefusedError, assert_conserved, generate, scraped
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
CONNECTIONS = 12
"""So many meet both processes, but for one time in 2048."""


@pytest.fixture(scope="module")
def served(adapted: Models, launch: Launch) -> Iterator[Served]:
    with supervised(launch(adapted, "a", gateway_processes=2)) as served:
        yield served


def process_of(name: str) -> psutil.Process:
    """A process of the gateway, by its name."""
    below = psutil.Process().children(recursive=True)
    (found,) = (one for one in below if one.cmdline()[-1:] and f"/{name}.json" in one.cmdline()[-1])
    return found


def metrics(served: Served) -> str:
    """Those of both processes, empty while the one that gathers them is away."""
    try:
        with urllib.request.urlopen(f"{served.cluster.url}/metrics", timeout=60) as response:
            return str(response.read(), "utf-8")
    except OSError:
        return ""


def stream(served: Served, decoder: str, ids: list[int], count: int) -> list[int] | None:
    """The tokens of a whole stream, None for one that was broken off."""
    body = {"input_ids": ids, "stream": True}
    body["sampling_params"] = {"max_new_tokens": count, "temperature": 0}
    url = f"{served.cluster.url}/models/{decoder}/generate"
    content, said = json.dumps(body).encode(), list[bytes]()
    request = urllib.request.Request(url, content, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            said += (line for line in answer if line.strip())
    except OSError:
        return None
    if said[-1].strip() != b"data: [DONE]":
        return None
    tokens: list[int] = json.loads(said[-2].removeprefix(b"data: "))["output_ids"]
    return tokens


def test_adapters_change_for_both(served: Served, prompts: Prompts) -> None:
    client, models = DecodersClient(served.cluster.url), served.models
    (ids,) = prompts(1, 40)

    def want(name: str) -> list[int]:
        said: list[int] = expected(models.base, models.decoders[name], ids, 16).tokens
        return said

    client.add("new", str(models.adapters["b"]), allow_unverified=False)
    for _ in range(CONNECTIONS):
        assert generate(served.cluster, "new", ids)["output_ids"] == want("b")
    client.replace("new", str(models.adapters["c"]), allow_unverified=False)
    for _ in range(CONNECTIONS):
        assert generate(served.cluster, "new", ids)["output_ids"] == want("c")
    client.remove("new")
    for _ in range(CONNECTIONS):
        with pytest.raises(RefusedError, match="model_not_found"):
            generate(served.cluster, "new", ids)
    text = metrics(served)
    for process in ("0", "1"):
        assert scraped(text, "gateway_requests", process=process, decoder="new")


@pytest.mark.parametrize(("name", "late"), [("gateway-1", "d"), ("gateway", "e")])
def test_a_process_is_killed_among_streams(
    served: Served, prompts: Prompts, name: str, late: str
) -> None:
    """Those of the other go on; it comes back with the adapters that came at run time."""
    client, models = DecodersClient(served.cluster.url), served.models
    client.add(late, str(models.adapters[late]), allow_unverified=False)
    (ids,) = prompts(1, 40)
    want = expected(models.base, models.decoders["a"], ids, 200).tokens
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, served, "a", ids, 200) for _ in range(8)]
        while not any(one.done() for one in streams):
            busy = [one for one in client.list() if one["name"] == "a"]
            if busy[0]["requests"] == len(streams):
                break
        kill(process_of(name).pid)
        ended = [one.result() for one in streams]
    assert all(tokens in (None, want) for tokens in ended)
    while not all(f'process="{number}"' in metrics(served) for number in (0, 1)):
        assert_serves_again(served, "a", prompts)
    for _ in range(CONNECTIONS // 2):
        assert_serves_again(served, late, prompts)
    assert_conserved(served.cluster)
