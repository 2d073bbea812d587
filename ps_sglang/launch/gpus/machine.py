"""The GPUs of this machine, or of one that is only described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ps_sglang.errors import UsageError
from ps_sglang.launch.resources import parse_gpus


@dataclass(frozen=True)
class Gpu:
    """One GPU: `index` is NVML's number, as `nvidia-smi` shows it, memory is in bytes.

    `nvlink`: it has an active link; None if nobody has looked.
    """

    index: int
    total_bytes: int
    free_bytes: int
    name: str = ""
    uuid: str = ""
    nvlink: bool | None = None


@dataclass(frozen=True)
class Machine:
    """GPUs to place workers on.

    `infiniband`: it has such a device; None if nobody has looked, as at a machine that is only
    `described`.
    """

    gpus: tuple[Gpu, ...]
    described: bool = False
    infiniband: bool | None = None

    @property
    def title(self) -> str:
        """Its GPUs in words."""
        sizes = dict.fromkeys(f"{gpu.free_bytes / 1e9:.1f} GB" for gpu in self.gpus)
        each = " and ".join(sizes)
        state = "described" if self.described else "free now"
        return f"{len(self.gpus)} GPU{'s' * (len(self.gpus) != 1)} of {each} ({state})"


def described(text: str) -> Machine | None:
    """The machine that `8x80GB` describes; None for `all` and numbers, which ask this machine.

    A card has the memory it is sold with, or a little more than so many times 10^9 bytes.
    """
    choice = parse_gpus(text)
    gpus = tuple(Gpu(index, choice.each_bytes, choice.each_bytes) for index in range(choice.count))
    return Machine(gpus, described=True) if gpus else None


def choose(text: str, gpus: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """Those of this machine's `gpus` that `--gpus` means: all, or some by number.

    `visible` is the user's CUDA_VISIBLE_DEVICES, which limits both. Raises UsageError.
    """
    allowed = list(gpus) if visible is None else _visible(gpus, visible)
    numbers = parse_gpus(text).numbers
    limit = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
    there = {gpu.index: gpu for gpu in allowed}
    if missing := [number for number in numbers or () if number not in there]:
        raise UsageError(
            f"--gpus {text}: no GPU {', '.join(map(str, missing))} here{limit}; there are "
            f"{', '.join(map(str, there)) or 'none'}"
        )
    chosen = tuple(allowed) if numbers is None else tuple(there[number] for number in numbers)
    if not chosen:
        raise UsageError(f"--gpus {text}: there is no GPU here{limit}")
    return chosen


def _visible(gpus: Sequence[Gpu], visible: str) -> list[Gpu]:
    """As CUDA reads its variable: numbers or the beginnings of UUIDs, up to the first unknown."""
    chosen: list[Gpu] = []
    for word in filter(None, map(str.strip, visible.split(","))):
        named = [
            gpu
            for gpu in gpus
            if word == str(gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        ]
        if len(named) != 1:
            break
        chosen += named
    return chosen
