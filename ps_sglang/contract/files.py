"""The files of a checkpoint folder, reading its JSON, and digests of JSON values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from ps_sglang.errors import CheckpointError

TOKENIZER_FILES: Final = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Every file from which transformers may build a tokenizer; a checkpoint has some of them."""
SIDE_FILES: Final = ("config.json", "generation_config.json", *TOKENIZER_FILES)
"""What a checkpoint may hold beside its weights."""
ADAPTER_CONFIG: Final = "adapter_config.json"
"""What makes a folder an adapter's; peft writes it."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError if it is missing, broken or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        folder = path.parent
        if path.name == "config.json" and (folder / ADAPTER_CONFIG).is_file():
            raise CheckpointError(
                f"{folder} is a LoRA adapter, where a whole model is needed: give its base, or "
                f"merge the two: ps-sglang merge {folder} --base BASE --to {folder.name}-merged"
            ) from None
        raise CheckpointError(f"{folder} is not a usable checkpoint: no {path.name}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def digest(scheme: str, value: Any) -> str:
    """`scheme:` and the blake2b-256 hex digest of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{scheme}:{hashlib.blake2b(text.encode(), digest_size=32).hexdigest()}"
