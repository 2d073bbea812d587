from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps_sglang.contract import (
    Manifest,
    base_fingerprint,
    check_cluster,
    check_replacement,
    trained_on,
    write_manifest,
)
from ps_sglang.contract.engine_flags import check_engine_flags
from ps_sglang.contract.manifest import MANIFEST_FILE, BaseReference, Score, Training
from ps_sglang.contract.served_template import served_template_digest
from ps_sglang.contract.tokenizer import (
    chat_template_digest,
    tokenizer_digest,
    written_tokenizer_digest,
)
from ps_sglang.errors import CheckpointError, ContractError
from tests.contract.folder_parts import Build, tensors


def sign(decoder: Path, base: Path, **changes: Any) -> Path:
    """Give `decoder` the manifest of one trained on `base`."""
    values: dict[str, Any] = {
        "base": BaseReference(name=base.name, fingerprint=base_fingerprint(base)),
        "tokenizer": tokenizer_digest(base),
        "chat_template": chat_template_digest(base),
        "kv_cache_dtype": "float32",
        "share_ratio": 1.0,
        "training": Training(recipe="test"),
    }
    write_manifest(decoder, Manifest(**(values | changes)))
    return decoder


def refused(base: Path, decoder: Path) -> tuple[str, ...]:
    with pytest.raises(ContractError) as caught:
        check_cluster(base, {"d": decoder}, allow_unverified=False)
    return caught.value.differences


@pytest.fixture
def base(build: Build) -> Path:
    return build("base")


def test_fitting_decoders_are_admitted_in_order(build: Build, base: Path) -> None:
    folders = {name: sign(build(name, weights=tensors(seed=5)), base) for name in "ba"}
    reports = check_cluster(base, folders, allow_unverified=False)
    assert [(r.name, r.path, r.verified) for r in reports] == [
        ("b", folders["b"], True),
        ("a", folders["a"], True),
    ]


def test_the_base_is_verified_as_its_own_decoder(build: Build, base: Path) -> None:
    """Wherever its files lie, and whatever it was trained on itself."""
    another = build("another", weights=tensors(seed=9))
    folders = {"same": base, "copy": build("copy"), "signed": sign(build("signed"), another)}
    for folder in folders.values():
        assert trained_on(folder, base_fingerprint(base)) == base_fingerprint(base)
    reports = check_cluster(base, folders, allow_unverified=False)
    assert [(r.verified, r.description) for r in reports] == [(True, "the base itself")] * 3
    other = build("other", weights=tensors(seed=5))
    assert trained_on(other, base_fingerprint(base)) is None
    (difference,) = refused(base, other)
    assert "no such file" in difference


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "architecture: base LlamaFor.*decoder Qwen3For"),
        ({"num_hidden_layers": 3}, "layers: base 2, decoder 3"),
        ({"hidden_size": 16}, "hidden size: base 8, decoder 16"),
        ({"num_attention_heads": 2}, "attention heads: base 4, decoder 2"),
        ({"num_key_value_heads": 1}, "kv heads: base 2, decoder 1"),
        ({"head_dim": 4}, "head dim: base 2, decoder 4"),
        ({"intermediate_size": 32}, "mlp size: base 16, decoder 32"),
        ({"hidden_act": "gelu"}, "activation: base silu, decoder gelu"),
        ({"rms_norm_eps": 1e-5}, "rms norm eps: base 1e-06, decoder 1e-05"),
        ({"vocab_size": 13}, "vocabulary: base 12, decoder 13"),
        ({"max_position_embeddings": 128}, "context length: base 64, decoder 128"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope theta: base 10000.0, decoder 500000.0"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
         "rope type: base default, decoder linear"),
        ({"sliding_window": 32}, "sliding window: base None, decoder 32"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer types: base None"),
    ],
)  # fmt: skip
def test_each_row_of_the_shape(build: Build, base: Path, config: dict[str, Any], row: str) -> None:
    (difference,) = refused(base, sign(build("decoder", config=config), base))
    assert difference.startswith("d: ")
    assert re.search(row, difference), difference


def test_what_may_differ(build: Build, base: Path) -> None:
    head = {"lm_head.weight": np.ones((12, 8), np.float32)}
    half = {name: weight.astype(np.float16) for name, weight in tensors().items()}
    config = {"tie_word_embeddings": False, "torch_dtype": "float16", "eos_token_id": 5}
    decoder = sign(build("decoder", config=config, weights=half | head), base)
    assert check_cluster(base, {"d": decoder}, allow_unverified=False)[0].verified


def test_tensors_that_do_not_match(build: Build, base: Path) -> None:
    weights = tensors()
    weights["model.extra.weight"] = weights.pop("model.norm.weight")
    weights["model.embed_tokens.weight"] = np.zeros((12, 4), np.float32)
    assert refused(base, sign(build("decoder", weights=weights), base)) == (
        "d: missing tensors: base model.norm.weight, decoder none of them",
        "d: extra tensors: base none of them, decoder model.extra.weight",
        "d: shape of model.embed_tokens.weight: base [12, 8], decoder [12, 4]",
    )


