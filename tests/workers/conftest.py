from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.standin_gateway import StandInGateway, serving


@pytest.fixture
def gateway() -> Iterator[StandInGateway]:
    running = StandInGateway()
    with serving(running):
        yield running
