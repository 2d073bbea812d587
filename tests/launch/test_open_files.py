"""What the launcher says of a low limit of open files."""

from __future__ import annotations

import pytest

from ps_sglang.launch.open_files import LOW, few_files


def test_a_high_limit_is_no_news() -> None:
    assert list(few_files(LOW, workers=80, processes=1)) == []


@pytest.mark.parametrize(
    ("limit", "workers", "processes", "at_once"),
    [(1024, 4, 1, 282), (1024, 4, 2, 564), (4096, 8, 1, 1169), (64, 8, 1, 0)],
)
def test_a_low_limit_is_told_in_requests(
    limit: int, workers: int, processes: int, at_once: int
) -> None:
    (line,) = few_files(limit, workers, processes)
    assert f"open {limit} files" in line
    assert f"about {at_once} requests at once" in line
    assert "ulimit -Hn" in line
