"""What the launcher's fork server does once, before it forks the workers of a CPU cluster.

Importing SGLang takes longer than loading a small model, and the four tokenizers that each
worker loads (tokenizer manager, detokenizer, and twice in the scheduler) take most of the
rest. A fork inherits both. Nothing here may start a thread or import `prometheus_client`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ps_sglang.contract.files import TOKENIZER_FILES
from ps_sglang.engine import shared_weights
from ps_sglang.engine.compat.processes import (
    HookRegistry,
    HookType,
    get_tokenizer,
    load_plugins,
)
from ps_sglang.engine.transfer import row_kernels  # noqa: F401  (compiled here, for all workers)

_GET_TOKENIZER: Final = "sglang.srt.utils.hf_transformers.tokenizer.get_tokenizer"
_STOCK_OPTIONS: Final = {
    "tokenizer_mode": "auto",
    "trust_remote_code": False,
    "revision": None,
    "tokenizer_backend": "huggingface",
}
"""How SGLang's four callers ask for a tokenizer when no flag says otherwise."""


def warm(folder: Path) -> None:
    """Apply the plugin's hooks, load the tokenizer of checkpoint `folder`, let weights be shared.

    The imports, which take longest, have happened with the import of this module.
    """
    shared_weights.prepare()
    shared = SharedTokenizer(folder, get_tokenizer(str(folder), **_STOCK_OPTIONS))
    HookRegistry.register(_GET_TOKENIZER, shared.get_tokenizer, HookType.AROUND)
    load_plugins()


class SharedTokenizer:
    """Hands out one loaded tokenizer for every folder that holds the very same files.

    The contract makes all models of a cluster share a tokenizer; other bytes (a decoder's
    own `tokenizer_config.json`, say) or other options are loaded as usual.
    """

    def __init__(self, folder: Path, tokenizer: object) -> None:
        self._tokenizer = tokenizer
        self._digest = _digest(folder)

    def get_tokenizer(
        self, original: Callable[..., object], name: str, *args: Any, **options: Any
    ) -> object:
        """Stand in for SGLang's `get_tokenizer(name, *args, **options)`."""
        if not args and options == _STOCK_OPTIONS and _digest(Path(name)) == self._digest:
            return self._tokenizer
        return original(name, *args, **options)


def _digest(folder: Path) -> str:
    """Of everything in a checkpoint folder that decides which tokenizer is built."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        digest.update(f"{name}:{path.exists()}".encode())
        if path.exists():
            digest.update(path.read_bytes())
    config = folder / "config.json"
    if config.exists():
        digest.update(str(json.loads(config.read_bytes()).get("model_type")).encode())
    return digest.hexdigest()
