"""Where studies are kept: `results/agents.json`, one entry a workload, model and number of models.

A study replaces the one of its name. Beside it are a figure for each study and, in `agents.md`, the
table of all that they show: `report` draws these from what is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.studies.agents.panels import panels
from benchmarks.studies.agents.table import table
from ps_sglang.chart import chart
from ps_sglang.errors import UsageError
from ps_sglang.machine import environment

_FILE: Final = "agents.json"


def keep(folder: Path, found: Mapping[str, Any], label: str = "") -> list[Path]:
    """Add a study to the results, `label` to its name, and draw them; returns all paths."""
    kept = _kept(folder)
    kept["studies"][_name(found, label)] = {"environment": environment(), **found}
    path = _write(kept, folder)
    return [path, *report(folder)]


def report(folder: Path) -> list[Path]:
    """Draw the figures and the table from what is kept; returns their paths.

    Raises:
        UsageError: nothing is kept.
    """
    kept = _kept(folder)
    if not kept["studies"]:
        raise UsageError(f"no study is kept in {folder / _FILE}")
    written = {folder / "agents.md": table(kept)}
    for name, study in kept["studies"].items():
        written[folder / f"agents-{name}.svg"] = chart(panels(study["runs"]), columns=3)
    for path, text in written.items():
        path.write_text(text)
    return list(written)


def _kept(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / _FILE
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return {"studies": {}} | kept


def _write(kept: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FILE
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return path


def _name(found: Mapping[str, Any], label: str) -> str:
    study = found["study"]
    shape = study["shape"]
    name = f"{shape['kind']}-{study['model']}-n{shape['decoders']}"
    by = "-concurrency" if study["concurrency"] else ""
    return f"{name}{by}{'-' if label else ''}{label}"
