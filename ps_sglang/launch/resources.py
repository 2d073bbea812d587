"""What a user may say about the GPUs of a worker, and of a launch; a plan is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_COUNTED: Final = re.compile(r"(\d+)x(.+)", re.IGNORECASE)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB)", re.IGNORECASE)
_UNITS: Final = {"gb": 10**9, "gib": 1 << 30}


@dataclass(frozen=True)
class Resources:
    """GPUs of each worker: how many (`tp`), which, and how much of each one's memory.

    `gpus` has `tp` numbers for all replicas to share, or `tp` for each. `mem` is a size like 20GB.
    """

    tp: int | None = None
    gpus: tuple[int, ...] | None = None
    mem: str | None = None

    @property
    def memory_bytes(self) -> int | None:
        """`mem`, in bytes."""
        return None if self.mem is None else parse_size(self.mem)

    def problems(self) -> Iterator[str]:
        """What is wrong with it in itself."""
        if self.tp is not None and self.tp < 1:
            yield f"tp is {self.tp}, must be at least 1"
        if self.gpus is not None and (problem := _numbers_problem(self.gpus)):
            yield f"gpus are {list(self.gpus)}: {problem}"
        if self.mem is not None:
            try:
                parse_size(self.mem)
            except ValueError as error:
                yield f"mem: {error}"


NO_RESOURCES: Final = Resources()


@dataclass(frozen=True)
class GpuChoice:
    """A value of `--gpus`: all, `numbers`, or a description of `count` GPUs of `each_bytes`."""

    numbers: tuple[int, ...] | None = None
    count: int = 0
    each_bytes: int = 0


def parse_size(text: str) -> int:
    """Bytes of 20GB (10^9 bytes each) or 18.5GiB; raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} must be a size like 20GB or 18.5GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_gpus(text: str) -> GpuChoice:
    """What `--gpus` means; raises ValueError."""
    text = text.strip()
    if text == "all":
        return GpuChoice()
    if (match := _COUNTED.fullmatch(text)) is not None:
        choice = GpuChoice(None, int(match[1]), parse_size(match[2]))
        if not choice.count or not choice.each_bytes:
            raise ValueError("must describe at least one GPU with some memory")
        return choice
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        raise ValueError(
            "must be all, numbers like 0,2, or a machine's description like 8x80GB"
        ) from None
    if problem := _numbers_problem(numbers):
        raise ValueError(problem)
    return GpuChoice(numbers)


def gpus_problem(text: str) -> str | None:
    """What is wrong with a value of `--gpus`, None if nothing is."""
    try:
        parse_gpus(text)
    except ValueError as error:
        return f"--gpus {text}: {error}"
    return None


def _numbers_problem(numbers: tuple[int, ...]) -> str | None:
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        return "name at least one, each once, from 0 on"
    return None
