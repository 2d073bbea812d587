"""What can be refused before Ray is asked for anything."""

from __future__ import annotations

from dataclasses import dataclass

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.contract import DecoderReport
from ps_sglang.extras import require_extra
from ps_sglang.launch.command_lines import check_flags
from ps_sglang.launch.prepare import (
    check_access,
    check_model_roots,
    check_models,
    require_sglang,
)
from ps_sglang.launch.ray.placement import refuse_misfits
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.models.resolve import NamedModel


@dataclass(frozen=True)
class RayPlan:
    """A cluster whose models fit together. `secret` is the text of its key."""

    spec: ClusterSpec
    base: NamedModel
    reports: tuple[DecoderReport, ...]
    secret: str


def prepare_on_ray(spec: ClusterSpec) -> RayPlan:
    """Check `spec` and find its models; raises what `prepare` raises."""
    refuse_misfits(spec)
    require_extra("ray", "--on ray")
    require_sglang()
    spec = check_flags(spec)
    check_model_roots(spec.model_roots)
    check_access(spec)
    file = spec.cluster_key_file
    key = ClusterKey.make() if file is None else ClusterKey.load(file)
    base, reports = check_models(spec)
    return RayPlan(spec, base, tuple(reports), key.authorization.removeprefix("Bearer "))
