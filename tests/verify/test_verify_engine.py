"""verify against real engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ps_sglang.launch import Cluster, ClusterSpec
from ps_sglang.verify.__main__ import main

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    spec = ClusterSpec(
        prefill=f"base={tiny['base']}",
        decoders=tuple(f"{name}={tiny[name]}" for name in "ab"),
        port=0,
        log_dir=tmp_path_factory.mktemp("logs"),
    )
    with Cluster.start(spec) as running:
        yield running


def test_a_cluster_is_exact(
    cluster: Cluster, tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    decoders = [f"--decoder={name}={tiny[name]}" for name in "ab"]
    status = main(["--url", cluster.url, "--base", str(tiny["base"]), *decoders])
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "exact: 64/64 prompts, 1536/1536 tokens", out
    assert status == 0


def test_another_checkpoint_than_the_served_one_is_found_out(
    cluster: Cluster, tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--url", cluster.url, "--base", str(tiny["base"]), f"--decoder=a={tiny['c']}"]
    assert main(argv) == 1
    assert "exact: 0/64 prompts" in capsys.readouterr().out


def test_a_cluster_in_bfloat16_is_right_but_for_its_rounding(
    tiny: dict[str, Path],
    tmp_path: Path,
    cluster: Cluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.stop()  # the machine has room for one
    spec = ClusterSpec(
        prefill=f"base={tiny['base']}",
        decoders=tuple(f"{name}={tiny[name]}" for name in "ab"),
        port=0,
        log_dir=tmp_path,
        engine_args=("--dtype", "bfloat16", "--page-size", "64"),
    )
    decoders = [f"--decoder={name}={tiny[name]}" for name in "ab"]
    with Cluster.start(spec) as running:
        argv = ["--url", running.url, "--base", str(tiny["base"]), *decoders]
        status = main([*argv, "--dtype", "bfloat16"])
    out = capsys.readouterr().out
    assert status == 0, out
    assert "right but for rounding: 64/64 prompts" in out
