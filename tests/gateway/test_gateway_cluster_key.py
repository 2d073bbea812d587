"""Workers that have the cluster's key, and what has not: it never gets a prompt, nor the key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ps_sglang.cluster_key import CHALLENGE_HEADER, PROOF_HEADER, PROOF_PATH, ClusterKey
from ps_sglang.errors import UsageError
from ps_sglang.gateway.app import build_app
from ps_sglang.worker_info import HEADER
from tests.gateway.gateway_setup import NEVER, Setup, running
from tests.support.standin_engine import Worker

ROUTE = "/v1/completions"
BODY = {"prompt": "one two", "model": "a"}


@pytest.fixture
async def unasked() -> AsyncIterator[Setup]:
    async with running(NEVER) as setup:
        yield setup


class Forger:
    """A server that says whatever a worker would say, and hands challenges to a `real` one."""

    def __init__(self, worker: Worker, real: Worker | None = None) -> None:
        self.incarnation, self.facts = worker.incarnation, worker.facts
        self.real = real
        self.ready = True
        self.got: list[tuple[str, dict[str, str], str]] = []
        self.url = ""

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.got.append((request.path, dict(request.headers), await request.text()))
        headers = {HEADER: self.incarnation, PROOF_HEADER: "0" * 64}
        if self.real is not None:
            passed = {CHALLENGE_HEADER: request.headers.get(CHALLENGE_HEADER, "x")}
            async with (
                aiohttp.ClientSession() as http,
                http.get(self.real.url + PROOF_PATH, headers=passed) as response,
            ):
                headers |= {name: response.headers[name] for name in (HEADER, PROOF_HEADER)}
        told = {"ps_sglang": {"incarnation": headers[HEADER], **(self.facts or {})}}
        status = 503 if request.path == "/ready" and not self.ready else 200
        return web.json_response(told, headers=headers, status=status)

    @property
    def secrets(self) -> list[str]:
        """What of it would be of use to a thief: prompts and keys."""
        stolen = [body for _, _, body in self.got if body]
        return stolen + [
            headers["Authorization"] for _, headers, _ in self.got if "Authorization" in headers
        ]


@pytest.fixture
async def forge() -> AsyncIterator[Any]:
    made = []

    async def start(worker: Worker, real: Worker | None = None, *, port: int = 0) -> Forger:
        made.append(Forger(worker, real))
        await made[-1].start(port)
        return made[-1]

    yield start
    for forger in made:
        await forger.stop()


async def listed(gateway: Setup, name: str) -> dict[str, Any]:
    async with gateway.http.get(gateway.url + "/workers") as response:
        workers = (await response.json())["workers"]
    return next(one for one in workers if one["name"] == name)


async def becomes(gateway: Setup, name: str, state: str) -> dict[str, Any]:
    while (found := await listed(gateway, name))["state"] != state:
        pass
    return found


async def test_a_forged_worker_cannot_join(gateway: Setup, forge: Any) -> None:
    """It reports just what a worker of the cluster reports."""
    double = await gateway.cluster.start("double", "a")
    forger = await forge(double)
    status, answer = await gateway.post("/workers", {"url": forger.url})
    assert (status, answer["error"]["code"]) == (400, "worker_unreachable")
    assert "does not show that it has the cluster's key" in answer["error"]["message"]
    assert [path for path, _, _ in forger.got] == ["/ready"]
    assert not forger.secrets
    assert (await gateway.post("/workers", {"url": double.url}))[0] == 201


async def test_a_forger_that_passes_the_challenge_on_shows_anothers_name(
    gateway: Setup, forge: Any
) -> None:
    forger = await forge(gateway.decode(), gateway.decode())
    status, answer = await gateway.post("/workers", {"url": forger.url, "name": "forged"})
    assert status == 409
    assert "is in the cluster already" in answer["error"]["message"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_takes_a_dead_workers_port_gets_no_prompt(
    unasked: Setup, forge: Any, role: str, stream: bool
) -> None:
    """It has the worker's name, and nobody has probed since."""
    old = unasked.prefill if role == "prefill" else unasked.decode()
    other = unasked.decode("b") if role == "prefill" else unasked.prefill
    assert (await unasked.post(ROUTE, BODY))[0] == 200
    await old.stop()
    for real in (None, other):
        forger = await forge(old, real, port=old.port)
        status, answer = await unasked.post(ROUTE, {**BODY, "stream": stream})
        assert (status, answer["error"]["code"]) in (
            (503, "worker_unreachable"),
            (503, "no_worker"),
        )
        assert forger.got, "it was asked, but for a proof only"
        assert not forger.secrets
        await forger.stop()


async def test_nor_a_text_to_tokenize(unasked: Setup, forge: Any) -> None:
    old = unasked.decode()
    await old.stop()
    forger = await forge(old, port=old.port)
    status, _ = await unasked.post("/models/a/tokenize", {"prompt": "a secret"})
    assert status == 503
    assert not forger.secrets


@pytest.mark.parametrize("ready", [True, False])
async def test_a_probe_finds_the_forger_and_the_worker_can_come_back(
    quick: Setup, forge: Any, ready: bool
) -> None:
    old = quick.decode()
    await old.stop()
    forger = await forge(old, port=old.port)
    forger.ready = ready
    found = await becomes(quick, "a-0", "refused")
    assert "does not show that it has the cluster's key" in found["problem"]
    assert (await quick.post(ROUTE, BODY))[0] == 503
    assert not [body for _, _, body in forger.got if body]
    await forger.stop()
    await old.start(old.port)
    await becomes(quick, "a-0", "good")
    assert (await quick.post(ROUTE, BODY))[0] == 200


