"""From the study's cells to `results/accuracy.json`, the table and the figure's rows.

What an earlier study saved and this one has not measured stays: parts of it can be run again,
on another machine, too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.studies.accuracy.plan import RECIPES, Study
from benchmarks.report import RESULTS, save
from ps_sglang.evaluate.figure import draw, mean

Row = dict[str, Any]

_NAME: Final = "accuracy"
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
    return _in_order(found)


def with_saved(found: Sequence[Row], saved: Sequence[Row]) -> list[Row]:
    """`found`, and those of the saved rows that it has not measured again."""
    measured = {_place(row) for row in found}
    return _in_order([*found, *(row for row in saved if _place(row) not in measured)])


def _place(row: Row) -> tuple[str, int, float, int]:
    return row["task"], _SYSTEMS.index(row["system"]), row["share"], row["seed"]


def _in_order(found: Sequence[Row]) -> list[Row]:
    return sorted(found, key=_place)


def _named(row: Row) -> Row:
    """A fully fine-tuned decoder that reads some of the base's KV is what sharing naively is."""
    kept = {name: row[name] for name in _KEPT}
    if row["system"] == "full":
        kept["system"] = "naive-share" if row["share"] else "full-ft"
    return kept


def save_results(study: Study) -> list[Row]:
    """Write `benchmarks/results/accuracy.json`: how it was made, and all rows, which are returned.

    Recipes and learning rates are told of all tasks, as rows are kept of all. They and the
    environment are today's: after a change of a recipe all of its task has to be measured again.
    """
    path = RESULTS / f"{_NAME}.json"
    saved = json.loads(path.read_text()) if path.is_file() else {"learning_rates": {}, "rows": []}
    rates = {
        found.stem: json.loads(found.read_text())
        for found in sorted((study.work / "search").glob("*.json"))
    }
    together = with_saved(rows(study.work), saved["rows"])
    save(
        _NAME,
        {
            "recipes": [asdict(recipe) for recipe in RECIPES.values()],
            "dtype": study.dtype,
            "learning_rates": saved["learning_rates"] | rates,
            "rows": together,
        },
    )
    return together


def write_docs(found: Sequence[Row], docs: Path) -> None:
    """Put the table into `docs/accuracy.md`, and Figure 2 beside it."""
    page = docs / "accuracy.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{table(found)}{_END}{after}")
    (docs / "accuracy.svg").write_text(draw([row for row in found if row["task"] in RECIPES]))


def table(found: Iterable[Row]) -> str:
    """A Markdown table: a line a task and system, a column a share, in per cent: the mean
    over seeds, as in the figure."""
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
    one = mean(same)
    return f"{100 * one.score:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"
