"""Digests of a tokenizer and of a chat template: do two models read a text as the same tokens?

Both workers of a request tokenise it themselves, so a decoder whose tokenizer differs from the
base's would continue another prompt than the one in the cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ps_sglang.contract.files import digest, read_object
from ps_sglang.contract.tokenizer_behaviour import (
    STEPS,
    causes,
    tokenizer_parts,
    written_parts,
)
from ps_sglang.errors import CheckpointError

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token")
_ADDED_AROUND = ("add_bos_token", "add_eos_token")
# Engines honour these settings beside a tokenizer.json for the classes that always had them, with
# these defaults; every other class leaves it to the file's post-processor.
_OWN_DEFAULTS = {"add_bos_token": True, "add_eos_token": False}
_CLASSES_WITH_SETTINGS = frozenset(
    name + fast
    for name in ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
    for fast in ("", "Fast")
)
# Tokenizers without a tokenizer.json, by the files that hold all of them.
_OTHER_LAYOUTS = (("tokenizer.model",), ("vocab.json", "merges.txt"))


def tokenizer_digest(folder: Path) -> str:
    """`tok2:` and the digest of what the tokenizer does: its vocabulary, merges and named tokens,
    and the tokens that it makes of fixed texts and of its own vocabulary.

    How its files are written does not matter, so a tokenizer that was only loaded and saved again
    keeps its digest.
    """
    return digest("tok2", {name: digest("part", part) for name, part in _parts(folder).items()})


def written_tokenizer_digest(folder: Path) -> str:
    """`tok1:` and the digest of tokenizer.json as it is written, which older manifests name."""
    config = _tokenizer_config(folder)
    settings = {key: config.get(key) for key in _ADDED_AROUND}
    return digest("tok1", [_written(folder), settings, _named_tokens(config)])


def tokenizer_differences(base: Path, decoder: Path) -> str:
    """Which parts of two tokenizers differ, in words; both folders have been read before."""
    ours, theirs = _parts(base), _parts(decoder)
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if "encodings" in differing:
        differing.remove("encodings")
        # Other data explain other encodings.
        if not {"files", "model", "vocabulary", "merges", "added tokens"}.intersection(differing):
            base_json, decoder_json = (
                read_object(folder / "tokenizer.json") for folder in (base, decoder)
            )
            steps = causes(base_json, decoder_json)
            ours, theirs = ours | written_parts(base_json), theirs | written_parts(decoder_json)
            differing = steps + differing
    return ", ".join(_described(name, ours.get(name), theirs.get(name)) for name in differing)


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


def _parts(folder: Path) -> dict[str, Any]:
    """Part -> what it is, as plain JSON values."""
    config = _tokenizer_config(folder)
    file = folder / "tokenizer.json"
    parts = tokenizer_parts(read_object(file)) if file.is_file() else {"files": _written(folder)}
    return {**parts, "special tokens": _named_tokens(config) | _settings(config)}


def _named_tokens(config: dict[str, Any]) -> dict[str, Any]:
    tokens = {key: config.get(key) for key in _NAMED_TOKENS}
    return {k: v.get("content") if isinstance(v, dict) else v for k, v in tokens.items()}


def _settings(config: dict[str, Any]) -> dict[str, bool]:
    kind = config.get("tokenizer_class")
    defaults = _OWN_DEFAULTS if kind in _CLASSES_WITH_SETTINGS else {}
    if kind is not None and not defaults:
        return {}
    settings = {key: config.get(key) for key in _ADDED_AROUND}
    return {k: bool(defaults.get(k) if v is None else v) for k, v in settings.items()}


def _written(folder: Path) -> Any:
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_object(folder / "tokenizer.json")
        kept = {key: tokenizer[key] for key in tokenizer if key not in ("truncation", "padding")}
        model = dict(kept.get("model") or {})
        if isinstance(model.get("merges"), list):
            model["merges"] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        return {**kept, "model": model}
    for names in _OTHER_LAYOUTS:
        files = [folder / name for name in names]
        if all(file.is_file() for file in files):
            return [hashlib.blake2b(file.read_bytes()).hexdigest() for file in files]
    raise CheckpointError(
        f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json and merges.txt)"
    )


def _described(name: str, ours: Any, theirs: Any) -> str:
    """`name` with the first entry in which two mappings or lists differ."""
    if name in STEPS:
        return name
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        first = f"{keys[0]}: {ours.get(keys[0])!r} and {theirs.get(keys[0])!r}"
        return f"{name} ({first}{_more(keys)})"
    if name == "merges" and isinstance(ours, list) and isinstance(theirs, list):
        return f"{name} ({len(ours)} and {len(theirs)} of them)"
    return name


def _more(keys: list[Any]) -> str:
    return f" and {len(keys) - 1} more" if keys[1:] else ""
