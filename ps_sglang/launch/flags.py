"""SGLang's command line: what the launcher sets, what it defaults, what the user may add."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.events.messages import PUBLISHER
from ps_sglang.launch.spec import BOOTSTRAP_FLAG, LOOPBACK, EventPorts, Role
from ps_sglang.models.resolve import NamedModel

TP_SIZE: Final = "--tp-size"

Flags = Mapping[str, str | tuple[str, ...] | None]
"""Flag to value, or to several; None for a switch."""

_MODELS: Final = "models are chosen with --prefill and --decoders"
_ADDRESS: Final = (
    "workers take free ports, on the loopback or at --advertise; --host and --port are the "
    "gateway's"
)
_PARALLEL: Final = "one launcher runs one machine"
_ROLE: Final = "the launcher decides it from the worker's role"
_HANDOFF: Final = "it moves or keeps KV in ways that a shared prefill cannot allow"
_ORDER: Final = "requests wait by priority and by what is held of them, see docs/architecture.md"
_ADAPTERS: Final = "adapters are given with --decoders, as whole models are"
_ONE_ENGINE: Final = (
    "a worker is one engine; have several with --prefill-replicas and --decode-replicas"
)
_SPECULATIVE: Final = "a draft model would need hidden states of the base"

OWNED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "--model": _MODELS,
        "--model-path": _MODELS,
        "--served-model-name": _MODELS,
        "--host": _ADDRESS,
        "--port": _ADDRESS,
        "--nccl-port": _ADDRESS,
        "--dist-init-addr": _PARALLEL,
        "--nnodes": _PARALLEL,
        "--node-rank": _PARALLEL,
        "--disaggregation-mode": _ROLE,
        "--disaggregation-bootstrap-port": _ROLE,
        "--disaggregation-decode-enable-radix-cache": _ROLE,
        "--radix-cache-backend": _ROLE,
        "--kv-events-config": "the launcher connects each worker's event stream with the gateway",
        "--disaggregation-transfer-backend": "it is chosen with --transfer-backend",
        "--config": "put the flags on the command line or in a --spec file",
        "--tokenizer-worker-num": "one server process answers for a worker, and says which it is",
        "--api-key": "workers have a key already, see --cluster-key-file",
        "--admin-api-key": "workers have a key already, see --cluster-key-file",
        "--tokenizer-path": "each model brings its own tokenizer, which the contract compares",
        "--skip-tokenizer-init": "the gateway sends text",
        "--dp-size": _ONE_ENGINE,
        "--enable-dp-attention": _ONE_ENGINE,
        "--disaggregation-enable-kv-checksum": (
            "its decode workers would read one token more than was handed over, and end requests "
            "for it; pages of --transfer-backend zmq are compared anyway"
        ),
        "--disaggregation-decode-allocation-policy": _HANDOFF,
        "--disaggregation-decode-enable-offload-kvcache": _HANDOFF,
        "--disaggregation-decode-host-receive-threshold": _HANDOFF,
        "--enable-hisparse": _HANDOFF,
        "--enable-pd-role-switch": _HANDOFF,
        "--enable-session-radix-cache": _HANDOFF,
        "--enable-streaming-session": _HANDOFF,
        "--enable-priority-scheduling": _ORDER,
        "--schedule-low-priority-values-first": _ORDER,
        "--abort-on-priority-when-disabled": _ORDER,
        "--enable-lora": _ADAPTERS,
        "--lora-paths": _ADAPTERS,
        "--speculative-algorithm": _SPECULATIVE,
        "--speculative-draft-model-path": _SPECULATIVE,
    }
)
"""Flags that a user may not pass through, each with what to do instead."""

_BOTH: Final[Flags] = {
    "--enable-metrics": None,
    "--enable-cache-report": None,
    "--skip-server-warmup": None,  # the launcher's readiness probe runs one request itself
    "--log-level-http": "warning",
}
_CPU: Final[Flags] = {
    "--device": "cpu",
    "--dtype": "float32",
    "--attention-backend": "torch_native",
    "--sampling-backend": "pytorch",
    "--grammar-backend": "xgrammar",
    "--disable-overlap-schedule": None,
    "--sleep-on-idle": None,
    "--watchdog-timeout": "3600",
}
_CPU_DECODE: Final[Flags] = {"--disaggregation-decode-retraction-backup": "cpu_tensor"}
_CUDA: Final[Flags] = {"--page-size": "64"}  # one transfer a page and layer: SGLang's 1 is slow
_PREFILL: Final[Flags] = {"--schedule-policy": "lpm"}

_LORA: Final = (
    "--max-lora-rank",
    "--lora-target-modules",
    "--max-loras-per-batch",
    "--max-loaded-loras",
    "--lora-backend",
)
PARSERS: Final = ("--tool-call-parser", "--reasoning-parser")
DEFAULTED: Final = frozenset(
    (*_BOTH, *_CPU, *_CPU_DECODE, *_CUDA, *_PREFILL, *_LORA, *PARSERS, "--max-total-tokens")
)
"""Every flag that `defaults`, `lora.defaults` or a decoder's manifest may set."""

