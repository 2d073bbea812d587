"""The tiers of tests, and what all folders share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
# What is slow beside the tests that start engines, which say so themselves: files and folders.
TIERS: Final = {
    "model": (
        "benchmarks/studies/test_accuracy.py",
        "benchmarks/test_tiny.py",
        "benchmarks/test_train_cost.py",
        "clients",
        "contract/test_tokenizer_digest.py",
        "engine",
        "frontend",
        "models/test_adapter.py",
        "models/test_demo.py",
        "models/test_demo_template.py",
        "training/evaluate",
        "training/train",
        "transfer/test_cuda_rows.py",
        "verify",
    ),
    "process": (
        "benchmarks/studies/test_agents_engines.py",
        "benchmarks/studies/test_simulate.py",
        "benchmarks/studies/test_simulate_studies.py",
        "benchmarks/studies/test_simulate_validate.py",
        "benchmarks/test_benchmark_processes.py",
        "benchmarks/test_faults_engines.py",
        "benchmarks/test_faults_network.py",
        "benchmarks/test_gateway_benchmark.py",
        "benchmarks/test_gateway_simulation.py",
        "benchmarks/test_handoff_benchmark.py",
        "benchmarks/test_lora_benchmark_engines.py",
        "benchmarks/test_report.py",
        "conformance",
        "contract/test_sglang_names.py",
        "docs",
        "gateway/test_gateway_drain.py",
        "gateway/test_gateway_failures.py",
        "gateway/test_gateway_gc.py",
        "gateway/test_gateway_hostile.py",
        "gateway/test_gateway_log.py",
        "gateway/test_gateway_process.py",
        "gateway/test_gateway_sdks.py",
        "gateway/test_health.py",
        "gateway/test_index.py",
        "gateway/test_limits.py",
        "gateway/test_page_browser.py",
        "install",
        "launch/test_cluster.py",
        "launch/test_fork_server.py",
        "launch/test_preload.py",
        "structure/test_tiers.py",
        "training/tasks",
        "training/tasks/test_sandbox.py",
        "transfer/test_faults.py",
        "transfer/test_memory.py",
        "transfer/test_shared_pool.py",
    ),
}


def _tiers(path: Path) -> set[str]:
    parts = path.relative_to(TESTS)
    return {
        tier
        for tier, places in TIERS.items()
        if any(parts.is_relative_to(place) for place in places)
    }


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What `-m` leaves out as a whole is not imported either, which alone would take seconds."""
    chosen = config.getoption("markexpr")
    return any(f"not {tier}" in chosen for tier in _tiers(collection_path)) or None


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tier in _tiers(item.path):
            item.add_marker(tier)
        if "tiny" in getattr(item, "fixturenames", ()):
            item.add_marker("model")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint folders of a tiny Llama: base, a, b, c. Read only."""
    from benchmarks.tiny import make_tiny  # loads torch

    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PS_SGLANG_HOME", str(folder / "home"))
        return make_tiny("llama", folder / "models")
