"""Which workers a cluster has on Kubernetes: one Deployment for the base, and for each decoder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.launch import flags
from ps_sglang.launch.kubernetes.keys import KubernetesKeys
from ps_sglang.launch.placement import ADAPTER_WORKER, names_base, refuse_misplaced
from ps_sglang.launch.resources import Resources
from ps_sglang.launch.spec import ClusterSpec, Role
from ps_sglang.launch.unknown_keys import meant
from ps_sglang.models.resolve import model_name

_LONGEST: Final = 63
"""Characters of a label's value."""


@dataclass(frozen=True)
class WorkerPods:
    """The pods of one Deployment; `args` say what they serve, `engine_args` are SGLang's flags."""

    name: str
    replicas: int
    is_prefill: bool
    args: tuple[str, ...]
    engine_args: tuple[str, ...]
    gpus: int


def worker_pods(spec: ClusterSpec, keys: KubernetesKeys) -> list[WorkerPods]:
    """All Deployments of workers, that of the base first.

    Raises UsageError, with all that pods cannot serve.
    """
    adapters = [entry for entry in spec.entries if model_name(entry.model) in keys.adapters]
    if problems := [*_problems(spec, keys)]:
        raise UsageError("kubernetes: " + "; ".join(problems))
    refuse_misplaced(spec, adapters)
    pods = [_pods(spec, "prefill", Role.PREFILL, (), spec.prefill_replicas, spec.prefill_resources)]
    if adapters:
        models = [entry.model for entry in adapters]
        own = spec.adapter_resources
        pods.append(_pods(spec, ADAPTER_WORKER, Role.DECODE, models, spec.decode_replicas, own))
    for entry in spec.entries:
        if entry in adapters or (adapters and names_base(spec, entry)):
            continue
        replicas = entry.replicas or spec.decode_replicas
        name = f"decode-{_slug(model_name(entry.model))}"
        own = entry.resources
        words = entry.engine_args
        pods.append(_pods(spec, name, Role.DECODE, [entry.model], replicas, own, words))
    _refuse_names([one.name for one in pods])
    if keys.gpu is None and any(one.gpus > 1 for one in pods):
        raise UsageError("kubernetes: gpu is null, so that no worker can have a tp above 1")
    return pods


def _pods(
    spec: ClusterSpec,
    name: str,
    role: Role,
    models: Sequence[str],
    replicas: int,
    own: Resources,
    words: tuple[str, ...] = (),
) -> WorkerPods:
    args = ["--role", role.value, "--base", spec.prefill]
    if models:
        args += ["--model", ",".join(models)]
    words = spec.role_args(role) + words
    if problem := flags.tp_contradiction(own.tp, words):
        raise UsageError(f"{name}: {problem}")
    if own.tp is not None and flags.value_of(words, flags.TP_SIZE) is None:
        words += (flags.TP_SIZE, str(own.tp))
    gpus = flags.tp_size(own.tp, words)
    return WorkerPods(name, replicas, role is Role.PREFILL, tuple(args), words, gpus)


def _problems(spec: ClusterSpec, keys: KubernetesKeys) -> Iterator[str]:
    names = [model_name(entry.model) for entry in spec.entries]
    for adapter in keys.adapters:
        if adapter not in names:
            yield f"adapters: {adapter} is no decoder, {meant(adapter, names)}"
    for mount in keys.volumes:
        if not mount.startswith("/"):
            yield f"volumes: {mount} must be an absolute path, as /models"
    decoders = [entry.model for entry in spec.entries if not names_base(spec, entry)]
    for model in (spec.prefill, *decoders):
        yield from _unreachable(model, keys)


def _unreachable(model: str, keys: KubernetesKeys) -> Iterator[str]:
    source = model.partition("=")[2] or model
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None
    path = PurePosixPath(source)
    if not is_hub_id and not any(path.is_relative_to(mount) for mount in keys.volumes):
        places = ", ".join(keys.volumes) or "none"
        yield f"no pod finds {source}: it must lie in a volume (there are {places}) or be a hub id"


def _slug(name: str) -> str:
    """A decoder's name as Kubernetes takes it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _refuse_names(names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(
                f"kubernetes: two Deployments would be called {name}; rename a decoder"
            )
        if len(name) > _LONGEST:
            raise UsageError(
                f"kubernetes: {name} is longer than a label, which has {_LONGEST} characters; "
                "rename the decoder"
            )
