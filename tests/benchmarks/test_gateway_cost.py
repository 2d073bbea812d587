"""What the benchmark of keys, limits and metrics leaves out is there to be left out."""

from __future__ import annotations

import pytest

from benchmarks import gateway_processes
from benchmarks.gateway import bare
from ps_sglang.gateway import app
from tests.gateway.gateway_setup import running


def test_what_is_replaced_is_there() -> None:
    assert not [name for name in bare.REPLACED if not hasattr(app, name)]


@pytest.mark.parametrize("hosts", [1, 16])
def test_decisions_are_timed(hosts: int) -> None:
    assert gateway_processes.decision(hosts, count=3)["median"] > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bare_gateway_answers(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    for name, value in bare.REPLACED.items():
        monkeypatch.setattr(app, name, value)
    async with running() as gateway:
        body = {"model": "a", "prompt": "x", "stream": stream}
        async with gateway.http.post(gateway.url + "/v1/completions", json=body) as response:
            assert response.status == 200
            assert "a-x-2" in await response.text()
