"""Which workers a cluster has, and which decoders each of them serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ps_sglang.contract import DecoderReport
from ps_sglang.errors import UsageError
from ps_sglang.gateway.config import Adapter
from ps_sglang.launch.resources import NO_RESOURCES, Resources
from ps_sglang.launch.spec import ClusterSpec, Entry, Role
from ps_sglang.models.resolve import NamedModel, model_name

ADAPTER_WORKER: Final = "decode-lora"
ONE_WORKER: Final = "worker"


@dataclass(frozen=True)
class Placement:
    """A worker to be: `model` is what it loads, `reports` are those of its decoders.

    `lora`: it takes adapters, and `model` is the base. It is replica `number` of `replicas` that
    have the same `resources`. `engine_args` are SGLang's flags for it alone.
    """

    name: str
    role: Role
    model: NamedModel
    reports: tuple[DecoderReport, ...] = ()
    lora: bool = False
    resources: Resources = NO_RESOURCES
    number: int = 0
    replicas: int = 1
    engine_args: tuple[str, ...] = ()

    def user_args(self, spec: ClusterSpec) -> tuple[str, ...]:
        """All the user's SGLang flags for it, the winning ones last."""
        return spec.role_args(self.role) + self.engine_args

    @property
    def adapters(self) -> tuple[Adapter, ...] | None:
        """The LoRA decoders that it begins with, None if it takes none."""
        if not self.lora:
            return None
        return tuple(Adapter(report.name, str(report.path)) for report in self.reports)


def names_base(spec: ClusterSpec, entry: Entry) -> bool:
    """Whether an entry is the base, by its name or as `--prefill` has it."""
    return entry.model in (spec.prefill, model_name(spec.prefill))


def refuse_misplaced(spec: ClusterSpec, adapters: Collection[Entry]) -> None:
    """Refuse decoders that cannot have the workers asked for; `adapters` are those that are some.

    Raises UsageError, which names the decoder and what to do instead.
    """
    seen: set[str] = set()
    for entry in spec.entries:
        name = model_name(entry.model)
        is_base = names_base(spec, entry)
        if is_base and name in seen:
            raise UsageError(f"decoder {name}, which is the base, is named twice")
        seen.add(name)
        shares = entry in adapters or (is_base and (bool(adapters) or spec.one_worker))
        if spec.one_worker and not shares:
            raise UsageError(
                f"decoder {name} is a whole model, and --one-worker serves only adapters of the "
                "base, and the base by its name; leave --one-worker away"
            )
        if shares and (entry.engine_args or entry.resources != NO_RESOURCES):
            raise UsageError(
                f"decoder {name} shares its workers with all adapters, so it has no tp, gpus, mem "
                "or engine_args of its own; give those of the workers under the key adapters, and "
                "flags as decode_engine_args"
            )
        if shares and entry.replicas is not None:
            more = f", and --decode-replicas {entry.replicas} for more of them"
            raise UsageError(
                f"decoder {name} shares its workers with all adapters, so it has no number of its "
                f"own: write {entry.model}{'' if spec.one_worker else more}"
            )


def place(
    spec: ClusterSpec,
    base: NamedModel,
    reports: Sequence[DecoderReport],
) -> list[Placement]:
    """Every worker of the cluster, prefill first; `reports` are in the order of `spec.decoders`.

    Raises UsageError if two workers would have one name.
    """
    adapters = tuple(report for report in reports if report.adapter is not None)
    if spec.one_worker:
        own = spec.adapter_resources
        return [Placement(ONE_WORKER, Role.AGGREGATED, base, adapters, lora=True, resources=own)]
    prefill = Placement("prefill", Role.PREFILL, base, resources=spec.prefill_resources)
    names = [f"prefill-{number}" for number in range(spec.prefill_replicas)]
    placements = _replicas(prefill, names)
    if adapters:
        own = spec.adapter_resources
        one = Placement(ADAPTER_WORKER, Role.DECODE, base, adapters, lora=True, resources=own)
        placements += _replicas(one, _names(ADAPTER_WORKER, spec.decode_replicas))
    for report, entry in zip(reports, spec.entries, strict=True):
        if report.adapter is not None or (adapters and report.name == base.name):
            continue
        model = NamedModel(report.name, report.path)
        one = Placement(
            f"decode-{report.name}",
            Role.DECODE,
            model,
            (report,),
            resources=entry.resources,
            engine_args=entry.engine_args,
        )
        placements += _replicas(one, _names(one.name, entry.replicas or spec.decode_replicas))
    _refuse_same_names(placements)
    return placements


def _replicas(one: Placement, names: Iterable[str]) -> list[Placement]:
    every = list(names)
    return [
        replace(one, name=name, number=number, replicas=len(every))
        for number, name in enumerate(every)
    ]


def _names(first: str, count: int) -> Iterator[str]:
    yield first
    yield from (f"{first}-{number}" for number in range(2, count + 1))


def _refuse_same_names(placements: Sequence[Placement]) -> None:
    names = Counter(placement.name for placement in placements)
    for placement in reversed(placements):
        if names[placement.name] > 1:
            name = placement.model.name
            raise UsageError(
                f"two workers would be called {placement.name}; rename decoder {name}, "
                f"for instance with {name}-x={placement.model.path}"
            )