async def test_another_worker_of_the_cluster_is_not_taken_for_a_dead_one(
    quick: Setup, forge: Any
) -> None:
    """Who passes a challenge on to it shows a name that is another's."""
    old, other = quick.decode(), quick.decode("b")
    await old.stop()
    forger = await forge(old, other, port=old.port)
    found = await becomes(quick, "a-0", "refused")
    assert "'b-0', by another address" in found["problem"]
    assert not [body for _, _, body in forger.got if body]
    assert (await quick.post(ROUTE, {**BODY, "model": "b"}))[0] == 200


async def test_each_process_is_shown_a_token_of_its_own(gateway: Setup) -> None:
    """And never the key: who steals one token has no way into another worker."""
    assert (await gateway.post(ROUTE, BODY))[0] == 200
    key = gateway.cluster.key
    assert key is not None
    seen = {
        worker.incarnation: worker.headers[-1]["Authorization"]
        for worker in (gateway.prefill, gateway.decode())
    }
    assert len(set(seen.values())) == 2
    assert key.authorization not in seen.values()
    for incarnation, authorization in seen.items():
        assert [key.opens(authorization, one) for one in seen] == [
            one == incarnation for one in seen
        ]


async def test_nothing_is_asked_without_the_key(gateway: Setup) -> None:
    """Of all routes that ask workers."""
    calls = (
        ("POST", "/generate", {"model": "a", "text": "x"}),
        ("POST", "/tokenize", {"prompt": "x"}),
        ("GET", "/v1/loads", None), ("GET", "/metrics", None), ("GET", "/health", None),
        ("GET", "/health_generate", None), ("GET", "/server_info?model=a", None),
        ("POST", "/flush_cache", None),
        ("POST", "/workers/a-0/swap", {"model_path": "/v2"}),
    )  # fmt: skip
    for method, path, body in calls:
        async with gateway.http.request(method, gateway.url + path, json=body) as response:
            assert response.status == 200, await response.text()
    assert [worker.turned_away for worker in gateway.cluster.workers] == [0, 0, 0]


async def test_a_worker_turns_away_who_has_no_key(gateway: Setup) -> None:
    """The stand-in does as the engine does, see tests/engine/test_access.py."""
    for headers in ({}, {"Authorization": "Bearer x"}):
        async with gateway.http.get(gateway.decode().url + "/metrics", headers=headers) as response:
            assert response.status == 401


async def test_launchers_are_told_which_key_it_is(gateway: Setup) -> None:
    async with gateway.http.get(gateway.url + "/workers") as response:
        told = (await response.json())["cluster_key"]
    key = gateway.cluster.key
    assert key is not None
    assert told == {"id": key.id, "file": str(gateway.cluster.key_file)}
    assert key.authorization.split()[1] not in str(told)


async def test_a_gateway_needs_its_key_file(gateway: Setup, tmp_path: Path) -> None:
    config = with_changes(gateway.cluster.config(), cluster_key_file=str(tmp_path / "no.key"))
    with pytest.raises(UsageError, match=r"cluster key file \S+no\.key: No such file"):
        build_app(config)


# The key itself.


def test_a_key_is_saved_for_its_owner_and_loaded_again(tmp_path: Path) -> None:
    key, path = ClusterKey.make(), tmp_path / "cluster.key"
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ClusterKey.load(path).id == key.id
    assert key.id not in path.read_text()
    assert key.authorization.split()[1] not in repr(key)
    with pytest.raises(FileExistsError):
        key.save(path)


def test_keys_are_told_apart() -> None:
    key, other = ClusterKey.make(), ClusterKey.make()
    assert key.id != other.id
    assert not other.is_proof(key.proof("c", "i"), "c", "i")
    assert not other.opens(key.authorization, "i")
    assert not other.opens(key.request_headers("i")["Authorization"], "i")
    assert key.is_proof(key.proof("c", "i"), "c", "i")
    for proof, challenge, incarnation in (
        (key.proof("c", "i"), "d", "i"),
        (key.proof("c", "i"), "c", "j"),
        (key.request_headers("i")["Authorization"].split()[1], "c", "i"),
        ("é", "c", "i"),
        (None, "c", "i"),
        (key.proof("c", "i"), "c", None),
    ):
        assert not key.is_proof(proof, challenge, incarnation)
    token = key.request_headers("i")["Authorization"]
    assert key.opens(token, "i")
    assert key.opens(token.replace("Bearer", "bearer"), "i")
    for wrong in ("", "Bearer", "Bearer ", token.split()[1], token.replace("Bearer", "Basic")):
        assert not key.opens(wrong, "i")
    assert not key.opens(token, "j")


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"x" * 31, 0o600, "at least 32 printable"),
        (b"x" * 16 + b" " + b"x" * 16, 0o600, "no spaces"),
        (b"\xe9" * 40, 0o600, "printable ASCII"),
        (b"x" * 40, 0o604, "every user of this machine may read it; chmod 600 it"),
    ],
)
def test_a_key_file_that_is_none(tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    path = tmp_path / "cluster.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"cluster key file {path}: ") as refused:
        ClusterKey.load(path)
    assert said in str(refused.value)
    assert content.decode("latin-1") not in str(refused.value)
