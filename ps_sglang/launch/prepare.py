"""Everything that can be refused before a process is started, and the plan that is left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile

from ps_sglang.contract import DecoderReport, base_fingerprint, check_cluster, is_adapter
from ps_sglang.contract.engine_flags import check_engine_flags
from ps_sglang.contract.shape import read_shape
from ps_sglang.contract.tensors import weight_files
from ps_sglang.engine.compat import SGLANG_VERSION
from ps_sglang.errors import MissingPackageError, UsageError
from ps_sglang.extras import require_extra
from ps_sglang.gateway.access import key_file, tls
from ps_sglang.gateway.config import ChatFlags
from ps_sglang.home import home
from ps_sglang.launch import flags
from ps_sglang.launch.command_lines import (
    chat_flags,
    check_flags,
    check_tp_sizes,
    command_lines,
    token_limits,
)
from ps_sglang.launch.devices import has_amd, refuse_resources, runs_on_cpu, runs_on_cuda
from ps_sglang.launch.gpus.plan import GpuPlan, find_machine, plan_gpus
from ps_sglang.launch.gpus.transport import DEFAULT_BACKEND
from ps_sglang.launch.parsers import check_parsers
from ps_sglang.launch.placement import Placement, names_base, place, refuse_misplaced
from ps_sglang.launch.ports import free_ports, listen_address, require_free
from ps_sglang.launch.spec import LOOPBACK, ClusterSpec, EventPorts, Role, WorkerSpec
from ps_sglang.launch.unsafe_flags import code_warnings
from ps_sglang.model_roots import parents
from ps_sglang.models.resolve import NamedModel, resolve_all


@dataclass(frozen=True)
class Plan:
    """A cluster that fits together, with every worker's command line.

    `context_length` is the longest prompt plus answer in tokens that its workers can hold,
    `vocabulary` the number of token ids that the models have. `gpus` says what runs on which GPU,
    None for other devices. That of a dry run has no fingerprint, and is not to be started.
    """

    spec: ClusterSpec
    cpu: bool
    base: NamedModel
    fingerprint: str
    reports: tuple[DecoderReport, ...]
    workers: tuple[WorkerSpec, ...]
    architecture: str
    context_length: int
    vocabulary: int
    log_dir: Path
    chat: ChatFlags
    gpus: GpuPlan | None = None

    @property
    def host(self) -> str:
        """Where other hosts reach the workers, if they do."""
        return self.spec.advertise or LOOPBACK

    @property
    def model_roots(self) -> tuple[str, ...]:
        """The folders from which weights may be loaded while the cluster runs."""
        if self.spec.model_roots:
            return tuple(str(folder.resolve()) for folder in self.spec.model_roots)
        return parents([self.base.path, *(report.path for report in self.reports)])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the engines' flags lets code run that is neither SGLang's nor ours."""
        return tuple(code_warnings({worker.name: worker.argv for worker in self.workers}))

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Every file of weights that will be loaded, once each."""
        folders = dict.fromkeys(worker.model_path for worker in self.workers)
        return tuple(file for folder in folders for file in weight_files(folder))

    @property
    def waves(self) -> list[list[str]]:
        """The names of workers that may start at once, each wave when the one before is ready."""
        at_once = [[worker.name for worker in self.workers]]
        return at_once if self.gpus is None else self.gpus.waves

    def shares_model(self, worker: WorkerSpec) -> bool:
        """Whether another worker loads the same model."""
        return sum(other.model_path == worker.model_path for other in self.workers) > 1


def prepare(spec: ClusterSpec) -> Plan:
    """Check `spec` and resolve it, the quick checks first; a dry run makes no folder.

    Raises UsageError or one of its subclasses if the specification cannot work, and
    MissingPackageError if SGLang is not installed, or not in the supported version, or a package
    that an option needs.
    """
    require_sglang()
    if spec.otlp_endpoint is not None:
        require_extra("otel", "--otlp-endpoint")
    spec = check_flags(spec)
    check_model_roots(spec.model_roots)
    check_access(spec)
    starts_gateway = spec.join is None and not spec.dry_run
    if spec.port and starts_gateway:
        require_free(spec.host, spec.port)
    if spec.admin_port and starts_gateway:
        require_free(spec.admin_host or spec.host, spec.admin_port)
    if spec.worker_port:
        require_free("0.0.0.0", spec.worker_port)
    log_dir = _log_dir(spec.log_dir, make=not spec.dry_run)
    base, reports = check_models(spec)
    cpu, cuda = runs_on_cpu(spec), runs_on_cuda(spec)
    placements = place(spec, base, reports)
    shape = read_shape(base.path)
    lines = command_lines(spec, placements, shape.context_length, cpu=cpu, cuda=cuda)
    check_engine_flags(lines)
    check_parsers(lines)
    gpus = None
    if not cuda:
        refuse_resources(spec)
    elif placements:
        gpus = plan_gpus(spec, find_machine(spec, has_amd=has_amd()), placements, lines)
        lines = {name: gpus.command_line(name, lines[name]) for name in gpus.budgets}
    backend = spec.transfer_backend or ("zmq" if cpu else DEFAULT_BACKEND)
    check_tp_sizes(placements, lines, backend)
    return Plan(
        spec,
        cpu,
        base,
        "" if spec.dry_run else base_fingerprint(base.path),  # reads every weight
        tuple(reports),
        _workers(spec, backend, placements, lines, log_dir),
        shape.architecture,
        min([shape.context_length, *token_limits([spec.engine_args, *lines.values()])]),
        shape.vocabulary,
        log_dir,
        chat_flags(spec),
        gpus,
    )


def check_model_roots(roots: Iterable[Path]) -> None:
    """Refuse a `--model-root` that is no folder."""
    for folder in roots:
        if not folder.is_dir():
            raise UsageError(f"--model-root {folder} is no folder")


def check_access(spec: ClusterSpec) -> None:
    """Read what the gateway will read; raises UsageError for a file that it could not use."""
    if spec.api_keys is not None and not key_file.read(spec.api_keys):
        raise UsageError(
            f"--api-keys {spec.api_keys}: it has no key: `ps-sglang keys add {spec.api_keys} NAME`"
        )
    if spec.tls_cert is not None and spec.tls_key is not None:
        tls.load(spec.tls_cert, spec.tls_key)


def check_models(spec: ClusterSpec) -> tuple[NamedModel, list[DecoderReport]]:
    """Resolve all models and compare every decoder with the base; what `ps-sglang check` does.

    The reports are in the order of `spec.decoders`. The base is a decoder by its name, or as
    `--prefill` has it.
    """
    chat_template = chat_flags(spec).template
    others = [entry for entry in spec.entries if not names_base(spec, entry)]
    base, *models = resolve_all([spec.prefill, *(entry.model for entry in others)])
    adapters = [one for one, model in zip(others, models, strict=True) if is_adapter(model.path)]
    refuse_misplaced(spec, adapters)
    checked = iter(
        check_cluster(
            base.path,
            {model.name: model.path for model in models},
            allow_unverified=spec.allow_unverified,
            chat_template=chat_template,
        )
    )
    itself = DecoderReport(base.name, base.path, None, is_base=True)
    return base, [itself if names_base(spec, entry) else next(checked) for entry in spec.entries]


def require_sglang() -> None:
    """Refuse an SGLang that the plugin was not written for."""
    fix = f"pip install sglang=={SGLANG_VERSION}"
    try:
        installed = version("sglang")
    except PackageNotFoundError as error:
        raise MissingPackageError(f"SGLang is not installed: {fix}") from error
    if installed != SGLANG_VERSION:
        raise MissingPackageError(
            f"sglang {installed} is installed, ps_sglang supports {SGLANG_VERSION}: {fix}"
        )


def _log_dir(log_dir: Path | None, *, make: bool) -> Path:
    folder = log_dir or home() / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    if not make:
        return folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the log folder {folder}: {error.strerror}") from error
    try:
        # Also root cannot write everywhere, so asking for permission would not do.
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write to the log folder {folder}: {error.strerror}; "
            "choose another with --log-dir"
        ) from error
    return folder.resolve()


def _workers(
    spec: ClusterSpec,
    backend: str,
    placements: Sequence[Placement],
    lines: Mapping[str, tuple[str, ...]],
    log_dir: Path,
) -> tuple[WorkerSpec, ...]:
    if not placements:
        return ()
    ports = iter(free_ports(5 * len(placements), but=spec.ports))
    host = spec.advertise or LOOPBACK
    listen = listen_address(host)
    # ZeroMQ takes no names to bind to, and whoever joins is asked at the host of its URL.
    bind = LOOPBACK if host == LOOPBACK else "*"
    workers = []
    for placement in placements:
        name, role, model = placement.name, placement.role, placement.model
        port, rendezvous = spec.worker_port or next(ports), next(ports)
        bootstrap = next(ports) if role is Role.PREFILL else None
        events = EventPorts(f"tcp://{bind}:{next(ports)}", f"tcp://{bind}:{next(ports)}")
        owned = flags.owned(
            role, model, port, rendezvous, bootstrap, backend, events, listen, lora=placement.lora
        )
        workers.append(
            WorkerSpec(
                name=name,
                role=role,
                model_name=model.name,
                model_path=model.path,
                port=port,
                bootstrap_port=bootstrap,
                events=events,
                argv=(*owned, *lines[name]),
                log=log_dir / f"{name}.log",
                adapters=placement.adapters,
                host=host,
                local_host={"0.0.0.0": LOOPBACK, "::": "::1"}.get(listen, listen),
            )
        )
    return tuple(workers)
