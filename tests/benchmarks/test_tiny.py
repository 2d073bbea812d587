from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.tiny import DECODERS, Family, make_tiny
from ps_sglang.contract import base_fingerprint, check_cluster

TOKENS = 24
PROMPTS = (
    "hello",
    "The capital of France is",
    "def total(values):",
    "What is the weather in Paris today, and why?",
    "x = 12; y = 13; print(x + y)",
)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path / "home"))


@pytest.fixture(params=get_args(Family))
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    return make_tiny(request.param, tmp_path / "tiny")


def decode(prefill: Any, decoder: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens of `decoder` on `prefill`'s KV, and each one's lead over the second best."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        cache = prefill(ids[:, :-1], use_cache=True).past_key_values
        token, tokens, leads = ids[:, -1:], [], []
        for _ in range(TOKENS):
            output = decoder(token, past_key_values=cache, use_cache=True)
            best = output.logits[0, -1].topk(2)
            token = best.indices[:1].view(1, 1)
            tokens.append(int(token))
            leads.append(float(best.values[0] - best.values[1]))
    return tokens, leads


def prompts(tokenizer: Any) -> list[list[int]]:
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        for chat in chats
    ]


def test_they_tell_the_bases_kv_from_the_decoders_own(tiny: dict[str, Path]) -> None:
    """Otherwise an engine test on them could not fail."""
    base = AutoModelForCausalLM.from_pretrained(tiny["base"])
    tokenizer = AutoTokenizer.from_pretrained(tiny["base"])
    leads: list[float] = []
    for name in DECODERS:
        decoder = AutoModelForCausalLM.from_pretrained(tiny[name])
        shared, own = [], []
        for prompt in prompts(tokenizer):
            tokens, lead = decode(base, decoder, prompt)
            shared.append(tokens)
            own.append(decode(decoder, decoder, prompt)[0])
            leads += lead
            assert len(set(tokens)) >= TOKENS // 3, "outputs must not repeat a token or two"
            text = tokenizer.decode(tokens)
            assert text.isascii()
            assert text.isprintable()
            assert tokenizer.eos_token_id not in tokens
        agree = sum(
            a == b for s, o in zip(shared, own, strict=True) for a, b in zip(s, o, strict=True)
        )
        assert agree < 0.2 * TOKENS * len(PROMPTS)
        assert len({tuple(tokens) for tokens in shared}) == len(PROMPTS)
    assert statistics.median(leads) > 0.3
    assert sum(lead < 1e-3 for lead in leads) <= 0.01 * len(leads), "ties decide nothing"


def test_float32_rounding_stays_far_below_the_leads(tiny: dict[str, Path]) -> None:
    single = AutoModelForCausalLM.from_pretrained(tiny["a"])
    double = AutoModelForCausalLM.from_pretrained(tiny["a"], dtype=torch.float64)
    ids = torch.randint(3, 512, (1, 512), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        errors = single(ids).logits.log_softmax(-1) - double(ids).logits.log_softmax(-1)
    assert float(errors.abs().max()) < 1e-3


def test_tokenizer_keeps_any_text(tiny: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny["base"])
    text = "café ☕ 你好\n\tdef f(x): return 3.14  # two  spaces"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id]


def test_decoders_hold_the_contract(tiny: dict[str, Path]) -> None:
    decoders = {name: tiny[name] for name in DECODERS}
    reports = check_cluster(tiny["base"], decoders, allow_unverified=False)
    manifests = [report.manifest for report in reports]
    assert all(manifest is not None and manifest.stand_in for manifest in manifests)


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    def fingerprints(folder: str, seed: int) -> list[str]:
        return [base_fingerprint(f) for f in make_tiny("llama", tmp_path / folder, seed).values()]

    one, again, other = fingerprints("1", 0), fingerprints("2", 0), fingerprints("3", 1)
    assert one == again
    assert len({*one, *other}) == 8
