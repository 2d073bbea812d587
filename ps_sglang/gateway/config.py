"""What the launcher passes to the gateway: where it listens and which workers it has."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlsplit

import msgspec

from ps_sglang.gateway.limits import DEFAULT_LIMITS, GatewayLimits
from ps_sglang.worker_info import adapter_name


class LogFormat(StrEnum):
    """How the lines of a log are written."""

    TEXT = "text"
    JSON = "json"


class ConfigError(ValueError):
    """The configuration cannot work; the message lists every reason."""


@dataclass(frozen=True)
class PrefillWorker:
    """A prefill worker: its HTTP address and that of its bootstrap server.

    `events` and `events_control` are as those of a DecodeWorker.
    """

    name: str
    url: str
    bootstrap_host: str
    bootstrap_port: int
    events: str | None = None
    events_control: str | None = None
    role: ClassVar[str] = "prefill"
    decoder: ClassVar[None] = None

    @property
    def title(self) -> str:
        """The worker as messages name it."""
        return f"prefill worker {self.name!r}"


@dataclass(frozen=True)
class Adapter:
    """A LoRA decoder of a worker: its name for clients, its folder and its version there.

    `path` is as the worker sees it.
    """

    decoder: str
    path: str
    version: int = 1

    @property
    def name(self) -> str:
        """What SGLang calls it on the worker."""
        return adapter_name(self.decoder, self.version)


@dataclass(frozen=True)
class DecodeWorker:
    """A decode worker; several may serve the same decoder.

    `decoder` is what it serves without an adapter: the base, where it serves `adapters`; those are
    None for a worker that takes none. `aggregated`: it also computes the base prefix itself.
    `events` is the ZMQ address on which it publishes what its cache holds, `events_control` the one
    on which it takes commands; both None for a worker that publishes nothing.
    """

    name: str
    url: str
    decoder: str
    events: str | None = None
    events_control: str | None = None
    adapters: tuple[Adapter, ...] | None = None
    aggregated: bool = False
    role: ClassVar[str] = "decode"

    @property
    def title(self) -> str:
        """The worker as messages name it."""
        return f"decode worker {self.name!r}"


Worker = PrefillWorker | DecodeWorker


@dataclass(frozen=True)
class ChatFlags:
    """SGLang's flags on which it depends how workers render a chat.

    `template` is `--chat-template` (a file, or a name of SGLang's), `name` is
    `--hf-chat-template-name`, `variables` are `--default-chat-template-kwargs`.
    """

    template: str | None = None
    name: str | None = None
    variables: dict[str, Any] = field(default_factory=dict)


NO_CHAT_FLAGS: Final = ChatFlags()


@dataclass(frozen=True)
class GatewayConfig:
    """The gateway's whole configuration.

    `port` 0 asks for any free port. `base` is the base model's name, `context_length` the longest
    prompt plus answer in tokens, `vocabulary` how many token ids the model has (`vocab_size` of its
    `config.json`), `tokenizer` the folder of the base's tokenizer, if it is at hand, and `chat` how
    workers render chats. `cors_origins` are those whose web pages may use it, `*` for all.
    `is_aggregated`: each worker serves its requests alone, from their prompts on. `fingerprint` is
    the base's, which the first worker to join an empty cluster must have; None takes it as it is.
    Workers that are listed need no lease; all others join. `awaits_workers`: some that served
    before may be about to join again. `starting` are decoders whose first workers are on their way,
    so that to ask for one is no mistake. `api_keys` is the file of keys
    (`access.key_file`), and `launcher_key` the digest of one more key, the launcher's own. Without
    keys only this machine may be served, unless `no_keys`. `tls_cert` and `tls_key` are files in
    PEM format, both or neither. `cluster_key_file` holds the secret that its workers share with it,
    None for workers without one. Weights are loaded from below `model_roots` only, while the
    cluster runs. With `admin_port` (0 for any free one) what is for admins is served there only; it
    listens on `admin_host`, or on `host`. `log_format` is that of its log. `otlp_endpoint` is the
    URL that traces are exported to, if they are. Told to stop, it first lets its requests end, for
    up to `drain_s` seconds. Of `processes` that serve one port this is number `process`; they meet
    in the folder `peers`, which must be their user's alone. Raises ConfigError, listing everything
    that is wrong.
    """

    host: str
    port: int
    base: str
    context_length: int
    vocabulary: int
    prefill: tuple[PrefillWorker, ...] = ()
    decode: tuple[DecodeWorker, ...] = ()
    tokenizer: str | None = None
    chat: ChatFlags = NO_CHAT_FLAGS
    cors_origins: tuple[str, ...] = ()
    log_format: LogFormat = LogFormat.TEXT
    otlp_endpoint: str | None = None
    is_aggregated: bool = False
    fingerprint: str | None = None
    awaits_workers: bool = False
    starting: tuple[str, ...] = ()
    cluster_key_file: str | None = None
    model_roots: tuple[str, ...] = ()
    admin_host: str | None = None
    admin_port: int | None = None
    limits: GatewayLimits = DEFAULT_LIMITS
    api_keys: str | None = None
    launcher_key: str | None = None
    no_keys: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    drain_s: float = 0.0
    processes: int = 1
    process: int = 0
    peers: str | None = None

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise ConfigError("gateway configuration: " + "; ".join(problems))

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All workers, prefill first."""
        return (*self.prefill, *self.decode)

    @property
    def decoders(self) -> tuple[str, ...]:
        """The names clients can ask for, in the order of the configuration."""
        whole = dict.fromkeys(worker.decoder for worker in self.decode)
        return tuple({**whole, **dict.fromkeys(adapter.decoder for adapter in self.adapters)})

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The LoRA decoders of all workers."""
        return tuple(adapter for worker in self.decode for adapter in worker.adapters or ())

    def to_json(self) -> bytes:
        """The configuration as JSON, as `from_json` reads it."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read what `to_json` wrote; raises ConfigError if it is not that."""
        try:
            return msgspec.json.decode(content, type=cls)
        except msgspec.DecodeError as error:
            raise ConfigError(f"gateway configuration: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the configuration from a file."""
        return cls.from_json(path.read_bytes())


def _problems(config: GatewayConfig) -> list[str]:
    problems = []
    if config.is_aggregated and config.prefill:
        problems.append("`prefill` lists workers, and aggregated ones need none beside them")
    problems += [
        f"{worker.name}: `is_aggregated` of the cluster is {config.is_aggregated}, and its own "
        f"`aggregated` is {worker.aggregated}"
        for worker in config.decode
        if worker.aggregated is not config.is_aggregated
    ]
    problems += [
        f"`{name}` must be at least 1, not {getattr(config, name)}"
        for name in ("context_length", "vocabulary")
        if getattr(config, name) < 1
    ]
    names = Counter(worker.name for worker in config.workers)
    problems += [f"two workers are called {name!r}" for name, count in names.items() if count > 1]
    problems += [
        f"decoder name {name!r} is empty or has a '/', so no URL could name it"
        for name in config.decoders
        if not name or "/" in name
    ]
    adapters = {adapter.decoder for adapter in config.adapters}
    problems += [
        f"decoder name {name!r} has a ':', behind which SGLang looks for the adapter"
        for name in sorted(adapters)
        if ":" in name
    ]
    problems += [
        f"decoder {name!r} is a whole model and an adapter: give one of them another name"
        for name in sorted(adapters & {worker.decoder for worker in config.decode})
    ]
    problems += [
        f"{worker.name}: {name!r} is listed twice among its adapters"
        for worker in config.decode
        for name, count in Counter(one.decoder for one in worker.adapters or ()).items()
        if count > 1
    ]
    problems += filter(None, map(origin_problem, config.cors_origins))
    problems += [f"`{name}` {problem}" for name, problem in config.limits.problems()]
    problems += access_problems(
        config.host,
        has_keys=config.api_keys is not None,
        no_keys=config.no_keys,
        tls=(config.tls_cert, config.tls_key),
    )
    problems += admin_port_problems(
        config.port, config.admin_host, config.admin_port, has_keys=config.api_keys is not None
    )
    if config.processes < 1 or not 0 <= config.process < config.processes:
        problems.append(f"there is no process {config.process} of {config.processes}")
    if config.processes > 1 and config.peers is None:
        problems.append("several processes need a folder, `peers`, to meet in")
    return problems


def admin_port_problems(
    port: int, admin_host: str | None, admin_port: int | None, *, has_keys: bool
) -> list[str]:
    """What of the flags about the admins' port does not go together."""
    problems = []
    if admin_port is not None and not 0 <= admin_port <= 65535:
        problems.append(f"--admin-port is {admin_port}, must be 0 (any free port) to 65535")
    if admin_port and admin_port == port:
        problems.append(f"--admin-port is {admin_port}, which is --port: choose another")
    if admin_host is not None and admin_port is None:
        problems.append("--admin-host needs --admin-port")
    if admin_host is not None and not (has_keys or is_loopback(admin_host)):
        problems.append(
            f"--admin-host {admin_host} lets other machines in, and without keys none of them is "
            "an admin's: give --api-keys FILE"
        )
    return problems


def endpoint_problem(endpoint: str) -> str | None:
    """Why traces cannot be sent to a URL, if they cannot."""
    try:
        parts = urlsplit(endpoint)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return None
    except ValueError:  # of its port
        pass
    return (
        f"OTLP endpoint {endpoint!r} must be the URL of a collector that takes OTLP over HTTP, "
        "like http://localhost:4318"
    )


def access_problems(
    host: str, *, has_keys: bool, no_keys: bool, tls: tuple[object | None, object | None]
) -> list[str]:
    """What of the flags about access does not go together; `tls` are certificate and key."""
    problems = []
    if has_keys and no_keys:
        problems.append("--no-keys does not go with --api-keys")
    if not (has_keys or no_keys or is_loopback(host)):
        problems.append(
            f"--host {host} lets other machines in, and there are no keys: make some (`ps-sglang "
            "keys add FILE NAME`) and give --api-keys FILE, or let everybody in with --no-keys"
        )
    if (tls[0] is None) != (tls[1] is None):
        problems.append("--tls-cert and --tls-key are needed together")
    return problems


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def origin_problem(origin: str) -> str | None:
    """Why `origin` can be no web page's origin as browsers write it, if it cannot."""
    if origin == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s,A-Z]+", origin):
        return None
    return (
        f"CORS origin {origin!r} must be `*` or like http://localhost:3000, in lower case, no path"
    )