def test_quantised_decoder_is_compared_by_its_config(build: Build, base: Path) -> None:
    packed = {"model.layers.0.self_attn.k_proj.qweight": np.zeros((4, 1), np.int32)}
    config = {"quantization_config": {"quant_method": "awq"}}
    decoder = sign(build("decoder", config=config, weights=packed), base)
    assert check_cluster(base, {"d": decoder}, allow_unverified=False)[0].verified
    wider = sign(build("wider", config=config | {"head_dim": 4}, weights=packed), base)
    assert refused(base, wider) == ("d: head dim: base 2, decoder 4",)


def test_other_tokenizer_and_template(build: Build, base: Path) -> None:
    changes = {"tokenizer_config": {"bos_token": "a", "chat_template": "{{ other }}"}}
    rows = refused(base, sign(build("decoder", **changes), base))
    assert [row.split(":")[1] for row in rows] == [" tokenizer", " chat template"]


def test_other_tokenizer_and_template_in_training(build: Build, base: Path) -> None:
    decoder = sign(build("decoder"), base, tokenizer="tok1:x", chat_template="chat1:x")
    rows = refused(base, decoder)
    assert [row.split(":")[1] for row in rows] == [
        " tokenizer in training",
        " chat template in training",
    ]


def test_a_tokenizer_saved_again_and_an_older_manifest(build: Build, base: Path) -> None:
    """Older manifests name a tokenizer by how its file was written when the decoder was made."""
    piece = [{"Sequence": {"id": "A", "type_id": 0}}]
    empty = {"type": "TemplateProcessing", "single": piece, "pair": piece, "special_tokens": {}}
    again = build("again", tokenizer={"post_processor": empty})
    assert written_tokenizer_digest(again) != written_tokenizer_digest(base)
    for index, manifest in enumerate((base, again)):
        decoder = sign(again, base, tokenizer=written_tokenizer_digest(manifest))
        (report,) = check_cluster(base, {f"d{index}": decoder}, allow_unverified=False)
        assert report.verified


def test_the_part_of_a_tokenizer_that_differs_is_named(build: Build, base: Path) -> None:
    decoder = build("decoder", tokenizer_config={"eos_token": "ab"})
    with pytest.raises(ContractError) as caught:
        check_cluster(base, {"d": decoder}, allow_unverified=True)
    assert "differs in special tokens (eos_token: '<s>' and 'ab')" in str(caught.value)


def test_trained_on_another_base_of_the_same_shape(build: Build, base: Path) -> None:
    other = build("other-base", weights=tensors(seed=9))
    (row,) = refused(base, sign(build("decoder", weights=tensors(seed=5)), other))
    assert base_fingerprint(base) in row
    assert f"{base_fingerprint(other)} (other-base)" in row


def test_a_tail_is_served_by_no_worker(build: Build, base: Path) -> None:
    decoder = sign(build("decoder", weights=tensors(seed=5)), base, tail=64)
    fingerprint = base_fingerprint(base)
    row = "tail: served 0, decoder 64"
    assert refused(base, decoder) == (f"d: {row}",)
    with pytest.raises(ContractError, match="measure it offline with ps-sglang evaluate"):
        check_replacement(decoder, decoder, fingerprint, allow_unverified=True)
    # A worker that nobody checked says so itself.
    with pytest.raises(ContractError, match=row):
        trained_on(decoder, fingerprint)
    (report,) = check_cluster(base, {"d": decoder}, allow_unverified=False, any_tail=True)
    assert report.manifest is not None
    assert report.manifest.tail == 64
    # The base's own cache is the base's, whatever it was trained on itself.
    another = build("another", weights=tensors(seed=9))
    itself = sign(build("itself"), another, tail=64)
    assert trained_on(itself, fingerprint) == fingerprint
    assert check_cluster(base, {"d": itself}, allow_unverified=False)[0].is_base


def test_no_manifest_is_refused_unless_allowed(build: Build, base: Path) -> None:
    decoder = build("decoder", weights=tensors(seed=5))
    (row,) = refused(base, decoder)
    assert MANIFEST_FILE in row
    (report,) = check_cluster(base, {"d": decoder}, allow_unverified=True)
    assert not report.verified
    assert report.description == "fits by shape, unverified"


def test_a_decoder_is_described_with_its_scores_and_what_it_never_read(
    build: Build, base: Path
) -> None:
    score = Score(benchmark="code", metric="pass@1", value=0.935, examples=200)
    whole = sign(build("whole"), base, scores=[score])
    half = sign(build("half"), base, share_ratio=0.5)
    noise = sign(build("noise"), base, stand_in=True)
    folders = {"whole": whole, "half": half, "noise": noise}
    reports = check_cluster(base, folders, allow_unverified=False)
    assert [report.description for report in reports] == [
        "trained on this base; test; code: pass@1 0.935, n=200",
        "trained on this base; test; no scores; "
        "WARNING: only 50% of each prompt's KV was the base's in training",
        "stand-in made from this base; test; no scores",
    ]


