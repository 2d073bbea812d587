"""`ps-sglang manifest`: what Kubernetes takes, and that Helm makes the same of the chart."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access.rights import OPEN
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.kubernetes.__main__ import main
from ps_sglang.launch.kubernetes.values import KEYS, UNROUTE_S
from ps_sglang.launch.member import DRAIN_S
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.launch.worker import parse_args as worker_args

LAUNCH = Path(__file__).parents[2] / "launch"
EXAMPLE = LAUNCH / "kubernetes.yaml"
VERSIONS = ("1.34", "1.37")
MINIMAL = """
prefill: /models/base
decoders: [math=/models/math]
kubernetes: {image: ps-sglang, volumes: {/models: models}}
"""
FULL = """
prefill: base=/models/base
decoders:
- {model: math=/models/math*2, tp: 2, engine_args: [--max-running-requests, "7"]}
- Chat_1=org/chat
- {model: code=/adapters/code}
- base
prefill_replicas: 3
decode_replicas: 4
port: 9000
transfer_backend: nixl
allow_unverified: true
max_queued_tokens: 1000000
cors_origins: ['*']
model_roots: [/adapters]
ready_timeout: 1000
drain: 120
engine_args: [--page-size, "16", --default-chat-template-kwargs, '{"a": "$(POD_IP) <&> {{ 1 }}"}']
decode_engine_args: [--max-total-tokens, "20000"]
kubernetes:
  image: example.com/ps-sglang@sha256:00
  name: llm
  secret: llm-keys
  volumes: {/models: models, /adapters: adapters}
  adapters: [code]
  gpu: amd.com/gpu
  resources: {prefill: {cpu: 1500m}, decode: {memory: 64Gi}}
  tolerations: [{key: a, operator: Equal, value: b}]
"""
ON_CPUS = MINIMAL.replace("{image: ps-sglang", "{image: ps-sglang, gpu: null")
HELM = """
import json, sys, helm_python
with helm_python.Chart.load(sys.argv[1]) as chart:
    values = json.loads(sys.argv[2])
    print(json.dumps(chart.render(values, name="some-release", namespace="some-namespace")))
"""
Object = dict[str, Any]


def written(text: str, folder: Path) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(text)
    return file


def manifests(file: Path, capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], Object]:
    assert main(["--spec", str(file)]) == 0
    return by_name(capsys.readouterr().out)


def by_name(text: str) -> dict[tuple[str, str], Object]:
    found = [one for one in yaml.safe_load_all(text) if one is not None]
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


def rendered(chart: Path, **values: Any) -> dict[tuple[str, str], Object]:
    """What Helm makes of a chart. In a process of its own: its library is one of Go's."""
    command = [sys.executable, "-c", HELM, str(chart), json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return by_name("\n---\n".join(json.loads(done.stdout).values()))


def pod(deployment: Object) -> Object:
    found: Object = deployment["spec"]["template"]["spec"]
    return found


def container(deployment: Object) -> Object:
    (found,) = pod(deployment)["containers"]
    return dict(found)


def worker(deployment: Object) -> ClusterSpec:
    """What the worker of a pod is, as its own command line says."""
    command, *words = container(deployment)["args"]
    assert command == "worker"
    return worker_args([re.sub(r"\$\$|\$\(POD_IP\)", _expanded, word) for word in words])


def _expanded(match: re.Match[str]) -> str:
    """What the kubelet makes of a dollar."""
    return "$" if match[0] == "$$" else "10.1.2.3"


@pytest.fixture
def full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], Object]:
    return manifests(written(FULL, tmp_path), capsys)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("text", [MINIMAL, FULL, ON_CPUS, EXAMPLE.read_text()])
