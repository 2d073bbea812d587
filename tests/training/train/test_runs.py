"""Whole runs on a tiny model: curves, checkpoints, the decoder that comes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerState

from benchmarks.tiny import Family, make_tiny
from ps_sglang.contract import base_fingerprint, check_cluster, read_manifest
from ps_sglang.errors import ContractError, UsageError
from ps_sglang.training.train.merge import main
from ps_sglang.training.train.progress import TrainingProgress
from tests.training.train.train_setup import Run, conversations, stop_at, write_rows

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tiny: dict[str, Path], tmp_path: Path) -> Run:
    return Run(tmp_path / "one", tiny["base"])


@pytest.fixture
def other(tiny: dict[str, Path], tmp_path: Path) -> Run:
    return Run(tmp_path / "other", tiny["base"])


def assert_same_curve(one: dict[int, float], other: dict[int, float], tolerance: float) -> None:
    assert one.keys() == other.keys() != set()
    for step, loss in one.items():
        assert loss == pytest.approx(other[step], rel=tolerance), f"step {step}"


def test_the_loss_falls(run: Run) -> None:
    run.train(steps=0, epochs=4)
    losses = list(run.log().values())
    assert len(losses) == 4 * 32 // 4
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2, "accumulation": 2},
        {"batch_size": 1, "accumulation": 4},
        {"gradient_checkpointing": True},
        {"keep_kv_gb": 1.0},
    ],
)
def test_how_a_step_is_divided_changes_nothing(
    run: Run, other: Run, changes: dict[str, Any]
) -> None:
    """Answers are of different lengths: a mean of the batches' means would be another number."""
    run.train(steps=12)
    other.train(steps=12, **changes)
    assert_same_curve(run.log(), other.log(), 1e-4)
    assert_same_curve(run.log("grad_norm"), other.log("grad_norm"), 1e-3)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}, {"accumulation": 2}])
def test_resume_goes_on_with_the_same_curve(run: Run, other: Run, changes: dict[str, Any]) -> None:
    """Stopped in the middle of the second epoch, after its last checkpoint."""
    settings = {"steps": 20, "checkpoint_steps": 5, **changes}
    run.train(**settings)
    with pytest.raises(KeyboardInterrupt), stop_at(12):
        other.train(**settings)
    assert max(other.log()) >= 11
    other.train(**settings, resume=True)
    assert other.log() == run.log()
    assert _weights(other.out).keys() == _weights(run.out).keys()
    assert all(torch.equal(w, _weights(other.out)[n]) for n, w in _weights(run.out).items())


@pytest.mark.timeout(300)  # another process imports torch and transformers
def test_a_kill_while_a_checkpoint_is_saved_costs_that_checkpoint(
    run: Run, other: Run, tiny: dict[str, Path]
) -> None:
    settings = {"steps": 10, "checkpoint_steps": 2}
    run.train(**settings)
    program = Path(__file__).parent / "programs" / "killed_while_saving.py"
    arguments = [str(program), str(other.out.parent), str(tiny["base"]), json.dumps(settings)]
    killed = subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -signal.SIGKILL
    training = other.out / "training"
    assert (training / ".partial" / "checkpoint-4" / "model.safetensors").is_file()
    other.train(**settings, resume=True)
    assert f"resuming from {training / 'checkpoint-2'}" in other.said
    assert other.log() == run.log()
    assert all(torch.equal(w, _weights(other.out)[n]) for n, w in _weights(run.out).items())
    assert not (training / ".partial").exists()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return weights


def test_the_decoder_fits_its_base(run: Run, tiny: dict[str, Path], tmp_path: Path) -> None:
    dev = write_rows(tmp_path / "dev.jsonl", conversations(8, seed=2))
    run.train(eval_data=str(dev), tool_call_parser="hermes", reasoning_parser="qwen3")
    [report] = check_cluster(tiny["base"], {"new": run.out}, allow_unverified=False)
    assert report.verified
    manifest = read_manifest(run.out)
    assert manifest is not None
    assert manifest.base.fingerprint == base_fingerprint(tiny["base"])
    assert (manifest.share_ratio, manifest.kv_cache_dtype) == (1.0, "float32")
    assert (manifest.tool_call_parser, manifest.reasoning_parser) == ("hermes", "qwen3")
    assert "tool_call_parser" not in manifest.training.settings
    assert manifest.training.recipe == "cache-conditioned fine-tuning, all weights"
    assert manifest.training.settings["learning_rate"] == 1e-3
    assert manifest.training.data_digest is not None
    [score] = manifest.scores
    assert score.value == min(run.log("eval_loss").values())
    assert manifest.summary == (
        "cache-conditioned fine-tuning, all weights; "
        f"evaluation data: loss per answer token {score.value:.4g}, n={score.examples}"
    )
    base, trained = _weights(tiny["base"]), _weights(run.out)
    assert any(not torch.equal(base[name], trained[name]) for name in base)
    assert not (run.out / ".partial").exists()
    modes = {file.stat().st_mode for file in run.out.iterdir() if file.is_file()}
    assert len(modes) == 1