_CPU_CONTEXT: Final = 14336
_CPU_SPARE: Final = 2048


def defaults(role: Role, *, cpu: bool, context_length: int, cuda: bool = False) -> Flags:
    """The launcher's choices that a user's flag may override; `cuda`: on GPUs of NVIDIA or AMD.

    On a CPU the KV pool holds one full context (up to 14,336 tokens) and 2,048 tokens more:
    SGLang would size it by free memory, which several workers cannot all have.
    """
    flags = dict(_BOTH)
    if role is not Role.DECODE:
        flags |= _PREFILL
    if cuda:
        flags |= _CUDA
    if cpu:
        flags |= _CPU
        flags["--max-total-tokens"] = str(min(context_length, _CPU_CONTEXT) + _CPU_SPARE)
        if role is Role.DECODE:
            flags |= _CPU_DECODE
    return flags


def owned(
    role: Role,
    model: NamedModel,
    port: int,
    rendezvous_port: int,
    bootstrap_port: int | None,
    transfer_backend: str,
    events: EventPorts,
    listen: str = LOOPBACK,
    *,
    lora: bool = False,
) -> tuple[str, ...]:
    """The part of a worker's command line that only the launcher can know.

    It listens on `listen`. `lora`: it takes adapters.
    """
    flags: dict[str, str] = {
        "--model-path": str(model.path),
        "--served-model-name": model.name,
        "--host": listen,
        "--port": str(port),
        "--nccl-port": str(rendezvous_port),
        "--disaggregation-mode": role.value,
        "--radix-cache-backend": "base-token",
        "--kv-events-config": json.dumps(
            {
                "publisher": PUBLISHER,
                "endpoint": events.publishes,
                "replay_endpoint": events.control,
                "bind": True,
            }
        ),
    }
    if role is not Role.AGGREGATED:
        flags["--disaggregation-transfer-backend"] = transfer_backend
    if bootstrap_port is not None:
        flags[BOOTSTRAP_FLAG] = str(bootstrap_port)
    words = tuple(word for pair in flags.items() for word in pair)
    if role is Role.DECODE:
        words += ("--disaggregation-decode-enable-radix-cache",)
    if lora:
        words += ("--enable-lora",)
    return words


def merge(default: Flags, user: Sequence[str]) -> tuple[str, ...]:
    """`default` as a command line, then `user`; a flag of the user's replaces the default.

    `--no-FLAG` takes a default away and is not passed on.
    """
    # Given for all workers, it may name a default that this one does not have.
    removed = {name for name, _ in groups(user) if _negated(name) in DEFAULTED}
    user_groups = [(name, values) for name, values in groups(user) if name not in removed]
    replaced = {name for name, _ in user_groups} | {_negated(name) for name in removed}
    merged: list[str] = []
    for name, value in default.items():
        if name not in replaced:
            merged += [name, *([value] if isinstance(value, str) else value or ())]
    for _, words in user_groups:
        merged += words
    return tuple(merged)


def refuse_owned(words: Sequence[str], source: str) -> None:
    """Refuse flags that the launcher sets itself, and words that belong to no flag.

    Raises UsageError, which names the flag, where it was given, and what to use instead.
    """
    for name, group in groups(words):
        if not name:
            raise UsageError(f"{source}: {group[0]!r} belongs to no flag")
        if name in OWNED:
            raise UsageError(f"{source}: {name} cannot be passed through; {OWNED[name]}")


def decides(words: Sequence[str], flag: str) -> bool:
    """Whether a command line sets `flag`, or takes it away with `--no-`."""
    return any(flag in (name, _negated(name)) for name, _ in groups(words))


def value_of(words: Sequence[str], flag: str) -> str | None:
    """The last value of `flag` in a command line, as argparse would take it."""
    value = None
    for name, group in groups(words):
        if name == flag:
            _, equals, inline = group[0].partition("=")
            value = inline if equals else " ".join(group[1:])
    return value


def tp_size(own: int | None, words: Sequence[str]) -> int:
    """How many GPUs a worker has: `own` as its entry's `tp` says, else its flags, else one."""
    return own or int(value_of(words, TP_SIZE) or 1)


def tp_contradiction(own: int | None, words: Sequence[str]) -> str | None:
    """In what an entry's `tp` and the flags differ, None if they do not."""
    given = value_of(words, TP_SIZE)
    if own is None or given is None or int(given) == own:
        return None
    return f"tp is {own}, and {TP_SIZE} {given} says otherwise; leave one of them away"


def groups(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Split a command line into (flag name, its words); words before any flag have no name."""
    current: list[str] = []
    for word in words:
        if word.startswith("--") and current:
            yield _name(current), current
            current = []
        current.append(word)
    if current:
        yield _name(current), current


def _name(group: Sequence[str]) -> str:
    return group[0].partition("=")[0] if group[0].startswith("--") else ""


def _negated(name: str) -> str:
    return "--" + name.removeprefix("--no-")
