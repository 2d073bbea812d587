from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workers.workers_server import Gateway, serving


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with serving() as found:
        yield found
