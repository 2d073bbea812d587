"""What is simulated: the paper's figures, then where nobody measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from benchmarks.sessions.workload import KINDS, Kind, Session, Shape, sessions, work
from benchmarks.studies.simulate.hardware import DEVICES, MODELS, Measured, Roofline
from benchmarks.studies.simulate.simulation import SYSTEMS, Cluster, Simulator, System
from benchmarks.studies.simulate.traces import SEED, interrupted, shuffled, teams

WARM_UP: Final = 1 / 3
PAIR: Final[tuple[System, ...]] = ("shared", "stock-pd")
CONCURRENCY: Final[dict[Kind, tuple[int, ...]]] = {
    "react": (8, 16, 32, 64, 128, 256, 512),
    "reflexion": (8, 16, 32, 64, 128, 256),
}
STOCK_PARTS: Final = (0.2, 0.5, 0.8, 0.9, 0.95, 1.1)
SHARED_PARTS: Final = (0.6, 0.8, 0.9, 1.1)
"""Arrival rates as parts of what stock PD and what a shared prefill serve at most."""
_SPAN: Final = {"react": 240.0, "reflexion": 360.0}
"""Seconds of arrivals: several times what an undisturbed session takes, as a third is warm-up."""
_RAMP: Final = 30.0
_LEAST: Final = 150
INDEX_BYTES: Final = 110
"""Of a block in the gateway's index, see docs/architecture.md."""


@dataclass(frozen=True)
class Case:
    """One simulation: sessions that arrive at `rate`, or `most` at any time.

    `measured` step times take the place of the model's on the device. `order`: `cycle`, decoders
    go round; `chance`, every turn's is drawn; `teams`, four of all go round. `steady`: figures
    leave out warm-up and drain.
    """

    study: str
    cluster: Cluster
    shape: Shape
    rate: float | None = None
    most: int | None = None
    model: str = "llama-3.1-8b"
    device: str = "a100-80g"
    measured: Measured | None = None
    order: str = "cycle"
    count: int | None = None
    steady: bool = True

    @property
    def title(self) -> str:
        """In a line of progress."""
        cluster = self.cluster
        load = f"{self.rate:.3g} sessions/s" if self.rate else f"{self.most} sessions at a time"
        return (
            f"{self.study}: {self.shape.kind}, {self.model} on {self.device}, {cluster.system}, "
            f"{cluster.decoders} decoders, {cluster.prefill} prefill, {load}"
        )

    @property
    def trace(self) -> list[Session]:
        """The sessions."""
        count = self.count or self._count
        if self.rate is not None and self.order == "pause":
            return interrupted(self.rate, count, self.shape.pause, self.cluster.decoders)
        # Those of a closed load do not begin all at once, or they would stay in step.
        rate = self.rate if self.most is None else self.most / _RAMP
        assert rate is not None, "a case has a rate or a number of sessions at a time"
        trace = sessions(self.shape, rate, count, SEED)
        if self.order == "chance":
            return shuffled(trace, self.cluster.decoders)
        return teams(trace, self.cluster.decoders) if self.order == "teams" else trace

    @property
    def _count(self) -> int:
        if self.most is not None:
            return max(_LEAST, int(2.5 * self.most))
        assert self.rate is not None
        return max(_LEAST, int(self.rate * _SPAN[self.shape.kind]))

    def run(self) -> dict[str, Any]:
        """The figures of this case, with what its trace allows."""
        steps = self.measured or Roofline(MODELS[self.model], DEVICES[self.device])
        trace = self.trace
        simulator = Simulator(self.cluster, steps, self.most)
        figures = simulator.run(trace, WARM_UP if self.steady else None)
        allowed = work(trace, self.cluster.page)
        shared = self.cluster.system == "shared"
        per_session = allowed.output / len(trace)
        kv = MODELS[self.model].kv_bytes if self.measured is None else None
        return {
            "study": self.study,
            "model": self.model if self.measured is None else "measured",
            "device": self.device if self.measured is None else "measured",
            "shape": asdict(self.shape),
            "order": self.order,
            "rate": self.rate,
            "most": self.most,
            "output_tokens_per_session": per_session,
            "allowed_hit_ratio": allowed.shared_hit if shared else allowed.per_model_hit,
            "ideal_ratio": allowed.ideal_ratio,
            **figures,
            "moved_bytes": None if kv is None else figures["moved_tokens"] * kv,
            "index_megabytes": figures["index_blocks"] * INDEX_BYTES / 1e6,
            "routing_ms": simulator.routing_ms,
        }


Run = Callable[[Case], dict[str, Any]]