def test_allow_unverified_still_compares_the_models(build: Build, base: Path) -> None:
    decoder = build("decoder", config={"num_key_value_heads": 1}, tokenizer={"added_tokens": []})
    with pytest.raises(ContractError) as caught:
        check_cluster(base, {"d": decoder}, allow_unverified=True)
    assert [row.split(":")[1] for row in caught.value.differences] == [" kv heads", " tokenizer"]


def test_allow_unverified_does_not_excuse_a_wrong_manifest(build: Build, base: Path) -> None:
    other = build("other-base", weights=tensors(seed=9))
    decoder = sign(build("decoder", weights=tensors(seed=5)), other)
    with pytest.raises(ContractError, match="base fingerprint"):
        check_cluster(base, {"d": decoder}, allow_unverified=True)


def test_all_differences_of_all_decoders_in_one_message(build: Build, base: Path) -> None:
    broken = build("broken")
    (broken / "tokenizer.json").unlink()
    bad_manifest = build("bad-manifest")
    (bad_manifest / MANIFEST_FILE).write_text("{")
    decoders = {
        "good": sign(build("good"), base),
        "shape": sign(build("shape", config={"head_dim": 4, "vocab_size": 13}), base),
        "bare": build("bare", weights=tensors(seed=5)),
        "broken": broken,
        "manifest": bad_manifest,
        "gone": base.parent / "gone",
    }
    with pytest.raises(ContractError) as caught:
        check_cluster(base, decoders, allow_unverified=False)
    message = str(caught.value)
    assert message.startswith(f"5 of 6 decoders cannot be served with the base {base}:\n")
    assert [row.split(":")[0] for row in caught.value.differences] == [
        "shape", "shape", "bare", "broken", "manifest", "gone",
    ]  # fmt: skip
    for said in (
        f"  shape ({decoders['shape']})\n    head dim: base 2, decoder 4\n    vocabulary: base 12",
        "has no tokenizer",
        f"cannot read {bad_manifest / MANIFEST_FILE}",
        "launch with --allow-unverified",
        "gone is not a usable checkpoint: no config.json",
    ):
        assert said in message
    assert "good" not in message
    assert all(row.split(": ", 1)[1].split(":")[0] in message for row in caught.value.differences)


def test_unreadable_base(build: Build, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is not a usable checkpoint"):
        check_cluster(tmp_path / "nowhere", {"d": build("d")}, allow_unverified=True)


def test_engine_flags_must_agree() -> None:
    check_engine_flags(
        {
            "prefill": ["--page-size", "16", "--mem-fraction-static", "0.5"],
            "decode": ["--page-size", "1", "--page-size=16"],
        }
    )
    with pytest.raises(ContractError) as caught:
        check_engine_flags(
            {"prefill": ["--page-size", "16", "--dtype=float32"], "decode": ["--dtype", "bfloat16"]}
        )
    assert caught.value.differences == (
        "--page-size: prefill 16, decode (default)",
        "--dtype: prefill float32, decode bfloat16",
    )


def test_parsers_may_differ_unless_they_change_prompts() -> None:
    check_engine_flags({"p": [], "a": ["--tool-call-parser", "hermes"], "b": []})
    deepseek = ["--tool-call-parser", "deepseekv32"]
    check_engine_flags({"p": deepseek, "a": deepseek})
    with pytest.raises(ContractError) as caught:
        check_engine_flags({"p": [], "a": deepseek, "b": ["--reasoning-parser", "hunyuan"]})
    assert caught.value.differences == (
        "--tool-call-parser: p (default), a deepseekv32, b (default)",
        "--reasoning-parser: p (default), a (default), b hunyuan",
    )


def test_one_template_for_all_workers_stands_for_those_of_the_checkpoints(
    build: Build, base: Path, tmp_path: Path
) -> None:
    other = build("other", tokenizer_config={"chat_template": "{{ tools }}"})
    sign(other, base, chat_template=chat_template_digest(other))
    same = sign(build("same"), base)
    (row,) = refused(base, other)
    assert row.startswith("d: chat template: ")
    served = tmp_path / "served.jinja"
    served.write_text("\n{{ tools }}\n")
    folders = {"other": other, "same": same}
    reports = check_cluster(base, folders, allow_unverified=False, chat_template=str(served))
    warned = ["another chat template than --chat-template" in r.description for r in reports]
    assert warned == [False, True]
    (report,) = check_cluster(base, {"same": same}, allow_unverified=False)
    assert "chat template" not in report.description


def test_a_served_template_is_known_by_what_it_says(build: Build, tmp_path: Path) -> None:
    file, other = tmp_path / "a.jinja", tmp_path / "b.jinja"
    file.write_text("{{ messages }}")
    other.write_text("{{ tools }}")
    assert served_template_digest(str(file)) == chat_template_digest(build("base"))
    assert served_template_digest(str(other)) != served_template_digest(str(file))
    assert served_template_digest("chatml") == "chatml"


def test_imports_no_engine() -> None:
    """The launcher runs the contract before anything heavy loads."""
    code = (
        "import sys, ps_sglang.contract, ps_sglang.contract.engine_flags\n"
        "print(sorted({'torch', 'transformers', 'sglang', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
