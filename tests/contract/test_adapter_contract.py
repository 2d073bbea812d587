"""Adapters that a worker of LoRA decoders cannot serve exactly are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ps_sglang.contract import (
    AdapterConfig,
    AdapterLimits,
    adapter_digest,
    base_fingerprint,
    check_adapter,
    check_cluster,
    is_adapter,
    read_adapter_config,
    trained_on,
)
from ps_sglang.contract.manifest import MANIFEST_FILE
from ps_sglang.errors import CheckpointError, ContractError
from tests.contract.folder_parts import Build, tensors, write_json
from tests.contract.test_check import sign

# [out, in] of the base's linear layers.
SHAPES = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (16, 8),
    "mlp.up_proj": (16, 8),
    "mlp.down_proj": (8, 16),
}
RANK = 2
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": 6,
    "bias": "none",
    "init_lora_weights": True,
    "use_dora": False,
    "rank_pattern": {},
    "modules_to_save": None,
    "qalora_group_size": 16,
}
Weights = dict[str, np.ndarray]
Adapt = Callable[..., Path]


def name_of(module: str, half: str, layer: int = 0) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"


def factors(*modules: str, rank: int = RANK, layers: int = 2) -> Weights:
    """A [rank, in] and B [out, rank] of the modules, or of all."""
    generator = np.random.default_rng(3)
    weights: Weights = {}
    for layer in range(layers):
        for module in modules or SHAPES:
            out, width = SHAPES[module]
            for half, shape in (("A", (rank, width)), ("B", (out, rank))):
                values = generator.standard_normal(shape).astype(np.float16)
                weights[name_of(module, half, layer)] = values
    return weights


@pytest.fixture
def base(build: Build) -> Path:
    weights = tensors()
    for layer in range(2):
        for module, shape in SHAPES.items():
            weights[f"model.layers.{layer}.{module}.weight"] = np.ones(shape, np.float32)
    return build("base", weights=weights)


@pytest.fixture
def adapt(base: Path, tmp_path: Path) -> Adapt:
    """`adapt(weights, key=value of the config, ...)`: a signed adapter of the base."""

    def adapt_one(weights: Weights | None = None, *, name: str = "d", **items: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        weights = factors() if weights is None else weights
        modules = {m for m in (path.split(".")[1] for path in SHAPES) if f".{m}." in str(weights)}
        write_json(
            folder / "adapter_config.json", CONFIG | {"target_modules": sorted(modules)} | items
        )
        save_file(weights, folder / "adapter_model.safetensors")
        return sign(folder, base)

    return adapt_one


def refusal(base: Path, folder: Path) -> ContractError:
    with pytest.raises(ContractError) as caught:
        check_cluster(base, {"d": folder}, allow_unverified=False)
    return caught.value


def test_an_adapter_and_a_whole_model_are_admitted_together(
    build: Build, base: Path, adapt: Adapt
) -> None:
    whole = sign(build("whole", weights=load_file(base / "model.safetensors")), base)
    folder = adapt(factors("self_attn.q_proj", "self_attn.v_proj"))
    reports = check_cluster(base, {"d": folder, "w": whole, "base": base}, allow_unverified=False)
    config = AdapterConfig(RANK, 6, ("q_proj", "v_proj"))
    assert [report.adapter for report in reports] == [config, None, None]
    assert [report.is_base for report in reports] == [False, False, True]
    assert reports[0].description == (
        "LoRA adapter of rank 2; trained on this base; test; no scores"
    )
    assert trained_on(folder, base_fingerprint(base)) == base_fingerprint(base)
    (folder / MANIFEST_FILE).unlink()
    (report,) = check_cluster(base, {"d": folder}, allow_unverified=True)
    assert report.description == "LoRA adapter of rank 2; fits by shape, unverified"
    assert trained_on(folder, base_fingerprint(base)) is None


@pytest.mark.parametrize(
    "items",
    [
        {"target_modules": "all-linear"},
        {"target_modules": [f"model.layers.{i}.{m}" for m in SHAPES for i in range(2)]},
        {"init_lora_weights": "gaussian"},
        {"lora_dropout": 0.1, "layers_to_transform": [0, 1], "exclude_modules": "lm_head"},
        {"lora_alpha": 1.5, "task_type": None, "use_rslora": False, "eva_config": {"rho": 2.0}},
    ],
    ids=lambda items: next(iter(items)),
)
def test_what_changes_nothing_is_accepted(base: Path, adapt: Adapt, items: dict[str, Any]) -> None:
    assert check_cluster(base, {"d": adapt(**items)}, allow_unverified=False)


def test_modules_and_layers_may_be_left_out(base: Path, adapt: Adapt) -> None:
    some = factors("self_attn.o_proj", "mlp.gate_proj", layers=1)
    assert check_cluster(base, {"d": adapt(some)}, allow_unverified=False)


@pytest.mark.parametrize(
    ("items", "row"),
    [
        ({"peft_type": "LOHA"}, "peft_type: served LORA, adapter LOHA"),
        ({"use_dora": True}, "use_dora: served false, adapter True"),
        ({"use_rslora": True}, "use_rslora: served false, adapter True"),
        ({"use_something_new": True}, "use_something_new: served false, adapter True"),
        ({"bias": "lora_only"}, "bias: served none, adapter lora_only"),
        ({"lora_bias": True}, "lora_bias: served false, adapter True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: served false, adapter True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: served none, adapter ['lm_head']"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern: served none, adapter {'q_proj': 4}"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern: served none, adapter {'q_proj': 4}"),
        ({"layer_replication": [[0, 1]]}, "layer_replication: served none, adapter [[0, 1]]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices: served none, adapter [1]"),
        ({"target_parameters": ["w"]}, "target_parameters: served none, adapter ['w']"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config: served none, adapter {'top_k': 2}"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_sglang_would_leave_out_is_refused_with_the_way_out(
    base: Path, adapt: Adapt, items: dict[str, Any], row: str
) -> None:
    error = refusal(base, adapt(**items))
    assert error.differences == (f"d: {row}",)
    assert "serve the new folder as a whole model: ps-sglang merge " in str(error)
    assert f"/d --base {base} --to d-merged" in str(error)


def test_an_activated_adapter_cannot_be_merged_either(base: Path, adapt: Adapt) -> None:
    error = refusal(base, adapt(alora_invocation_tokens=[1, 2]))
    assert error.differences == ("d: alora_invocation_tokens: served none, adapter [1, 2]",)
    assert "to mend: train it again as a plain LoRA adapter" in str(error)
    assert "merge" not in str(error)


def test_a_start_that_changed_the_base_is_refused(base: Path, adapt: Adapt) -> None:
    error = refusal(base, adapt(init_lora_weights="pissa_niter_4"))
    assert "init_lora_weights: served one that keeps the base's" in str(error)
    assert "path_initial_model_for_weight_conversion" in str(error)


@pytest.mark.parametrize(
    ("targets", "row"),
    [
        (".*_proj", "target_modules: served a list, adapter '.*_proj'"),
        (None, "target_modules: served a list, adapter None"),
        (["q_proj", "v_proj", "lm_head"],
         "target_modules: served attention and MLP, adapter lm_head"),
        (["q_proj", "v_proj", "o_proj"], "tensors of target_modules: config o_proj, weights none"),
        (["q_proj"], "target_modules: config without v_proj, weights tensors of it"),
    ],
)  # fmt: skip
def test_target_modules_and_tensors_must_agree(
    base: Path, adapt: Adapt, targets: object, row: str
) -> None:
    folder = adapt(factors("self_attn.q_proj", "self_attn.v_proj"), target_modules=targets)
    assert refusal(base, folder).differences == (f"d: {row}",)


def test_a_pattern_of_modules_is_mended_by_the_list_in_the_message(
    base: Path, adapt: Adapt
) -> None:
    folder = adapt(factors("self_attn.q_proj", "self_attn.v_proj"), target_modules="q.*|v.*")
    said = str(refusal(base, folder))
    mended = json.loads(said.split("into adapter_config.json: ")[1].replace("'", '"'))
    config = json.loads((folder / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", config | {"target_modules": mended})
    assert check_cluster(base, {"d": folder}, allow_unverified=False)


Q_A, Q_B = (name_of("self_attn.q_proj", half) for half in "AB")


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({Q_A: None}, "lora_A or lora_B: served both, "
                      "adapter lacks one of model.layers.0.self_attn.q_proj"),
        ({Q_A: np.ones((3, 8), np.float16)},
         f"shape of {Q_A}: needed [2, 8], adapter [3, 8]"),
        ({Q_A: np.ones((2, 9), np.float16)}, f"shape of {Q_A}: needed [2, 8], adapter [2, 9]"),
        ({Q_B: np.ones((9, 2), np.float16)}, f"shape of {Q_B}: needed [8, 2], adapter [9, 2]"),
        ({Q_B: np.ones(16, np.float16)}, f"shape of {Q_B}: needed [8, 2], adapter [16]"),
        ({Q_B: np.ones((8, 2), np.int8)}, f"type of {Q_B}: served F16, BF16, F32, F64, adapter I8"),
        ({"base_model.model.score.weight": np.ones(2, np.float16)},
         "other tensors: served none, adapter base_model.model.score.weight"),
        ({Q_A.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(8, np.float16)},
         "other tensors: served none, "
         "adapter base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
        ({Q_B.replace("weight", "bias"): np.ones(8, np.float16)},
         "other tensors: served none, "
         "adapter base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"),
        ({Q_A.replace("layers.0", "layers.7"): np.ones((2, 8), np.float16)},
         "modules: base has none such, adapter model.layers.7.self_attn.q_proj"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(base: Path, adapt: Adapt, change: Weights, row: str) -> None:
    weights = {name: value for name, value in (factors() | change).items() if value is not None}
    assert refusal(base, adapt(weights)).differences == (f"d: {row}",)


@pytest.mark.parametrize(
    "module", ["lm_head", "model.embed_tokens", "model.layers.0.mlp.experts.0.up_proj"]
)
def test_modules_that_are_not_served(base: Path, adapt: Adapt, module: str) -> None:
    extra = {
        f"base_model.model.{module}.lora_{half}.weight": np.ones((2, 2), np.float16)
        for half in "AB"
    }
    error = refusal(base, adapt(factors() | extra, target_modules="all-linear"))
    assert error.differences == (f"d: modules: served attention and MLP, adapter {module}",)
    assert "ps-sglang merge" in str(error)


@pytest.mark.parametrize(
    ("modules", "row"),
    [
        (("self_attn.q_proj", "self_attn.k_proj"),
         "d: attention: served q_proj and v_proj, or none of it, "
         "adapter model.layers.0.self_attn has only k_proj, q_proj and 1 more"),
        (("self_attn.k_proj", "self_attn.v_proj"),
         "d: attention: served q_proj and v_proj, or none of it, "
         "adapter model.layers.0.self_attn has only k_proj, v_proj and 1 more"),
        (("mlp.up_proj", "mlp.down_proj"),
         "d: up_proj: served with gate_proj, "
         "adapter without it in model.layers.0.mlp and 1 more"),
    ],
)  # fmt: skip
def test_parts_that_sglang_cannot_fuse(
    base: Path, adapt: Adapt, modules: tuple[str, ...], row: str
) -> None:
    assert refusal(base, adapt(factors(*modules))).differences == (row,)


def test_no_tensors_at_all(base: Path, adapt: Adapt) -> None:
    rows = refusal(base, adapt({}, target_modules="all-linear")).differences
    assert rows == ("d: weights: served pairs of lora_A and lora_B, adapter none",)


def test_another_weight_file_in_the_folder(base: Path, adapt: Adapt) -> None:
    folder = adapt()
    save_file({"x": np.ones(1, np.float32)}, folder / "optimizer.safetensors")
    (row,) = refusal(base, folder).differences
    assert row == "d: weight files: served adapter_model.safetensors, adapter optimizer.safetensors"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "adapter_model.safetensors").unlink(), "lacks the weight file adapter_mod"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
         "weights in adapter_model.bin, which is not read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), "is not a whole safetens"),
        (lambda f: _cut(f / "adapter_model.safetensors"), "is cut off"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot read"),
        (lambda f: _set(f, r=None), "r is None, must be a whole number above 0"),
        (lambda f: _set(f, r=0), "r is 0, must be a whole number above 0"),
        (lambda f: _set(f, r=2.0), "r is 2.0, must be a whole number above 0"),
        (lambda f: _set(f, lora_alpha="6"), "lora_alpha is '6', must be a number"),
        (lambda f: _set(f, lora_alpha=float("nan")), "lora_alpha is nan, must be a number"),
        (lambda f: (f / MANIFEST_FILE).write_text("{"), "cannot read"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot read"),
    ],
)  # fmt: skip
def test_damaged_and_missing_files(
    base: Path, adapt: Adapt, spoil: Callable[[Path], object], said: str
) -> None:
    folder = adapt()
    spoil(folder)
    (row,) = refusal(base, folder).differences
    assert row.startswith("d: files: base readable, decoder ")
    assert said in row
    limits = AdapterLimits(8, ["all"])
    with pytest.raises(ContractError, match="to mend: mend or replace the file"):
        check_adapter(base, folder, base_fingerprint(base), allow_unverified=True, limits=limits)


def test_a_whole_model_is_no_adapter(base: Path) -> None:
    with pytest.raises(CheckpointError, match="is a whole model, where a LoRA adapter is needed"):
        read_adapter_config(base)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def _set(folder: Path, **items: object) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", config | items)


def test_manifest_of_another_base_and_none_at_all(build: Build, base: Path, adapt: Adapt) -> None:
    other = build("other", weights=tensors(seed=9))
    folder = adapt()
    sign(folder, other)
    (row,) = refusal(base, folder).differences
    assert row.startswith("d: base fingerprint: base ps1:")
    sign(folder, base, tokenizer="tok1:x", chat_template="chat1:x")
    rows = refusal(base, folder).differences
    assert [row.split(":")[1] for row in rows] == [
        " tokenizer in training", " chat template in training",
    ]  # fmt: skip
    sign(folder, base, tail=8)
    assert refusal(base, folder).differences == ("d: tail: served 0, decoder 8",)
    (folder / MANIFEST_FILE).unlink()
    (row,) = refusal(base, folder).differences
    assert "no such file" in row


def test_tokenizer_beside_the_adapter(build: Build, base: Path, adapt: Adapt) -> None:
    texts = ("tokenizer.json", "tokenizer_config.json")
    folder = adapt()
    for file in texts:
        shutil.copyfile(base / file, folder / file)
    assert check_cluster(base, {"d": folder}, allow_unverified=False)
    changes = {"tokenizer_config": {"bos_token": "a", "chat_template": "{{ other }}"}}
    other = build("other", **changes)
    for file in texts:
        shutil.copyfile(other / file, folder / file)
    rows = refusal(base, folder).differences
    assert [row.split(":")[1] for row in rows] == [" tokenizer", " chat template"]
    served = base.parent / "served.jinja"
    served.write_text("{{ x }}")
    with pytest.raises(ContractError) as caught:
        check_cluster(base, {"d": folder}, allow_unverified=False, chat_template=str(served))
    assert len(caught.value.differences) == 1


def test_added_tokens(base: Path, adapt: Adapt) -> None:
    folder = adapt()
    write_json(folder / "added_tokens.json", {"<s>": 0, "<new>": 12})
    (row,) = refusal(base, folder).differences
    assert row == "d: vocabulary: base 12, decoder adds '<new>' = 12"


def test_everything_wrong_is_said_at_once(build: Build, base: Path, adapt: Adapt) -> None:
    folder = adapt(factors("self_attn.q_proj"), use_dora=True, r=4)
    sign(folder, base, tokenizer="tok1:x")
    whole = sign(build("whole", config={"head_dim": 4}), base)
    with pytest.raises(ContractError) as caught:
        check_cluster(base, {"d": folder, "w": whole}, allow_unverified=False)
    assert [row.split(":")[:2] for row in caught.value.differences][:4] == [
        ["d", " use_dora"],
        ["d", f" shape of {Q_A} and 3 more"],
        ["d", " attention"],
        ["d", " tokenizer in training"],
    ]
    assert caught.value.differences[-1].startswith("w: ")


def test_limits_of_a_running_worker(base: Path, adapt: Adapt) -> None:
    folder = sign(adapt(), base, tool_call_parser="hermes")
    fingerprint = base_fingerprint(base)

    def check(limits: AdapterLimits) -> AdapterConfig:
        return check_adapter(base, folder, fingerprint, allow_unverified=False, limits=limits)

    fused = ["qkv_proj", "gate_proj", "o_proj", "down_proj"]
    assert check(AdapterLimits(2, fused, "hermes")) == read_adapter_config(folder)
    assert check(AdapterLimits(2, {"all"}, "hermes", "qwen3")).rank == 2
    with pytest.raises(ContractError) as caught:
        check(AdapterLimits(1, ["q_proj", "o_proj"]))
    assert caught.value.differences == (
        "d: rank: worker at most 1, adapter 2",
        "d: target modules: worker o_proj, q_proj, adapter down_proj, gate_proj, up_proj",
        "d: tool call parser: worker none, adapter hermes",
    )
    assert (
        "to mend: start the worker again with --max-lora-rank 2 --lora-target-modules down_proj "
        "gate_proj k_proj o_proj q_proj up_proj v_proj --tool-call-parser hermes, or merge it"
    ) in str(caught.value)
    with pytest.raises(ContractError, match="base fingerprint"):
        check_adapter(
            base, folder, "ps1:" + "0" * 64, allow_unverified=True,
            limits=AdapterLimits(8, ["all"], "hermes"),
        )  # fmt: skip


def test_an_adapter_is_no_base(base: Path, adapt: Adapt) -> None:
    folder = adapt()
    with pytest.raises(CheckpointError, match="is a LoRA adapter, where a whole model is needed"):
        check_cluster(folder, {"x": base}, allow_unverified=True)


def test_a_quantised_base_is_compared_by_names_and_rank(
    build: Build, adapt: Adapt, base: Path
) -> None:
    packed = {
        f"model.layers.{layer}.{module}.qweight": np.zeros((1, 1), np.int32)
        for layer in range(2)
        for module in SHAPES
    }
    config = {"quantization_config": {"quant_method": "awq"}}
    quantised = build("quantised", config=config, weights=packed)
    assert check_cluster(quantised, {"d": sign(adapt(), quantised)}, allow_unverified=False)
    other = sign(adapt(factors(rank=3), name="e"), quantised)
    with pytest.raises(ContractError, match=r"needed: *\[2, any\]\n *adapter: \[3, 16\]"):
        check_cluster(quantised, {"e": other}, allow_unverified=False)


def test_which_folders_are_adapters(base: Path, adapt: Adapt) -> None:
    folder = adapt()
    assert is_adapter(folder)
    assert not is_adapter(base)
    shutil.copyfile(base / "model.safetensors", folder / "model.safetensors")
    assert not is_adapter(folder)


def test_digest_changes_with_weights_and_scale_only(adapt: Adapt) -> None:
    folder = adapt()
    digests = [adapter_digest(folder)]
    _set(folder, base_model_name_or_path="elsewhere")
    assert adapter_digest(folder) == digests[0]
    _set(folder, lora_alpha=7)
    digests.append(adapter_digest(folder))
    weights = factors()
    weights[Q_A][0, 0] += 1
    digests.append(adapter_digest(adapt(weights, name="e")))
    assert len(set(digests)) == 3
    assert all(digest.startswith("a1:") for digest in digests)