def paper(
    run: Run,
    model: str,
    device: str,
    kind: Kind,
    *,
    measured: Measured | None = None,
    systems: Sequence[System] = SYSTEMS,
    concurrency: Iterable[int] = (),
    parts: tuple[Sequence[float], Sequence[float]] = (STOCK_PARTS, SHARED_PARTS),
) -> None:
    """Figs. 4 and 3: hit ratio and throughput by concurrency, then latency by arrival rate.

    `systems` are compared by concurrency, a shared prefill and stock PD by rate.
    """
    loads = tuple(concurrency) or CONCURRENCY[kind]
    base = Case("concurrency", Cluster("shared", 4, 4), Shape(kind), measured=measured)
    base = replace(base, model=model, device=device)
    capacity = {}
    for system in systems:
        cluster = Cluster(system, 4, 4)
        runs = [run(replace(base, cluster=cluster, most=most)) for most in loads]
        best = max(runs, key=lambda figures: float(figures["output_tokens_per_s"]))
        capacity[system] = best["output_tokens_per_s"] / best["output_tokens_per_session"]
    stock, shared = (
        [part * of for part in chosen]
        for of, chosen in zip((capacity["stock-pd"], capacity["shared"]), parts, strict=True)
    )
    for rate in sorted(float(f"{rate:.3g}") for rate in (*stock, *shared)):
        for system in PAIR:
            run(replace(base, study="rates", cluster=Cluster(system, 4, 4), rate=rate))


def quick(run: Run, measured: Measured | None) -> None:
    """ReAct on LLaMA-3.1-8B and A100s, two systems, few loads."""
    paper(
        run, Case.model, Case.device, "react", measured=measured, systems=PAIR,
        concurrency=(32, 96, 256), parts=((0.2, 0.8, 1.1), (0.9,)),
    )  # fmt: skip


def figures(run: Run, measured: Measured | None) -> None:
    """Figs. 3 and 4 for both models and workloads; with measurements, of their machine."""
    for model in MODELS if measured is None else (Case.model,):
        for kind in KINDS:
            paper(run, model, Case.device, kind, measured=measured)


def hardware(run: Run, measured: Measured | None) -> None:
    """The same on H100s, with fewer loads."""
    parts = ((0.2, 0.8, 0.95, 1.1), (0.6, 0.9, 1.1))
    for model in MODELS:
        paper(run, model, "h100", "react", systems=PAIR, concurrency=(64, 128, 256), parts=parts)


def order(run: Run, measured: Measured | None) -> None:
    """Turns by chance: sessions whose decoders go round in one order bunch up."""
    for most in (64, 256):
        for system in SYSTEMS:
            cluster = Cluster(system, 4, 4)
            run(Case("order", cluster, Shape(), most=most, measured=measured, order="chance"))


def split(run: Run, measured: Measured | None) -> None:
    """What to do with the prefill workers that sharing saves: 16 GPUs, divided differently."""
    clusters = [Cluster("stock-pd", 4, 8, decode=2)]
    clusters += [Cluster("shared", 4, 16 - 4 * each, decode=each) for each in (1, 2, 3)]
    for cluster in clusters:
        for most in (256, 512):
            run(Case("split", cluster, Shape(), most=most))


def decoders(run: Run, measured: Measured | None) -> None:
    """More decoders: as many prefill workers as stock PD, then one for four decoders."""
    for number in (8, 16, 64):
        clusters = (
            Cluster("stock-pd", number, number),
            Cluster("shared", number, number),
            Cluster("shared", number, number // 4),
        )
        for cluster in clusters:
            # The last load is past what stock PD serves; of 64 decoders that would take too long.
            for each in (8, 24, 64)[: 2 if number == 64 else 3]:
                run(Case("decoders", cluster, Shape(), most=each * number, order="teams"))


def prefill(run: Run, measured: Measured | None) -> None:
    """1 to 100 prefill workers before 16 decoders of two workers each."""
    for number in (1, 2, 4, 8, 16, 32, 100):
        cluster = Cluster("shared", 16, number, decode=2)
        run(Case("prefill workers", cluster, Shape(), most=768, order="teams"))


def host(run: Run, measured: Measured | None) -> None:
    """Host memory behind prefill pools that do not hold what is open."""
    for most in (192, 256):
        for tokens in (0, 1_000_000, 4_000_000):
            cluster = Cluster("shared", 4, 4, host_tokens=tokens)
            run(Case("host memory", cluster, Shape("reflexion"), most=most))


def open_sessions(run: Run, measured: Measured | None) -> None:
    """Very many sessions that are open at once, each asleep for most of its time."""
    # 120,000 sessions arrive within 20 minutes and pause for an hour in the mean.
    shape = Shape(pause=3600.0)
    for tokens in (0, 16_000_000):
        cluster = Cluster("shared", 16, 16, decode=2, host_tokens=tokens)
        run(
            Case(
                "open sessions", cluster, shape,
                rate=100.0, count=120_000, order="pause", steady=False,
            )
        )  # fmt: skip


Study = Callable[[Run, Measured | None], None]
STUDIES: Final[dict[str, Study]] = {
    "figures": figures,
    "hardware": hardware,
    "order": order,
    "split": split,
    "decoders": decoders,
    "prefill": prefill,
    "host": host,
    "open": open_sessions,
}
MEASURED: Final = ("figures", "order")
"""Studies that know one machine only, as measurements do."""
