"""The command `ps-sglang`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from ps_sglang.cli import COMMANDS, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"  {name}" in listed for name in COMMANDS)


@pytest.mark.parametrize("words", [[], ["serve"]])
def test_a_wrong_command_is_exit_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_check_reports_each_decoder(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "--prefill", str(tiny["base"]), "--decoders", f"x={tiny['a']}"]
    assert main(words) == 0
    base, decoder = capsys.readouterr().out.splitlines()
    assert base == f"base base: {tiny['base']}"
    assert decoder.startswith(f"decoder x: {tiny['a']}: stand-in made from this base; ")


def test_check_tells_an_unverified_decoder(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bare = shutil.copytree(tiny["a"], tmp_path / "bare")
    (bare / "prefillshare.json").unlink()
    words = ["check", "--prefill", str(tiny["base"]), "--decoders", f"x={bare}"]
    assert main(words) == 2
    assert "prefillshare.json" in capsys.readouterr().err
    assert main([*words, "--allow-unverified"]) == 0
    assert f"decoder x: {bare}: fits by shape, unverified" in capsys.readouterr().out


def test_the_base_may_be_its_own_decoder(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "--prefill", str(tiny["base"]), "--decoders", f"x={tiny['base']}"]
    assert main(words) == 0
    assert f"decoder x: {tiny['base']}: the base itself" in capsys.readouterr().out


def test_launch_refuses_what_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--prefill", "/nowhere", "--decoders", "a"]) == 2
    assert "no folder /nowhere" in capsys.readouterr().err


def test_models_lists_the_demo_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = {line.split()[0]: " ".join(line.split()[1:3]) for line in lines}
    assert {"base", "code", "tools", "math", "a", "b", "c"} < kinds.keys()
    assert kinds["base"] == kinds["smollm2-135m-code"] == "whole model,"
    assert kinds["code"] == "LoRA adapter"


def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "models", (interrupted, ""))
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "ps-sglang: stopped\n"


@pytest.mark.parametrize("command", ["launch", "check"])
def test_help_is_of_the_command_that_was_named(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert f"\n  ps-sglang {command} --prefill base" in shown
    assert ("start nothing" in shown) is (command == "check")
