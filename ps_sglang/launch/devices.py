"""On what the engines of a launch run."""

from __future__ import annotations

from pathlib import Path

from ps_sglang.errors import UsageError
from ps_sglang.launch import flags
from ps_sglang.launch.environment import has_accelerator
from ps_sglang.launch.resources import NO_RESOURCES
from ps_sglang.launch.spec import ClusterSpec


def runs_on_cpu(spec: ClusterSpec) -> bool:
    """Whether it is the CPU: as `--device` says, else if nothing else is there or named."""
    device = flags.value_of(spec.engine_args, "--device")
    return device == "cpu" if device else spec.gpus is None and not has_accelerator()


def runs_on_cuda(spec: ClusterSpec) -> bool:
    """Whether it is GPUs of NVIDIA or AMD, which SGLang calls `cuda` both."""
    device = flags.value_of(spec.engine_args, "--device")
    return spec.gpus is not None or device == "cuda" or (not device and not runs_on_cpu(spec))


def has_amd(devices: Path = Path("/dev")) -> bool:
    """Whether this machine's accelerators are AMD's."""
    return (devices / "kfd").exists() and not (devices / "nvidiactl").exists()


def refuse_resources(spec: ClusterSpec) -> None:
    """Refuse what a user says of GPUs where none are used; raises UsageError with all of it."""
    if names := [name for name, one in spec.resources.items() if one != NO_RESOURCES]:
        raise UsageError(
            f"tp, gpus and mem of {', '.join(names)} are for GPUs, and this runs without: leave "
            "them away, or describe the GPUs with --gpus"
        )
