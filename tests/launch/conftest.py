"""Fixtures of the launcher's tests: tiny checkpoints, and a marker to find processes by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from ps_sglang.models.tiny import make_tiny
from tests.support.processes import MARK, Marked


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny base and its decoders a, b, c."""
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    """Every process started by the test; the test fails if one is left when it ends."""
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    processes = Marked(mark)
    yield processes
    left = processes.kill_all()
    assert not left, f"still running: {left}"
