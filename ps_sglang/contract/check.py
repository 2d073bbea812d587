"""The contract check before a launch: does every decoder fit the base? All answers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ps_sglang.contract.differences import Difference, report, shape_differences, tensor_differences
from ps_sglang.contract.files import read_object
from ps_sglang.contract.fingerprint import base_fingerprint
from ps_sglang.contract.manifest import MANIFEST_FILE, Manifest, read_manifest
from ps_sglang.contract.shape import ModelShape, read_shape
from ps_sglang.contract.tensors import Tensor, read_tensors
from ps_sglang.contract.tokenizer import (
    chat_template_digest,
    largest_token_id,
    tokenizer_differences,
    tokenizer_digest,
    written_tokenizer_digest,
)
from ps_sglang.errors import CheckpointError, ContractError, ManifestError

_COPY_TOKENIZER = "train with the base's tokenizer, or copy its files if only their text differs"
_TRAIN_ON_BASE = "train the decoder on this base, or launch the base it was trained on"

_NO_MANIFEST = "train the decoder with ps-sglang, or launch with --allow-unverified"


@dataclass(frozen=True)
class DecoderReport:
    """A decoder that fits. `manifest` is None for one that was admitted unverified."""

    name: str
    path: Path
    manifest: Manifest | None

    @property
    def verified(self) -> bool:
        return self.manifest is not None

    @property
    def description(self) -> str:
        """One line for a person: how it was trained, what it scored, and what to be wary of."""
        if self.manifest is None:
            return "fits by shape, unverified"
        how = "stand-in made from" if self.manifest.stand_in else "trained on"
        line = f"{how} this base; {self.manifest.summary}"
        share = self.manifest.share_ratio
        if share == 1:
            return line
        return f"{line}; WARNING: only {share:.0%} of each prompt's KV was the base's in training"


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
        shape = read_shape(folder)
        if (largest := largest_token_id(folder)) >= shape.vocabulary:
            # Such a token would index past the embedding and end the worker that reads it.
            raise CheckpointError(
                f"{folder}: the tokenizer has token ids up to {largest}, the model a vocabulary of "
                f"{shape.vocabulary}; put the model's own tokenizer files there"
            )
        return cls(
            folder,
            shape,
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
    base: Path, decoders: Mapping[str, Path], *, allow_unverified: bool
) -> list[DecoderReport]:
    """One report per decoder, in the given order, if all of them fit `base`.

    Raises ContractError listing every difference of every decoder, and CheckpointError if the base
    itself cannot be read. A decoder without a manifest is a difference unless `allow_unverified`;
    its shape, tokenizer and chat template are compared all the same.
    """
    wanted = Checkpoint.read(base)
    fingerprint = base_fingerprint(base)
    reports: list[DecoderReport] = []
    found: dict[str, list[Difference]] = {}
    for name, folder in decoders.items():
        rows, manifest = compare(wanted, fingerprint, folder, allow_unverified)
        if rows:
            found[name] = rows
        reports.append(DecoderReport(name, folder, manifest))
    if found:
        raise ContractError(*report(base, decoders, found))
    return reports


def compare(
    wanted: Checkpoint, fingerprint: str, folder: Path, allow_unverified: bool
) -> tuple[list[Difference], Manifest | None]:
    """Every difference of the decoder in `folder` from `wanted`, and its manifest.

    `fingerprint` is that of the base on which it must have been trained.
    """
    try:
        manifest = read_manifest(folder)
        decoder = Checkpoint.read(folder)
    except (CheckpointError, ManifestError) as error:
        return [Difference("files", "readable", str(error), "mend or replace the file")], None
    rows = list(_model_differences(wanted, decoder))
    if manifest is not None:
        rows += _manifest_differences(wanted, fingerprint, decoder, manifest)
    elif not allow_unverified:
        rows.append(Difference(MANIFEST_FILE, fingerprint, "no such file", _NO_MANIFEST))
    return rows, manifest


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
        yield Difference(
            "chat template", base.chat_template, decoder.chat_template, _COPY_TOKENIZER
        )


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
        yield Difference(
            "chat template in training", base.chat_template, manifest.chat_template, _TRAIN_ON_BASE
        )
