"""The whole command, against a stand-in cluster over HTTP."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
from pathlib import Path

import pytest

from ps_sglang.verify.__main__ import main
from tests.support.standin_gateway import serving
from tests.verify.model_gateway import ModelGateway, Models

NAMES = ("a", "b", "c")


def arguments(url: str, folders: dict[str, Path], names: tuple[str, ...] = NAMES) -> list[str]:
    decoders = [f"--decoder={name}={folders[name]}" for name in names]
    return ["--url", url, "--base", str(folders["base"]), *decoders]


def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_right_cluster_is_exact(
    tiny: dict[str, Path], models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in, file = ModelGateway(models, NAMES), tmp_path / "verdicts.json"
    with serving(stand_in) as url:
        status = main([*arguments(url, tiny), "--json", str(file)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "exact: 64/64 prompts, 1536/1536 tokens"
    assert status == 0
    assert len(stand_in.asked) == 64
    assert any(line.startswith("8 at once: 16 requests") for line in lines)
    assert json.loads(file.read_text())["passed"] is True


def test_turns_contain_what_was_said_before(tiny: dict[str, Path], models: Models) -> None:
    stand_in = ModelGateway(models, NAMES)
    with serving(stand_in) as url:
        main(arguments(url, tiny))
    turns = [body["input_ids"] for _, body in stand_in.asked[-16:-4]]
    for conversation in (turns[:6], turns[6:]):
        for before, after in itertools.pairwise(conversation):
            assert after[: len(before)] == before
            assert len(after) > len(before) + 24


def test_a_cluster_that_uses_the_decoders_own_kv_is_caught(
    tiny: dict[str, Path], models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ModelGateway(models, NAMES, own_kv=True)) as url:
        status = main(arguments(url, tiny))
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAILED request")]
    assert status == 1
    assert len(failed) > 32
    assert lines[-1].startswith(f"exact: {64 - len(failed)}/64 prompts, ")


def test_in_bfloat16_rounding_is_right_and_own_kv_is_not(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rounded = Models(tiny, "bfloat16")
    said = {}
    for own_kv in (False, True):
        with serving(ModelGateway(rounded, NAMES, own_kv)) as url:
            status = main([*arguments(url, tiny), "--dtype", "bfloat16"])
        said[own_kv] = capsys.readouterr().out.splitlines()
        assert status == int(own_kv), "\n".join(said[own_kv])
    assert any("FAILED: own KV must be off 3 times as much" in line for line in said[True])
    assert sum(line.startswith("FAILED request") for line in said[True]) > 32
    with serving(ModelGateway(rounded, NAMES)) as url:
        assert main(arguments(url, tiny)) == 1  # by the bar of float32 it is not exact


def test_a_check_that_cannot_tell_fails(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = shutil.copytree(tiny["base"], tmp_path / "twin")
    folders = {"base": tiny["base"], "twin": twin}
    with serving(ModelGateway(Models(folders), ("twin",))) as url:
        status = main(arguments(url, folders, ("twin",)))
    out = capsys.readouterr().out
    assert "cannot tell" in out
    assert out.splitlines()[-1] == "exact: 64/64 prompts, 1536/1536 tokens"
    assert status == 1


def test_no_server(tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    url = free_url()
    assert main(arguments(url, tiny)) == 2
    assert f"no ps_sglang gateway answers at {url}" in capsys.readouterr().err


def test_a_decoder_that_is_not_served(
    tiny: dict[str, Path], models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ModelGateway(models, ("a", "b"))) as url:
        assert main(arguments(url, tiny)) == 2
    assert "does not serve c; it serves a, b" in capsys.readouterr().err


def test_a_folder_that_is_not_there(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = tiny | {"b": Path("/nowhere/b")}
    assert main(arguments("http://127.0.0.1:9", folders)) == 2
    assert "/nowhere/b" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--url", "http://127.0.0.1:9"],
        ["--url", "http://127.0.0.1:9", "--base", "base"],
        ["--demo", "--url", "http://127.0.0.1:9"],
    ],
)
def test_missing_or_contradictory_arguments(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert "give --url, --base and at least one --decoder, or --demo alone" in (
        capsys.readouterr().err
    )


def test_json_into_a_missing_folder(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*arguments("http://127.0.0.1:9", tiny), "--json", "/nowhere/out.json"]
    assert main(argv) == 2
    assert "there is no folder /nowhere" in capsys.readouterr().err


def test_json_into_a_folder(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments("http://127.0.0.1:9", tiny), "--json", str(tmp_path)]) == 2
    assert f"--json {tmp_path}: is a folder" in capsys.readouterr().err
