"""Where studies are kept: `results/agents.json`, one entry a workload, model and number of models.

A study replaces the one of its name; the figure beside it is drawn from the last study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.agents.chart import chart
from benchmarks.agents.panels import panels
from benchmarks.report import RESULTS
from ps_sglang.machine import environment


def keep(found: Mapping[str, Any], folder: Path = RESULTS) -> tuple[Path, Path]:
    """Add a study to the results and draw it; returns both paths."""
    folder.mkdir(exist_ok=True)
    path = folder / "agents.json"
    studies: dict[str, Any] = json.loads(path.read_text())["studies"] if path.exists() else {}
    name = _name(found)
    studies[name] = {"environment": environment(), **found}
    path.write_text(json.dumps({"studies": studies}, indent=1) + "\n")
    drawing = folder / f"agents-{name}.svg"
    drawing.write_text(chart(panels(found["runs"])))
    return path, drawing


def _name(found: Mapping[str, Any]) -> str:
    study = found["study"]
    shape = study["shape"]
    by = "-concurrency" if study["concurrency"] else ""
    return f"{shape['kind']}-{study['model']}-n{shape['decoders']}{by}"
