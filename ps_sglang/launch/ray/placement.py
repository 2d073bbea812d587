"""Which actors a cluster has, and what each reserves of a host; knows nothing of Ray itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from ps_sglang.contract import DecoderReport
from ps_sglang.errors import UsageError
from ps_sglang.gateway.config import LogFormat
from ps_sglang.gateway.limits import DEFAULT_LIMITS
from ps_sglang.launch import flags
from ps_sglang.launch.placement import Placement, place
from ps_sglang.launch.ray.keys import ActorKeys, ScaledKeys
from ps_sglang.launch.ray.scaling import ReplicaBounds
from ps_sglang.launch.resources import NO_RESOURCES, parse_size
from ps_sglang.launch.spec import ClusterSpec, Role
from ps_sglang.model_roots import parents
from ps_sglang.models.resolve import NamedModel

Bundle = dict[str, float]
"""What an actor reserves of a host, by Ray's names: CPU, GPU, memory (bytes), custom ones."""

# Ray loses everything with the node of its head, so the gateway's address can stay there.
GATEWAY_BUNDLE: Final[Bundle] = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class ActorPool:
    """Workers that do the same, and what each of them reserves.

    `bounds.least` of them are placed together with the whole cluster. `decoders` are theirs, none
    for prefill workers.
    """

    placement: Placement
    bundle: Bundle
    bounds: ReplicaBounds
    decoders: tuple[str, ...]

    @property
    def name(self) -> str:
        """That of its first worker, but `prefill`."""
        prefill = self.placement.role is Role.PREFILL
        return "prefill" if prefill else self.placement.name

    def worker_name(self, number: int) -> str:
        """As a launch on one machine calls them."""
        if self.placement.role is Role.PREFILL:
            return f"{self.name}-{number}"
        return self.name if number == 0 else f"{self.name}-{number + 1}"

    def has(self, role: str, decoders: Iterable[str]) -> bool:
        """Whether a worker of the gateway's list does what those of this pool do."""
        if self.placement.role is Role.PREFILL:
            return role == Role.PREFILL
        return role == Role.DECODE and not set(self.decoders).isdisjoint(decoders)


def refuse_misfits(spec: ClusterSpec) -> None:
    """Refuse options that have no meaning on Ray; raises UsageError with all of them."""
    given = {
        "--join": spec.join is not None,
        "--gateway-only": spec.gateway_only,
        "--one-worker": spec.one_worker,
        "--advertise": spec.advertise is not None,
    }
    problems = [f"{flag} does not go with --on ray" for flag, is_given in given.items() if is_given]
    if spec.gpus is not None:
        problems.append("--gpus does not go with --on ray, which chooses GPUs; give workers tp")
    problems += [
        f"{name}: gpus and mem do not go with --on ray, which gives each worker tp GPUs of its own"
        for name, one in spec.resources.items()
        if one.gpus is not None or one.mem is not None
    ]
    problems += spec.ray.problems()
    if problems:
        raise UsageError("; ".join(problems))


def pools(
    spec: ClusterSpec, base: NamedModel, reports: Sequence[DecoderReport], *, has_gpus: bool
) -> list[ActorPool]:
    """All pools of the cluster, prefill first. `has_gpus`: Ray knows of GPUs.

    Raises UsageError if two workers would have one name, or the key `ray` names no worker's
    decoder, or bounds between which no number is.
    """
    found = []
    for placement in place(spec, base, reports):
        if placement.number > 0:
            continue
        keys = _keys(spec, placement)
        gpus = _gpus(placement, placement.user_args(spec), has_gpus=has_gpus)
        decoders = tuple(report.name for report in placement.reports)
        bounds = _bounds(keys, placement)
        found.append(ActorPool(placement, _bundle(keys, gpus), bounds, decoders))
    whole = {
        pool.placement.model.name for pool in found if pool.decoders == (pool.placement.model.name,)
    }
    if unknown := [name for name in spec.ray.decoders if name not in whole]:
        raise UsageError(
            f"ray.decoders: {', '.join(unknown)}: no whole model of that name is served; there are "
            f"{', '.join(sorted(whole)) or 'none'}, and adapters have ray.adapters"
        )
    return found


def worker_words(
    spec: ClusterSpec, base: NamedModel, pool: ActorPool, gateway: str, roots: Iterable[str]
) -> tuple[str, ...]:
    """The command of a worker of the pool, after `ps-sglang`."""
    placement = pool.placement
    models = [f"{report.name}={Path(report.path).absolute()}" for report in placement.reports]
    words = ["worker", "--role", placement.role.value, "--base", _named(base)]
    if models:
        words += ["--model", ",".join(models)]
    words += ["--gateway", gateway, "--max-restarts", str(spec.max_restarts)]
    if spec.transfer_backend is not None:
        words += ["--transfer-backend", spec.transfer_backend]
    words += ["--allow-unverified"] * spec.allow_unverified
    words += _shared_words(spec, roots)
    if placement.resources.tp is not None:
        words += [flags.TP_SIZE, str(placement.resources.tp)]
    return (*words, *placement.user_args(spec))


