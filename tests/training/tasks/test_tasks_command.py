"""`ps-sglang tasks`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.training.tasks import gsm8k, task
from ps_sglang.training.tasks.__main__ import main
from ps_sglang.training.train.records import read_data
from tests.training.tasks.task_setup import needs


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "ps_sglang.training.tasks", *arguments]
    return subprocess.run(line, capture_output=True, text=True)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_it_writes_what_the_trainer_reads(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    done = command("code", "--out", str(out), "--train-items", "50")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{out}/train.jsonl: 50 items",
        f"{out}/dev.jsonl: 100 items",
        f"{out}/test.jsonl: 200 items",
    ]
    code = task("code")
    for split, items in (("train", code.items("train", 50)), ("test", code.items("test"))):
        rows = [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()]
        assert rows == [item.to_row() for item in items]
        assert rows[0]["messages"] == [
            {"role": "user", "content": items[0].messages[0]["content"]},
            {"role": "assistant", "content": items[0].answer},
        ]
        assert len(read_data(str(out / f"{split}.jsonl")).records) == len(items)


@needs(gsm8k.PACKAGE)
def test_a_task_that_is_only_reported_has_one_file(tmp_path: Path) -> None:
    assert main(["gsm8k", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["test.jsonl"]


def test_help_teaches() -> None:
    done = command("--help")
    assert done.returncode == 0
    for word in ("code", "tools", "math", "humaneval", "gsm8k", "bfcl-live-simple", "--out DIR"):
        assert word in done.stdout
    assert "ps-sglang tasks code --out data/code" in done.stdout


def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    assert "invalid choice: 'cod'" in refusal(capsys, "cod", *out)
    assert "required: --out" in refusal(capsys, "code")
    assert "invalid int value: 'x'" in refusal(capsys, "code", *out, "--train-items", "x")
    for count in ("0", "-1", "4001"):
        error = refusal(capsys, "code", *out, "--train-items", count)
        assert f"code train has 4000 items; {count} cannot be had of them" in error
    error = refusal(capsys, "gsm8k", *out, "--train-items", "5")
    assert "--train-items: gsm8k is only reported" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    error = refusal(capsys, "code", "--out", str(file))
    assert f"--out {file}: cannot be written" in error


def test_an_unknown_task() -> None:
    with pytest.raises(UsageError, match=r"no task 'maths'; the tasks are: code, tools, math, "):
        task("maths")
