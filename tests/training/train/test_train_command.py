"""The command line: what it says without training, and one whole run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.training.train.__main__ import main
from ps_sglang.training.train.args import parse_args
from ps_sglang.training.train.settings import TrainSettings
from tests.training.train.train_setup import Run

NEEDED = ["--base", "b", "--data", "d", "--out", "o"]


def test_defaults_are_those_of_the_settings() -> None:
    assert parse_args(NEEDED) == TrainSettings(base="b", data="d", out=Path("o"))


def test_every_setting_has_a_flag() -> None:
    values = {
        "method": "full",
        "tail": "0",
        "schedule": "cosine",
        "dtype": "bfloat16",
        "keep_kv_gb": "0",
        "keep_kv_dir": None,
        "tool_call_parser": "hermes",
        "reasoning_parser": "qwen3",
    }
    switches = {"skip_long", "drop_unrendered", "gradient_checkpointing", "resume"}
    argv = []
    for field in fields(TrainSettings):
        value = values.get(field.name, "3" if field.name != "warmup" else "0.5")
        if value is not None:
            argv += [f"--{field.name.replace('_', '-')}"]
            argv += [] if field.name in switches else [value]
    settings = parse_args(argv)
    for field in fields(TrainSettings):
        if field.name not in {"keep_kv_gb", "keep_kv_dir", "tail"}:
            assert getattr(settings, field.name) != field.default, field.name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--learning-rate", "0"], "--learning-rate 0.0: must be above 0"),
        (["--warmup", "5"], "--warmup 5.0: must be a part of the steps, 0 to 1"),
        (["--lora-alpha", "8"], "--lora-alpha 8: needs --lora-rank"),
        (["--tail", "-1"], "--tail -1: must be at least 0"),
        (["--tail", "8", "--method", "full"], "--tail 8: full fine-tuning reads the whole prompt"),
        (["--keep-kv-dir", "x"], "--keep-kv-dir x: needs --keep-kv-gb"),
        (["--keep-kv-gb", "1", "--method", "full"], "--keep-kv-gb 1: full fine-tuning reads no"),
        (["--tool-call-parser", "herms"], "tool_call_parser is 'herms', .* auto, .*hermes"),
        (
            ["--reasoning-parser", "hermes"],
            "reasoning_parser is 'hermes', .* auto, .*qwen3",
        ),
        (["--epochs", "0", "--seed", "-1"], "wrong settings:\n  --seed -1: .*\n  --epochs 0.0: "),
        (["--method", "best"], "argument --method: invalid choice: 'best'"),
        (["--steps", "x"], "argument --steps: invalid int value: 'x'"),
    ],
)
def test_wrong_values(flags: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_args([*NEEDED, *flags])


def test_missing_flag() -> None:
    with pytest.raises(UsageError, match="the following arguments are required: --data, --out"):
        parse_args(["--base", "b"])


def test_errors_have_no_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--base", str(tmp_path / "none"), "--data", "d", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("ps-sglang: error: no folder ")


def test_help_is_light() -> None:
    """Without torch, whose import takes seconds."""
    program = (
        "import sys, runpy; sys.argv = ['train', '--help']\n"
        "try: runpy.run_module('ps_sglang.training.train', run_name='__main__')\n"
        "except SystemExit: print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stderr
    assert "--learning-rate X" in done.stdout


def test_knows_nothing_of_the_engine() -> None:
    program = "import sys, ps_sglang.training.train.run; print('sglang' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_exit_status(tiny: dict[str, Path], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", tiny["base"])
    argv = [x for k, v in run.settings.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    assert main(argv) == 0
    assert (run.out / "prefillshare.json").is_file()
    assert main([*argv, "--resume", "--seed", "1"]) == 2
    worse = [*argv, "--learning-rate", "1e30", "--max-grad-norm", "1e30"]
    assert main([*worse, "--out", str(tmp_path / "worse")]) == 1
