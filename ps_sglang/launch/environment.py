"""Environment variables of the fork server and its workers."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from getpass import getuser
from pathlib import Path
from tempfile import gettempdir
from typing import Final

from ps_sglang import cluster_key
from ps_sglang.engine.settings import (
    ADAPTERS,
    ALLOW_UNSAFE,
    ALLOW_UNVERIFIED,
    BASE_FINGERPRINT,
    MODEL_ROOTS,
    SHARE_WEIGHTS,
)
from ps_sglang.errors import UsageError
from ps_sglang.gateway.config import Adapter
from ps_sglang.launch.architectures import (
    DISABLED,
    sglang_models_folder,
    unneeded_model_files,
)
from ps_sglang.launch.spec import Role, WorkerSpec
from ps_sglang.worker_info import ENGINE_SILENCE_S, adapter_name

_VARIABLE_BYTES: Final = 1 << 17
"""Linux takes no environment variable of this size (MAX_ARG_STRLEN)."""
CLUSTER: Final = "PS_SGLANG_CLUSTER"
"""Set in every process of a cluster to the cluster's id; nothing reads it but people and tests."""


def has_accelerator(devices: Path = Path("/dev")) -> bool:
    """Whether this machine shows a CUDA or ROCm device (asked without importing torch)."""
    return any((devices / name).exists() for name in ("nvidiactl", "kfd"))


def fork_server_environment(
    environ: Mapping[str, str], runtime: Path, architecture: str, host: str, *, cpu: bool
) -> dict[str, str]:
    """What the fork server and everything it starts runs with; the user's own settings win.

    OpenMP, MKL and the allocator read theirs when they are loaded, so they cannot wait for
    the worker. `runtime` takes all temporary files, and is removed when the cluster stops. Others
    reach the workers at `host`.
    """
    defaults = {
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # Where KV managers listen.
        "SGLANG_HOST_IP": host,
        "SGLANG_HEALTH_CHECK_TIMEOUT": str(ENGINE_SILENCE_S),
    }
    fixed = {CLUSTER: runtime.name, "PS_SGLANG_ENABLE": "1", "TMPDIR": str(runtime)}
    if cpu:
        unneeded = unneeded_model_files({architecture}, sglang_models_folder())
        defaults |= _CPU_DEFAULTS | {DISABLED: ",".join(unneeded)}
        fixed |= _CPU_FIXED
    else:
        # By default below the temporary folder, which `runtime` replaces and which is removed.
        defaults["TORCHINDUCTOR_CACHE_DIR"] = f"{gettempdir()}/torchinductor_{getuser()}"
    return defaults | dict(environ) | fixed


_CPU_DEFAULTS: Final = {
    # Idle threads of one worker must leave the cores to another.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "OMP_NUM_THREADS": "1",  # of the fork server; each worker has its own
    "MALLOC_ARENA_MAX": "2",  # each arena keeps freed memory of its own
    "GLOO_SOCKET_IFNAME": "lo",  # the processes of a worker are on one machine
}
_CPU_FIXED: Final = {
    # OpenBLAS starts its threads when NumPy is imported, and a fork wants a single thread.
    "OPENBLAS_NUM_THREADS": "1",
    # An accelerator that PyTorch sees would turn the CPU platform away.
    "CUDA_VISIBLE_DEVICES": "",
}


def worker_environment(
    environ: Mapping[str, str], folder: Path, role: Role, *, cpu: bool
) -> dict[str, str]:
    """What one worker runs with on top of the fork server's environment.

    `folder` takes its temporary files (the sockets between SGLang's processes are files) and
    its metrics: `prometheus_client` mixes those of all processes that share a folder.
    """
    metrics = folder / "metrics"
    metrics.mkdir(parents=True)
    variables = {"TMPDIR": str(folder), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    if cpu:
        variables["OMP_NUM_THREADS"] = environ.get("OMP_NUM_THREADS") or str(threads(role))
        # The ranks of a worker meet in a file: torch's port listens on all addresses, for anybody.
        variables["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = f"file://{folder}/ranks"
        # SGLang names shared memory by these, and would take them from that port.
        variables |= {"MASTER_ADDR": f"{folder.parent.name}-{folder.name}", "MASTER_PORT": "0"}
    return variables


def plugin_environment(
    fingerprint: str,
    worker: WorkerSpec,
    *,
    allow_unverified: bool,
    allow_unsafe: bool,
    shares_weights: bool,
    key_file: Path,
    model_roots: Collection[str],
) -> dict[str, str]:
    """What the engine plugin is told: the base, and the adapters with which the worker begins.

    `key_file` holds the cluster's key. Below `model_roots` it may load weights later.
    `shares_weights`: another worker has the same model, and memory in common with this one.
    """
    variables = {
        BASE_FINGERPRINT: fingerprint,
        ALLOW_UNVERIFIED: "1" if allow_unverified else "0",
        ALLOW_UNSAFE: "1" if allow_unsafe else "0",
        cluster_key.VARIABLE: str(key_file),
        MODEL_ROOTS: json.dumps([*model_roots]),
    }
    if shares_weights:
        variables[SHARE_WEIGHTS] = "1"
    if worker.adapters is not None:
        variables[ADAPTERS] = encode_adapters(worker.adapters)
    return variables


def encode_adapters(adapters: Collection[Adapter]) -> str:
    """Adapters as a worker is told them.

    Raises UsageError if they are more than a variable can hold, which is about a thousand.
    """
    text = json.dumps({adapter_name(one.decoder, one.version): one.path for one in adapters})
    if len(ADAPTERS) + 1 + len(text) >= _VARIABLE_BYTES:
        raise UsageError(
            f"{len(adapters)} adapters are too many to start with: their names and folders take "
            f"{len(text)} bytes, of {_VARIABLE_BYTES}; add some later with ps-sglang decoders add"
        )
    return text


def threads(role: Role, cores: int | None = None) -> int:
    """OpenMP threads of a worker."""
    cores = cores or len(os.sched_getaffinity(0))
    return max(1, cores // 2) if role is Role.DECODE else cores
