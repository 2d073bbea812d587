"""The plan of a launch on GPUs: where each worker runs, with what memory, flags and variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ps_sglang.contract.shape import read_shape
from ps_sglang.errors import UsageError
from ps_sglang.launch import flag_check, flags
from ps_sglang.launch.gpus import nvml
from ps_sglang.launch.gpus.budget import Demand, MemoryBudget, divide
from ps_sglang.launch.gpus.machine import Machine, choose, described
from ps_sglang.launch.gpus.sizes import adapter_bytes, item_bytes, read_size, tp_problem
from ps_sglang.launch.gpus.transport import (
    DEFAULT_BACKEND,
    Transport,
    backend_problems,
    choose_transport,
    package_hint,
)
from ps_sglang.launch.placement import Placement
from ps_sglang.launch.spec import ClusterSpec, Role

FRACTION: Final = "--mem-fraction-static"
_PAGE: Final = "--page-size"
_TOKENS: Final = "--max-total-tokens"
_CHUNK: Final = "--chunked-prefill-size"
_GRAPHS: Final = "--cuda-graph-max-bs-decode"
_MISPLACING: Final = ("--base-gpu-id", "--gpu-id-step")
_OTHER_PARALLEL: Final = ("--pp-size", "--attn-cp-size", "--dcp-size")
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_SMALL_PAGE: Final = 16
_MEND: Final = (
    "take GPUs with more memory, more of them (--gpus), several for a worker (tp in a --spec file, "
    "or --tp-size), or fewer workers, as adapters share one"
)


@dataclass(frozen=True)
class GpuPlan:
    """Every worker's budget by its name, in the order of their start, and how pages travel."""

    machine: Machine
    budgets: Mapping[str, MemoryBudget]
    transport: Transport | None
    notes: tuple[str, ...]

    @property
    def waves(self) -> list[list[str]]:
        """Workers that may start at once, each wave when the one before is ready."""
        count = 1 + max((budget.wave for budget in self.budgets.values()), default=-1)
        return [
            [name for name, budget in self.budgets.items() if budget.wave == wave]
            for wave in range(count)
        ]

    @property
    def ways(self) -> dict[str, list[str]]:
        """The ways of pages, each with the pairs of workers that use it."""
        ways: dict[str, list[str]] = {}
        if self.transport is None:
            return ways
        for source in self.budgets.values():
            for target in self.budgets.values():
                if (source.demand.role, target.demand.role) == (Role.PREFILL, Role.DECODE):
                    way = self.transport.between(source.gpus, target.gpus)
                    pair = f"{source.demand.name} to {target.demand.name}"
                    ways.setdefault(way, []).append(pair)
        return ways or {self.transport.name: ["to and from the cluster"]}

    def command_line(self, name: str, words: Sequence[str]) -> tuple[str, ...]:
        """A worker's flags, with what is planned where `words` say nothing."""
        budget = self.budgets[name]
        demand = budget.demand
        planned = {
            flags.TP_SIZE: str(demand.tp),
            _CHUNK: str(budget.sizes.chunk),
            _TOKENS: str(budget.tokens),
            FRACTION: f"{budget.fraction(budget.free_bytes):.3f}",
        }
        if demand.role is not Role.PREFILL:
            planned[_GRAPHS] = str(budget.sizes.decode_graph)
        return flags.merge(planned, words)

    def environment(self, name: str) -> dict[str, str]:
        """What a worker's environment has of the plan."""
        variables = dict(self.transport.environment or {}) if self.transport else {}
        return variables | {
            # Numbers then mean what NVML and nvidia-smi mean by them.
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            _VISIBLE: ",".join(map(str, self.budgets[name].gpus)),
        }

    def started_now(self, name: str, argv: Sequence[str]) -> tuple[str, ...]:
        """A worker's command line with the fraction of what is free on its GPUs now.

        Others may have taken a little more or less than planned, and a restarted worker finds those
        that were started after it.
        """
        budget = self.budgets[name]
        if self.machine.described or budget.demand.fraction is not None:
            return tuple(argv)
        free = nvml.free_bytes()
        fraction = budget.fraction(min(free[gpu] for gpu in budget.gpus))
        words = list(argv)
        words[words.index(FRACTION) + 1] = f"{fraction:.3f}"
        return tuple(words)


def find_machine(spec: ClusterSpec, *, has_amd: bool) -> Machine:
    """The machine to plan for. Raises UsageError.

    A described one can be planned for, but not started on, except with AMD's cards, for which
    there is no NVML to ask.
    """
    if flags.value_of(spec.engine_args, "--device") == "cpu":
        raise UsageError(f"--gpus {spec.gpus} does not go with --device cpu; leave one away")
    text = spec.gpus or "all"
    machine = described(text)
    if machine is None:
        gpus = choose(text, nvml.ask(), os.environ.get(_VISIBLE))
        return Machine(gpus, infiniband=nvml.has_infiniband())
    if not spec.dry_run and not has_amd:
        raise UsageError(
            f"--gpus {text} describes a machine to plan for: add --dry-run, or choose GPUs of this "
            "machine, as --gpus all does"
        )
    return machine