def test_kubernetes_knows_every_field(
    version: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in manifests(written(text, tmp_path), capsys).values():
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("text", [MINIMAL, FULL, ON_CPUS, EXAMPLE.read_text()])
def test_helm_makes_the_same(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(text, tmp_path)
    assert main(["--spec", str(file), "--chart", str(tmp_path / "chart")]) == 0
    assert rendered(tmp_path / "chart") == manifests(file, capsys)


def test_the_chart_of_the_repository_is_that_of_the_example(tmp_path: Path) -> None:
    main(["--spec", str(EXAMPLE), "--chart", str(tmp_path)])
    here, there = (
        {str(file.relative_to(chart)): file.read_text() for file in chart.rglob("*.*")}
        for chart in (tmp_path, LAUNCH / "helm")
    )
    assert there == here, f"ps-sglang manifest --spec {EXAMPLE} --chart {LAUNCH / 'helm'}"


def test_a_value_of_the_chart_can_be_another(capsys: pytest.CaptureFixture[str]) -> None:
    found = rendered(LAUNCH / "helm", name="other", workers={"decode-math": {"replicas": 5}})
    assert found["Deployment", "other-decode-math"]["spec"]["replicas"] == 5
    args = container(found["Deployment", "other-prefill"])["args"]
    assert args[args.index("--gateway") + 1] == "http://other-join:8000"
    assert found["Service", "other-join"]


def test_each_model_has_a_deployment_and_a_budget(
    full: dict[tuple[str, str], Object],
) -> None:
    workers = ("llm-decode-chat-1", "llm-decode-lora", "llm-decode-math", "llm-prefill")
    assert sorted(full) == sorted(
        [
            ("ConfigMap", "llm-gateway"),
            ("Service", "llm"),
            ("Service", "llm-join"),
            ("Deployment", "llm-gateway"),
            *(("Deployment", name) for name in workers),
            *(("PodDisruptionBudget", name) for name in workers),
        ]
    )
    replicas = {
        name: one["spec"]["replicas"] for (kind, name), one in full.items() if kind == "Deployment"
    }
    assert replicas == {
        "llm-gateway": 1,
        "llm-prefill": 3,
        "llm-decode-lora": 4,
        "llm-decode-math": 2,
        "llm-decode-chat-1": 4,
    }


def test_pods_start_the_workers_of_the_specification(
    full: dict[tuple[str, str], Object],
) -> None:
    math = worker(full["Deployment", "llm-decode-math"])
    chat_template = '{"a": "$(POD_IP) <&> {{ 1 }}"}'
    assert math == ClusterSpec(
        prefill="base=/models/base",
        decoders=("math=/models/math",),
        join="http://llm-join:8000",
        prefill_replicas=0,
        advertise="10.1.2.3",
        worker_port=8001,
        cluster_key_file=Path(KEYS) / "cluster.key",
        log_dir=Path("/var/log/ps-sglang"),
        max_restarts=0,
        model_roots=(Path("/adapters"),),
        transfer_backend="nixl",
        allow_unverified=True,
        ready_timeout_s=1000,
        engine_args=(
            *("--page-size", "16", "--default-chat-template-kwargs", chat_template),
            *("--max-total-tokens", "20000", "--max-running-requests", "7", "--tp-size", "2"),
        ),
    )
    assert worker(full["Deployment", "llm-decode-lora"]).decoders == ("code=/adapters/code",)
    prefill = worker(full["Deployment", "llm-prefill"])
    assert (prefill.prefill_replicas, prefill.decoders) == (1, ())
    assert "--max-total-tokens" not in prefill.engine_args


def test_the_gateway_starts_with_its_part_of_the_specification(
    full: dict[tuple[str, str], Object], tmp_path: Path
) -> None:
    (text,) = full["ConfigMap", "llm-gateway"]["data"].values()
    spec = parse_args(["--spec", str(written(text, tmp_path))])
    assert spec.gateway_only
    assert (spec.host, spec.port, spec.drain_s, spec.max_restarts) == ("0.0.0.0", 8000, 120.0, 0)
    assert spec.limits.max_queued_tokens == 1_000_000
    assert spec.cors_origins == ("*",)
    assert spec.decode_engine_args == ("--max-total-tokens", "20000")
    assert spec.api_keys == Path(KEYS) / "keys.txt"
    gateway = full["Deployment", "llm-gateway"]
    mount = next(one for one in container(gateway)["volumeMounts"] if one["name"] == "config")
    path = Path(container(gateway)["args"][-1])
    assert path == Path(mount["mountPath"]) / next(iter(full["ConfigMap", "llm-gateway"]["data"]))


def test_a_pod_has_whole_gpus(
    full: dict[tuple[str, str], Object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resources = {
        name: container(one)["resources"] for (kind, name), one in full.items()
        if kind == "Deployment"
    }  # fmt: skip
    assert resources["llm-decode-math"] == {
        "requests": {"memory": "64Gi"},
        "limits": {"memory": "64Gi", "amd.com/gpu": "2"},
    }
    assert resources["llm-prefill"] == {
        "requests": {"cpu": "1500m"},
        "limits": {"amd.com/gpu": "1"},
    }
    assert resources["llm-gateway"]["limits"] == {}
    on_cpus = manifests(written(ON_CPUS, tmp_path), capsys)
    assert container(on_cpus["Deployment", "ps-sglang-prefill"])["resources"]["limits"] == {}


def test_probes_need_no_key_and_name_the_pods_port(
    full: dict[tuple[str, str], Object],
) -> None:
    for (kind, name), one in full.items():
        if kind != "Deployment":
            continue
        has = container(one)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert has[probe]["httpGet"]["port"] == has["ports"][0]["name"]
            path = has[probe]["httpGet"]["path"]
            assert path in OPEN if name == "llm-gateway" else path == "/ready"
    assert container(full["Deployment", "llm-gateway"])["readinessProbe"]["httpGet"]["path"] == (
        "/readiness"
    )


def test_pods_have_the_time_that_their_requests_are_given(
    full: dict[tuple[str, str], Object],
) -> None:
    grace = {
        name: pod(one)["terminationGracePeriodSeconds"]
        for (kind, name), one in full.items()
        if kind == "Deployment"
    }
    assert grace.pop("llm-gateway") > 120 + UNROUTE_S
    assert all(seconds > 2 * DRAIN_S for seconds in grace.values())


def test_pods_have_no_rights_and_keys_only_by_reference(
    full: dict[tuple[str, str], Object],
) -> None:
    for (kind, _), one in full.items():
        if kind == "Deployment":
            spec = pod(one)
            assert spec["automountServiceAccountToken"] is False
            assert "serviceAccountName" not in spec
            keys = next(volume for volume in spec["volumes"] if volume["name"] == "keys")
            # A key that others may read is refused by those that it is for.
            assert keys["secret"] == {"secretName": "llm-keys", "defaultMode": 0o440}
            assert spec["securityContext"]["fsGroup"]
    join = full["Service", "llm-join"]["spec"]
    assert join["publishNotReadyAddresses"] is True  # else nobody could join, and it be ready
    assert "publishNotReadyAddresses" not in full["Service", "llm"]["spec"]
    assert full["Service", "llm"]["spec"]["ports"][0]["port"] == 9000
    annotations = full["Deployment", "llm-gateway"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "8000"


def test_keys_of_a_machine_are_named_as_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = MINIMAL + "host: 127.0.0.1\ngpus: all\nadapters: {mem: 5GB}\n"
    main(["--spec", str(written(text, tmp_path))])
    said = capsys.readouterr().err
    assert "not used, as each pod has its own: host, gpus, mem of adapters" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prefill: base\ndecoders: [a]\n", "the key kubernetes is missing"),
        (MINIMAL + "one_worker: true\n", "not on Kubernetes: one_worker: it is one process"),
        (MINIMAL + "port: 0\n", "port is 0"),
        (MINIMAL + "engine_args: [--no-such-flag]\n", "--no-such-flag"),
        (MINIMAL.replace("/models/base", "base"), "no pod finds base: it must lie in a volume"),
        (MINIMAL.replace("/models/math", "./math"), "no pod finds ./math: .*there are /models"),
        (MINIMAL.replace("{/models: ", "{models: "), "volumes: models must be an absolute path"),
        (
            MINIMAL.replace("{image", "{adapters: [mth], image"),
            "adapters: mth is no decoder, did you mean math",
        ),
        (
            MINIMAL.replace("[math=", "[Math=/models/m, math="),
            "two Deployments would be called decode-math",
        ),
        (MINIMAL.replace("math=", "m" * 60 + "="), "longer than a label"),
        (
            ON_CPUS.replace("[math=/models/math]", "[{model: math=/models/math, tp: 2}]"),
            "gpu is null",
        ),
        (
            MINIMAL.replace("[math=/models/math]", "[{model: math=/models/math, tp: 2}]")
            + "engine_args: [--tp-size, '4']\n",
            "decode-math: tp is 2, and --tp-size 4",
        ),
        (
            MINIMAL.replace("{image", "{adapters: [math], image").replace("math]\nk", "math*2]\nk"),
            "shares its workers with all adapters",
        ),
    ],
)
def test_what_pods_cannot_do_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main(["--spec", str(written(text, tmp_path))])
