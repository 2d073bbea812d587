"""What a run is refused for, or stopped by: one clear error each, and nothing harmed."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.tiny import make_tiny
from ps_sglang.contract import MANIFEST_FILE, base_fingerprint
from ps_sglang.errors import CheckpointError, DataError, TrainingError, UsageError
from ps_sglang.training.train.trainer import DecoderTrainer
from tests.training.train.train_setup import Run, conversations, stop_at, write_rows


@pytest.fixture
def run(tiny: dict[str, Path], tmp_path: Path) -> Run:
    return Run(tmp_path / "run", tiny["base"])


@pytest.fixture
def changed_base(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the base, to be edited."""
    return Path(shutil.copytree(tiny["base"], tmp_path / "changed"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def nothing_written(run: Run) -> bool:
    return not run.out.exists()


def test_empty_answer(run: Run) -> None:
    rows = conversations(2, seed=0)
    rows[1]["messages"][-1]["content"] = ""
    write_rows(Path(run.settings["data"]), rows)
    with pytest.raises(DataError, match=r"train.jsonl:2: messages\[\d\].content is empty"):
        run.train()
    assert nothing_written(run)


def test_prompt_over_the_context(run: Run) -> None:
    with pytest.raises(DataError, match=r"train.jsonl:\d+: the prompt of .*at most 20 fit"):
        run.train(max_length=20)
    assert nothing_written(run)


def test_length_over_the_context(run: Run) -> None:
    with pytest.raises(UsageError, match="--max-length 4096 is over the base's context of 2048"):
        run.train(max_length=4096)


def test_tokenizer_of_another_model(run: Run, changed_base: Path) -> None:
    tokenizer = json.loads((changed_base / "tokenizer.json").read_text())
    one = tokenizer["added_tokens"][0]
    more = [one | {"id": 430 + index, "content": f"<|{index}|>"} for index in range(100)]
    tokenizer["added_tokens"] += more
    (changed_base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="token ids up to 529, the model a vocabulary of 512"):
        run.train(base=str(changed_base))
    assert nothing_written(run)


def test_no_end_of_text(run: Run, changed_base: Path) -> None:
    (changed_base / "generation_config.json").unlink()
    for file in ("config.json", "tokenizer_config.json"):
        edit(changed_base / file, eos_token=None, eos_token_id=None)
    with pytest.raises(CheckpointError, match="names no end-of-text token"):
        run.train(base=str(changed_base))


def test_layers_that_the_mask_does_not_describe(run: Run, changed_base: Path) -> None:
    edit(changed_base / "config.json", sliding_window=64)
    with pytest.raises(CheckpointError, match="sliding-window"):
        run.train(base=str(changed_base))


def test_folder_that_is_not_empty(run: Run) -> None:
    run.out.mkdir()
    (run.out / "mine").touch()
    with pytest.raises(UsageError, match=r"is not empty; give a new folder, or --resume"):
        run.train()


def test_resume_of_nothing(run: Run) -> None:
    with pytest.raises(UsageError, match="--resume: there is no run in"):
        run.train(resume=True)


def test_resume_on_another_base(run: Run, tmp_path: Path) -> None:
    run.train()
    other = make_tiny("llama", tmp_path / "other", seed=7)["base"]
    with pytest.raises(UsageError, match=r"was another one.*\n  base fingerprint: then ps1:"):
        run.train(resume=True, base=str(other))


def test_resume_with_another_tokenizer(run: Run, changed_base: Path) -> None:
    run.train()
    template = changed_base / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\\n", "<|im_end|>"))
    edit(changed_base / "tokenizer_config.json", bos_token="<|endoftext|>")
    with pytest.raises(UsageError) as caught:
        run.train(resume=True, base=str(changed_base))
    lines = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert lines[1:] == ["  tokenizer", "  chat template"]


def test_resume_of_what_was_moved(run: Run, changed_base: Path) -> None:
    """The same base under another path is the same base."""
    run.train()
    run.train(resume=True, base=str(changed_base))


def test_resume_with_other_data_or_settings(run: Run) -> None:
    run.train()
    write_rows(Path(run.settings["data"]), conversations(32, seed=9))
    with pytest.raises(UsageError) as caught:
        run.train(resume=True, learning_rate=0.5, seed=3, log_steps=7)
    said = str(caught.value)
    assert "\n  data: then data1:" in said
    assert "\n  learning rate: then 0.001, now 0.5" in said
    assert "\n  seed: then 0, now 3" in said
    assert "log" not in said


@contextmanager
def disk_of(largest_file: int) -> Iterator[None]:
    """Writes beyond `largest_file` bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("largest_file", [1_000_000, 3_000_000])
def test_full_disk_leaves_the_last_checkpoint(
    run: Run, tiny: dict[str, Path], tmp_path: Path, largest_file: int
) -> None:
    """The weights do not fit, or they do and the optimizer's state does not."""
    settings = {"steps": 8, "checkpoint_steps": 2}
    with pytest.raises(KeyboardInterrupt), stop_at(5):
        run.train(**settings)
    with (
        pytest.raises(TrainingError, match=r"could not save .*checkpoint-6: .* GB free.*--resume"),
        disk_of(largest_file),
    ):
        run.train(**settings, resume=True)
    training = run.out / "training"
    assert {f.name for f in training.glob("*checkpoint*")} == {"checkpoint-2", "checkpoint-4"}
    assert not (training / ".partial").exists()
    run.train(**settings, resume=True)
    whole = Run(tmp_path / "whole", tiny["base"])
    whole.train(**settings)
    assert run.log() == whole.log()


@pytest.mark.parametrize(("largest_file", "what"), [(100, "training/run.json"), (3000, "training")])
def test_full_disk_before_any_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch, largest_file: int, what: str
) -> None:
    """What the run is, or its log, cannot be written."""
    base_fingerprint(Path(run.settings["base"]))
    # Its thread would say it once more, when the test is over.
    monkeypatch.setattr("ps_sglang.training.train.run.tensorboard", lambda folder: [])
    with (
        pytest.raises(TrainingError, match=f"could not save {run.out}/{what}: .*File too large"),
        disk_of(largest_file),
    ):
        run.train(steps=30, epochs=30, checkpoint_steps=30)


def test_full_disk_at_the_end_leaves_the_checkpoints(run: Run) -> None:
    """The run is over, its decoder cannot be written; a resume only writes it."""
    run.train()
    before = load_file(run.out / "model.safetensors")
    with pytest.raises(TrainingError, match=f"could not save {run.out}: "), disk_of(1_000_000):
        run.train(resume=True)
    assert not (run.out / ".partial").exists()
    run.train(resume=True)
    after = load_file(run.out / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_loss_that_is_not_finite(run: Run) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+, learning rate"):
        run.train(learning_rate=1e30, max_grad_norm=1e30)
    assert not (run.out / MANIFEST_FILE).exists()


def test_a_gradient_that_is_not_finite(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it reaches the weights, which the same step's checkpoint would keep."""
    whole = DecoderTrainer.compute_loss

    def steep(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = whole(self, *args, **kwargs)
        return loss * float("inf") if self.state.global_step == 2 else loss

    monkeypatch.setattr(DecoderTrainer, "compute_loss", steep)
    with pytest.raises(TrainingError, match=r"the gradient norm is (nan|inf) at step 3, learning"):
        run.train(checkpoint_steps=1, keep_checkpoints=9)
    training = run.out / "training"
    assert {f.name for f in training.glob("*checkpoint*")} == {"checkpoint-1", "checkpoint-2"}
