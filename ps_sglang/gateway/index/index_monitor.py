"""Whether prompts find what was stored for them: the proof that texts address tokens.

The rules for texts and chats are read from files. A worker may have been started with another chat
template, or tokenize in a way that the files do not tell; then nothing that it stores would ever be
found. So prompts that have been prefilled are looked up again when their events must have come.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from ps_sglang.gateway.index.base_index import BaseIndex
from ps_sglang.gateway.index.lookup import NO_MATCH
from ps_sglang.gateway.index.prompt import Kind, Prompt

MISSES: Final = 16
"""So many prompts of a kind in a row that find nothing: it is not addressed by its text."""
_WAITING: Final = 64
_LEAST_BYTES: Final = 1024
"""Shorter prompts say little: pages are stored whole, and one may have 128 tokens."""


class IndexMonitor:
    """Counts, for each kind of prompt, how many in a row did not find what was stored."""

    def __init__(self, index: BaseIndex, clock: Callable[[], float], seconds: float) -> None:
        """Events have come `seconds` after a prefill."""
        self._index = index
        self._clock = clock
        self._seconds = seconds
        self._waiting: deque[tuple[float, str, Prompt]] = deque()
        self._misses: Counter[Kind] = Counter()

    def stored(self, worker: str, prompt: Prompt) -> None:
        """A worker with live events has prefilled a prompt; looks up those of a while ago."""
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            _, name, earlier = self._waiting.popleft()
            match = self._index.match(earlier.text, earlier.salt).get(name, NO_MATCH)
            # Half will do: other prompts share the beginning, a full pool may have let the end go.
            is_match = 2 * match.bytes >= len(earlier.text)
            self._misses[earlier.kind] = 0 if is_match else self._misses[earlier.kind] + 1
        if len(self._waiting) < _WAITING and len(prompt.text) >= _LEAST_BYTES:
            self._waiting.append((now + self._seconds, worker, prompt))

    def finds(self, kind: Kind) -> bool:
        """Whether prompts of a kind find what is stored, as far as is known."""
        return self._misses[kind] < MISSES

    def forget(self, worker: str) -> None:
        """A worker's events have ended: what it stored cannot be looked up."""
        self._waiting = deque(one for one in self._waiting if one[1] != worker)
