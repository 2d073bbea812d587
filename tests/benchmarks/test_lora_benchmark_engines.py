"""The LoRA benchmark on real engines: the same work of all, and what sharing saves to the token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import lora_cluster
from benchmarks.lora.systems import ONE_WORKER, OURS, STOCK, SYSTEMS
from benchmarks.lora.workload import SEED, trace
from benchmarks.one_batch import Forward, one_batch
from benchmarks.plain import generate
from benchmarks.sessions.drive import Load
from benchmarks.sessions.run import measure
from benchmarks.sessions.running import memory_bytes
from benchmarks.sessions.workload import Conversation, Session, Shape, work
from benchmarks.tiny import VOCAB_SIZE, make_tiny
from ps_sglang.models.stand_in import Noise, write_stand_in_adapter

SHAPE = Shape(
    steps=2, system_tokens=200, task_tokens=(20, 40), observation_tokens=50, observation_most=200,
    output_tokens=(12, 16), pause=0.0,
)  # fmt: skip
ADAPTERS, SESSIONS, TOKENS = 3, 2, 4096


def converse(session: Session) -> Conversation:
    return Conversation(session, SEED, VOCAB_SIZE, 16)


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_does_the_same_work_and_ours_prefills_each_token_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path / "home"))
    base = make_tiny("llama", tmp_path)["base"]
    adapters = {
        f"a{seed}": write_stand_in_adapter(base, tmp_path / f"a{seed}", Noise(0.1, seed))
        for seed in range(ADAPTERS + 1)
    }
    new = adapters.popitem()[1]
    sessions = trace(SHAPE, ADAPTERS, SESSIONS, None)
    with SYSTEMS[name](base, adapters, TOKENS, tmp_path / "logs") as running:
        figures = measure(running, sessions, Load(concurrent=1), converse)
        assert memory_bytes(running) > 1e8
        if name == OURS:
            _add_under_load(running.endpoints[0].url.partition("/models/")[0], adapters, new)
    allowed, turns = work(sessions), sum(len(session.turns) for session in sessions)
    assert figures["failures"] == []
    assert figures["turns"] == turns
    assert figures["output_tokens"] == allowed.output
    assert sum(pool["capacity"] for pool in figures["pool"].values()) == TOKENS
    held = {role: pool["held"] for role, pool in figures["pool"].items()}
    if name == OURS:
        assert figures["prefilled_tokens"] == allowed.shared
        # A decode worker tells it every 40 steps.
        assert held["prefill"] == allowed.shared >= held["decode"] > allowed.shared / 2
    elif name == ONE_WORKER:
        # The boundary token of each turn is the adapter's own. Had one stayed in the tree, the next
        # turn would have prefilled one token less.
        assert figures["prefilled_tokens"] == allowed.shared + turns
        # It was last told when the last turn's boundary token was in use.
        assert held == {"null": allowed.shared + 1}
    else:
        assert name == STOCK
        # It keeps what it has decoded, too, which the next turn of the same adapter finds.
        assert allowed.shared * 2 < figures["prefilled_tokens"] <= allowed.per_model + turns
        assert held["unified"] > allowed.shared * 2


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_decode_steps_are_timed_without_a_server(tmp_path: Path) -> None:
    with one_batch(make_tiny("llama", tmp_path)["base"], (), kv_tokens=256, threads=1) as model:
        assert len(model.decode(Forward(requests=2, tokens=16), steps=3)) == 3


def _add_under_load(url: str, adapters: Mapping[str, Path], new: Path) -> None:
    """As `benchmarks.lora_cluster` does."""
    answers: list[float] = []
    failures: list[str] = []
    with lora_cluster.under_load(url, list(adapters.values()), answers, failures):
        assert lora_cluster.add(url, new) > 0
        generate(f"{url}/models/{new.name}", [100], {"max_new_tokens": 1})
    assert answers
    assert failures == []
