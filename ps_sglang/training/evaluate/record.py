"""Recording a score in the decoder's manifest, where the launcher shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ps_sglang.contract import read_manifest, write_manifest
from ps_sglang.contract.manifest import Score
from ps_sglang.training.evaluate.results import writing
from ps_sglang.training.evaluate.scores import Row


def record(rows: Sequence[Row], decoder: Path) -> None:
    """Put the offline score at share 1 into the manifest of `decoder`, in place of an older one
    of the same kind. Raises EvaluationError."""
    manifest = read_manifest(decoder)
    (row,) = (row for row in rows if row.share == 1 and not row.served)
    assert manifest is not None, f"{decoder} has no manifest; checked before any work"
    shots = f", {row.few_shot} examples" if row.few_shot else ""
    score = Score(
        benchmark=f"{row.task} {row.split}{shots}", metric="passed", value=row.score, examples=row.n
    )
    kind = (score.benchmark, score.metric)
    others = [
        recorded for recorded in manifest.scores if (recorded.benchmark, recorded.metric) != kind
    ]
    with writing(decoder):
        write_manifest(decoder, msgspec.structs.replace(manifest, scores=[*others, score]))