def test_evaluation_is_the_loss_per_answer_token(run: Run, tiny: dict[str, Path]) -> None:
    """On the training data, in one step of all rows, both are one number."""
    run.train(
        eval_data=run.settings["data"], steps=1, batch_size=32, learning_rate=1e-12, log_steps=1
    )
    assert run.log("eval_loss")[1] == pytest.approx(run.log()[1], rel=1e-5)


@pytest.fixture
def unlearning(run: Run, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that soon unlearns its evaluation data: an early checkpoint is the best."""
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "What is it?"}]
    dev = write_rows(tmp_path / "dev.jsonl", [{"messages": chat}])
    return {"eval_data": str(dev), "steps": 12, "checkpoint_steps": 2, "learning_rate": 1e-2}


def best_step(run: Run) -> int:
    losses = run.log("eval_loss")
    return min(losses, key=losses.__getitem__)


def assert_is_checkpoint(run: Run, step: int) -> None:
    checkpoint = load_file(run.out / "training" / f"checkpoint-{step}" / "model.safetensors")
    assert all(torch.equal(value, checkpoint[name]) for name, value in _weights(run.out).items())


def test_the_best_checkpoint_becomes_the_decoder(run: Run, unlearning: dict[str, Any]) -> None:
    run.train(**unlearning, keep_checkpoints=1)
    best = best_step(run)
    assert best < 8
    kept = {folder.name for folder in (run.out / "training").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{best}", "checkpoint-12"}
    assert_is_checkpoint(run, best)
    state = json.loads((run.out / "training/checkpoint-12/trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(run.out / "training" / f"checkpoint-{best}")


def test_the_best_checkpoint_is_found_after_a_move(
    run: Run, unlearning: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), stop_at(9):
        run.train(**unlearning)
    best = best_step(run)
    assert best < 8
    run.out = run.out.rename(tmp_path / "moved")
    run.train(**unlearning, out=run.out, resume=True)
    assert_is_checkpoint(run, best)


def test_lora_merges_into_the_decoder(run: Run, tiny: dict[str, Path]) -> None:
    run.train(lora_rank=4)
    [report] = check_cluster(tiny["base"], {"new": run.out}, allow_unverified=False)
    assert report.verified
    adapter = run.out / "adapter"
    assert read_manifest(adapter) == read_manifest(run.out)
    assert (
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "base"
    )
    ids = torch.arange(3, 40)[None]
    decoder = AutoModelForCausalLM.from_pretrained(run.out)
    base = AutoModelForCausalLM.from_pretrained(tiny["base"])
    with torch.no_grad():
        alone, whole = base(ids).logits, decoder(ids).logits
        adapted = PeftModel.from_pretrained(base, adapter)(ids).logits
    torch.testing.assert_close(whole, adapted, rtol=1e-4, atol=1e-4)
    assert (whole - alone).abs().max() > 0.01


def test_the_adapter_of_a_run_is_served_as_it_is_or_merged(
    run: Run, tiny: dict[str, Path], tmp_path: Path
) -> None:
    run.train(lora_rank=4)
    adapter, made = run.out / "adapter", tmp_path / "made"
    (report,) = check_cluster(tiny["base"], {"new": adapter}, allow_unverified=False)
    assert report.adapter is not None
    assert (report.adapter.rank, report.adapter.alpha) == (4, 8)
    assert len(report.adapter.target_modules) == 7
    assert main([str(adapter), "--base", str(tiny["base"]), "--to", str(made)]) == 0
    (report,) = check_cluster(tiny["base"], {"made": made}, allow_unverified=False)
    assert report.manifest == read_manifest(adapter)
    trained = _weights(run.out)
    assert all(torch.equal(value, trained[name]) for name, value in _weights(made).items())


@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_bfloat16(tmp_path: Path, family: Family, lora_rank: int) -> None:
    """Qwen3's norms of queries and keys make them float32 where values are bfloat16."""
    run = Run(tmp_path / "run", make_tiny(family, tmp_path / "models")["base"])
    run.train(dtype="bfloat16", lora_rank=lora_rank, steps=12)
    losses = list(run.log().values())
    assert losses[-1] < losses[0]
    manifest = read_manifest(run.out)
    assert manifest is not None
    assert manifest.kv_cache_dtype == "bfloat16"
    # Stored as the base is.
    assert {value.dtype for value in _weights(run.out).values()} == {torch.float32}


def test_full_fine_tuning_sees_the_same_data(run: Run, other: Run) -> None:
    """Same order and count of answer tokens: with weights that do not move and the model as its
    own base, both methods have one loss."""
    run.train(learning_rate=1e-12, steps=12)
    other.train(learning_rate=1e-12, steps=12, method="full")
    assert_same_curve(run.log(), other.log(), 1e-4)
    manifest = read_manifest(other.out)
    assert manifest is not None
    assert manifest.share_ratio == 0.0


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_decoder_with_a_tail(run: Run, tiny: dict[str, Path], lora_rank: int) -> None:
    """It learns, its manifest says how much it reads, and no cluster takes it."""
    run.train(tail=16, lora_rank=lora_rank, steps=12, checkpoint_steps=6)
    losses = list(run.log().values())
    assert losses[-1] < losses[0]
    folders = [run.out, run.out / "adapter"] if lora_rank else [run.out]
    for folder in folders:
        manifest = read_manifest(folder)
        assert manifest is not None
        assert (manifest.tail, manifest.training.settings["tail"]) == (16, 16)
        with pytest.raises(ContractError, match="tail: served 0, decoder 16"):
            check_cluster(tiny["base"], {"new": folder}, allow_unverified=True)


def test_a_tail_sees_the_same_data(run: Run, other: Run) -> None:
    """With the model as its own base, and weights that do not move, every tail has one loss."""
    run.train(learning_rate=1e-12)
    other.train(learning_rate=1e-12, tail=9)
    assert_same_curve(run.log(), other.log(), 1e-4)


def test_resume_knows_the_tail(run: Run) -> None:
    run.train()
    with pytest.raises(UsageError, match="tail: then 0, now 4"):
        run.train(resume=True, tail=4)
    file = run.out / "training" / "run.json"
    older = json.loads(file.read_text())
    del older["settings"]["tail"]
    file.write_text(json.dumps(older))
    run.train(resume=True)


def test_kept_kv_on_disk_serves_later_runs(run: Run, other: Run, tmp_path: Path) -> None:
    kept = {"keep_kv_gb": 1.0, "keep_kv_dir": tmp_path / "kept", "steps": 0, "epochs": 2}
    run.train(**kept)
    assert run.said[-2].endswith("32 of 64 prefixes needed no base")
    other.train(**kept)
    assert other.said[-2].endswith("64 of 64 prefixes needed no base")
    assert_same_curve(run.log(), other.log(), 1e-6)


def test_progress_and_report(run: Run) -> None:
    run.train(steps=2)
    said = "\n".join(run.said)
    assert "train.jsonl: 32 records, " in said
    assert "prompt tokens: median " in said
    assert " tokens/s, 0 s left" in said
    assert f"done: decoder in {run.out}" in said


def test_tensorboard_where_it_is_installed(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run.train(steps=2)
    events = EventAccumulator(str(run.out / "training" / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx(run.log())


def test_tokens_a_second_are_those_that_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a run that ends within its first epoch: 3 of an epoch's 10 steps in 2 s."""
    said: list[str] = []
    shown = TrainingProgress(tmp_path / "log.jsonl", tokens=5_000, on_progress=said.append)
    state = TrainerState(max_steps=4, num_train_epochs=1)
    monkeypatch.setattr("time.monotonic", lambda: 10.0)
    shown.on_train_begin(None, state, None)
    state.global_step, state.epoch, state.log_history = 3, 0.3, [{}]
    monkeypatch.setattr("time.monotonic", lambda: 12.0)
    shown.on_log(None, state, None, {"loss": 0.5})
    assert said == ["step 3/4: loss 0.5000, 750 tokens/s, 1 s left"]