def plan_gpus(
    spec: ClusterSpec,
    machine: Machine,
    placements: Sequence[Placement],
    command_lines: Mapping[str, Sequence[str]],
) -> GpuPlan:
    """Place workers, with flags as in `command_lines`, on the GPUs of `machine`.

    Raises UsageError with all reasons why it cannot be.
    """
    backend = None if spec.one_worker else spec.transfer_backend or DEFAULT_BACKEND
    problems = list(
        dict.fromkeys(
            problem for words in command_lines.values() for problem in _flag_problems(words)
        )
    )
    demands = []
    for one in placements:
        words = command_lines[one.name]
        misplaced = list(_placement_problems(one, words, machine))
        problems += misplaced
        if not misplaced:
            demands.append(_demand(one, words))
    if backend is not None:
        problems += backend_problems(backend, dry_run=spec.dry_run)
    budgets, misfits = divide(demands, machine)
    problems += [*misfits, _MEND] if misfits else []
    if problems:
        raise UsageError("\n  ".join([f"this cannot run on {machine.title}:", *problems]))
    transport = None
    if backend is not None:
        one_host = spec.advertise is None
        transport = choose_transport(backend, machine, os.environ, one_host=one_host)
    notes = tuple(_notes(spec, budgets, transport))
    return GpuPlan(machine, {one.demand.name: one for one in budgets}, transport, notes)


def _notes(
    spec: ClusterSpec, budgets: Sequence[MemoryBudget], transport: Transport | None
) -> Iterator[str]:
    if transport is None:
        return
    if spec.dry_run and (hint := package_hint(transport.backend)):
        yield hint
    if transport.warning:
        yield transport.warning
    if len({one.demand.tp for one in budgets}) > 1:
        yield "workers differ in tp: SGLang then moves each token's heads one by one, which is slow"
    pages = min((one.demand.page_size for one in budgets), default=_SMALL_PAGE)
    if pages < _SMALL_PAGE:
        yield f"page size {pages} makes transfers of many small pieces, which are slow"


def _flag_problems(words: Sequence[str]) -> Iterator[str]:
    for flag in _MISPLACING:
        if flags.decides(words, flag):
            yield f"{flag} is the launcher's on GPUs; choose them with --gpus"
    for flag in _OTHER_PARALLEL:
        if int(flags.value_of(words, flag) or 1) > 1:
            yield f"{flag} divides a worker in a way that is not planned; use --tp-size"


def _placement_problems(
    placement: Placement, words: Sequence[str], machine: Machine
) -> Iterator[str]:
    name, tp = placement.name, flags.tp_size(placement.resources.tp, words)
    if problem := flags.tp_contradiction(placement.resources.tp, words):
        yield f"{name}: {problem}"
    if problem := tp_problem(read_shape(placement.model.path), tp):
        yield f"{name}: {problem}"
    there = [gpu.index for gpu in machine.gpus]
    if tp > len(there):
        yield f"{name}: tp {tp} needs {tp} GPUs, and there are {len(there)}"
    asked = placement.resources.gpus
    if asked is None:
        return
    if missing := [gpu for gpu in asked if gpu not in there]:
        yield f"{name}: no GPU {', '.join(map(str, missing))} among {', '.join(map(str, there))}"
    if len(asked) not in (tp, tp * placement.replicas):
        each = f", or {tp * placement.replicas} of their own" if placement.replicas > 1 else ""
        yield (
            f"{name}: gpus are {', '.join(map(str, asked))}, must be {tp} for all replicas{each}"
        )


def _demand(placement: Placement, words: Sequence[str]) -> Demand:
    folder, tp = placement.model.path, flags.tp_size(placement.resources.tp, words)
    shape = read_shape(folder)
    dtype = flags.value_of(words, "--dtype") or "auto"
    size = read_size(folder, tp, dtype, flags.value_of(words, "--kv-cache-dtype") or "auto")
    slots = 0
    if placement.lora:
        slots = adapter_bytes(
            shape,
            tp,
            item_bytes(folder, dtype),
            rank=int(flags.value_of(words, "--max-lora-rank") or 0),
            slots=int(flags.value_of(words, "--max-loras-per-batch") or 0),
            modules=(flags.value_of(words, "--lora-target-modules") or "").split(),
        )
    asked = placement.resources.gpus
    if asked is not None and len(asked) > tp:
        asked = asked[placement.number * tp :][:tp]
    fraction = flags.value_of(words, FRACTION)
    return Demand(
        name=placement.name,
        role=placement.role,
        tp=tp,
        size=size,
        adapter_bytes=slots,
        page_size=_count(words, _PAGE) or 1,
        context_length=_count(words, "--context-length") or shape.context_length,
        gpus=asked,
        memory_bytes=placement.resources.memory_bytes,
        most_tokens=_count(words, _TOKENS),
        fraction=None if fraction is None else float(fraction),
        running=_count(words, "--max-running-requests"),
        chunk=_count(words, _CHUNK),
        decode_graph=_count(words, _GRAPHS),
    )


def _count(words: Sequence[str], flag: str) -> int | None:
    """A flag's value, None for one that is not given, or says no limit with a number below 1."""
    value = flags.value_of(words, flag)
    count = None if value is None else flag_check.size(value)
    return count if count and count > 0 else None
