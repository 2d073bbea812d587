"""What is simulated: the paper's figures, then where nobody measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from benchmarks.agents.workload import KINDS, Shape, sessions, work
from benchmarks.simulate.hardware import DEVICES, MODELS, Measured, Roofline
from benchmarks.simulate.request import PAGE
from benchmarks.simulate.simulation import SYSTEMS, Cluster, Simulator

SEED: Final = 1
STUDIES: Final = (
    "rates",
    "hardware",
    "concurrency",
    "decoders",
    "prefill workers",
    "host memory",
    "sessions",
)
RATES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CONCURRENCY: Final = (10, 20, 40, 80, 160, 320)


@dataclass(frozen=True)
class Case:
    """One simulation; `measured` step times take the place of the model's on the device."""

    study: str
    cluster: Cluster
    shape: Shape
    rate: float
    count: int
    model: str = "llama-3.1-8b"
    device: str = "a100-80g"
    most: int | None = None
    measured: Measured | None = None

    @property
    def title(self) -> str:
        """In a line of progress."""
        one = self.cluster
        return (
            f"{self.study}: {self.shape.kind}, {self.model} on {self.device}, {one.system}, "
            f"{one.decoders} decoders, {one.prefill} prefill, {self.rate:g}/s"
            + (f", at most {self.most} sessions" if self.most else "")
        )

    def run(self) -> dict[str, Any]:
        """The figures of this case, with what its trace allows."""
        steps = self.measured or Roofline(MODELS[self.model], DEVICES[self.device])
        trace = sessions(self.shape, self.rate, self.count, SEED)
        figures = Simulator(self.cluster, steps, self.most).run(trace)
        allowed = work(trace, PAGE)
        kv = MODELS[self.model].kv_bytes if self.measured is None else None
        return {
            "study": self.study,
            "model": self.model,
            "device": self.device,
            "shape": asdict(self.shape),
            "rate": self.rate,
            "most": self.most,
            "allowed_hit_ratio": allowed.shared_hit
            if self.cluster.system == "shared"
            else allowed.per_model_hit,
            "ideal_ratio": allowed.ideal_ratio,
            **figures,
            "moved_bytes": None if kv is None else figures["moved_tokens"] * kv,
        }


def quick(measured: Measured | None) -> Iterator[Case]:
    """Two models and two systems, at an idle and at a saturating rate."""
    for rate in (0.25, 8.0):
        for system in SYSTEMS:
            yield Case("rates", Cluster(system, 4, 4), Shape(), rate, 150, measured=measured)


def full(measured: Measured | None) -> Iterator[Case]:
    """All studies; with measurements only the rates, as they know one machine."""
    for model in MODELS:
        for device in DEVICES:
            study = "hardware" if (model, device) != (Case.model, Case.device) else "rates"
            for kind in KINDS:
                for rate in RATES:
                    for system in SYSTEMS:
                        case = Case(study, Cluster(system, 4, 4), Shape(kind), rate, 250)
                        yield replace(case, model=model, device=device, measured=measured)
            if measured is not None:
                return
    yield from _concurrency()
    yield from _far()


def _concurrency() -> Iterator[Case]:
    for kind in KINDS:
        for most in CONCURRENCY:
            for system in SYSTEMS[:2]:
                count = max(250, 2 * most)
                yield Case(
                    "concurrency", Cluster(system, 4, 4), Shape(kind), 1000.0, count, most=most
                )


def _far() -> Iterator[Case]:
    # More decoders: equal GPUs, then a prefill worker for four decoders.
    for decoders in (8, 16, 64):
        shape, rate = Shape(decoders=decoders), decoders * 1.0
        for system, prefill in (
            ("stock-pd", decoders),
            ("shared", decoders),
            ("shared", decoders // 4),
        ):
            cluster = Cluster(system, decoders, prefill)  # type: ignore[arg-type]
            yield Case("decoders", cluster, shape, rate, 40 * decoders)
    # More prefill workers before 16 decoders, at a rate that they cannot all serve.
    for prefill in (1, 2, 4, 8, 16, 32, 100):
        cluster = Cluster("shared", 16, prefill, decode=2)
        yield Case("prefill workers", cluster, Shape(decoders=16), 64.0, 1500)
    # Host memory behind pools that are too small for what is alive.
    for host in (0, 1_000_000, 4_000_000):
        for prefill in (1, 2, 4):
            cluster = Cluster("shared", 4, prefill, decode=2, host_tokens=host)
            yield Case("host memory", cluster, Shape(pause=20.0), 8.0, 800)
    # Very many sessions at once, which wait for people rather than tools; four turns each.
    for count in (1_000, 10_000):
        shape = Shape("react", decoders=16, steps=2, pause=600.0, system_tokens=1024)
        cluster = Cluster("shared", 16, 32, decode=4)
        yield Case("sessions", cluster, shape, count / 60, count)
