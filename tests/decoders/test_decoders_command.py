"""`ps-sglang decoders` against a small server that speaks the gateway's /decoders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ps_sglang.cli import main
from tests.support.standin_gateway import StandInGateway, serving


@pytest.fixture
def gateway() -> Iterator[StandInGateway]:
    running = StandInGateway()
    with serving(running):
        yield running


def run(gateway: StandInGateway, *words: str) -> int:
    return main(["decoders", "--gateway", gateway.url + "/", *words])


def test_list(gateway: StandInGateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gateway, "list") == 0
    assert capsys.readouterr().out == (
        "NAME  KIND     REQUESTS  WORKERS                        PATH\n"
        "a     model    3         decode-a                       -\n"
        "math  adapter  0         lora (no such folder), lora-1  /math\n"
    )


def test_a_path_that_is_here_is_made_absolute(
    gateway: StandInGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "math").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(gateway, "add", "math=./math") == 0
    assert run(gateway, "replace", "math=math", "--allow-unverified") == 0
    path = str(tmp_path / "math")
    assert gateway.calls == [
        ("POST", "/decoders", {"name": "math", "path": path, "allow_unverified": False}),
        ("PUT", "/decoders/math", {"path": path, "allow_unverified": True}),
    ]
    assert capsys.readouterr().out == f"math serves {path}\n" * 2


def test_a_path_that_is_not_here_is_the_workers(gateway: StandInGateway) -> None:
    assert run(gateway, "add", "math=models/math=2") == 0
    assert gateway.calls[0][2]["path"] == "models/math=2"


def test_remove(gateway: StandInGateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gateway, "remove", "m\u00e4/th") == 0
    assert gateway.calls == [("DELETE", "/decoders/m%C3%A4%2Fth", None)]
    assert "is gone" in capsys.readouterr().out


def test_refusals_are_told(gateway: StandInGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.refuse["/decoders"] = "'math' is taken"
    assert run(gateway, "add", "math=/x") == 1
    assert capsys.readouterr().err == "ps-sglang: error: 'math' is taken\n"


@pytest.mark.parametrize("word", ["math", "=./math", "math=", "="])
@pytest.mark.parametrize("command", ["add", "replace"])
def test_what_is_no_decoder(
    gateway: StandInGateway, command: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gateway, command, word) == 2
    assert "must be NAME=PATH" in capsys.readouterr().err
    assert not gateway.calls


def test_no_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decoders", "--gateway", "http://127.0.0.1:1", "list"]) == 2
    assert "no ps_sglang gateway answers at http://127.0.0.1:1" in capsys.readouterr().err


def test_a_server_that_is_no_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    class Other(StandInGateway):
        def answer(self, method: str, path: str, body: object) -> dict[str, object]:
            return {"status": "ok"}

    with serving(Other()) as url:
        assert main(["decoders", "--gateway", url, "list"]) == 2
    assert f"no ps_sglang gateway answers at {url}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["swap"], ["remove"]])
def test_wrong_words_are_exit_status_2(gateway: StandInGateway, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(gateway, *words)
    assert ended.value.code == 2
