"""One fault from the rest before it to the rest behind it, and what all times of a row come to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.faults.agents import AGAIN, BY
from benchmarks.faults.client import Count, Ending, Outcome, count, streams
from benchmarks.faults.resources import Resources
from benchmarks.faults.rows import Row
from benchmarks.faults.scene import PROBE, Scene
from benchmarks.report import spread
from benchmarks.sessions.measures import percentiles
from ps_sglang.engine.transfer.limits import DEFAULT_LIMITS

BEFORE_S: Final = 3.0
_AFTER_S: Final = 1.0
_KEPT_S: Final = 6.0
"""Workers close connections that have been kept for 5 s."""
_LINGER_S: Final = DEFAULT_LIMITS.linger_s + 90.0
"""A decode worker tells for `linger_s` how a pull ended; then the dead peer's sockets idle out."""
RECOVERY_S: Final = 150.0
STREAMS_BAR: Final = 0.95
"""So many of the streams whose decode worker is struck must end as if nothing had happened."""
AFTER_BAR: Final = 1.2
"""So many times what it was before may the waiting time be afterwards, where that is compared."""


@dataclass
class Try:
    """One fault. Seconds count from the end of the fault: from a kill, from the SIGCONT.

    `served_s` until every decoder has given an exact answer, `recovery_s` until all processes are
    there again and all answers exact; None if that took too long. `before` and `during` it, and
    `after` it where that is compared, agents waited so many seconds for answers, those left out
    that had to ask again. Of the streams that were `begun` so many `went_on`.
    """

    stage: str
    served_s: float | None
    recovery_s: float | None
    counted: Count
    before: list[float]
    during: list[float]
    after: list[float]
    begun: int
    went_on: int
    figures: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all is as it must be."""
        return not (self.problems or self.counted.wrong or self.counted.unaccounted)


async def attempt(row: Row, scene: Scene, *, quick: bool) -> Try:
    """One fault. The agents speak before, meanwhile and for a moment after; then all must rest."""
    fault = row.make(quick)
    problems: list[str] = []
    start = len(scene.client.outcomes)
    scene.agents.resume()
    await asyncio.sleep(max(BEFORE_S, fault.compared_s))
    began = time.monotonic()
    try:
        await _note_failure(fault.inject(scene), problems)
        # What has been replaced is gone from the moment of the kill on.
        is_gone = fault.may_cut or bool(fault.replaced)
    finally:
        await fault.heal(scene)
    scene.agents.resume()
    healed = time.monotonic()
    since = began if is_gone else healed
    served, whole = await asyncio.gather(
        scene.served(healed + RECOVERY_S), scene.whole(fault.replaced, healed + RECOVERY_S)
    )
    over = time.monotonic()
    if whole is None:
        problems.append(f"not whole after {RECOVERY_S:g} s: {await _states(scene)}")
    else:
        await _note_failure(fault.check(scene), problems)
    await asyncio.sleep(max(_AFTER_S, healed + fault.compared_s - time.monotonic()))
    await scene.settle()
    await scene.agents.pause()
    if left := await scene.left_over():
        problems.append(f"not at rest: {left}")
    outcomes = scene.client.outcomes[start:]
    counted = _counted(outcomes, may_cut=fault.may_cut)
    return Try(
        fault.stage,
        None if served is None else served - since,
        None if whole is None else whole - since,
        counted,
        _seconds(outcomes, 0.0, began),
        _seconds(outcomes, began, over),
        _seconds(outcomes, healed, healed + fault.compared_s),
        *streams(outcomes, fault.begun, fault.struck_at),
        fault.figures,
        problems + counted.notes,
    )


async def _note_failure(step: Awaitable[None], problems: list[str]) -> None:
    try:
        await step
    except (AssertionError, LookupError) as error:
        problems.append(str(error))


def _counted(outcomes: Sequence[Outcome], *, may_cut: bool) -> Count:
    """Of all, but those tries again, and probes, that only find that it does not serve yet."""
    told = (Ending.FAILED, Ending.CUT, Ending.LIMITED)
    mine = [one for one in outcomes if one.by not in (PROBE, AGAIN) or one.ending not in told]
    return count(mine, may_cut=may_cut)


def _seconds(outcomes: Sequence[Outcome], start: float, end: float) -> list[float]:
    """Of bystanders that asked between the two moments."""
    return [
        one.done - one.asked
        for one in outcomes
        if one.by == BY and one.ending is Ending.EXACT and start <= one.asked < end
    ]


async def _states(scene: Scene) -> str:
    workers = await scene.system.workers()
    return ", ".join(f"{name} {one['state']}" for name, one in workers.items()) or "no gateway"


async def rest(scene: Scene) -> Resources:
    """What the cluster holds when nobody asks for anything."""
    await scene.agents.pause()
    await scene.left_over()
    await asyncio.sleep(_KEPT_S)
    return await asyncio.to_thread(scene.system.resources)


async def rest_after(scene: Scene, before: Resources) -> Resources:
    """As `rest`, once all is given back or what is kept for a dead peer's return must be."""
    until = time.monotonic() + _LINGER_S
    while (held := await rest(scene)).not_back(before) and time.monotonic() < until:
        pass
    return held


