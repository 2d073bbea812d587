"""Which actors a specification asks Ray for, and with which commands; no Ray is needed."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from ps_sglang.contract import DecoderReport
from ps_sglang.contract.adapter_files import AdapterConfig
from ps_sglang.errors import UsageError
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.ray.placement import (
    GATEWAY_BUNDLE,
    ActorPool,
    gateway_words,
    pools,
    refuse_misfits,
    shortage,
    worker_words,
)
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.launch.worker import parse_args as parse_worker
from ps_sglang.models.resolve import NamedModel

BASE = NamedModel("base", Path("/m/base"))
TEXT = """
prefill: {model: base=/m/base, replicas: 2, tp: 2}
decoders:
  - {model: math=/m/math, replicas: 2, engine_args: [--max-running-requests, "8"]}
  - chat=/m/chat
  - code=/m/code
  - tools=/m/tools
host: 0.0.0.0
api_keys: /k/keys.txt
max_queued_requests: 7
max_restarts: 3
drain: 5
ray:
  prefill: {cpus: 4, memory: 20GB}
  adapters: {max_replicas: 2, resources: {fast: 1}}
  decoders:
    math: {max_replicas: 5}
    chat: {cpus: 0}
"""


def read(tmp_path: Path, text: str, *words: str) -> ClusterSpec:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return parse_args(["--spec", str(file), "--on", "ray", *words])


@pytest.fixture
def spec(tmp_path: Path) -> ClusterSpec:
    return read(tmp_path, TEXT, "--page-size", "16")


def reports(spec: ClusterSpec) -> list[DecoderReport]:
    adapter = cast(AdapterConfig, object())
    return [
        DecoderReport(
            name, Path(path), None, adapter=adapter if name in ("code", "tools") else None
        )
        for name, path in (entry.model.split("=") for entry in spec.entries)
    ]


def by_name(spec: ClusterSpec, *, has_gpus: bool = True) -> dict[str, ActorPool]:
    found = pools(spec, BASE, reports(spec), has_gpus=has_gpus)
    return {pool.name: pool for pool in found}


def test_what_each_worker_reserves(spec: ClusterSpec) -> None:
    found = by_name(spec)
    assert {name: pool.bundle for name, pool in found.items()} == {
        "prefill": {"CPU": 4, "GPU": 2, "memory": 20e9},
        "decode-lora": {"CPU": 1, "GPU": 1, "fast": 1},
        "decode-math": {"CPU": 1, "GPU": 1},
        "decode-chat": {"GPU": 1},
    }
    assert {name: (pool.bounds.least, pool.bounds.most) for name, pool in found.items()} == {
        "prefill": (2, 2),
        "decode-lora": (1, 2),
        "decode-math": (2, 5),
        "decode-chat": (1, 1),
    }


def test_no_gpu_is_reserved_where_none_is_used(tmp_path: Path, spec: ClusterSpec) -> None:
    found = by_name(spec, has_gpus=False)
    # The prefill workers want two by their tp.
    assert {name for name, pool in found.items() if "GPU" in pool.bundle} == {"prefill"}
    on_cpu = read(tmp_path, "prefill: base\ndecoders: [a=/m/a]\n", "--device", "cpu")
    assert all("GPU" not in pool.bundle for pool in by_name(on_cpu).values())


def test_workers_are_named_as_on_one_machine(spec: ClusterSpec) -> None:
    found = by_name(spec)
    names = [found["prefill"].worker_name(number) for number in range(2)]
    names += [found["decode-math"].worker_name(number) for number in range(3)]
    assert names == ["prefill-0", "prefill-1", "decode-math", "decode-math-2", "decode-math-3"]


def test_the_worker_command_understands_what_actors_run(spec: ClusterSpec) -> None:
    found = by_name(spec)
    words = {
        name: worker_words(spec, BASE, pool, "http://127.0.0.1:1", ["/m"])
        for name, pool in found.items()
    }
    assert {one[0] for one in words.values()} == {"worker"}
    parsed = {name: parse_worker(one[1:]) for name, one in words.items()}
    assert {name: one.decoders for name, one in parsed.items()} == {
        "prefill": (),
        "decode-lora": ("code=/m/code", "tools=/m/tools"),
        "decode-math": ("math=/m/math",),
        "decode-chat": ("chat=/m/chat",),
    }
    for one in parsed.values():
        assert (one.prefill, one.join) == ("base=/m/base", "http://127.0.0.1:1")
        assert (one.max_restarts, one.model_roots) == (3, (Path("/m"),))
    assert parsed["prefill"].engine_args == ("--tp-size", "2", "--page-size", "16")
    math = ("--page-size", "16", "--max-running-requests", "8")
    assert parsed["decode-math"].engine_args == math


def test_the_launcher_understands_the_gateways_command(spec: ClusterSpec) -> None:
    words = gateway_words(spec, BASE, ["/m"])
    assert words[0] == "launch"
    parsed = parse_args(words[1:])
    assert parsed.gateway_only
    assert (parsed.host, parsed.port, parsed.api_keys) == ("0.0.0.0", 8000, Path("/k/keys.txt"))
    assert parsed.limits == spec.limits
    assert (parsed.gateway_processes, parsed.drain_s) == (1, 5)
    assert parsed.engine_args == ("--page-size", "16")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("decoders: {mth: {max_replicas: 2}}", "mth: no whole model.*there are math"),
        ("decoders: {math: {min_replicas: 0}}", "min_replicas is 0"),
        ("decoders: {math: {min_replicas: 3, max_replicas: 2}}", "is 3 and max_replicas 2"),
    ],
)
def test_bounds_that_cannot_be_met(tmp_path: Path, keys: str, message: str) -> None:
    spec = read(tmp_path, f"prefill: base\ndecoders: [math=/m/math]\nray: {{{keys}}}\n")
    with pytest.raises(UsageError, match=message):
        by_name(spec)


def test_a_worker_has_one_tp(tmp_path: Path) -> None:
    text = "prefill: {model: base, tp: 2}\ndecoders: [math=/m/math]\n"
    with pytest.raises(UsageError, match="prefill-0: tp is 2, and --tp-size 4 says otherwise"):
        by_name(read(tmp_path, text, "--tp-size", "4"))


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("ray: {prefill: {cpus: -1}}", (), "ray.prefill: cpus is -1"),
        ("ray: {adapters: {memory: lots}}", (), "ray.adapters: memory: 'lots' must be a size"),
        ("ray: {prefill: {resources: {GPU: 1}}}", (), "GPU is none of your own"),
        ("ray: {scaling: {target_requests: 0}}", (), "ray.scaling: target_requests is 0"),
        ("gpus: 0,1", (), "--gpus does not go with --on ray"),
        ("adapters: {mem: 2GB}", (), "adapters: gpus and mem do not go with --on ray"),
        ("", ("--advertise", "h"), "--advertise does not go with --on ray"),
        ("one_worker: true", (), "--one-worker does not go with --on ray"),
    ],
)
def test_what_has_no_meaning_on_ray(
    tmp_path: Path, text: str, words: tuple[str, ...], message: str
) -> None:
    spec = read(tmp_path, f"prefill: base\ndecoders: [math=/m/math]\n{text}\n", *words)
    with pytest.raises(UsageError, match=message):
        refuse_misfits(spec)


def test_an_address_without_ray_is_refused() -> None:
    with pytest.raises(UsageError, match="--ray-address goes with --on ray only"):
        parse_args(["--prefill", "base", "--decoders", "a", "--ray-address", "h:1"])


def test_a_shortage_has_numbers() -> None:
    bundles = {"gateway": GATEWAY_BUNDLE, "decode-a": {"GPU": 4.0}, "prefill-0": {"CPU": 3.0}}
    nodes = [{"CPU": 2.0, "GPU": 2.0, **GATEWAY_BUNDLE}, {"CPU": 4.0, "GPU": 2.0}]
    text = shortage(bundles, nodes, {"CPU": 2.0, "GPU": 4.0})
    assert text == (
        "decode-a needs GPU 4, and no node has that much; all need CPU 3 together, and CPU 6 is "
        "there, CPU 2 of it free"
    )
