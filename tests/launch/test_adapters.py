"""LoRA decoders in a plan: whose worker they share, with which flags, and what is refused."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ps_sglang.cli import main as cli
from ps_sglang.cluster_key import VARIABLE
from ps_sglang.contract import read_manifest, write_manifest
from ps_sglang.engine.settings import ADAPTERS, MODEL_ROOTS
from ps_sglang.errors import UsageError
from ps_sglang.gateway.config import Adapter
from ps_sglang.launch import lora
from ps_sglang.launch.environment import encode_adapters, plugin_environment
from ps_sglang.launch.flags import groups, value_of
from ps_sglang.launch.gateway_config import gateway_config
from ps_sglang.launch.outlook import sharing
from ps_sglang.launch.prepare import Plan, prepare
from ps_sglang.launch.spec import ClusterSpec, Role, WorkerSpec
from ps_sglang.models.stand_in import PROJECTIONS
from tests.launch.conftest import WriteAdapter


@pytest.fixture
def code(write_adapter: WriteAdapter) -> Path:
    return write_adapter("code")


@pytest.fixture
def math(write_adapter: WriteAdapter) -> Path:
    return write_adapter("math", 8, ("q_proj", "v_proj"))


@pytest.fixture
def spec(tiny: dict[str, Path], code: Path, math: Path, tmp_path: Path) -> ClusterSpec:
    return ClusterSpec(
        prefill=str(tiny["base"]),
        decoders=(str(code), str(math)),
        port=0,
        log_dir=tmp_path / "logs",
        engine_args=("--device", "cpu"),
    )


def with_flags(spec: ClusterSpec, *words: str) -> ClusterSpec:
    return replace(spec, engine_args=(*spec.engine_args, *words))


def placed(plan: Plan) -> dict[str, tuple[Role, tuple[str, ...]]]:
    return {worker.name: (worker.role, worker.decoders) for worker in plan.workers}


def worker_of(plan: Plan, name: str = "decode-lora") -> WorkerSpec:
    (worker,) = (worker for worker in plan.workers if worker.name == name)
    return worker


def name_parsers(folder: Path, **parsers: str) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    write_manifest(folder, msgspec.structs.replace(manifest, **parsers))


def test_adapters_share_a_worker_and_whole_models_have_their_own(
    spec: ClusterSpec, tiny: dict[str, Path], code: Path, math: Path
) -> None:
    plan = prepare(replace(spec, decoders=(str(tiny["a"]), *spec.decoders)))
    assert placed(plan) == {
        "prefill-0": (Role.PREFILL, ()),
        "decode-lora": (Role.DECODE, ("code", "math", "base")),
        "decode-a": (Role.DECODE, ("a",)),
    }
    worker = worker_of(plan)
    assert (worker.model_name, worker.model_path) == ("base", tiny["base"])
    assert worker.adapters == (Adapter("code", str(code)), Adapter("math", str(math)))
    assert worker_of(plan, "decode-a").adapters is None
    (line,) = sharing(plan.workers)
    assert line.startswith("decode-lora: 2 adapters and base share ")


def test_replicas_are_of_every_decoder_or_of_one(spec: ClusterSpec, tiny: dict[str, Path]) -> None:
    a, b = str(tiny["a"]), str(tiny["b"])
    plan = prepare(replace(spec, decoders=(f"{a}*3", b, *spec.decoders), decode_replicas=2))
    decode = [worker.name for worker in plan.workers if worker.role is Role.DECODE]
    assert decode == [
        *("decode-lora", "decode-lora-2"),
        *("decode-a", "decode-a-2", "decode-a-3"),
        *("decode-b", "decode-b-2"),
    ]
    assert len({worker.port for worker in plan.workers}) == len(plan.workers)


def test_the_base_is_served_by_name(spec: ClusterSpec, tiny: dict[str, Path]) -> None:
    base = str(tiny["base"])
    assert placed(prepare(replace(spec, decoders=(base, *spec.decoders)))) == placed(prepare(spec))
    alone = {"prefill-0": (Role.PREFILL, ()), "decode-base": (Role.DECODE, ("base",))}
    for name in (base, "base"):
        assert placed(prepare(replace(spec, decoders=(name,)))) == alone
    plan = prepare(replace(spec, prefill=f"own={base}", decoders=("own*2", str(tiny["a"]))))
    assert [worker.name for worker in plan.workers[1:]] == [
        "decode-own",
        "decode-own-2",
        "decode-a",
    ]


def test_one_worker_has_both_roles(spec: ClusterSpec, tiny: dict[str, Path]) -> None:
    plan = prepare(replace(spec, one_worker=True))
    assert placed(plan) == {"worker": (Role.AGGREGATED, ("code", "math", "base"))}
    words = plan.workers[0].argv
    assert value_of(words, "--disaggregation-mode") == "null"
    assert value_of(words, "--radix-cache-backend") == "base-token"
    assert value_of(words, "--schedule-policy") == "lpm"
    names = {name for name, _ in groups(words)}
    assert "--enable-lora" in names
    assert {name for name in names if name.startswith("--disaggregation-")} == {
        "--disaggregation-mode"
    }
    assert gateway_config(plan).is_aggregated
    assert not gateway_config(prepare(spec)).is_aggregated
    only = prepare(replace(spec, one_worker=True, decoders=(str(tiny["base"]),)))
    assert placed(only) == {"worker": (Role.AGGREGATED, ("base",))}
    assert only.workers[0].adapters == ()


def test_the_worker_is_told_its_adapters(spec: ClusterSpec, code: Path, math: Path) -> None:
    prefill, decode = prepare(spec).workers
    options: dict[str, Any] = {
        "allow_unverified": False, "allow_unsafe": False, "shares_weights": False,
        "key_file": Path("/k"), "model_roots": ("/weights",),
    }  # fmt: skip
    variables = plugin_environment("ps1:x", decode, **options)
    assert json.loads(variables[ADAPTERS]) == {"code@1": str(code), "math@1": str(math)}
    assert (variables[VARIABLE], json.loads(variables[MODEL_ROOTS])) == ("/k", ["/weights"])
    assert ADAPTERS not in plugin_environment("ps1:x", prefill, **options)


def test_more_adapters_than_a_variable_holds_are_refused() -> None:
    """Linux would start no process with it."""
    adapters = [Adapter(f"d{number}", "/a" * 50) for number in range(1200)]
    with pytest.raises(UsageError, match=r"1200 adapters are too many to start with: .* of 131072"):
        encode_adapters(adapters)
    value = encode_adapters(adapters[:1000])
    subprocess.run(["true"], env={ADAPTERS: value}, check=True)


def test_workers_of_one_model_share_its_weights(spec: ClusterSpec, tiny: dict[str, Path]) -> None:
    plan = prepare(replace(spec, decoders=(f"{tiny['a']}*2", str(tiny["b"]), *spec.decoders)))
    assert {worker.name: plan.shares_model(worker) for worker in plan.workers} == {
        **dict.fromkeys(("prefill-0", "decode-lora", "decode-a", "decode-a-2"), True),
        "decode-b": False,
    }


def test_the_flags_take_later_adapters_too(spec: ClusterSpec, write_adapter: WriteAdapter) -> None:
    worker = worker_of(prepare(spec))
    assert value_of(worker.argv, "--max-lora-rank") == str(lora.LEAST_RANK)
    assert set((value_of(worker.argv, "--lora-target-modules") or "").split()) == set(PROJECTIONS)
    assert value_of(worker.argv, "--lora-backend") == "grouped"
    assert "--enable-lora" not in prepare(spec).workers[0].argv
    large = write_adapter("large", rank=64)
    worker = worker_of(prepare(replace(spec, decoders=(*spec.decoders, str(large)))))
    assert value_of(worker.argv, "--max-lora-rank") == "64"
    worker = worker_of(prepare(with_flags(spec, "--max-lora-rank=32", "--max-loras-per-batch=140")))
    assert value_of(worker.argv, "--max-lora-rank") == "32"
    assert value_of(worker.argv, "--max-loaded-loras") == "140"


def test_on_a_gpu_sglang_chooses_the_back_end(spec: ClusterSpec) -> None:
    worker = worker_of(prepare(replace(spec, engine_args=(), gpus="2x24GB", dry_run=True)))
    assert value_of(worker.argv, "--lora-backend") is None


def test_a_fused_module_stands_for_its_parts(spec: ClusterSpec, math: Path) -> None:
    one = replace(spec, decoders=(str(math),))
    worker = worker_of(prepare(with_flags(one, "--lora-target-modules", "qkv_proj")))
    assert value_of(worker.argv, "--lora-target-modules") == "qkv_proj"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--max-lora-rank", "4"], "decoder math has rank 8, above --max-lora-rank 4"),
        (["--no-max-lora-rank"], "--max-lora-rank must be given, at least 1"),
        (["--lora-target-modules"], "--lora-target-modules names no module"),
        (["--lora-target-modules", "all", "q_proj"], "names all and others; give all alone"),
        (
            ["--lora-target-modules", "q_proj", "o_proj"],
            "decoder code adapts down_proj, gate_proj, up_proj, which --lora-target-modules lacks",
        ),
        (["--max-loras-per-batch", "0"], "--max-loras-per-batch is 0, must be at least 1"),
        (["--max-loaded-loras", "8"], "must be at least --max-loras-per-batch, which is 9"),
        (["--enable-lora-overlap-loading"], "needs --max-loaded-loras of at most 18"),
    ],
)
def test_flags_that_would_fail_after_the_import_are_refused(
    spec: ClusterSpec, words: list[str], problem: str
) -> None:
    with pytest.raises(UsageError, match=f"engine flags of decode-lora: .*{problem}"):
        prepare(with_flags(spec, *words))


def test_a_default_taken_away_from_all_workers_reaches_none(spec: ClusterSpec) -> None:
    for worker in prepare(
        with_flags(spec, "--no-max-loaded-loras", "--no-schedule-policy")
    ).workers:
        assert not {"--no-max-loaded-loras", "--no-schedule-policy"} & {*worker.argv}


def test_a_missing_tool_parser_goes_with_any(spec: ClusterSpec, code: Path) -> None:
    name_parsers(code, tool_call_parser="hermes")
    for worker in prepare(spec).workers:
        assert value_of(worker.argv, "--tool-call-parser") == "hermes"


def test_parsers_that_differ_are_refused_unless_a_flag_decides(
    spec: ClusterSpec, code: Path, math: Path
) -> None:
    name_parsers(code, tool_call_parser="hermes", reasoning_parser="qwen3")
    with pytest.raises(UsageError, match=r"one --reasoning-parser, .* code qwen3, math none; give"):
        prepare(spec)
    for flag in ("--reasoning-parser=qwen3", "--no-reasoning-parser"):
        prepare(with_flags(spec, flag))
    name_parsers(math, tool_call_parser="mistral", reasoning_parser="qwen3")
    with pytest.raises(UsageError, match=r"one --tool-call-parser, .* code hermes, math mistral"):
        prepare(replace(spec, one_worker=True))


def test_what_cannot_have_the_workers_asked_for_is_refused(
    spec: ClusterSpec, tiny: dict[str, Path], code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, a = str(tiny["base"]), str(tiny["a"])
    for wrong, problem in (
        ((f"{code}*2",), f"decoder code shares .*: write {code}, and --decode-replicas 2 for more"),
        ((f"{base}*2", str(code)), "decoder base shares its workers with all adapters"),
        ((base, base), "decoder base, which is the base, is named twice"),
        ((f"{a}*2", f"a-2={a}"), "two workers would be called decode-a-2; rename decoder a-2"),
        ((str(code), f"lora={a}"), "two workers would be called decode-lora; rename decoder lora"),
    ):
        with pytest.raises(UsageError, match=problem):
            prepare(replace(spec, decoders=wrong))
    words = ["check", "--prefill", base, "--one-worker", "--decoders"]
    assert cli([*words, str(code)]) == 0
    assert "decoder code: " in capsys.readouterr().out
    assert cli([*words, a]) == 2
    assert "decoder a is a whole model, and --one-worker serves only" in capsys.readouterr().err


def test_of_experts_no_projection_is_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["self_attn.q_proj", "mlp.experts.0.up_proj", "mlp.up_proj", "input_layernorm"]
    tensors = dict.fromkeys(f"model.layers.0.{name}.weight" for name in [*names, "lm_head"])
    monkeypatch.setattr(lora, "read_tensors", lambda folder: tensors)
    assert lora.projections(Path()) == ("q_proj",)
