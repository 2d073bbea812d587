"""Digests of a tokenizer and of a chat template: do two models read a text as the same tokens?

Both workers of a request tokenise it themselves, so a decoder whose tokenizer differs from the
base's would continue another prompt than the one in the cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ps_sglang.contract.files import digest, read_object
from ps_sglang.errors import CheckpointError

# Keys of tokenizer_config.json that change which tokens a prompt or a rendered template gets.
_SETTINGS = ("add_bos_token", "add_eos_token")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token")
# Tokenizers without a tokenizer.json, by the files that hold all of them.
_OTHER_LAYOUTS = (("tokenizer.model",), ("vocab.json", "merges.txt"))


def tokenizer_digest(folder: Path) -> str:
    """`tok1:` and the digest of vocabulary, merges, pre- and post-processing and named tokens.

    It does not depend on key order, indentation, the two ways to write merges, or the padding and
    truncation that a tokenizer was last used with.
    """
    config = _tokenizer_config(folder)
    settings = {key: config.get(key) for key in _SETTINGS}
    tokens = {key: _content(config.get(key)) for key in _NAMED_TOKENS}
    return digest("tok1", [_model(folder), settings, tokens])


def chat_template_digest(folder: Path) -> str | None:
    """`chat1:` and the digest of the chat template; None if the model has none.

    `chat_template.jinja` wins over the template in `tokenizer_config.json`, as in transformers.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        templates = {"default": file.read_text(encoding="utf-8")}
    else:
        templates = _templates(_tokenizer_config(folder).get("chat_template"))
    # Jinja drops one newline at the end, so it cannot matter here.
    normal = {name: text.removesuffix("\n") for name, text in templates.items()}
    return digest("chat1", normal) if normal else None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def _templates(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    return {entry["name"]: entry["template"] for entry in value or ()}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _model(folder: Path) -> Any:
    if (folder / "tokenizer.json").is_file():
        return _canonical(read_object(folder / "tokenizer.json"))
    for names in _OTHER_LAYOUTS:
        files = [folder / name for name in names]
        if all(file.is_file() for file in files):
            return [hashlib.blake2b(file.read_bytes()).hexdigest() for file in files]
    raise CheckpointError(
        f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json and merges.txt)"
    )


def _canonical(tokenizer: dict[str, Any]) -> dict[str, Any]:
    kept = {key: tokenizer[key] for key in tokenizer if key not in ("truncation", "padding")}
    model = dict(kept.get("model") or {})
    if isinstance(model.get("merges"), list):
        model["merges"] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    return {**kept, "model": model}
