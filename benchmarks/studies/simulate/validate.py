"""Saved runs of the agents study, predicted from the step times that were measured beside them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.report import saved
from benchmarks.sessions.drive import Load
from benchmarks.sessions.workload import ALL_AT_ONCE, KINDS, Session, Shape, sessions
from benchmarks.studies.simulate.hardware import Measured
from benchmarks.studies.simulate.simulation import Cluster, Simulator, System
from ps_sglang.errors import UsageError

BAR: Final = 0.15
"""A prediction may be off by so much, as a part of what was measured."""
_SYSTEMS: Final[dict[str, System]] = {"ps_sglang": "shared", "stock_pd": "stock-pd"}


@dataclass(frozen=True)
class Compared:
    """One value of one system under one load: what its starts measured, and the prediction."""

    study: str
    system: str
    load: str
    value: str
    starts: tuple[float, ...]
    predicted: float

    @property
    def measured(self) -> float:
        """The median of what was measured at each start."""
        return statistics.median(self.starts)

    @property
    def error(self) -> float:
        """As a part of what was measured."""
        return self.predicted / self.measured - 1

    @property
    def is_between_starts(self) -> bool:
        """Whether one start measured more, another one less."""
        return min(self.starts) <= self.predicted <= max(self.starts)


def print_validation(path: Path) -> int:
    """Print predictions beside measurements; 0 if all are within BAR, else 1."""
    rows = compare(path)
    for row in rows:
        print(
            f"{row.study}, {row.system:<9} {row.load:>18}: {row.value} measured "
            f"{row.measured:8.3f} (starts {min(row.starts):.3f} to {max(row.starts):.3f}), "
            f"predicted {row.predicted:8.3f} ({row.error:+.1%})"
        )
    worst = max(rows, key=lambda row: abs(row.error))
    off = [row for row in rows if abs(row.error) > BAR]
    print(
        f"simulate: {len(rows) - len(off)} of {len(rows)} predictions within {BAR:.0%}, "
        f"{sum(row.is_between_starts for row in off)} of the others between what the starts "
        f"measured, the worst is {worst.error:+.1%} off"
    )
    return 1 if off else 0


def compare(path: Path) -> list[Compared]:
    """Simulate what ran. Raises UsageError for a file without such runs."""
    kept = saved(path, "runs of benchmarks.studies.agents", "python -m benchmarks.studies.agents")
    try:
        studies: Mapping[str, Any] = kept["studies"]
        rows = [row for name, study in studies.items() for row in _study(name, study)]
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} has no runs of benchmarks.studies.agents: {error!r}") from error
    if not rows:
        raise UsageError(
            f"{path} has no runs of {' or '.join(_SYSTEMS)} with a workload of {' or '.join(KINDS)}"
        )
    return rows


def _study(name: str, kept_study: Mapping[str, Any]) -> list[Compared]:
    study = kept_study["study"]
    if study["shape"]["kind"] not in KINDS:
        return []
    steps = msgspec.convert(kept_study["steps"]["measured"], Measured)
    groups: dict[tuple[str, float | None, int | None], list[Mapping[str, Any]]] = {}
    for run in kept_study["runs"]:
        if run["system"] in _SYSTEMS and not run["failures"]:
            load = run["load"]
            groups.setdefault((run["system"], load["rate"], load["concurrent"]), []).append(run)
    rows = []
    for (system, rate, concurrent), runs in groups.items():
        predicted = _predict(study, _SYSTEMS[system], rate, concurrent, steps)
        load = str(Load(rate, concurrent))
        rows += [
            Compared(
                name, system, load, value,
                tuple(_value(run, value) for run in runs), _value(predicted, value),
            )
            for value in ("p95", "tokens/s")
        ]  # fmt: skip
    return rows


def _value(run: Mapping[str, Any], value: str) -> float:
    return float(run["turn_s"]["p95"] if value == "p95" else run["output_tokens_per_s"])


def _predict(
    study: Mapping[str, Any], system: System, rate: float | None, most: int | None, steps: Measured
) -> dict[str, Any]:
    """The pools are those of `benchmarks.studies.agents.systems`."""
    shape = msgspec.convert(study["shape"], Shape)
    pool, number = study["pool"], shape.decoders
    shared = system == "shared"
    cluster = Cluster(
        system,
        number,
        prefill=1 if shared else number,
        prefill_pool=pool * number if shared else pool,
        decode_pool=pool,
        page=steps.page,
    )
    trace = sessions(shape, rate or ALL_AT_ONCE, study["count"], study["seed"])
    figures = Simulator(cluster, steps, most).run(trace)
    return {**figures, **_as_benchmarked(trace, figures)}


def _as_benchmarked(trace: Sequence[Session], figures: Mapping[str, Any]) -> dict[str, float]:
    """Throughput as the agents study has it, whose clock begins before the first arrival."""
    output = sum(turn.output for session in trace for turn in session.turns)
    return {"output_tokens_per_s": output / (trace[0].start + figures["seconds"])}
