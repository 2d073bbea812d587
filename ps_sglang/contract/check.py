"""The contract check before a launch: does every decoder fit the base? All answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ps_sglang.contract.adapter import compare_adapter
from ps_sglang.contract.adapter_files import AdapterConfig, is_adapter, read_adapter_config
from ps_sglang.contract.compare import OF_TEMPLATES, TAIL, Checkpoint, compare, tail_differences
from ps_sglang.contract.differences import Difference, report
from ps_sglang.contract.fingerprint import base_fingerprint
from ps_sglang.contract.manifest import Manifest, read_manifest
from ps_sglang.contract.served_template import served_template_digest
from ps_sglang.errors import ContractError


@dataclass(frozen=True)
class DecoderReport:
    """A decoder that fits. `manifest` is None for the base itself, and for an unverified one.

    `other_template`: `--chat-template` is not the template that it was trained with. `adapter` is
    None for a whole model.
    """

    name: str
    path: Path
    manifest: Manifest | None
    other_template: bool = False
    is_base: bool = False
    adapter: AdapterConfig | None = None

    @property
    def verified(self) -> bool:
        return self.is_base or self.manifest is not None

    @property
    def description(self) -> str:
        """One line for a person: how it was trained, what it scored, and what to be wary of."""
        if self.is_base:
            return "the base itself"
        parts = [] if self.adapter is None else [f"LoRA adapter of rank {self.adapter.rank}"]
        if self.manifest is None:
            return "; ".join([*parts, "fits by shape, unverified"])
        how = "stand-in made from" if self.manifest.stand_in else "trained on"
        parts += [f"{how} this base", self.manifest.summary]
        if (share := self.manifest.share_ratio) != 1:
            parts.append(
                f"WARNING: only {share:.0%} of each prompt's KV was the base's in training"
            )
        if self.other_template:
            parts.append("WARNING: trained with another chat template than --chat-template")
        return "; ".join(parts)


def check_cluster(
    base: Path,
    decoders: Mapping[str, Path],
    *,
    allow_unverified: bool,
    chat_template: str | None = None,
    any_tail: bool = False,
) -> list[DecoderReport]:
    """One report per decoder, in the given order, if all of them fit `base`: whole models, and
    folders of adapters.

    Raises ContractError listing every difference of every decoder, and CheckpointError if the base
    itself cannot be read. A decoder that is not the base and has no manifest is a difference unless
    `allow_unverified`; its shape, tokenizer and chat template are compared all the same.
    `chat_template` is what all workers get as SGLang's `--chat-template`: then the checkpoints' own
    templates do not matter. `any_tail`: the caller reads tails, which no worker does yet.
    """
    base_checkpoint = Checkpoint.read(base)
    fingerprint = base_fingerprint(base)
    served = chat_template and served_template_digest(chat_template)
    reports: list[DecoderReport] = []
    differences: dict[str, list[Difference]] = {}
    for name, folder in decoders.items():
        adapted = is_adapter(folder)
        check = compare_adapter if adapted else compare
        rows, manifest = check(base_checkpoint, fingerprint, folder, allow_unverified)
        if served is not None:
            rows = [row for row in rows if row.what not in OF_TEMPLATES]
        if any_tail:
            rows = [row for row in rows if row.what != TAIL]
        if rows:
            differences[name] = rows
            continue
        other = manifest is not None and served not in (None, manifest.chat_template)
        adapter = read_adapter_config(folder) if adapted else None
        is_base = not (adapted or manifest) and base_fingerprint(folder) == fingerprint
        reports.append(DecoderReport(name, folder, manifest, other, is_base, adapter))
    if differences:
        raise ContractError(*report(base, decoders, differences))
    return reports


def trained_on(folder: Path, base: str | None) -> str | None:
    """The fingerprint of the base whose cache the decoder in `folder` reads, None if unknown.

    Its manifest names it; the model may also be `base` itself. Raises ManifestError, and
    CheckpointError if it cannot be read; ContractError for a decoder that no worker serves.
    """
    manifest = read_manifest(folder)
    named = None if manifest is None else manifest.base.fingerprint
    if base not in (None, named) and not is_adapter(folder) and base_fingerprint(folder) == base:
        return base
    if rows := [*tail_differences(manifest)]:
        raise ContractError(*report(str(named), {folder.name: folder}, {folder.name: rows}))
    return named
