"""A whole model against its base: every item in which the two differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ps_sglang.contract.differences import Difference, shape_differences, tensor_differences
from ps_sglang.contract.files import read_object
from ps_sglang.contract.fingerprint import base_fingerprint
from ps_sglang.contract.manifest import MANIFEST_FILE, Manifest, read_manifest
from ps_sglang.contract.shape import ModelShape, read_shape
from ps_sglang.contract.tensors import Tensor, read_tensors
from ps_sglang.contract.tokenizer import (
    chat_template_digest,
    tokenizer_differences,
    tokenizer_digest,
    written_tokenizer_digest,
)
from ps_sglang.contract.vocabulary import require_vocabulary
from ps_sglang.errors import CheckpointError, ManifestError

OF_TEMPLATES: Final = ("chat template", "chat template in training")
"""What does not matter where all workers get another template."""
_TEMPLATE, _IN_TRAINING = OF_TEMPLATES
TAIL: Final = "tail"
_COPY_TOKENIZER = "train with the base's tokenizer, or copy its files if only their text differs"
_TRAIN_ON_BASE = "train the decoder on this base, or launch the base it was trained on"
_NO_TAIL = (
    "no worker lets a decoder read more than a prompt's last token yet; train it without --tail, "
    "or measure it offline with ps-sglang evaluate"
)
_NO_MANIFEST = "train the decoder with ps-sglang, or launch with --allow-unverified"


@dataclass(frozen=True)
class Checkpoint:
    """What the contract compares of one folder."""

    folder: Path
    shape: ModelShape
    tensors: dict[str, Tensor]
    quantized: bool
    tokenizer: str
    written_tokenizer: str
    chat_template: str | None

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        require_vocabulary(folder)
        return cls(
            folder,
            read_shape(folder),
            read_tensors(folder),
            "quantization_config" in read_object(folder / "config.json"),
            tokenizer_digest(folder),
            written_tokenizer_digest(folder),
            chat_template_digest(folder),
        )

    @property
    def tokenizers(self) -> tuple[str, str]:
        """By either digest a manifest may name this checkpoint's tokenizer."""
        return self.tokenizer, self.written_tokenizer


def compare(
    base: Checkpoint, fingerprint: str, folder: Path, allow_unverified: bool
) -> tuple[list[Difference], Manifest | None]:
    """Every difference of the decoder in `folder` from `base`, and its manifest.

    `fingerprint` is that of the base on which it must have been trained. The base itself needs no
    manifest, as its own cache is the base's, and one of its own training does not count.
    """
    try:
        manifest = read_manifest(folder)
        decoder = Checkpoint.read(folder)
    except (CheckpointError, ManifestError) as error:
        return [unreadable(error)], None
    rows = [*shape_differences(base.shape, decoder.shape)]
    # Quantised weights have tensors of their own; the config's shape has to do.
    if not (base.quantized or decoder.quantized):
        rows += tensor_differences(base.tensors, decoder.tensors)
    rows += text_differences(base, folder, decoder.tokenizer, decoder.chat_template)
    named = None if manifest is None else manifest.base.fingerprint
    # One that differs already is another model, and need not be read whole.
    if named != fingerprint and not rows and base_fingerprint(folder) == fingerprint:
        return rows, None
    if manifest is not None:
        own = (*decoder.tokenizers, decoder.chat_template)
        rows += manifest_differences(base, fingerprint, manifest, own)
    elif not allow_unverified:
        rows.append(no_manifest(fingerprint))
    return rows, manifest


def unreadable(error: Exception) -> Difference:
    return Difference("files", "readable", str(error), "mend or replace the file")


def no_manifest(fingerprint: str) -> Difference:
    return Difference(MANIFEST_FILE, fingerprint, "no such file", _NO_MANIFEST)


def text_differences(
    base: Checkpoint, folder: Path, tokenizer: str, chat_template: str | None
) -> Iterator[Difference]:
    """Whether a text is the same tokens for both; the digests are those of `folder`."""
    if tokenizer != base.tokenizer:
        parts = tokenizer_differences(base.folder, folder)
        theirs = f"{tokenizer}, differs in {parts}"
        yield Difference("tokenizer", base.tokenizer, theirs, _COPY_TOKENIZER)
    if chat_template != base.chat_template:
        yield Difference(_TEMPLATE, base.chat_template, chat_template, _COPY_TOKENIZER)


def manifest_differences(
    base: Checkpoint, fingerprint: str, manifest: Manifest, own: Collection[str | None]
) -> Iterator[Difference]:
    """What the decoder was trained on. `own` are the digests of its tokenizer and chat template:
    what they show has been reported already."""
    trained_on = f"{manifest.base.fingerprint} ({manifest.base.name})"
    if manifest.base.fingerprint != fingerprint:
        yield Difference("base fingerprint", fingerprint, trained_on, _TRAIN_ON_BASE)
    if manifest.tokenizer not in (*base.tokenizers, *own):
        yield Difference(
            "tokenizer in training", base.tokenizer, manifest.tokenizer, _TRAIN_ON_BASE
        )
    if manifest.chat_template not in (base.chat_template, *own):
        yield Difference(_IN_TRAINING, base.chat_template, manifest.chat_template, _TRAIN_ON_BASE)
    yield from tail_differences(manifest)


def tail_differences(manifest: Manifest | None) -> Iterator[Difference]:
    """A decoder that reads a tail goes wrong where the tail's KV is the base's."""
    if manifest is not None and manifest.tail:
        yield Difference(TAIL, 0, manifest.tail, _NO_TAIL, ("served", "decoder"))