def figures(row: Row, tries: Sequence[Try], before: Resources, after: Resources) -> dict[str, Any]:
    """What is kept of a row."""
    not_back = after.not_back(before)
    problems = [text for one in tries for text in one.problems]
    recoveries = [one.recovery_s for one in tries if one.recovery_s is not None]
    served = [one.served_s for one in tries if one.served_s is not None]
    return {
        "what": row.what,
        "times": len(tries),
        "passed": sum(one.passed for one in tries),
        "recovery_s": spread(recoveries) if recoveries else None,
        "served_s": spread(served) if served else None,
        **{name: _sum(tries, name) for name in ("requests", "lost", "limited", "wrong")},
        "unaccounted": _sum(tries, "unaccounted"),
        "begun_streams": sum(one.begun for one in tries),
        "went_on": sum(one.went_on for one in tries),
        "bystanders_p95": _bystanders_p95(tries),
        "resources": {"before": vars(before), "after": vars(after), "not_back": not_back},
        "measured": _measured(tries),
        "problems": problems[:20],
        "tries": [
            {"stage": one.stage, "recovery_s": one.recovery_s, **one.figures} for one in tries
        ],
    }


def _bystanders_p95(tries: Sequence[Try]) -> dict[str, float | None]:
    """Of all waiting times before, during and after the fault, and the latter two by the first."""
    before, during, after = (
        percentiles([seconds for one in tries for seconds in getattr(one, name)]).get("p95")
        for name in ("before", "during", "after")
    )
    return {
        "before_s": before,
        "during_s": during,
        "after_s": after,
        "ratio": during / before if before and during else None,
        "ratio_after": after / before if before and after else None,
    }


def _measured(tries: Sequence[Try]) -> dict[str, Any]:
    """What else was measured each time, if it is a number."""
    values: dict[str, list[float]] = {}
    for one in tries:
        for name, value in one.figures.items():
            if isinstance(value, int | float):
                values.setdefault(name, []).append(value)
    return {name: spread(numbers) for name, numbers in values.items()}


def _sum(tries: Sequence[Try], name: str) -> int:
    return sum(int(getattr(one.counted, name)) for one in tries)


def is_good(found: Mapping[str, Any]) -> bool:
    """Whether a row passed each time, gave back what it took, and met all bars."""
    return found["passed"] == found["times"] and not shortfalls(found)


def shortfalls(found: Mapping[str, Any]) -> list[str]:
    """What is not as it must be over all times of a row."""
    missed = [f"not back: {what}" for what in found["resources"]["not_back"]]
    if found["went_on"] < STREAMS_BAR * found["begun_streams"]:
        missed.append(f"only {found['went_on']} of {found['begun_streams']} streams went on")
    after = found["bystanders_p95"]["ratio_after"]
    if after is not None and after > AFTER_BAR:
        missed.append(f"p95 afterwards is {after:.2f}x that before")
    return missed
