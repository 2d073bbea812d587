"""`ps-sglang workers` against a small server that speaks the gateway's /workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ps_sglang.cli import main
from tests.support.standin_gateway import StandInGateway, serving


def run(gateway: StandInGateway, *words: str) -> int:
    return main(["workers", "--gateway", gateway.url + "/", *words])


def test_list(gateway: StandInGateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gateway, "list") == 0
    assert capsys.readouterr().out == (
        "NAME        ROLE     DECODER  STATE                       REQUESTS  URL\n"
        "prefill-0   prefill  -        good                        3         http://h:1\n"
        "decode-a    decode   a        broken (it did not answer)  0         http://h:2\n"
        "decode-a-1  decode   a +2     good                        1         http://h:3\n"
    )


def test_add(gateway: StandInGateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gateway, "add", "http://h:4") == 0
    words = ("--name", "x", "--decoder", "b", "--bootstrap-host", "h", "--allow-unverified")
    assert run(gateway, "add", "http://h:4", *words) == 0
    assert gateway.calls == [
        ("POST", "/workers", {"url": "http://h:4"}),
        (
            "POST",
            "/workers",
            {
                "url": "http://h:4",
                "name": "x",
                "decoder": "b",
                "bootstrap_host": "h",
                "allow_unverified": True,
            },
        ),
    ]
    assert "x joined as a decode worker" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "call", "said"),
    [
        (["drain", "w"], ("POST", "/workers/w/drain"), "w is draining; 2 requests left"),
        (["resume", "w"], ("POST", "/workers/w/resume"), "w is good"),
        (["remove", "w"], ("DELETE", "/workers/w?now=0"), "w left"),
        (["remove", "w", "--now"], ("DELETE", "/workers/w?now=1"), "w left"),
        (["drain", "ä/b"], ("POST", "/workers/%C3%A4%2Fb/drain"), "is draining"),
    ],
)
def test_one_call(
    gateway: StandInGateway,
    words: list[str],
    call: tuple[str, str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(gateway, *words) == 0
    assert gateway.calls == [(*call, None)]
    assert said in capsys.readouterr().out


def test_swap_one_worker(
    gateway: StandInGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(gateway, "swap", "decode-a-1", "v2") == 0
    expected = {"model_path": str(tmp_path / "v2")}
    assert gateway.calls[1:] == [("POST", "/workers/decode-a-1/swap", expected)]


def test_swap_a_decoder_one_worker_after_another(
    gateway: StandInGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path that is not here is the worker's machine's."""
    assert run(gateway, "swap", "a", "models/v2") == 0
    paths = [path for _, path, _ in gateway.calls[1:]]
    assert paths == ["/workers/decode-a/swap", "/workers/decode-a-1/swap"]
    assert {body["model_path"] for *_, body in gateway.calls[1:]} == {"models/v2"}
    assert capsys.readouterr().out.splitlines() == [
        "decode-a serves models/v2",
        "decode-a-1 serves models/v2",
    ]


def test_a_swap_that_stops_half_way_says_where(
    gateway: StandInGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.refuse["/workers/decode-a-1/swap"] = "no such folder"
    assert run(gateway, "swap", "a", "/v2") == 1
    assert (
        "no such folder (decode-a got the new weights, decode-a-1 did not)"
        in capsys.readouterr().err
    )


def test_refusals_are_told(gateway: StandInGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.refuse["/workers"] = "page_size: cluster 1, worker 16"
    assert run(gateway, "add", "http://h:4") == 1
    assert capsys.readouterr().err == "ps-sglang: error: page_size: cluster 1, worker 16\n"


def test_nobody_of_that_name(gateway: StandInGateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gateway, "swap", "z", "/v2") == 2
    assert "no worker or decoder 'z'" in capsys.readouterr().err


def test_no_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workers", "--gateway", "http://127.0.0.1:1", "list"]) == 2
    assert "no ps_sglang gateway answers at http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["nonsense", "", "http://", "http://[::1", "http://h:x", "ftp:/"])
def test_an_address_that_is_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workers", "--gateway", url, "list"]) == 2
    assert "no ps_sglang gateway answers at" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [{"status": "ok"}, ["x"]])
def test_a_server_that_is_no_gateway(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(StandInGateway):
        def answer(self, method: str, path: str, body: Any) -> Any:
            return answer

    with serving(Other()) as url:
        assert main(["workers", "--gateway", url, "list"]) == 2
    assert f"no ps_sglang gateway answers at {url}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["stop"], ["swap", "a"]])
def test_wrong_words_are_exit_status_2(gateway: StandInGateway, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(gateway, *words)
    assert ended.value.code == 2
