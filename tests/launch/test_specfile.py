"""Cluster specifications in YAML."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from ps_sglang.errors import UsageError
from ps_sglang.gateway.limits import GatewayLimits
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.launch.spec_schema import spec_schema
from ps_sglang.models.resolve import model_name

LAUNCH = Path(__file__).parents[2] / "launch"
SPECS = sorted(LAUNCH.glob("*.yaml"))
SCHEMA = LAUNCH / "spec.schema.json"


def test_a_file_and_the_flags_that_win_over_it(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "prefill: base\ndecoders: [a, x=./y]\nport: 1\ngateway_processes: 2\n"
        "log_dir: logs\nready_timeout: 9\n"
        "cors_origins: ['*']\ndecode_replicas: 2\nmax_queued_requests: 7\n"
        "host: '::'\napi_keys: ~/keys.txt\ntls_cert: c.pem\ntls_key: c.key\n"
        "engine_args: [--page-size, '16']\ndecode_engine_args: [--x]\n"
    )
    assert parse_args(["--spec", str(file), "--port", "0", "--z"]) == ClusterSpec(
        prefill="base",
        decoders=("a", "x=./y"),
        port=0,
        gateway_processes=2,
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
        ("prefil: base", r"unknown key prefil: did you mean prefill\?"),
        ("max-restarts: 1", r"max-restarts: did you mean max_restarts\?"),
        ("xyz: 1", "unknown key xyz: there are prefill, decoders, "),
        ("prefill: {model: a, replica: 2}", r"prefill\.replica: did you mean replicas\?"),
        ("decoders: [a, {model: a, engine_arg: []}]", r"decoders\[1\]\.engine_arg: did you mean"),
        ("kubernetes: {volums: {}}", r"kubernetes\.volums: did you mean volumes\?"),
        ("kubernetes: {resources: {decode: {cpus: 1}}}", r"resources\.decode\.cpus: did you mean"),
        ("kubernetes: {tolerations: [{Key: a}]}", r"tolerations\[0\]\.Key: did you mean key\?"),
        ("prefil: base\ndecoder: [a]", "prefil: .*decoder: did you mean decoders"),
        ("kubernetes: {image: a, volumes: [b]}", r"\$\.kubernetes\.volumes"),
        ("kubernetes: {}", "required field `image`"),
        ("", "Expected `object`"),
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


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.name)
def test_editors_take_the_specifications_in_the_repository(file: Path) -> None:
    first, text = file.read_text().split("\n", 1)
    assert first == f"# yaml-language-server: $schema={SCHEMA.name}"
    jsonschema.validate(yaml.safe_load(text), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("text", ["prefil: a", "kubernetes: {image: 5}", "decoders: [{tp: 2}]"])
def test_editors_see_what_a_launch_refuses(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), json.loads(SCHEMA.read_text()))


def test_the_schema_in_the_repository_is_of_these_keys() -> None:
    assert SCHEMA.read_text() == spec_schema(), f"python -m ps_sglang.launch.spec_schema > {SCHEMA}"
    keys = json.loads(spec_schema())["$defs"]["SpecFile"]["properties"]
    assert keys["port"]["description"].startswith("port of the gateway")
