"""What the launcher says is served once a worker has died."""

from __future__ import annotations

import pytest

from ps_sglang.launch.outlook import Candidate, outlook

PREFILL = Candidate("p0", True), Candidate("p1", True)
DECODE = (
    Candidate("a0", False, ("a",)),
    Candidate("a1", False, ("a",)),
    Candidate("b0", False, ("b",)),
)
SHARED = Candidate("s0", False, ("b", "c"))
NOTHING = "so nothing can be served"


@pytest.mark.parametrize(
    ("dead", "words"),
    [
        (("p0",), "still served: a, b"),
        (("a0",), "still served: a, b"),
        (("a0", "a1"), "still served: b; no longer: a"),
        (("p0", "b0"), "still served: a; no longer: b"),
        (("p0", "p1"), f"no prefill worker is left, {NOTHING}"),
        (("a0", "a1", "b0"), f"no decode worker is left, {NOTHING}"),
    ],
)
def test_words(dead: tuple[str, ...], words: str) -> None:
    assert outlook((*PREFILL, *DECODE), dead) == words


def test_a_worker_that_gets_no_requests_serves_nobody() -> None:
    """It is another launcher's, and the gateway says that it is broken."""
    workers = [PREFILL[0], Candidate("a0", False, ("a",), able=False), DECODE[2]]
    assert outlook(workers, ()) == "still served: b; no longer: a"


def test_a_worker_of_several_decoders_takes_all_of_them_along() -> None:
    workers = [*PREFILL, *DECODE, SHARED]
    assert outlook(workers, ["s0"]) == "still served: a, b; no longer: c"


def test_one_worker_is_all_there_is() -> None:
    assert outlook([Candidate("w", True, ("a", "b"))], ["w"]).endswith(NOTHING)
    assert outlook([Candidate("w", True, ("a", "b"))], ()) == "still served: a, b"
