"""Who is evaluated: a decoder, the base it must fit, and their tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ps_sglang.contract import (
    Manifest,
    adapter_digest,
    base_fingerprint,
    check_cluster,
    is_adapter,
)
from ps_sglang.contract.shape import read_shape
from ps_sglang.errors import CheckpointError, UsageError
from ps_sglang.models import NamedModel, resolve
from ps_sglang.models.adapted import Adapted
from ps_sglang.training.evaluate.attention import ATTENTION
from ps_sglang.training.evaluate.generate import Generator
from ps_sglang.training.evaluate.settings import EvaluateSettings
from ps_sglang.training.train.decoder import Tokenizing, load_tokenizer


@dataclass(frozen=True)
class Subject:
    """A decoder that fits its base. `manifest` is None for the base itself, and for a decoder
    that was admitted unverified. Fingerprints leave the output head out, which makes no KV; that
    of an adapter is its digest."""

    base: NamedModel
    decoder: NamedModel
    manifest: Manifest | None
    base_fingerprint: str
    decoder_fingerprint: str
    tokenizing: Tokenizing

    @classmethod
    def find(cls, settings: EvaluateSettings) -> Subject:
        """Resolve both models and compare them.

        Raises UsageError (ContractError, CheckpointError, ModelNotFoundError) unless they fit.
        """
        base, decoder = resolve(settings.base), resolve(settings.decoder)
        shape = read_shape(base.path)
        if shape.sliding_window or shape.layer_types:
            raise CheckpointError(
                f"{base.path} has layers of sliding-window or linear attention, which a share of "
                "a prompt's KV is not defined for; choose a base in which every layer attends to "
                "everything"
            )
        manifest = None
        if not decoder.path.samefile(base.path):
            (report,) = check_cluster(
                base.path,
                {decoder.name: decoder.path},
                allow_unverified=settings.allow_unverified,
                any_tail=not settings.through,
            )
            manifest = report.manifest
        if settings.record and manifest is None:
            raise UsageError(
                f"--record: {decoder.path} has no manifest to record a score in; "
                "train the decoder with ps-sglang"
            )
        adapted = is_adapter(decoder.path)
        return cls(
            base,
            decoder,
            manifest,
            base_fingerprint(base.path),
            adapter_digest(decoder.path) if adapted else base_fingerprint(decoder.path),
            load_tokenizer(base.path if adapted else decoder.path),
        )

    def seed(self, settings: EvaluateSettings) -> int:
        """That of the decoder's training: as the settings say, or as its manifest does, or 0."""
        if settings.seed is not None:
            return settings.seed
        trained = self.manifest.training.settings.get("seed") if self.manifest else None
        return trained if isinstance(trained, int) else 0

    def tail(self, settings: EvaluateSettings) -> int:
        """The decoder's, in tokens: as the settings say, or as its manifest does, or 0."""
        if settings.tail is not None:
            return settings.tail
        return self.manifest.tail if self.manifest else 0

    def generator(self, settings: EvaluateSettings, max_new_tokens: int) -> Generator:
        """Load both models, on the GPU if there is one; an adapter takes the base's weights."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype: torch.dtype = getattr(torch, settings.dtype)
        base = load(self.base, dtype, device)
        return Generator(
            base,
            self._decoder(base, dtype, device),
            self.tokenizing.stops,
            max_new_tokens,
            device,
            self.tail(settings),
        )

    def _decoder(self, base: Any, dtype: torch.dtype, device: torch.device) -> Any:
        if self.decoder.path.samefile(self.base.path):
            return base
        if is_adapter(self.decoder.path):
            return Adapted(base, self.decoder.path)
        return load(self.decoder, dtype, device)


def load(model: NamedModel, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    return (
        AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype, attn_implementation=ATTENTION)
        .to(device)
        .eval()
    )
