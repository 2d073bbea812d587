"""Where studies are kept: `out/agents.json`, one entry a workload, model and number of models.

A study replaces the one of its name. Beside it are a figure for each study and, in `agents.md`, the
table of all that they show: `report` draws these from what is kept. The reference has the table and
the figures of the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.report import REFERENCE, saved, to_json, write
from benchmarks.studies.agents.panels import panels
from benchmarks.studies.agents.table import table
from ps_sglang.errors import UsageError
from ps_sglang.training.chart import chart
from ps_sglang.training.machine import environment

SHOWN: Final = (
    "react-small-n3", "react-small-n4-long", "react-small-n3-concurrency-small-pools",
)  # fmt: skip
"""The studies whose figures the page has."""
_FILE: Final = "agents.json"
_COMMAND: Final = "python -m benchmarks.studies.agents"


def keep(folder: Path, result: Mapping[str, Any], label: str = "") -> None:
    """Add a study to the results, `label` to its name, and draw them."""
    path = folder / _FILE
    studies = _studies(folder) if path.exists() else {}
    studies[_name(result, label)] = {"environment": environment(), **result}
    write(path, to_json({"studies": studies}))
    report(folder)


def report(folder: Path) -> None:
    """Draw all figures and the table from what is kept, beside it.

    Raises UsageError if nothing is kept.
    """
    studies = _studies(folder)
    _write(folder, studies, studies)


def publish(folder: Path) -> None:
    """Draw the reference, the table and the page's figures, from what is kept.

    Raises UsageError if one of the page's studies is not kept.
    """
    studies = _studies(folder)
    if missing := [name for name in SHOWN if name not in studies]:
        raise UsageError(
            f"{folder / _FILE} lacks the study {missing[0]}, whose figure the page has; "
            "the page says which command measures it"
        )
    _write(REFERENCE, studies, SHOWN)


def _write(folder: Path, studies: Mapping[str, Any], drawn: Iterable[str]) -> None:
    write(folder / "agents.md", table(studies))
    for name in drawn:
        write(folder / f"agents-{name}.svg", chart(panels(studies[name]["runs"]), columns=3))


def _studies(folder: Path) -> dict[str, Any]:
    path = folder / _FILE
    kept = saved(path, "studies", _COMMAND) if path.exists() else {}
    if not (isinstance(kept, dict) and kept.get("studies")):
        raise UsageError(f"no study is kept in {path}; this makes one: {_COMMAND}")
    return dict(kept["studies"])


def _name(result: Mapping[str, Any], label: str) -> str:
    study = result["study"]
    shape = study["shape"]
    name = f"{shape['kind']}-{study['model']}-n{shape['decoders']}"
    by = "-concurrency" if study["concurrency"] else ""
    return f"{name}{by}{'-' if label else ''}{label}"
