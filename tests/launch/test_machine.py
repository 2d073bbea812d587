"""Which GPUs `--gpus` means, on this machine or on one that is described."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.launch.gpus import nvml
from ps_sglang.launch.gpus.machine import Gpu, choose, described
from ps_sglang.launch.resources import Resources, gpus_problem, parse_size

GPUS = [Gpu(index, 80, 70, uuid=f"GPU-{index}f00") for index in range(4)]


def indices(text: str, visible: str | None = None) -> list[int]:
    return [gpu.index for gpu in choose(text, GPUS, visible)]


def test_a_description_has_so_many_gpus_of_so_many_bytes() -> None:
    machine = described("8x80GB")
    assert machine is not None
    assert [gpu.index for gpu in machine.gpus] == list(range(8))
    assert {gpu.free_bytes for gpu in machine.gpus} == {80 * 10**9}
    assert machine.title == "8 GPUs of 80.0 GB (described)"
    assert described("all") is None
    assert described("0,2") is None
    assert parse_size("1.5 GiB") == 3 << 29


def test_all_and_numbers() -> None:
    assert indices("all") == [0, 1, 2, 3]
    assert indices("2,0") == [2, 0]


def test_the_users_visible_devices_limit_both() -> None:
    assert indices("all", "3,1") == [3, 1]
    assert indices("all", "GPU-2f,0") == [2, 0]
    assert indices("all", "1,9,2") == [1]  # as CUDA stops at what it does not know
    assert indices("3", "3,1") == [3]
    with pytest.raises(UsageError, match="no GPU 0 here with CUDA_VISIBLE_DEVICES=3,1"):
        indices("0", "3,1")
    with pytest.raises(UsageError, match="there is no GPU here with CUDA_VISIBLE_DEVICES="):
        indices("all", "")
    with pytest.raises(UsageError, match="no GPU 4, 7 here; there are 0, 1, 2, 3"):
        indices("4,7")


@pytest.mark.parametrize("text", ["", "some", "8x80", "0x80GB", "2x0GB", "0,0", "-1", "8x80TB"])
def test_what_means_nothing_is_refused(text: str) -> None:
    assert (gpus_problem(text) or "").startswith(f"--gpus {text}: ")


def test_resources_name_all_that_is_wrong_with_them() -> None:
    assert len(list(Resources(tp=0, gpus=(1, 1), mem="much").problems())) == 3
    assert not list(Resources(tp=2, gpus=(1, 0), mem="20GB").problems())


class FakeNvml(ModuleType):
    """As much of `pynvml` as is asked, for a machine with two cards, of which one has links."""

    NVML_FEATURE_ENABLED = 1

    class NVMLError(Exception):
        pass

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.broken = broken
        self.open = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(total=80, free=70 - device)

    def nvmlDeviceGetName(self, device: int) -> str:
        return "H100"

    def nvmlDeviceGetUUID(self, device: int) -> str:
        return f"GPU-{device}"

    def nvmlDeviceGetNvLinkState(self, device: int, link: int) -> int:
        if device:
            raise self.NVMLError("Not Supported")
        return 1


def test_nvml_is_asked_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert nvml.ask() == [
        Gpu(0, 80, 70, "H100", "GPU-0", nvlink=True),
        Gpu(1, 80, 69, "H100", "GPU-1", nvlink=False),
    ]
    assert nvml.free_bytes() == {0: 70, 1: 69}
    assert fake.open == 0


def test_no_driver_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    with pytest.raises(UsageError, match=r"Driver Not Loaded.*--gpus 8x80GB --dry-run.*--device"):
        nvml.ask()


def test_infiniband_is_a_device_in_sysfs(tmp_path: Path) -> None:
    assert not nvml.has_infiniband(tmp_path / "none")
    assert not nvml.has_infiniband(tmp_path)
    (tmp_path / "mlx5_0").mkdir()
    assert nvml.has_infiniband(tmp_path)
