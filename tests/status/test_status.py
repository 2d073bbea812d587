"""`ps-sglang status` and `ps-sglang top`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ps_sglang.cli import main
from ps_sglang.status.snapshot import read
from ps_sglang.status.tables import lines
from tests.status.conftest import WithMetrics


def row(text: str, name: str) -> list[str]:
    """The cells of a table's row."""
    (line,) = [line for line in text.splitlines() if line.split(" ")[0] == name]
    return line.split()


def test_the_tables(gateway: WithMetrics, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--gateway", gateway.url]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{gateway.url}: ready\n")
    assert row(out, "prefill-0") == [
        "prefill-0",
        "prefill",
        "good",
        "3",
        "-",
        "2",
        "-",
        "-",
        "500",
        "12",
        "s",
    ]
    assert row(out, "decode-a") == [
        "decode-a",
        "decode",
        "broken",
        "0",
        "1",
        "-",
        "-",
        "25%",
        "0",
        "-",
    ]
    assert "decode-a: it did not answer" in out
    assert " ".join(row(out, "a")) == "a 3 400 - 75%"
    assert " ".join(row(out, "m")) == "m 0 0 - -"


def test_for_programs(gateway: WithMetrics, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.ready = False
    assert main(["status", "--gateway", gateway.url, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ready"], len(told["workers"])) == (False, 3)
    assert told["workers"][1]["tokens"] == 40
    assert told["workers"][1]["kv_used"] == 0.25
    assert told["decoders"][0]["hit_ratio"] == 0.75


def test_rates_are_of_the_time_between(gateway: WithMetrics) -> None:
    before = read(gateway.url, 5.0)
    gateway.metrics = gateway.metrics.replace(" 300.0", " 380.0", 1).replace(" 40.0", " 4.0")
    now = replace(read(gateway.url, 5.0), at=before.at + 2)
    text = "\n".join(lines(now, before))
    assert row(text, "prefill-0")[6] == "40"
    assert row(text, "decode-a")[6] == "-"  # it has restarted, and counts from 0


def test_no_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "top"):
        assert main([command, "--gateway", "http://127.0.0.1:1"]) == 2
        assert "no ps_sglang gateway answers" in capsys.readouterr().err


def test_top_goes_on_while_the_gateway_is_away(
    gateway: WithMetrics, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        gateway.refuse = {"/workers": "away"} if len(waited) == 1 else {}
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("ps_sglang.status.__main__.time.sleep", wait)
    assert main(["top", "--gateway", gateway.url, "--interval", "7"]) == 0
    out = capsys.readouterr().out
    assert waited == [7.0] * 3
    assert out.count(f"{gateway.url}: ready") == 2
    assert "away" in out


def test_a_wrong_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["top", "--interval", "0"])
    assert "--interval is 0, must be above 0" in capsys.readouterr().err
