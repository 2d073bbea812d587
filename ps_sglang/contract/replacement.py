"""The contract of a worker that is running: what it tells of itself, and what may replace it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ps_sglang.contract.compare import Checkpoint, compare
from ps_sglang.contract.differences import Difference, report, shape_rows
from ps_sglang.contract.files import read_object
from ps_sglang.contract.manifest import read_manifest
from ps_sglang.contract.shape import read_shape
from ps_sglang.contract.tensors import read_tensors
from ps_sglang.contract.tokenizer import chat_template_digest, tokenizer_digest
from ps_sglang.contract.vocabulary import require_vocabulary
from ps_sglang.errors import ContractError

_HEAD: Final = "lm_head.weight"
# Read once, when a worker starts. Newer transformers write some of them to one file, older ones to
# both.
_CONFIG_ITEMS: Final = ("tie_word_embeddings", "eos_token_id", "quantization_config")
_WRITERS_OWN: Final = frozenset({"transformers_version", "_from_model_config"})
_RESTART: Final = (
    "only weights are replaced in a running worker: start a worker with this checkpoint instead, "
    "add it, and remove the old one"
)


def check_replacement(
    current: Path, replacement: Path, fingerprint: str, *, allow_unverified: bool
) -> None:
    """Whether the weights of `replacement` may take the place of `current`'s in a running worker.

    `fingerprint` is that of the base whose cache the worker holds; the base itself need not be on
    this machine, as `current` has its shape. Raises ContractError listing every difference, and
    CheckpointError if `current` cannot be read.
    """
    current_checkpoint = Checkpoint.read(current)
    rows, _ = compare(current_checkpoint, fingerprint, replacement, allow_unverified)
    if not any(row.what == "files" for row in rows):
        rows += _fixed_differences(current, replacement)
    if rows:
        name = replacement.name
        raise ContractError(*report(fingerprint, {name: replacement}, {name: rows}))


def model_facts(folder: Path) -> dict[str, object]:
    """What of a checkpoint all models of a cluster have in common, item by item.

    Raises CheckpointError if it cannot be read, or its tokenizer does not fit its model.
    """
    require_vocabulary(folder)
    return {
        **shape_rows(read_shape(folder)),
        "tokenizer": tokenizer_digest(folder),
        "chat template": chat_template_digest(folder),
    }


def _fixed_differences(current: Path, replacement: Path) -> Iterator[Difference]:
    """What the contract leaves open, but a running worker does not read again."""
    ours, theirs = _fixed(current), _fixed(replacement)
    for item in sorted(ours | theirs):
        if ours.get(item) != theirs.get(item):
            yield Difference(item, ours.get(item), theirs.get(item), _RESTART)


def _fixed(folder: Path) -> dict[str, Any]:
    config = read_object(folder / "config.json")
    facts = {item: config.get(item) for item in _CONFIG_ITEMS}
    if manifest := read_manifest(folder):
        facts |= {"tool call parser": manifest.tool_call_parser}
        facts |= {"reasoning parser": manifest.reasoning_parser}
    # A tied head is the embedding, whether the file stores it again or not.
    if not config.get("tie_word_embeddings"):
        facts[_HEAD] = "stored" if _HEAD in read_tensors(folder) else "not stored"
    generation = folder / "generation_config.json"
    if generation.exists():
        facts |= {
            f"generation config: {item}": value
            for item, value in read_object(generation).items()
            if item not in _WRITERS_OWN
        }
    return facts
