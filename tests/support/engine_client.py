"""What engine tests share: requests through the gateway, and what workers say of themselves."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from ps_sglang.launch import Cluster

_DEADLINE_S = 60.0
_STREAM_S = 120.0


class RefusedError(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


@contextmanager
def _posted(url: str, body: dict[str, Any], seconds: float) -> Iterator[HTTPResponse]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise RefusedError(error.code, json.load(error)) from error


def post(url: str, body: dict[str, Any]) -> Any:
    """POST JSON; the answer as JSON, or RefusedError."""
    with _posted(url, body, _DEADLINE_S) as response:
        return json.load(response)


def send(url: str, body: dict[str, object]) -> socket.socket:
    """A connection on which a request has been sent."""
    address = urlsplit(url)
    payload = json.dumps(body).encode()
    head = f"POST {address.path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n\r\n"
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(head.encode() + payload)
    return connection


def stream(url: str, decoder: str, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The payloads of a stream's events, or RefusedError."""
    with _posted(url + path, {"model": decoder, **body, "stream": True}, _STREAM_S) as response:
        for line in response:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                yield json.loads(line[6:])


def gathered(events: Iterable[dict[str, Any]]) -> dict[Any, Any]:
    """What OpenAI's events say together; an answer that is not streamed is a single event.

    Each choice's text, logprobs, and why it ended stand under its index, beside `usage`.
    """
    said: dict[Any, Any] = {}
    for event in events:
        assert "error" not in event, event
        for choice in event["choices"]:
            one = said.setdefault(choice["index"], {"text": ""})
            message = choice.get("message") or choice.get("delta") or choice
            one["text"] += message.get("content") or message.get("text") or ""
            for name, part in (choice.get("logprobs") or {}).items():
                one.setdefault(name, []).extend(part or ())
            if choice.get("finish_reason"):
                assert "finish" not in one
                one["finish"] = choice["finish_reason"], choice.get("matched_stop")
        if usage := event.get("usage"):
            said["usage"] = {name: part for name, part in usage.items() if part is not None}
    return said


def generate(
    cluster: Cluster, decoder: str, ids: Sequence[int], tokens: int = 16, **options: Any
) -> Any:
    """Greedy output of a decoder on token ids, unless sampling options say otherwise."""
    sampling = {"max_new_tokens": tokens, "temperature": 0, **options.pop("sampling", {})}
    body = {"input_ids": list(ids), "sampling_params": sampling, **options}
    return post(f"{cluster.url}/models/{decoder}/generate", body)


def flush(cluster: Cluster) -> None:
    """Empty the trees of all workers, once they are idle."""
    assert_conserved(cluster)
    for worker in cluster.workers:
        with urllib.request.urlopen(
            urllib.request.Request(f"{worker.url}/flush_cache", method="POST"), timeout=_DEADLINE_S
        ):
            pass


def together(calls: Sequence[Any]) -> list[Any]:
    """Results of all calls, made at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def counters(cluster: Cluster) -> dict[str, dict[str, float]]:
    """Every `ps_sglang_*_total` of each worker, `name` or `name{source}` -> value."""
    found: dict[str, dict[str, float]] = {worker.name: {} for worker in cluster.workers}
    for worker in cluster.workers:
        with urllib.request.urlopen(f"{worker.url}/metrics", timeout=_DEADLINE_S) as response:
            text = response.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ps_sglang_") and sample.name.endswith("_total"):
                    name = sample.name.removeprefix("ps_sglang_").removesuffix("_total")
                    source = sample.labels.get("source")
                    found[worker.name][f"{name}.{source}" if source else name] = sample.value
    return found


def metric(url: str, name: str, **labels: str) -> float:
    """The value of a worker's `ps_sglang_<name>_total` with these labels, 0 if it has none."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=_DEADLINE_S) as response:
        text = response.read().decode()
    return scraped(text, name, **labels)


def scraped(text: str, name: str, **labels: str) -> float:
    """As `metric`, of what a worker's /metrics said."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"ps_sglang_{name}_total" and sample.labels.items() >= labels.items()
    )


def growth(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]], worker: str, name: str
) -> int:
    """How far a counter moved between two readings."""
    return int(after[worker].get(name, 0) - before[worker].get(name, 0))


def assert_known(cluster: Cluster, body: dict[str, Any], prompt_tokens: int) -> None:
    """The gateway finds the whole base prefix of a prompt that has been served, on all workers.

    The boundary token is no part of it. Right after a request the gateway estimates, until the
    workers' events must have come.
    """
    want = {prompt_tokens - 1}
    deadline = time.monotonic() + _DEADLINE_S
    found: set[int] = set()
    while found != want:
        assert time.monotonic() < deadline, f"the gateway knows {found}, served were {want}"
        (decision,) = post(f"{cluster.url}/debug/route", body)["decisions"]
        (candidate,) = decision["candidates"]
        found = {decision["prompt_tokens"], *candidate["held"].values()}


def assert_conserved(cluster: Cluster, *killed: str) -> None:
    """Invariant I6: once idle, no worker holds a token or a request outside its tree.

    Workers that a test has `killed` are left out.

    SGLang checks `free + cached = total` whenever a worker is idle and ends the worker if it
    is not so; here the worker must get idle, and must still be there.
    """
    alive = [worker for worker in cluster.workers if worker.name not in killed]
    for worker in alive:
        deadline = time.monotonic() + _DEADLINE_S
        while busy := in_work(worker.url):
            assert time.monotonic() < deadline, f"{worker.name} still has {busy}"
    assert all(worker.alive for worker in alive)


def _load(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/loads?include=all", timeout=_DEADLINE_S) as response:
        (load,) = json.load(response)["loads"]
    found: dict[str, Any] = load
    return found


def queues(url: str) -> dict[str, int]:
    """Requests in a worker's queues that could go on; SGLang's loads count handshakes as well."""
    found: dict[str, int] = _load(url)["queues"]
    return found


def in_work(url: str) -> dict[str, Any]:
    """What is not zero among a worker's queues and used tokens."""
    load = _load(url)
    queues = {k: v for k, v in load["disaggregation"].items() if k.endswith("_reqs")}
    counts = {k: load[k] for k in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")}
    return {name: value for name, value in (queues | counts).items() if value}
