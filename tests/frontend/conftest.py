from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ps_sglang.frontend import PrefillShareBackend
from tests.frontend.counting_gateway import Gateway
from tests.support.standin_gateway import serving


@pytest.fixture
def gateway(tiny: dict[str, Path]) -> Iterator[Gateway]:
    running = Gateway(tiny["base"])
    with serving(running):
        yield running


@pytest.fixture
def backend(gateway: Gateway) -> PrefillShareBackend:
    return PrefillShareBackend(gateway.url)
