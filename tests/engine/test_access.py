"""Who may ask a worker's server, on SGLang's own application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ps_sglang.cluster_key import CHALLENGE_HEADER, PROOF_HEADER, PROOF_PATH, VARIABLE, ClusterKey
from ps_sglang.engine import access, worker_info
from ps_sglang.engine.compat.srt import server_app
from ps_sglang.engine.settings import ALLOW_UNSAFE, MODEL_ROOTS, model_roots
from ps_sglang.worker_info import HEADER

KEY = ClusterKey.make()


@pytest.fixture
def http(tiny: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of a worker's process `here`; `request.param` opens all routes."""
    app = server_app()
    infos = [{"ps_sglang_incarnation": "here"}]
    args = SimpleNamespace(model_path=str(tiny["a"]), chat_template=None)
    KEY.save(tmp_path / "cluster.key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path / "cluster.key"))
        patch.setenv(ALLOW_UNSAFE, str(int(getattr(request, "param", False))))
        patch.setattr(access._OwnRequests, "authorization", None)
        patch.setattr(app, "build_middleware_stack", app.build_middleware_stack)
        patch.setattr(app, "middleware_stack", None)
        worker_info.setup_and_run_http_server(args, None, None, None, infos)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        yield httpx.AsyncClient(transport=transport, base_url="http://worker")


def paths() -> list[str]:
    app = server_app()
    routers = [route.original_router for route in app.routes if hasattr(route, "original_router")]
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    every = {route.path for route in routes if hasattr(route, "path")}
    return sorted(path.replace("{", "").replace("}", "") for path in every)


async def test_every_route_asks_for_the_key(http: Any) -> None:
    assert len(paths()) > 80
    wrong = (
        None, "Bearer", "Bearer x", KEY.authorization.removeprefix("Bearer "),
        KEY.request_headers("there")["Authorization"], f"{KEY.authorization}x",
    )  # fmt: skip
    for path in [*paths(), "/nowhere", "//generate", "/ready/"]:
        if path in access.OPEN_PATHS:
            continue
        for method in ("GET", "POST", "OPTIONS"):
            for authorization in wrong:
                headers = {} if authorization is None else {"Authorization": authorization}
                answer = await http.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path, authorization)
                assert answer.headers[HEADER] == "here"


async def test_who_has_the_key_gets_what_a_cluster_needs_and_no_more(http: Any) -> None:
    """A status but 401 and 403 is SGLang's own: nothing is set up here for it to answer."""
    served_later = {"/metrics"}  # mounted while SGLang starts
    listed = (access.SERVED_PATHS | access.OPEN_PATHS) - served_later
    assert set(paths()) >= listed, "no route that is not there"
    for authorization in (KEY.authorization, KEY.request_headers("here")["Authorization"]):
        headers = {"Authorization": authorization}
        for path in paths():
            answer = await http.get(path, headers=headers)
            served = path in access.SERVED_PATHS | access.OPEN_PATHS
            assert (answer.status_code in (401, 403)) is not served, path
    answer = await http.post("/update_weights_from_tensor", headers=headers)
    assert "no route that its gateway needs" in answer.json()["error"]["message"]


@pytest.mark.parametrize("http", [True], indirect=True)
async def test_who_insists_gets_all_routes_with_the_key(http: Any) -> None:
    headers = {"Authorization": KEY.authorization}
    assert (await http.post("/pause_generation")).status_code == 401
    assert (await http.post("/pause_generation", headers=headers)).status_code not in (401, 403)


@pytest.mark.parametrize("path", [PROOF_PATH, "/ready", "/metrics", "/nowhere"])
async def test_it_proves_that_it_has_the_key(http: Any, path: str) -> None:
    answer = await http.get(path, headers={CHALLENGE_HEADER: "c"})
    assert KEY.is_proof(answer.headers[PROOF_HEADER], "c", "here")
    for challenge in ({}, {CHALLENGE_HEADER: ""}, {CHALLENGE_HEADER: "c" * 129}):
        assert PROOF_HEADER not in (await http.get(path, headers=challenge)).headers


async def test_other_connections_are_closed(http: Any) -> None:
    """Such as SGLang's websocket."""
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    app = server_app().build_middleware_stack()
    await app({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_server_without_a_key_is_as_it_was() -> None:
    app: Any = object()
    assert access.guarded(app, None, "here") is app


def test_its_requests_to_itself_have_the_key(http: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    overridden = []

    class Serving:
        def override(self, **values: Any) -> Any:
            overridden.append(values)
            return pytest.MonkeyPatch.context()

    monkeypatch.setattr(access, "get_serving", Serving)
    server_app().build_middleware_stack()
    done = []
    access.wait_and_warmup(lambda *args: done.append(args), "args")
    assert done == [("args",)]
    (values,) = overridden
    assert KEY.opens(f"Bearer {values['api_key']}", "here")


def test_from_where_a_worker_may_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODEL_ROOTS, raising=False)
    monkeypatch.setenv("PS_SGLANG_ADAPTERS", f'{{"m@1": "{tmp_path}/adapters/m"}}')
    assert model_roots(tmp_path / "models" / "base") == (
        f"{tmp_path}/models",
        f"{tmp_path}/adapters",
    )
    assert model_roots(Path("/model"))[0] == "/model", "not all of the machine"
    monkeypatch.setenv(MODEL_ROOTS, '["/weights"]')
    assert model_roots(tmp_path) == ("/weights",)
