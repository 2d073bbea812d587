"""Clusters to plan for, and the files of their plans.

`python -m tests.launch.gpu_cases` writes `plans/*.txt` anew, for a reader to compare.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ps_sglang.contract import DecoderReport
from ps_sglang.errors import UsageError
from ps_sglang.launch import lora
from ps_sglang.launch.dry_run import gpu_lines
from ps_sglang.launch.gpus.machine import Machine, described
from ps_sglang.launch.gpus.plan import GpuPlan, plan_gpus
from ps_sglang.launch.placement import ADAPTER_WORKER, ONE_WORKER, Placement
from ps_sglang.launch.resources import Resources
from ps_sglang.launch.spec import ClusterSpec, Role
from ps_sglang.models.resolve import NamedModel
from tests.support.sparse_checkpoint import write_sparse

HERE = Path(__file__).parent
PLANS = HERE / "plans"
LLAMA, QWEN = "llama-3.1-8b", "qwen3-14b"


@dataclass(frozen=True)
class Case:
    """A cluster: a base, workers that prefill, decoders that are whole models, adapters."""

    gpus: str
    shape: str = LLAMA
    decoders: int = 0
    lora: bool = False
    one_worker: bool = False
    prefill: int = 1
    tp: int = 1
    words: tuple[str, ...] = ()
    resources: Mapping[str, Resources] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "8b-1x24-one-worker": Case("1x24GB", one_worker=True),
    "8b-1x24-two-workers": Case("1x24GB", lora=True),
    "8b-1x48-lora": Case("1x48GB", lora=True),
    "8b-1x48-two-decoders": Case("1x48GB", decoders=2),
    "8b-2x24-lora": Case("2x24GB", lora=True),
    "8b-1x80-two-decoders": Case("1x80GB", decoders=2),
    "8b-1x80-prefill-with-mem": Case(
        "1x80GB", decoders=1, resources={"prefill-0": Resources(mem="50GB")}
    ),
    "8b-1x80-four-decoders": Case("1x80GB", decoders=4),
    "8b-2x80-five-decoders": Case("2x80GB", decoders=5),
    "8b-4x24-three-decoders": Case("4x24GB", decoders=3),
    "8b-8x80-eight-decoders": Case("8x80GB", decoders=8),
    "8b-8x80-tp2": Case("8x80GB", decoders=3, tp=2),
    "8b-1x141-five-decoders": Case("1x141GB", decoders=5),
    "8b-4x80-mixed": Case(
        "4x80GB",
        decoders=3,
        lora=True,
        resources={
            "prefill-0": Resources(tp=2, gpus=(0, 1)),
            "decode-d1": Resources(gpus=(3,), mem="30GB"),
        },
    ),
    "14b-1x24-one-worker": Case("1x24GB", QWEN, one_worker=True),
    "14b-1x80-one-worker": Case("1x80GB", QWEN, one_worker=True),
    "14b-1x80-lora": Case("1x80GB", QWEN, lora=True),
    "14b-2x40-one-decoder": Case("2x40GB", QWEN, decoders=1),
    "14b-2x24-tp2": Case("2x24GB", QWEN, one_worker=True, tp=2),
    "14b-8x80-tp4": Case("8x80GB", QWEN, decoders=1, lora=True, tp=4),
    "14b-8x80-two-prefill": Case("8x80GB", QWEN, decoders=5, prefill=2, lora=True),
    "8b-2x80-two-hosts": Case("2x80GB", decoders=1, options={"advertise": "10.0.0.1"}),
    "8b-2x80-all-wrong": Case(
        "2x80GB",
        decoders=3,
        words=("--base-gpu-id", "1"),
        resources={
            "prefill-0": Resources(mem="10GB"),
            "decode-d1": Resources(tp=3),
            "decode-d2": Resources(gpus=(7,)),
            "decode-d3": Resources(gpus=(0, 1), mem="70GB"),
        },
        options={"transfer_backend": "zmq"},
    ),
}


def placements(case: Case, folder: Path) -> list[Placement]:
    """Its workers, in the launcher's order."""
    base = NamedModel("base", folder)
    if case.one_worker:
        made = [Placement(ONE_WORKER, Role.AGGREGATED, base, lora=True)]
    else:
        made = [
            Placement(f"prefill-{number}", Role.PREFILL, base) for number in range(case.prefill)
        ]
    if case.lora:
        made.append(Placement(ADAPTER_WORKER, Role.DECODE, base, lora=True))
    for number in range(1, case.decoders + 1):
        report = DecoderReport(f"d{number}", folder, None)
        model = NamedModel(report.name, folder)
        made.append(Placement(f"decode-{report.name}", Role.DECODE, model, (report,)))
    return [replace(one, resources=case.resources.get(one.name, Resources())) for one in made]


def planned(case: Case, folder: Path, machine: Machine | None = None) -> GpuPlan:
    """Its plan, on `machine` or the one that it describes; raises UsageError."""
    tp = ("--tp-size", str(case.tp)) if case.tp > 1 else ()
    lines = {}
    made = placements(case, folder)
    for one in made:
        words = ["--page-size", "64", *tp, *case.words]
        if one.lora:
            for flag, value in lora.defaults(folder, (), (), cpu=False).items():
                words += [flag, *([value] if isinstance(value, str) else value)]
        lines[one.name] = words
    spec = ClusterSpec(
        "base", ("x",), gpus=case.gpus, dry_run=True, one_worker=case.one_worker, **case.options
    )
    machine = machine or described(case.gpus)
    assert machine is not None
    return plan_gpus(spec, machine, made, lines)


def write_models(folder: Path) -> dict[str, Path]:
    """The models of all cases."""
    names = (LLAMA, QWEN)
    return {name: write_sparse(HERE / "shapes" / f"{name}.json", folder / name) for name in names}


def rendered(case: Case, folder: Path) -> str:
    """What a dry run shows of its plan, whether a package is installed or not."""
    try:
        lines = list(gpu_lines(planned(case, folder), "127.0.0.1"))
    except UsageError as error:
        lines = [f"refused: {error}"]
    return "\n".join(line for line in lines if "pip install" not in line) + "\n"


if __name__ == "__main__":
    PLANS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        models = write_models(Path(temporary))
        for name, case in CASES.items():
            (PLANS / f"{name}.txt").write_text(rendered(case, models[case.shape]))
