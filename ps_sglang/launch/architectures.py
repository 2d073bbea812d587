"""Which of SGLang's 250 model files a cluster needs: importing them all takes two seconds."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

DISABLED: Final = "SGLANG_DISABLED_MODEL_ARCHS"
"""SGLang's own variable: names of files in `sglang/srt/models` that are not imported."""

_FALLBACK: Final = "transformers"
"""The file that runs any architecture, behind `--model-impl transformers`."""


def unneeded_model_files(architectures: Collection[str], folder: Path) -> tuple[str, ...]:
    """Model files in `folder` that define none of `architectures`; none if one is unknown there."""
    names = "|".join(map(re.escape, architectures))
    definition = re.compile(rf"^class ({names})\b", re.MULTILINE)
    unneeded, supported = [], set[str]()
    for file in sorted(folder.glob("*.py")):
        defined = set(definition.findall(file.read_text()))
        supported |= defined
        if not defined and file.stem not in ("__init__", "registry", _FALLBACK):
            unneeded.append(file.stem)
    return tuple(unneeded) if supported == set(architectures) else ()


def sglang_models_folder() -> Path:
    """Where the installed SGLang keeps its model files, found without importing it."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None, "require_sglang() came first"
    return Path(str(spec.origin)).parent / "srt" / "models"
