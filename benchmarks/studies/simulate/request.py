"""A turn under way, and the names of its context's pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.sessions.workload import Session, Turn

PAGE: Final = 64
"""Tokens of a page. SGLang's default is 1; whole pages keep the trees of a simulation small."""
_MOST_PAGES: Final = 24  # bits of a page's number within its session


def pages(session: Session, tokens: int, page: int) -> list[int]:
    """The names of the whole pages in the first `tokens` tokens of a session's context.

    Equal content has equal names: the pages of the system prompt are those of every session.
    """
    shared = min(session.system, tokens) // page
    first_page = (session.number + 1) << _MOST_PAGES
    return [*range(shared), *range(first_page + shared, first_page + tokens // page)]


@dataclass(eq=False, slots=True)
class Request:
    """A turn. `computed`, `held` and `loaded` add up to `base` if the prefill worker was needed.

    `asked`, `first` (token) and `ended` are times.
    """

    session: Session
    turn: Turn
    prompt: int
    asked: float
    first: float = 0.0
    ended: float = 0.0
    route: Any = None
    expected: float = 0.0  # tokens that the prefill worker held when it was chosen
    held: int | None = None  # pages, when it was last looked up in the queue
    prefill_held: int = 0  # pages locked there
    decode_held: int = 0
    computed: int = 0
    loaded: int = 0
    moved: int = 0
    done: int = 0  # tokens of the base prefix that are in the prefill worker's pool so far
    reserved: int = 0
    decode_reserved: int = 0
    last_step: int = 0
    names: list[int] = field(default_factory=list)

    @property
    def base(self) -> int:
        """Tokens of the base prefix."""
        return self.prompt - 1
