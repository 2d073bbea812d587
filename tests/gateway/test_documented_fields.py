"""What is accepted without an effect, or refused by name, stands in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.gateway.bodies import anthropic_request, others_hints, responses_request
from tests.support.route_differences import table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "clients.md").read_text()


@pytest.mark.parametrize(
    "name",
    [
        *anthropic_request.UNUSED,
        *responses_request.UNUSED,
        *responses_request.UNSUPPORTED,
        *others_hints.UNUSED,
        others_hints.PRIORITY_HEADER,
        others_hints.FINAL_HEADER,
    ],
)
def test_the_page_names_it(name: str) -> None:
    assert f"`{name}" in PAGE


def test_the_page_shows_what_differs_from_one_sglang_server() -> None:
    assert "\n\n" + "\n".join(table()) + "\n\n" in (DOCS / "compatibility.md").read_text()
