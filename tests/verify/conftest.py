from __future__ import annotations

from pathlib import Path

import pytest

from tests.verify.model_gateway import Models


@pytest.fixture(scope="session")
def models(tiny: dict[str, Path]) -> Models:
    return Models(tiny)