def gateway_words(spec: ClusterSpec, base: NamedModel, roots: Iterable[str]) -> tuple[str, ...]:
    """The command of the gateway, after `ps-sglang`."""
    words = ["launch", "--gateway-only", "--prefill", _named(base)]
    words += ["--host", spec.host, "--port", str(spec.port)]
    words += ["--gateway-processes", str(spec.gateway_processes)]
    optional = {
        "--admin-host": spec.admin_host,
        "--admin-port": spec.admin_port,
        "--cors-origins": ",".join(spec.cors_origins) or None,
        "--api-keys": spec.api_keys,
        "--drain": f"{spec.drain_s:g}" if spec.drain_s else None,
        "--tls-cert": spec.tls_cert,
        "--tls-key": spec.tls_key,
    }
    for field in fields(DEFAULT_LIMITS):
        if (value := getattr(spec.limits, field.name)) != getattr(DEFAULT_LIMITS, field.name):
            optional[f"--{field.name.replace('_', '-')}"] = value
    for flag, value in optional.items():
        if value is not None:
            words += [flag, str(value.absolute() if isinstance(value, Path) else value)]
    words += ["--no-keys"] * spec.no_keys
    words += ["--max-restarts", str(spec.max_restarts), *_shared_words(spec, roots)]
    # By them it renders chats as the workers do, and knows how long a prompt may be.
    if spec.decode_engine_args:
        words.append(f"--decode-engine-args={shlex.join(spec.decode_engine_args)}")
    return (*words, *spec.engine_args)


def model_roots(
    spec: ClusterSpec, base: NamedModel, reports: Iterable[DecoderReport]
) -> tuple[str, ...]:
    """Below which folders weights may be loaded later: as given, else those of all models."""
    if spec.model_roots:
        return tuple(str(folder.absolute()) for folder in spec.model_roots)
    return parents([base.path, *(report.path for report in reports)])


def shortage(bundles: Mapping[str, Bundle], nodes: Sequence[Bundle], free: Bundle) -> str:
    """Why Ray's nodes cannot hold the bundles, by their names, in words and numbers.

    `nodes` is what each has in all, `free` what of it nobody has reserved.
    """
    problems = [
        f"{name} needs {described(bundle)}, and no node has that much"
        for name, bundle in bundles.items()
        if not any(_fits(bundle, node) for node in nodes)
    ]
    needed: Bundle = {}
    for bundle in bundles.values():
        for kind, amount in bundle.items():
            needed[kind] = needed.get(kind, 0.0) + amount
    for kind, amount in needed.items():
        if amount > free.get(kind, 0.0) and kind not in GATEWAY_BUNDLE:
            there = sum(node.get(kind, 0.0) for node in nodes)
            problems.append(
                f"all need {_amount(kind, amount)} together, and {_amount(kind, there)} is there, "
                f"{_amount(kind, free.get(kind, 0.0))} of it free"
            )
    return "; ".join(problems) or "there is enough in all, but not in the right portions on nodes"


def described(bundle: Bundle) -> str:
    """What an actor reserves, for people."""
    named = [_amount(kind, amount) for kind, amount in bundle.items() if kind not in GATEWAY_BUNDLE]
    return ", ".join(named) or "nothing"


def _amount(kind: str, amount: float) -> str:
    return f"memory {amount / 1e9:.3g} GB" if kind == "memory" else f"{kind} {amount:g}"


def _fits(bundle: Bundle, node: Bundle) -> bool:
    return all(node.get(kind, 0.0) >= amount for kind, amount in bundle.items())


def _gpus(placement: Placement, words: Sequence[str], *, has_gpus: bool) -> int:
    """How many GPUs a worker reserves: its tp, or none if it runs on the CPU.

    Raises UsageError if its flags have another tp than its entry.
    """
    own = placement.resources.tp
    if problem := flags.tp_contradiction(own, words):
        raise UsageError(f"{placement.name}: {problem}")
    device = flags.value_of(words, "--device")
    if device == "cpu" or not (has_gpus or device or placement.resources != NO_RESOURCES):
        return 0
    return flags.tp_size(own, words)


def _keys(spec: ClusterSpec, placement: Placement) -> ActorKeys:
    if placement.role is Role.PREFILL:
        return spec.ray.prefill
    if placement.lora:
        return spec.ray.adapters
    return spec.ray.decoders.get(placement.model.name, ScaledKeys())


def _bounds(keys: ActorKeys, placement: Placement) -> ReplicaBounds:
    """Raises UsageError for bounds between which no number is."""
    least = most = placement.replicas
    if isinstance(keys, ScaledKeys):
        least = least if keys.min_replicas is None else keys.min_replicas
        most = most if keys.max_replicas is None else keys.max_replicas
    if not 1 <= least <= most:
        raise UsageError(
            f"{placement.name}: min_replicas is {least} and max_replicas {most}; the first must be "
            "at least 1, and the second no less (each is the number of replicas by default)"
        )
    return ReplicaBounds(least, most)


def _bundle(keys: ActorKeys, gpus: int) -> Bundle:
    bundle = {
        "CPU": keys.cpus,
        "GPU": float(gpus),
        "memory": 0.0 if keys.memory is None else float(parse_size(keys.memory)),
        **keys.resources,
    }
    return {kind: amount for kind, amount in bundle.items() if amount}


def _shared_words(spec: ClusterSpec, roots: Iterable[str]) -> Iterator[str]:
    """What workers and gateway have in common."""
    for root in roots:
        yield from ("--model-root", root)
    if spec.allow_unsafe:
        yield "--allow-unsafe"
    if spec.otlp_endpoint is not None:
        yield from ("--otlp-endpoint", spec.otlp_endpoint)
    if spec.log_format is not LogFormat.TEXT:
        yield from ("--log-format", spec.log_format.value)
    yield from ("--ready-timeout", f"{spec.ready_timeout_s:g}")


def _named(model: NamedModel) -> str:
    return f"{model.name}={model.path.absolute()}"
