"""Random adapters of the demo's base, and how the launcher and SGLang are told of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ps_sglang.models.stand_in import Noise, write_stand_in_adapter
from ps_sglang.progress import OnProgress

_NOISE: Final = 0.1


def write_adapters(
    base: Path, folder: Path, number: int, on_progress: OnProgress
) -> dict[str, Path]:
    """Write as many below `folder`; returns the folder of each by its name."""
    on_progress(f"writing {number} random adapters")
    return {
        f"a{seed}": write_stand_in_adapter(base, folder / f"a{seed}", Noise(_NOISE, seed))
        for seed in range(number)
    }


def named(adapters: Mapping[str, Path]) -> tuple[str, ...]:
    """Each as NAME=FOLDER."""
    return tuple(f"{name}={folder}" for name, folder in adapters.items())
