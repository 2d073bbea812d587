"""What NVML tells of this machine's GPUs, and Linux of its network devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ps_sglang.errors import MissingPackageError, UsageError
from ps_sglang.launch.gpus.machine import Gpu

_INFINIBAND: Final = Path("/sys/class/infiniband")


def ask() -> list[Gpu]:
    """All NVIDIA GPUs, in NVML's order, which is that of the PCI bus.

    Raises UsageError if no driver answers.
    """
    with _nvml() as nvml:
        return [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]


def free_bytes() -> dict[int, int]:
    """The memory that is free on each GPU now, by its number."""
    return {gpu.index: gpu.free_bytes for gpu in ask()}


def has_infiniband(devices: Path = _INFINIBAND) -> bool:
    """Whether this machine has an InfiniBand or RoCE device."""
    return devices.is_dir() and any(devices.iterdir())


def _gpu(nvml: Any, index: int) -> Gpu:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    return Gpu(
        index,
        int(memory.total),
        int(memory.free),
        str(nvml.nvmlDeviceGetName(device)),
        str(nvml.nvmlDeviceGetUUID(device)),
        _has_nvlink(nvml, device),
    )


def _has_nvlink(nvml: Any, device: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetNvLinkState(device, 0) == nvml.NVML_FEATURE_ENABLED)
    except nvml.NVMLError:  # a card without links has no state of them
        return False


@contextmanager
def _nvml() -> Iterator[Any]:
    try:
        import pynvml
    except ImportError as error:
        raise MissingPackageError("NVML tells of the GPUs: pip install nvidia-ml-py") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise UsageError(
            f"no NVIDIA driver answers here ({error}). To plan for another machine describe it, "
            "as in --gpus 8x80GB --dry-run; to run on the CPU give --device cpu; for AMD's cards "
            "describe this machine with --gpus"
        ) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise UsageError(f"NVML does not tell of the GPUs here: {error}") from error
    finally:
        pynvml.nvmlShutdown()
