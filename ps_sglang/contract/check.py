"""The contract check before a launch: does every decoder fit the base? All answers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ps_sglang.contract.differences import Difference, report, shape_differences, tensor_differences
from ps_sglang.contract.files import read_object
from ps_sglang.contract.fingerprint import base_fingerprint
from ps_sglang.contract.manifest import MANIFEST_FILE, Manifest, read_manifest
from ps_sglang.contract.served_template import served_template_digest
from ps_sglang.contract.shape import ModelShape, read_shape
from ps_sglang.contract.tensors import Tensor, read_tensors
from ps_sglang.contract.tokenizer import (
    chat_template_digest,
    tokenizer_differences,
    tokenizer_digest,
    written_tokenizer_digest,
)
from ps_sglang.contract.vocabulary import require_vocabulary
from ps_sglang.errors import CheckpointError, ContractError, ManifestError

_COPY_TOKENIZER = "train with the base's tokenizer, or copy its files if only their text differs"
_TRAIN_ON_BASE = "train the decoder on this base, or launch the base it was trained on"
_TEMPLATE, _IN_TRAINING = _OF_TEMPLATES = ("chat template", "chat template in training")
_NO_MANIFEST = "train the decoder with ps-sglang, or launch with --allow-unverified"


@dataclass(frozen=True)
class DecoderReport:
    """A decoder that fits. `manifest` is None for the base itself, and for an unverified one.

    `other_template`: `--chat-template` is not the template that it was trained with.
    """

    name: str
    path: Path
    manifest: Manifest | None
    other_template: bool = False
    is_base: bool = False

    @property
    def verified(self) -> bool:
        return self.is_base or self.manifest is not None

    @property
    def description(self) -> str:
        """One line for a person: how it was trained, what it scored, and what to be wary of."""
        if self.is_base:
            return "the base itself"
        if self.manifest is None:
            return "fits by shape, unverified"
        how = "stand-in made from" if self.manifest.stand_in else "trained on"
        parts = [f"{how} this base", self.manifest.summary]
        if (share := self.manifest.share_ratio) != 1:
            parts.append(
                f"WARNING: only {share:.0%} of each prompt's KV was the base's in training"
            )
        if self.other_template:
            parts.append("WARNING: trained with another chat template than --chat-template")
        return "; ".join(parts)


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


def check_cluster(
    base: Path,
    decoders: Mapping[str, Path],
    *,
    allow_unverified: bool,
    chat_template: str | None = None,
) -> list[DecoderReport]:
    """One report per decoder, in the given order, if all of them fit `base`.

    Raises ContractError listing every difference of every decoder, and CheckpointError if the base
    itself cannot be read. A decoder that is not the base and has no manifest is a difference unless
    `allow_unverified`; its shape, tokenizer and chat template are compared all the same.
    `chat_template` is what all workers get as SGLang's `--chat-template`: then the checkpoints' own
    templates do not matter.
    """
    base_checkpoint = Checkpoint.read(base)
    fingerprint = base_fingerprint(base)
    served = chat_template and served_template_digest(chat_template)
    reports: list[DecoderReport] = []
    differences: dict[str, list[Difference]] = {}
    for name, folder in decoders.items():
        rows, manifest = compare(base_checkpoint, fingerprint, folder, allow_unverified)
        if served is not None:
            rows = [row for row in rows if row.what not in _OF_TEMPLATES]
        if rows:
            differences[name] = rows
        other = manifest is not None and served not in (None, manifest.chat_template)
        is_base = not rows and manifest is None and base_fingerprint(folder) == fingerprint
        reports.append(DecoderReport(name, folder, manifest, other, is_base))
    if differences:
        raise ContractError(*report(base, decoders, differences))
    return reports


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
        return [Difference("files", "readable", str(error), "mend or replace the file")], None
    rows = list(_model_differences(base, decoder))
    named = None if manifest is None else manifest.base.fingerprint
    # One that differs already is another model, and need not be read whole.
    if named != fingerprint and not rows and base_fingerprint(folder) == fingerprint:
        return rows, None
    if manifest is not None:
        rows += _manifest_differences(base, fingerprint, decoder, manifest)
    elif not allow_unverified:
        rows.append(Difference(MANIFEST_FILE, fingerprint, "no such file", _NO_MANIFEST))
    return rows, manifest


def trained_on(folder: Path, base: str | None) -> str | None:
    """The fingerprint of the base whose cache the checkpoint in `folder` reads, None if unknown.

    Its manifest names it; the checkpoint may also be `base` itself. Raises ManifestError, and
    CheckpointError if it cannot be read.
    """
    manifest = read_manifest(folder)
    named = None if manifest is None else manifest.base.fingerprint
    if base is not None and named != base and base_fingerprint(folder) == base:
        return base
    return named


def _model_differences(base: Checkpoint, decoder: Checkpoint) -> Iterator[Difference]:
    yield from shape_differences(base.shape, decoder.shape)
    # Quantised weights have tensors of their own; the config's shape has to do.
    if not (base.quantized or decoder.quantized):
        yield from tensor_differences(base.tensors, decoder.tensors)
    if decoder.tokenizer != base.tokenizer:
        parts = tokenizer_differences(base.folder, decoder.folder)
        theirs = f"{decoder.tokenizer}, differs in {parts}"
        yield Difference("tokenizer", base.tokenizer, theirs, _COPY_TOKENIZER)
    if decoder.chat_template != base.chat_template:
        yield Difference(_TEMPLATE, base.chat_template, decoder.chat_template, _COPY_TOKENIZER)


def _manifest_differences(
    base: Checkpoint, fingerprint: str, decoder: Checkpoint, manifest: Manifest
) -> Iterator[Difference]:
    trained_on = f"{manifest.base.fingerprint} ({manifest.base.name})"
    if manifest.base.fingerprint != fingerprint:
        yield Difference("base fingerprint", fingerprint, trained_on, _TRAIN_ON_BASE)
    # What the decoder's own files show has been reported already.
    if manifest.tokenizer not in (*base.tokenizers, *decoder.tokenizers):
        yield Difference(
            "tokenizer in training", base.tokenizer, manifest.tokenizer, _TRAIN_ON_BASE
        )
    if manifest.chat_template not in (base.chat_template, decoder.chat_template):
        yield Difference(_IN_TRAINING, base.chat_template, manifest.chat_template, _TRAIN_ON_BASE)
