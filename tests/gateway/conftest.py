from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway.gateway_setup import QUICK, Setup, running
from tests.gateway.hand_clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def gateway() -> AsyncIterator[Setup]:
    """One prefill worker, decoders `a` and `b`."""
    async with running() as setup:
        yield setup


@pytest.fixture
async def replicated() -> AsyncIterator[Setup]:
    """Two prefill workers, two decode workers of decoder `a`."""
    async with running(prefill=2, decoders=("a",), replicas=2) as setup:
        yield setup


@pytest.fixture
async def quick() -> AsyncIterator[Setup]:
    """As `gateway`; its workers are probed all the time."""
    async with running(QUICK) as setup:
        yield setup
