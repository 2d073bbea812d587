"""From the study's cells to `results/accuracy.json`, the table and the figure's rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.accuracy.plan import RECIPES, Study
from benchmarks.report import save
from ps_sglang.evaluate.figure import draw
from ps_sglang.evaluate.scores import wilson

Row = dict[str, Any]

_KEPT: Final = ("task", "system", "share", "seed", "n", "score", "low", "high", "few_shot", "dtype")
# Where the table stands in the page.
_BEGIN, _END = "<!-- table -->", "<!-- end of the table -->"
_SYSTEMS: Final = ("base", "base-fewshot", "full-ft", "naive-share", "cache-conditioned")


def rows(work: Path) -> list[Row]:
    """Every row of every cell that is complete, in the order of the table."""
    found = [
        _named(row)
        for cell in sorted((work / "cells").glob("*.json"))
        for row in json.loads(cell.read_text())["rows"]
    ]
    return sorted(
        found, key=lambda r: (r["task"], _SYSTEMS.index(r["system"]), r["share"], r["seed"])
    )


def _named(row: Row) -> Row:
    """A fully fine-tuned decoder that reads some of the base's KV is what sharing naively is."""
    kept = {name: row[name] for name in _KEPT}
    if row["system"] == "full":
        kept["system"] = "naive-share" if row["share"] else "full-ft"
    return kept


def save_results(study: Study) -> Path:
    """Write `benchmarks/results/accuracy.json`: how it was made, and all rows."""
    rates = {
        path.stem: json.loads(path.read_text())
        for path in sorted((study.work / "search").glob("*.json"))
    }
    return save(
        "accuracy",
        {
            "recipes": [asdict(recipe) for recipe in study.recipes],
            "dtype": study.dtype,
            "learning_rates": rates,
            "rows": rows(study.work),
        },
    )


def write_docs(found: Sequence[Row], docs: Path) -> None:
    """Put the table into `docs/accuracy.md`, and Figure 2 beside it."""
    page = docs / "accuracy.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{table(found)}{_END}{after}")
    (docs / "accuracy.svg").write_text(draw([row for row in found if row["task"] in RECIPES]))


def table(found: Iterable[Row]) -> str:
    """A Markdown table: a line a task and system, a column a share, in per cent. Seeds are
    pooled: the interval is of all their answers together."""
    cells: dict[tuple[str, str], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in found:
        cells[row["task"], row["system"]][row["share"]].append(row)
    shares = sorted({share for line in cells.values() for share in line})
    head = ["task", "system", *(f"{share:.0%}" for share in shares), "n", "seeds"]
    lines = [head, ["---"] * len(head)]
    for (task, system), line in cells.items():
        some = next(iter(line.values()))
        shown = [_score(line[share]) if share in line else "" for share in shares]
        lines.append([task, system, *shown, str(some[0]["n"]), str(len(some))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _score(same: Sequence[Row]) -> str:
    n = sum(row["n"] for row in same)
    score = sum(row["score"] * row["n"] for row in same) / n
    low, high = wilson(score, n)
    return f"{100 * score:.1f} ({100 * low:.1f} to {100 * high:.1f})"
