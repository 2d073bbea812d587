"""The tiers of tests/conftest.py are what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import TESTS, TIERS

FAST = "not engine and not process and not model"
COLLECT = f"""
import sys
import pytest
status = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-m", {FAST!r}])
assert status == 0, status
heavy = {{"torch", "transformers", "sglang"}} & set(sys.modules)
assert not heavy, heavy
"""


def test_all_places_are_there() -> None:
    places = [TESTS / place for places in TIERS.values() for place in places]
    assert not [place for place in places if not place.exists()]


def test_the_fast_tier_imports_no_models() -> None:
    """A file that does belongs to the tier `model`."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_runs_the_fast_tier() -> None:
    assert FAST in Path(TESTS.parent, "Makefile").read_text()
