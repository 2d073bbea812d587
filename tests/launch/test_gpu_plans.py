"""Plans for machines with GPUs: those of `plans/*.txt`, and what any plan must hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.contract.shape import read_shape
from ps_sglang.contract.tensors import read_tensors
from ps_sglang.errors import UsageError
from ps_sglang.launch.flags import value_of
from ps_sglang.launch.gpus.machine import Gpu, Machine, described
from ps_sglang.launch.gpus.plan import plan_gpus
from ps_sglang.launch.gpus.sizes import token_bytes, tp_problem, weights_bytes
from ps_sglang.launch.gpus.transport import backend_problems, choose_transport, package_hint
from ps_sglang.launch.placement import Placement
from ps_sglang.launch.resources import Resources
from ps_sglang.launch.spec import ClusterSpec, Role
from ps_sglang.models.resolve import NamedModel
from tests.launch.gpu_cases import CASES, LLAMA, PLANS, QWEN, Case, planned, rendered, write_models

FITTING = [name for name in CASES if not (PLANS / f"{name}.txt").read_text().startswith("refused")]
CONTEXT_BYTES = 512 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MC_FORCE_TCP", "MC_INTRANODE_NVLINK", "MOONCAKE_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_as_written_down(name: str, models: dict[str, Path]) -> None:
    case = CASES[name]
    assert rendered(case, models[case.shape]) == (PLANS / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", FITTING)
def test_memory_adds_up_to_what_is_there(name: str, models: dict[str, Path]) -> None:
    case = CASES[name]
    plan = planned(case, models[case.shape])
    for gpu in plan.machine.gpus:
        there = [one for one in plan.budgets.values() if gpu.index in one.gpus]
        left = gpu.free_bytes - sum(one.total_bytes for one in there)
        assert left >= 0
        if there and not any(one.demand.memory_bytes or len(one.gpus) > 1 for one in there):
            # Less than a page of each worker is left, and what the division leaves.
            pages = sum(one.demand.size.token_bytes * one.demand.page_size for one in there)
            assert left < pages + len(there)
    for one in plan.budgets.values():
        demand = one.demand
        parts = (demand.size.weights_bytes, demand.adapter_bytes, one.kv_bytes, one.reserve_bytes)
        assert sum(parts) == one.total_bytes <= (demand.memory_bytes or one.free_bytes)
        assert one.tokens % 64 == 0
        assert one.tokens >= demand.least_tokens
        # By SGLang's own sum (kv_cache_configurator.py) a pool has its tokens and its reserve,
        # but for the rounding of the fraction.
        usable = one.free_bytes - CONTEXT_BYTES
        static = usable * one.fraction(one.free_bytes)
        assert (static - demand.model_bytes) // demand.size.token_bytes >= one.tokens
        assert static - one.static_bytes <= usable / 1000


def test_both_shapes_have_their_public_sizes(models: dict[str, Path]) -> None:
    sizes = {LLAMA: (8_030_261_248, 131_072), QWEN: (14_768_307_200, 163_840)}
    for name, (parameters, kv) in sizes.items():
        shape, tensors = read_shape(models[name]), read_tensors(models[name]).values()
        assert weights_bytes(tensors, shape, 1, 2) == 2 * parameters
        assert weights_bytes(tensors, shape, 1, 4) == 4 * parameters
        assert token_bytes(shape, 1, 2) == kv
        assert token_bytes(shape, 4, 2) == kv // 4
        # More GPUs than KV heads: each holds one, so that some are held twice.
        assert token_bytes(shape, 16, 2) == kv // 8


def test_a_divided_model_takes_its_part_and_all_norms(models: dict[str, Path]) -> None:
    shape, tensors = read_shape(models[LLAMA]), read_tensors(models[LLAMA]).values()
    norms = (2 * shape.layers + 1) * shape.hidden_size * 2
    whole = weights_bytes(tensors, shape, 1, 2)
    assert weights_bytes(tensors, shape, 4, 2) == (whole - norms) // 4 + norms
    assert tp_problem(shape, 4) is None
    assert "32 attention heads" in (tp_problem(shape, 3) or "")


def test_workers_on_one_gpu_start_one_after_another(models: dict[str, Path]) -> None:
    plan = planned(CASES["8b-2x80-five-decoders"], models[LLAMA])
    assert plan.waves == [
        ["prefill-0", "decode-d1"],
        ["decode-d2", "decode-d3"],
        ["decode-d4", "decode-d5"],
    ]


def test_a_command_line_has_the_plan_and_the_users_flags_win(models: dict[str, Path]) -> None:
    words = ("--chunked-prefill-size", "1024", "--max-total-tokens", "10000")
    plan = planned(Case("1x80GB", decoders=1, words=words), models[LLAMA])
    line = plan.command_line("decode-d1", ["--page-size", "64", *words])
    expected = {"--tp-size": "1", "--chunked-prefill-size": "1024", "--max-total-tokens": "10000"}
    assert {flag: value_of(line, flag) for flag in expected} == expected
    budget = plan.budgets["decode-d1"]
    assert budget.tokens == 9984  # whole pages
    assert float(value_of(line, "--mem-fraction-static") or 0) == budget.fraction(budget.free_bytes)
    assert value_of(line, "--cuda-graph-max-bs-decode") == "32"
    assert plan.environment("decode-d1") == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0",
        "SGLANG_MOONCAKE_CUSTOM_MEM_POOL": "INTRA_NODE_NVLINK",
        "MC_INTRANODE_NVLINK": "1",
    }


def test_a_fraction_of_the_users_is_kept_for_a_worker_alone(models: dict[str, Path]) -> None:
    words = ("--mem-fraction-static", "0.5")
    alone = planned(Case("2x80GB", decoders=1, words=words), models[LLAMA]).budgets["decode-d1"]
    assert alone.fraction(1) == 0.5
    assert alone.total_bytes == alone.free_bytes == 80 * 10**9
    assert 39 * 10**9 < alone.static_bytes <= 40 * 10**9
    with pytest.raises(UsageError, match="shares a GPU"):
        planned(Case("1x80GB", decoders=1, words=words), models[LLAMA])
    with pytest.raises(UsageError, match=r"0\.1 leaves KV for 0 tokens"):
        planned(Case("2x80GB", decoders=1, words=(words[0], "0.1")), models[LLAMA])


def test_at_the_start_the_fraction_is_of_what_is_free_then(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine((Gpu(0, 80 * 10**9, 80 * 10**9),))
    plan = planned(Case("all", decoders=1), models[LLAMA], machine)
    argv = ("--x", *plan.command_line("decode-d1", ()))
    budget = plan.budgets["decode-d1"]
    free = {0: budget.free_bytes}
    monkeypatch.setattr("ps_sglang.launch.gpus.nvml.free_bytes", lambda: free)
    assert plan.started_now("decode-d1", argv) == argv
    free[0] = 2 * budget.free_bytes
    now = plan.started_now("decode-d1", argv)
    assert float(value_of(now, "--mem-fraction-static") or 0) == budget.fraction(free[0])
    assert budget.fraction(free[0]) < budget.fraction(budget.free_bytes)


@pytest.mark.parametrize(("gpus", "expected"), [((2, 3), [(2,), (3,)]), ((2,), [(2,), (2,)])])
def test_replicas_take_gpus_of_their_own_or_share_some(
    models: dict[str, Path], gpus: tuple[int, ...], expected: list[tuple[int, ...]]
) -> None:
    base = NamedModel("base", models[LLAMA])
    made = [
        Placement(
            f"prefill-{number}",
            Role.PREFILL,
            base,
            resources=Resources(gpus=gpus),
            number=number,
            replicas=2,
        )
        for number in range(2)
    ]
    machine = described("4x80GB")
    assert machine is not None
    spec = ClusterSpec("base", ("x",), dry_run=True)
    plan = plan_gpus(spec, machine, made, {one.name: () for one in made})
    assert [one.gpus for one in plan.budgets.values()] == expected


ONE_LINK = Machine((Gpu(0, 1, 1, nvlink=True), Gpu(1, 1, 1, nvlink=True)))
NO_LINK = Machine((Gpu(0, 1, 1, nvlink=False),))


@pytest.mark.parametrize(
    ("machine", "one_host", "way"),
    [
        (ONE_LINK, True, "CUDA IPC over NVLink"),
        (NO_LINK, True, "CUDA IPC over PCIe"),
        (Machine((), infiniband=True), False, "RDMA"),
        (Machine((), infiniband=False), False, "TCP through the hosts' memory"),
        (Machine(()), False, "RDMA or TCP"),
    ],
)
def test_the_best_way_that_is_there_is_taken(machine: Machine, one_host: bool, way: str) -> None:
    found = choose_transport("mooncake", machine, {}, one_host=one_host)
    assert found.between((0,), (1,)) == way
    assert found.between((0,), (0,)) == ("CUDA IPC on the same GPU" if one_host else way)
    assert (found.warning is not None and "slow" in found.warning) == ("TCP" in way)
    assert bool(found.environment) == one_host


@pytest.mark.parametrize(
    ("backend", "name"), [("mooncake", "MC_FORCE_TCP"), ("nixl", "UCX_NET_DEVICES")]
)
def test_the_users_own_settings_are_named_and_kept(backend: str, name: str) -> None:
    found = choose_transport(backend, NO_LINK, {name: "1"}, one_host=True)
    assert found.between((0,), (1,)) == f"as {name}=1 says"
    assert not found.environment


def test_ucx_is_kept_from_network_cards_on_one_host() -> None:
    found = choose_transport("nixl", NO_LINK, {}, one_host=True)
    assert found.environment == {"UCX_TLS": "cuda,sm,self,tcp"}
    assert found.warning is not None
    assert choose_transport("nixl", NO_LINK, {}, one_host=False).environment is None


def test_a_missing_package_is_refused_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ps_sglang.extras.find_spec", lambda name: None)
    for backend in ("mooncake", "nixl"):
        [problem] = backend_problems(backend, dry_run=False)
        assert f"pip install 'ps-sglang[{backend}]'" in problem
        assert not backend_problems(backend, dry_run=True)
        assert f"pip install 'ps-sglang[{backend}]'" in (package_hint(backend) or "")
