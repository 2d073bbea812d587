"""The command line of `ps-sglang worker`, and what it cannot ask for."""

from __future__ import annotations

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.launch.args import parse_args as launch_args
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.launch.worker import main, parse_args

URL = "http://127.0.0.1:8000"
COMMON = ["--base", "base", "--gateway", URL]


def test_a_decode_worker() -> None:
    words = ["--role", "decode", "--model", "math=./math,code", *COMMON, "--page-size", "16"]
    assert parse_args(words) == ClusterSpec(
        "base",
        ("math=./math", "code"),
        prefill_replicas=0,
        join=URL,
        advertise="127.0.0.1",
        engine_args=("--page-size", "16"),
    )


def test_a_prefill_worker() -> None:
    words = ["--role", "prefill", *COMMON, "--advertise", "10.0.0.7", "--max-restarts", "0"]
    assert parse_args([*words, "--ready-timeout", "9"]) == ClusterSpec(
        "base",
        (),
        join=URL,
        advertise="10.0.0.7",
        max_restarts=0,
        ready_timeout_s=9.0,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (COMMON, "--role is missing"),
        (["--role", "decode", "--gateway", URL], "--base is missing"),
        (["--role", "decode", "--base", "base"], "--gateway is missing"),
        (["--role", "both", *COMMON], "invalid choice: 'both'"),
        (["--role", "decode", *COMMON], "--model is missing"),
        (["--role", "prefill", "--model", "a", *COMMON], "--model does not go with"),
        (["--role", "decode", "--model", "a*2", *COMMON], r"--model a\*2: one command starts one"),
        (["--role", "prefill", "--base", "b", "--gateway", "h:1"], "must be a URL like"),
        (["--role", "prefill", "--advertise", "a", "--base", "b", "--gateway", "h:1"], "a URL"),
        (["--role", "prefill", "--port", "70000", *COMMON], "--port is 70000"),
        (["--role", "prefill", "--base", "b", "--gateway", "http://[x"], "must be a URL like"),
    ],
)
def test_what_cannot_be_asked_for(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_args(words)


def test_a_refusal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--role", "decode", *COMMON]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ps-sglang: error: --model is missing")


def test_a_gateway_alone() -> None:
    spec = launch_args(["--prefill", "base", "--gateway-only", "--port", "0"])
    assert spec == ClusterSpec("base", (), prefill_replicas=0, gateway_only=True, port=0)


@pytest.mark.parametrize(
    "words", [["--decoders", "a"], ["--prefill-replicas", "1"], ["--one-worker"]]
)
def test_what_a_gateway_alone_cannot_ask_for(words: list[str]) -> None:
    with pytest.raises(UsageError, match=f"{words[0]} does not go with --gateway-only"):
        launch_args(["--prefill", "base", "--gateway-only", *words])
