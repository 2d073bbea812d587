"""The chat template that SGLang's `--chat-template` puts in the place of the checkpoint's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ps_sglang import sglang_names
from ps_sglang.contract.files import digest
from ps_sglang.errors import UsageError


def check_served_template(value: str) -> None:
    """Refuse a `--chat-template` that SGLang cannot load.

    Raises UsageError that says what it takes instead.
    """
    if value in sglang_names.chat_templates():
        return
    file = Path(value)
    if not file.is_file():
        raise UsageError(
            f"--chat-template {value}: there is no such file, and no template of this name in "
            f"SGLang; give a .jinja file, or one of {', '.join(sglang_names.chat_templates())}"
        )
    if file.suffix not in (".jinja", ".json"):
        raise UsageError(f"--chat-template {value}: the file must be called .jinja or .json")


def served_template_digest(value: str) -> str:
    """What two workers with this `--chat-template` have in common: a digest, or SGLang's name.

    A file that holds a checkpoint's own template has the digest of that checkpoint's.
    """
    file = Path(value)
    if value in sglang_names.chat_templates() or not file.is_file():
        return value
    if file.suffix == ".jinja":
        text = file.read_text(encoding="utf-8").strip("\n")  # as SGLang does
        return digest("chat1", {"default": text})
    return f"json:{hashlib.blake2b(file.read_bytes(), digest_size=32).hexdigest()}"
