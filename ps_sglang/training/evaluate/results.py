"""What an evaluation leaves behind: answers as they come, and rows when a part is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ps_sglang.errors import EvaluationError, UsageError
from ps_sglang.training.evaluate.scores import Row
from ps_sglang.training.machine import environment


@dataclass(frozen=True)
class Answered:
    """One answer: `tokens` without the stop token, `text` what they say, whether it `passed`."""

    id: str
    share: float
    served: bool
    tokens: tuple[int, ...]
    text: str
    passed: bool


@dataclass(frozen=True)
class OutcomeDifference:
    """An item that the cluster answers in another way than this process does at share 1.

    `position` is the first token that differs, None where only the text does; `gap` by how much
    the best logit there exceeds the second best.
    """

    id: str
    offline: str
    served: str
    position: int | None
    gap: float | None

    def __str__(self) -> str:
        where = "the text alone" if self.position is None else f"token {self.position}"
        gap = "" if self.gap is None else f", where the two best logits are {self.gap:.2g} apart"
        return f"{self.id} differs in {where}{gap}"


@dataclass(frozen=True)
class Comparison:
    """Served answers against offline ones at share 1."""

    n: int
    differing: tuple[OutcomeDifference, ...]

    @property
    def equal(self) -> int:
        return self.n - len(self.differing)


@dataclass(frozen=True)
class Evaluation:
    """All rows of a run, the offline ones first; `comparison` if it was made both ways."""

    rows: tuple[Row, ...]
    comparison: Comparison | None = None

    def write(self, path: Path) -> None:
        """Write it as JSON; the file appears whole. Raises EvaluationError."""
        content: dict[str, Any] = {
            "environment": environment(),
            "rows": [asdict(row) for row in self.rows],
        }
        if self.comparison is not None:
            content["served_equals_offline"] = {
                "n": self.comparison.n,
                "equal": self.comparison.equal,
                "differing": [asdict(difference) for difference in self.comparison.differing],
            }
        partial = path.with_name(f".{path.name}.partial")
        with writing(path):
            partial.write_text(json.dumps(content, indent=2) + "\n")
            partial.replace(path)


class AnswerLog:
    """Answers as JSON lines, each written as soon as it is there; without a path, nothing.

    `facts` stand in every line.
    """

    def __init__(self, path: Path | None, facts: dict[str, Any]) -> None:
        self._path, self._facts = path, facts
        if path is not None:
            with writing(path):
                path.write_text("")

    def write(self, answers: Sequence[Answered]) -> None:
        if self._path is None:
            return
        rows = [self._facts | asdict(answer) | {"tokens": len(answer.tokens)} for answer in answers]
        with writing(self._path), self._path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write inside into an EvaluationError that names `path`."""
    try:
        yield
    except OSError as error:
        raise EvaluationError(f"could not write {path}: {error.strerror}; make room") from error


def check_writable(flag: str, path: Path | None) -> None:
    """Raises UsageError unless a file can be written at `path`."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{flag} {path}: cannot be written; choose another place")
