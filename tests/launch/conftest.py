"""Fixtures of the launcher's tests: a marker to find processes by."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.processes import MARK, Marked


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    """Every process started by the test; the test fails if one is left when it ends."""
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    processes = Marked(mark)
    yield processes
    left = processes.kill_all()
    assert not left, f"still running: {left}"
