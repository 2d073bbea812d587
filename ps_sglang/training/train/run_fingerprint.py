"""What a run is made of, written down at its start so that a resume can tell another run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ps_sglang.contract import base_fingerprint
from ps_sglang.contract.tokenizer import (
    chat_template_digest,
    tokenizer_digest,
    written_tokenizer_digest,
)
from ps_sglang.errors import UsageError
from ps_sglang.models import NamedModel
from ps_sglang.training.train.saving import saving
from ps_sglang.training.train.settings import TrainSettings

_FILE = "run.json"


@dataclass(frozen=True)
class RunFingerprint:
    """Two runs of one identity have one loss curve."""

    base: str
    base_fingerprint: str
    tokenizer: str
    chat_template: str | None
    data: str
    eval_data: str | None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, base: NamedModel, data: str, eval_data: str | None, settings: TrainSettings
    ) -> RunFingerprint:
        """`data` and `eval_data` are digests."""
        return cls(
            base.name,
            base_fingerprint(base.path),
            tokenizer_digest(base.path),
            chat_template_digest(base.path),
            data,
            eval_data,
            settings.curve(),
        )

    def write(self, folder: Path) -> None:
        with saving(folder / _FILE):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def check_resume(folder: Path, now: RunFingerprint, base: Path) -> None:
    """Raises UsageError that lists all in which the run in `folder` was another one.

    `base` is the folder of the base; older runs name its tokenizer by how it is written, and know
    no tail.
    """
    path = folder / _FILE
    try:
        then = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"--resume: there is no run in {folder.parent}; leave it out") from None
    if then.get("tokenizer") == written_tokenizer_digest(base):
        then["tokenizer"] = now.tokenizer
    old_rows, new_rows = {"tail": 0} | _rows(then), _rows(asdict(now))
    # Its name is for people: a base that was moved is the same base.
    rows = [
        f"{key.replace('_', ' ')}: then {old_rows.get(key)}, now {new_rows.get(key)}"
        for key in old_rows | new_rows
        if key != "base" and old_rows.get(key) != new_rows.get(key)
    ]
    if rows:
        raise UsageError(
            "\n  ".join(
                [
                    f"--resume: the run in {folder.parent} (base {then.get('base')}) was another "
                    "one; give what it was started with, or a new --out:",
                    *rows,
                ]
            )
        )


def check_new(folder: Path) -> None:
    """Raises UsageError if `folder` has something in it already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"--out {folder} is not empty; give a new folder, or --resume to go on with its run"
        )


def _rows(identity: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = identity.get("settings", {})
    return {key: value for key, value in identity.items() if key != "settings"} | settings
