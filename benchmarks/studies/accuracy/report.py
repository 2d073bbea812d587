"""From the study's cells to `accuracy.json`, the table and the figure's rows.

What the reference has and this study has not measured stays: parts of it can be run again,
on another machine, too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.report import OUT, REFERENCE, save, write
from benchmarks.studies.accuracy.plan import RECIPES, Study
from ps_sglang.errors import UsageError
from ps_sglang.training.evaluate.figure import draw, mean

Row = dict[str, Any]

_NAME: Final = "accuracy"
PAGE: Final = Path(__file__).with_name("README.md")
_KEPT: Final = ("task", "system", "share", "seed", "n", "score", "low", "high", "few_shot", "dtype")
# Where the table stands in the page.
_BEGIN, _END = "<!-- table -->", "<!-- end of the table -->"
_SYSTEMS: Final = ("base", "base-fewshot", "full-ft", "naive-share", "cache-conditioned")


def rows(work: Path) -> list[Row]:
    """Every row of every cell that is complete, in the order of the table."""
    rows = [
        _named(row)
        for cell in sorted((work / "cells").glob("*.json"))
        for row in json.loads(cell.read_text())["rows"]
    ]
    return _in_order(rows)


def with_saved(measured_rows: Sequence[Row], saved: Sequence[Row]) -> list[Row]:
    """`measured_rows`, and those of the saved rows that it has not measured again."""
    measured = {_place(row) for row in measured_rows}
    return _in_order([*measured_rows, *(row for row in saved if _place(row) not in measured)])


def _place(row: Row) -> tuple[str, int, float, int]:
    return row["task"], _SYSTEMS.index(row["system"]), row["share"], row["seed"]


def _in_order(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=_place)


def _named(row: Row) -> Row:
    """A fully fine-tuned decoder that reads some of the base's KV is what sharing naively is."""
    kept = {name: row[name] for name in _KEPT}
    if row["system"] == "full":
        kept["system"] = "naive-share" if row["share"] else "full-ft"
    return kept


def save_results(study: Study, *, publish: bool) -> None:
    """Write how the study was made, all rows and Figure 2; of the reference also the page's table.

    Recipes and learning rates are told of all tasks, as rows are kept of all. They and the
    environment are today's: after a change of a recipe all of its task has to be measured again.

    Raises UsageError if nothing was measured.
    """
    if not (measured := rows(study.work)):
        raise UsageError(
            f"{study.work} has no rows; this makes them: python -m benchmarks.studies.accuracy"
        )
    path = REFERENCE / f"{_NAME}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"learning_rates": {}, "rows": []}
    rates = {
        file.stem: json.loads(file.read_text())
        for file in sorted((study.work / "search").glob("*.json"))
    }
    together = with_saved(measured, kept["rows"])
    figures = {
        "recipes": [asdict(recipe) for recipe in RECIPES.values()],
        "dtype": study.dtype,
        "learning_rates": kept["learning_rates"] | rates,
        "rows": together,
    }
    save(_NAME, figures, publish=publish)
    figure = draw([row for row in together if row["task"] in RECIPES])
    for folder in (OUT, REFERENCE) if publish else (OUT,):
        write(folder / f"{_NAME}.svg", figure)
    if publish:
        write_table(together, PAGE)


def write_table(rows: Sequence[Row], page: Path) -> None:
    """Put the table into the page, between its marks."""
    head, _, rest = page.read_text().partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    write(page, f"{head}{_BEGIN}\n{table(rows)}{_END}{tail}")


def table(rows: Iterable[Row]) -> str:
    """A Markdown table: a line a task and system, a column a share, in per cent: the mean
    over seeds, as in the figure."""
    cells: dict[tuple[str, str], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
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
    score = mean(same)
    return f"{100 * score.score:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"
