"""Environment variables of the engine plugin, in one place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ps_sglang.model_roots import parents

ENABLE: Final = "PS_SGLANG_ENABLE"
BASE_FINGERPRINT: Final = "PS_SGLANG_BASE_FINGERPRINT"
ALLOW_UNVERIFIED: Final = "PS_SGLANG_ALLOW_UNVERIFIED"
ADAPTERS: Final = "PS_SGLANG_ADAPTERS"
"""The LoRA decoders that a worker begins with: a JSON object, `DECODER@VERSION` to folder."""
ALLOW_UNSAFE: Final = "PS_SGLANG_ALLOW_UNSAFE"
"""`1` opens all of SGLang's routes to whoever has the cluster's key."""
MODEL_ROOTS: Final = "PS_SGLANG_MODEL_ROOTS"
"""A JSON list of the folders below which a running worker may load weights, see `model_roots`."""
SHARE_WEIGHTS: Final = "PS_SGLANG_SHARE_WEIGHTS"
"""`1` for a forked worker whose model another worker of the cluster loads as well."""


def is_enabled(environ: Mapping[str, str]) -> bool:
    """Whether the plugin is switched on.

    Raises SystemExit if the variable holds something other than `0` or `1`. SGLang logs and ignores
    any other exception of a plugin, and an engine without its hooks would serve the base model's
    tokens.
    """
    value = environ.get(ENABLE, "0")
    if value not in ("0", "1", ""):
        raise SystemExit(f"{ENABLE}={value!r} is not understood: set it to 1 (on) or 0 (off)")
    return value == "1"


def is_worker() -> bool:
    """Whether this process is a worker of a cluster, and not a plain server with the plugin."""
    return bool(os.environ.get(BASE_FINGERPRINT))


def model_roots(model: Path) -> tuple[str, ...]:
    """The folders from which this worker may load weights while it runs.

    Unless it was told, those in which its `model` and its first adapters lie.
    """
    if (listed := os.environ.get(MODEL_ROOTS)) is not None:
        return tuple(json.loads(listed))
    adapters: dict[str, str] = json.loads(os.environ.get(ADAPTERS, "{}"))
    return parents([model, *map(Path, adapters.values())])
