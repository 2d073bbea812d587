"""The command line of `ps-sglang worker`, and what it cannot ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.launch.args import parse_args as launch_args
from ps_sglang.launch.resources import Resources
from ps_sglang.launch.spec import ClusterSpec, Entry
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


SPEC = """
prefill: {model: base=./base, tp: 2, gpus: [0, 1], engine_args: [--chunked-prefill-size, "512"]}
decoders:
  - {model: math=./math*3, tp: 4, gpus: [2, 3, 4, 5], engine_args: [--max-running-requests, "8"]}
  - code=./code
host: 127.0.0.1
port: 8001
advertise: 10.0.0.1
cluster_key_file: cluster.key
max_restarts: 1
engine_args: [--page-size, "16"]
max_queued_requests: 7
"""


@pytest.fixture
def spec_file(tmp_path: Path) -> str:
    file = tmp_path / "cluster.yaml"
    file.write_text(SPEC)
    return str(file)


def test_a_worker_of_a_specification(spec_file: str) -> None:
    """It is as the file says, but for what is the other machine's."""
    words = ["--spec", spec_file, "--role", "decode", "--model", "math"]
    math = Entry("math=./math", None, Resources(tp=4), ("--max-running-requests", "8"))
    expected = ClusterSpec(
        "base=./base",
        (math,),
        prefill_replicas=0,
        join="http://127.0.0.1:8001",
        advertise="127.0.0.1",
        cluster_key_file=Path("cluster.key"),
        max_restarts=1,
        prefill_resources=Resources(tp=2),
        engine_args=("--page-size", "16"),
        prefill_engine_args=("--chunked-prefill-size", "512"),
    )
    assert parse_args(words) == expected
    more = ["--max-restarts", "0", "--page-size", "32"]
    assert parse_args([*words, *more]) == replace(
        expected, max_restarts=0, engine_args=("--page-size", "16", "--page-size", "32")
    )


def test_the_base_and_new_decoders_of_a_specification(spec_file: str) -> None:
    prefill = parse_args(["--spec", spec_file, "--role", "prefill"])
    assert (prefill.prefill, prefill.decoders, prefill.prefill_replicas) == ("base=./base", (), 1)
    words = ["--spec", spec_file, "--role", "decode", "--model", "new=./new,code"]
    assert parse_args(words).decoders == ("new=./new", Entry("code=./code"))


@pytest.mark.parametrize(
    ("text", "gateway"),
    [
        ("host: 127.0.0.2\ntls_cert: c\ntls_key: k", "https://127.0.0.2:8000"),
        ("admin_port: 9000", "http://127.0.0.1:9000"),
        ("host: 0.0.0.0\nadmin_host: 127.0.0.3\nadmin_port: 9000", "http://127.0.0.3:9000"),
        ("join: http://127.0.0.4:1", "http://127.0.0.4:1"),
        ("host: 0.0.0.0", None),
        ("port: 0", None),
    ],
)
def test_where_the_gateway_of_a_specification_is(
    tmp_path: Path, text: str, gateway: str | None
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"prefill: base\n{text}\n")
    words = ["--spec", str(file), "--role", "prefill", "--advertise", "127.0.0.1"]
    if gateway is None:
        with pytest.raises(UsageError, match="--gateway is missing"):
            parse_args(words)
        assert parse_args([*words, "--gateway", URL]).join == URL
    else:
        assert parse_args(words).join == gateway


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
