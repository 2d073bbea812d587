"""What a new user meets on a machine with 8 GPUs: refused with its mend before anything loads.

The GPUs are only told of. Nothing here starts a process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ps_sglang import extras
from ps_sglang.errors import UsageError
from ps_sglang.launch import devices
from ps_sglang.launch import prepare as prepare_module
from ps_sglang.launch.__main__ import main
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.cluster import Cluster
from ps_sglang.launch.dry_run import planned
from ps_sglang.launch.flags import value_of
from ps_sglang.launch.gpus import nvml
from ps_sglang.launch.gpus.machine import Gpu
from ps_sglang.launch.prepare import Plan, prepare
from ps_sglang.launch.serve import ready_line

CARD = 80 * 10**9
Machine = Callable[..., None]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """8 cards of 80 GB with NVLink, no InfiniBand, every package there; a test may say otherwise.

    On the cards but the first `free` bytes are left.
    """

    def tell(*, free: int = CARD, infiniband: bool = False, packages: bool = True) -> None:
        cards = [Gpu(n, CARD, free if n else CARD, f"card {n}", nvlink=True) for n in range(8)]
        monkeypatch.setattr(nvml, "ask", lambda: cards)
        monkeypatch.setattr(nvml, "has_infiniband", lambda: infiniband)
        monkeypatch.setattr(extras, "find_spec", lambda name: name if packages else None)

    tell()
    monkeypatch.setattr(devices, "has_accelerator", lambda: True)
    monkeypatch.setattr(prepare_module, "has_amd", lambda: False)
    for name in ("CUDA_VISIBLE_DEVICES", "MC_FORCE_TCP", "MC_INTRANODE_NVLINK", "UCX_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Cluster, "start_plan", _nothing_starts)
    return tell


def _nothing_starts(*_: object) -> None:
    raise AssertionError("this should have been refused")


def words(tiny: dict[str, Path], folder: Path, *more: str) -> list[str]:
    decoders = f"a={tiny['a']},b={tiny['b']},c={tiny['c']}"
    prefill = ["--prefill", str(tiny["base"]), "--decoders", decoders]
    return [*prefill, "--port", "0", "--log-dir", str(folder), *more]


def plan(tiny: dict[str, Path], folder: Path, *more: str) -> Plan:
    return prepare(parse_args(words(tiny, folder, *more)))


def test_a_plain_command_gives_each_worker_a_card_and_the_best_way(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    found = plan(tiny, tmp_path)
    assert found.gpus is not None
    environments = [found.gpus.environment(worker.name) for worker in found.workers]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == ["0", "1", "2", "3"]
    assert all(one["MC_INTRANODE_NVLINK"] == "1" for one in environments)
    assert {value_of(worker.argv, "--page-size") for worker in found.workers} == {"64"}
    assert not found.gpus.notes
    for worker in found.workers:
        assert float(value_of(worker.argv, "--mem-fraction-static") or 1) < 1


@pytest.mark.parametrize("backend", ["mooncake", "nixl"])
def test_a_missing_package_is_named_before_anything_loads(
    machine: Machine,
    tiny: dict[str, Path],
    tmp_path: Path,
    backend: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine(packages=False)
    assert main(words(tiny, tmp_path, "--transfer-backend", backend)) == 2
    assert f"pip install 'ps-sglang[{backend}]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "mend"),
    [
        # Everything on the first card.
        (["--base-gpu-id", "0"], "choose them with --gpus"),
        (["--tp-size", "16"], "needs 16 GPUs, and there are 8"),
        (["--gpus", "0,9"], "no GPU 9 here; there are 0, 1, 2, 3, 4, 5, 6, 7"),
        # What would fail late, or give wrong answers.
        (["--dp-size", "2"], "have several with --prefill-replicas and --decode-replicas"),
        (["--data-parallel-size", "2"], "have several with --prefill-replicas"),
        (["--enable-dp-attention"], "have several with --prefill-replicas"),
        (["--disaggregation-enable-kv-checksum"], "one token more than was handed over"),
        (["--sampling-backend", "token_oracle"], "choose pytorch or flashinfer"),
        (["--prefill-engine-args", "--page-size 1"], "--page-size: prefill-0 1, decode-a 64"),
    ],
)
def test_what_fails_later_is_refused_at_once(
    tiny: dict[str, Path],
    tmp_path: Path,
    more: list[str],
    mend: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words(tiny, tmp_path, *more)) == 2
    assert mend in capsys.readouterr().err


def test_cards_that_others_use_are_told_with_numbers(
    machine: Machine, tiny: dict[str, Path], tmp_path: Path
) -> None:
    machine(free=10**8)
    with pytest.raises(UsageError, match=r"GPU 1 has 0\.1 GB for what needs .* GB: decode-a"):
        plan(tiny, tmp_path)


def test_without_infiniband_the_slow_way_between_hosts_is_told(
    machine: Machine, tiny: dict[str, Path], tmp_path: Path
) -> None:
    several = ("--advertise", "127.0.0.1", "--no-keys")
    slow = list(planned(plan(tiny, tmp_path, *several)))
    assert "note: no InfiniBand device is here: pages go by TCP" in slow[-1]
    machine(infiniband=True)
    assert any("mooncake, RDMA" in line for line in planned(plan(tiny, tmp_path, *several)))


def test_small_pages_are_told_to_be_slow(tiny: dict[str, Path], tmp_path: Path) -> None:
    lines = list(planned(plan(tiny, tmp_path, "--page-size", "1")))
    assert "note: page size 1 makes transfers of many small pieces, which are slow" in lines


def test_the_ready_line_names_the_way(tiny: dict[str, Path], tmp_path: Path) -> None:
    ready = SimpleNamespace(
        plan=plan(tiny, tmp_path),
        workers=(),
        url="http://127.0.0.1:8000",
        admin_url="http://127.0.0.1:8000",
        ready_s=9.0,
        memory_bytes=0,
    )
    assert "; pages by mooncake, CUDA IPC over NVLink" in ready_line(ready)  # type: ignore[arg-type]
