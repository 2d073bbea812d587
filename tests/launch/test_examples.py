"""The specifications in `launch/` that name models or machines of others: each is planned."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ps_sglang.keys.__main__ import main as keys
from ps_sglang.launch.__main__ import main
from ps_sglang.launch.worker import parse_args

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture
def folder(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where somebody has the models that the specifications name, and the keys."""
    models = tmp_path / "models"
    models.mkdir()
    for name, model in {"base": "base", "math": "a", "code": "b", "chat": "c"}.items():
        (models / name).symlink_to(tiny[model])
    (tmp_path / "launch").symlink_to(LAUNCH)
    monkeypatch.chdir(tmp_path)
    keys(["add", "keys.txt", "ops", "--role", "admin"])
    return tmp_path


def commands(name: str, program: str) -> list[list[str]]:
    """The arguments of the commands that a specification's comments give for a `program`."""
    comments = re.sub(r"^# ?", "", (LAUNCH / name).read_text(), flags=re.MULTILINE)
    found = re.findall(rf"^ +{program} ((?:.*\\\n)*.*)$", comments, re.MULTILINE)
    return [shlex.split(command.replace("\\\n", " ")) for command in found]


def test_one_machine_with_gpus(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = commands("gpus.yaml", "ps-sglang launch")
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("4 GPUs of 80.0 GB (described)\n")
    for worker, gpu in (("prefill-0", 0), ("prefill-1", 1), ("decode-math", 2), ("decode-chat", 3)):
        assert re.search(rf"^{worker} +127\.0\.0\.1 +{gpu} ", shown, re.MULTILINE)


def test_two_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = commands("two-machines.yaml", "ps-sglang launch")
    assert main([*command, "--device", "cpu", "--dry-run"]) == 0
    assert re.search(r"^decode-math +10\.0\.0\.1 ", capsys.readouterr().out, re.MULTILINE)
    (command,) = commands("two-machines.yaml", "ps-sglang worker")
    second = parse_args(command)
    assert (second.decoders, second.advertise) == (("code=./models/code",), "10.0.0.2")
    assert (second.prefill, second.join) == ("./models/base", "http://10.0.0.1:8000")
    assert second.cluster_key_file == Path("cluster.key")
