"""What a person sees of an evaluation that takes hours."""

from __future__ import annotations

import time

from ps_sglang.progress import OnProgress, duration

# Between lines, so that a short run is not drowned in them.
_EVERY_S = 10.0


class EvaluationProgress:
    """`what`: 40/200 answers, 3.1 answers/s, 52 s left. `tokens` are those of all prompts and
    answers: the batches of long prompts come first, so answers alone would mislead."""

    def __init__(self, what: str, answers: int, tokens: int, on_progress: OnProgress) -> None:
        self._what, self._answers, self._tokens = what, answers, tokens
        self._on_progress = on_progress
        self._began = self._reported = time.monotonic()
        self._done = self._done_tokens = 0

    def add(self, answers: int, tokens: int) -> None:
        self._done += answers
        self._done_tokens += tokens
        now = time.monotonic()
        if self._done == self._answers or now - self._reported < _EVERY_S:
            return
        self._reported = now
        seconds = now - self._began
        left = seconds * (self._tokens - self._done_tokens) / self._done_tokens
        self._on_progress(
            f"{self._what}: {self._done}/{self._answers} answers, "
            f"{self._done / seconds:.1f} answers/s, {duration(left)} left"
        )

    def finish(self) -> None:
        seconds = time.monotonic() - self._began
        self._on_progress(
            f"{self._what}: {self._done} answers, {self._done / seconds:.1f} answers/s, "
            f"{duration(seconds)}"
        )
