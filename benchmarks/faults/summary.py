"""The rows as a table, and in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.faults.rows import NAMES
from benchmarks.faults.tries import is_good

_HEAD = (
    "| fault | models | good | recovery: median, longest | requests: lost, of all | wrong "
    "| unaccounted | p95 of others |\n|---|---|---|---|---|---|---|---|"
)


def ordered(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows in the order of the table of faults."""
    return {name: rows[name] for name in NAMES if name in rows}


def table(rows: Mapping[str, Any]) -> str:
    """Markdown, a line for each row."""
    return "\n".join([_HEAD, *(_line(found) for found in ordered(rows).values())])


def _line(found: Mapping[str, Any]) -> str:
    seconds, ratio = found["recovery_s"], found["bystanders_p95"]["ratio"]
    recovery = "-" if seconds is None else f"{seconds['median']:.1f} s, {seconds['max']:.1f} s"
    good = f"{found['passed']} of {found['times']}"
    cells = (
        found["what"],
        found["model"],
        f"{good}, not all is back" if found["resources"]["not_back"] else good,
        recovery,
        f"{found['lost']:,} of {found['requests']:,}",
        str(found["wrong"]),
        str(found["unaccounted"]),
        "-" if ratio is None else f"{ratio:.1f}x",
    )
    return f"| {' | '.join(cells)} |"


def last_line(rows: Mapping[str, Any]) -> str:
    """What a run comes to."""
    worst = max((r["recovery_s"]["max"] for r in rows.values() if r["recovery_s"]), default=0.0)
    return (
        f"faults: {sum(map(is_good, rows.values()))}/{len(rows)} rows, "
        f"{sum(row['wrong'] for row in rows.values())} wrong tokens, "
        f"{sum(row['unaccounted'] for row in rows.values())} unaccounted, "
        f"worst recovery {worst:.1f} s"
    )
