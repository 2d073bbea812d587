from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.home import home
from ps_sglang.models.cache import prepare_once


def test_builds_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "file").write_text("whole")

    target = tmp_path / "models" / "m"
    assert prepare_once(target, build) == target
    assert prepare_once(target, build) == target
    assert len(built) == 1
    assert (target / "file").read_text() == "whole"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise RuntimeError("disk full")

    target = tmp_path / "m"
    with pytest.raises(RuntimeError, match="disk full"):
        prepare_once(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]
    prepare_once(target, lambda folder: (folder / "file").touch())
    assert [path.name for path in target.iterdir()] == ["file"]


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    left_over = tmp_path / ".m.partial-x"
    left_over.mkdir()
    other = tmp_path / ".n.partial-x"
    other.mkdir()
    prepare_once(tmp_path / "m", lambda folder: None)
    assert not left_over.exists()
    assert other.exists()


def test_home_is_configurable() -> None:
    assert home({"PS_SGLANG_HOME": "/somewhere"}) == Path("/somewhere")
    assert home({"PS_SGLANG_HOME": "~/x"}) == Path.home() / "x"
    assert home({}) == Path.home() / ".cache" / "ps_sglang"
