"""Cluster specifications in YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.gateway.limits import GatewayLimits
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.models.resolve import model_name

SPECS = sorted((Path(__file__).parents[2] / "launch").glob("*.yaml"))


def test_a_file_and_the_flags_that_win_over_it(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "prefill: base\ndecoders: [a, x=./y]\nport: 1\nlog_dir: logs\nready_timeout: 9\n"
        "cors_origins: ['*']\ndecode_replicas: 2\nmax_queued_requests: 7\n"
        "host: '::'\napi_keys: ~/keys.txt\ntls_cert: c.pem\ntls_key: c.key\n"
        "engine_args: [--page-size, '16']\ndecode_engine_args: [--x]\n"
    )
    assert parse_args(["--spec", str(file), "--port", "0", "--z"]) == ClusterSpec(
        prefill="base",
        decoders=("a", "x=./y"),
        port=0,
        decode_replicas=2,
        cors_origins=("*",),
        limits=GatewayLimits(max_queued_requests=7),
        host="::",
        api_keys=Path.home() / "keys.txt",
        tls_cert=Path("c.pem"),
        tls_key=Path("c.key"),
        log_dir=Path("logs"),
        ready_timeout_s=9,
        engine_args=("--page-size", "16", "--z"),
        decode_engine_args=("--x",),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prefil: base", "prefil"),
        ("port: many", r"\$\.port"),
        ("decoders: a", r"\$\.decoders"),
        ("log_dir: 5", r"a path, got 5 - at `\$\.log_dir`"),
        ("a: [", "YAML|parsing"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"--spec .*cluster.yaml: .*{message}"):
        parse_args(["--spec", str(file)])


def test_one_worker_can_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("prefill: base\ndecoders: [a]\none_worker: true\n")
    assert parse_args(["--spec", str(file)]).one_worker


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"--spec nowhere\.yaml: No such file"):
        parse_args(["--spec", "nowhere.yaml"])


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.name)
def test_the_specifications_in_the_repository_parse(file: Path) -> None:
    assert model_name(parse_args(["--spec", str(file)]).prefill) == "base"
