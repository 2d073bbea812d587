"""Reading the JSON files of a checkpoint folder, and digests of JSON values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ps_sglang.errors import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError if it is missing, broken or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a usable checkpoint: no {path.name}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def digest(scheme: str, value: Any) -> str:
    """`scheme:` and the blake2b-256 hex digest of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{scheme}:{hashlib.blake2b(text.encode(), digest_size=32).hexdigest()}"
