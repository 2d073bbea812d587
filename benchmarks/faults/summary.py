"""The rows as a table, and in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.faults.rows import NAMES
from benchmarks.faults.tries import is_good, shortfalls

_HEAD = (
    "| fault | models | good | recovery: median, longest | requests: lost, of all | wrong "
    "| unaccounted | streams that went on | p95 of others |\n|---|---|---|---|---|---|---|---|---|"
)


def ordered(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows in the order of the table of faults."""
    return {name: rows[name] for name in NAMES if name in rows}


def table(rows: Mapping[str, Any]) -> str:
    """Markdown, a line for each row."""
    return "\n".join([_HEAD, *(_line(found) for found in ordered(rows).values())])


def _line(found: Mapping[str, Any]) -> str:
    seconds, p95 = found["recovery_s"], found["bystanders_p95"]
    during, after = p95["ratio"], p95["ratio_after"]
    recovery = "-" if seconds is None else f"{seconds['median']:.1f} s, {seconds['max']:.1f} s"
    good = ", ".join([f"{found['passed']} of {found['times']}", *shortfalls(found)])
    cells = (
        found["what"],
        found["model"],
        good,
        recovery,
        f"{found['lost']:,} of {found['requests']:,}",
        str(found["wrong"]),
        str(found["unaccounted"]),
        f"{found['went_on']} of {found['begun_streams']}" if found["begun_streams"] else "-",
        "-" if during is None else f"{during:.1f}x" + (f", {after:.1f}x after" if after else ""),
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
