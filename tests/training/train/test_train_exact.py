"""The step against a plain reference: one answer at a time, no batch, no padding, no mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.tiny import Family, make_tiny
from ps_sglang.training.train.attention import ATTENTION
from ps_sglang.training.train.base import AdaptedBase, BaseReader, FrozenBase
from ps_sglang.training.train.batches import AnswerTokens, Example, conditioned_batch, full_batch
from ps_sglang.training.train.kv_store import DiskKvStore, MemoryKvStore
from ps_sglang.training.train.losses import CacheConditioned, Full

TOLERANCE = 1e-5


def example(seed: int, length: int, *answers: tuple[int, int]) -> Example:
    """A random sequence whose parts `answers`, [start, end) each, were said by the decoder."""
    generator = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(3, 512, (length,), generator=generator).tolist())
    return Example(ids[: answers[-1][0]], tuple(AnswerTokens(s, ids[s:end]) for s, end in answers))


# Of different lengths; with three answers; with the shortest prompt and answer there can be; two
# answers with nothing between them.
EXAMPLES = (
    example(1, 24, (17, 24)),
    example(2, 61, (9, 14), (30, 31), (44, 61)),
    example(3, 2, (1, 2)),
    example(4, 40, (12, 20), (20, 40)),
    # Its first answer does not stand in the second one's prompt as it was said.
    Example(tuple(range(100, 130)), (AnswerTokens(9, (5, 6, 7)), AnswerTokens(30, (8, 9, 10, 11)))),
)


@pytest.fixture(scope="module", params=get_args(Family))
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PS_SGLANG_HOME", str(folder / "home"))
        return make_tiny(request.param, folder / "models")


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation=ATTENTION
    )


@pytest.fixture
def base(folders: dict[str, Path]) -> Any:
    return load(folders["base"])


@pytest.fixture
def decoder(folders: dict[str, Path]) -> Any:
    return load(folders["a"]).train()


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def reference_losses(
    base: Any, decoder: Any, examples: tuple[Example, ...], tail: int = 0
) -> torch.Tensor:
    """Summed over the answers of each example; transformers' own attention and cache."""
    base, ours = copy.deepcopy(base).eval(), decoder.config._attn_implementation
    decoder.set_attn_implementation("sdpa")
    base.set_attn_implementation("sdpa")
    rows = []
    for one in examples:
        losses = []
        for answer in one.answers:
            cache, first = None, max(0, answer.start - 1 - tail)
            if first:
                with torch.no_grad():
                    prompt = torch.tensor([one.prompt[:first]])
                    cache = base(prompt, use_cache=True).past_key_values
            read = torch.tensor([(*one.prompt[first : answer.start], *answer.ids[:-1])])
            logits = decoder(read, past_key_values=cache, use_cache=True).logits[0]
            logits = logits[-len(answer.ids) :]
            chosen = torch.tensor(answer.ids)[:, None]
            losses.append(-logits.log_softmax(-1).gather(1, chosen).sum())
        rows.append(torch.stack(losses).sum())
    decoder.set_attn_implementation(ours)
    return torch.stack(rows)


def assert_same(
    model: Any, ours: Callable[[], torch.Tensor], reference: Callable[[], torch.Tensor]
) -> None:
    wanted = reference()
    wanted_gradients = gradients(model, wanted.sum())
    got = ours()
    got_gradients = gradients(model, got.sum())
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert got_gradients.keys() == wanted_gradients.keys() != set()
    for name, gradient in wanted_gradients.items():
        torch.testing.assert_close(
            got_gradients[name], gradient, rtol=TOLERANCE, atol=TOLERANCE, msg=name
        )


@pytest.mark.parametrize("tail", [0, 1, 16, 100])
def test_losses_and_gradients_are_the_references(base: Any, decoder: Any, tail: int) -> None:
    """Also with tails that reach into earlier answers, and over the start of every prompt."""
    step = CacheConditioned(BaseReader(FrozenBase(base)))
    assert_same(
        decoder,
        lambda: step.losses(decoder, conditioned_batch(EXAMPLES, tail)),
        lambda: reference_losses(base, decoder, EXAMPLES, tail),
    )


def test_a_tail_of_the_whole_prompt_is_full_fine_tuning(base: Any, decoder: Any) -> None:
    step = CacheConditioned(BaseReader(FrozenBase(base)))
    assert_same(
        decoder,
        lambda: step.losses(decoder, conditioned_batch(EXAMPLES, tail=100)),
        lambda: Full().losses(decoder, full_batch(EXAMPLES)),
    )


def test_other_tails_would_be_told_apart(base: Any, decoder: Any) -> None:
    step = CacheConditioned(BaseReader(FrozenBase(base)))
    none, one, sixteen = (
        step.losses(decoder, conditioned_batch(EXAMPLES, tail)) for tail in (0, 1, 16)
    )
    for other in (none - one, one - sixteen, sixteen - none):
        # The third prompt has one token alone.
        assert other[[0, 1, 3, 4]].abs().min() > 1e-3


def test_no_gradient_reaches_the_base(base: Any, decoder: Any) -> None:
    step = CacheConditioned(BaseReader(FrozenBase(base)))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    step.losses(decoder, conditioned_batch(EXAMPLES)).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in base.parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


@pytest.mark.parametrize("store", ["memory", "disk", "too small"])
def test_kept_kv_changes_nothing(base: Any, decoder: Any, store: str, tmp_path: Path) -> None:
    """Read first by the base, then partly and then wholly from what was kept."""
    stores: dict[str, MemoryKvStore | DiskKvStore] = {
        "memory": MemoryKvStore(10**9),
        "disk": DiskKvStore(tmp_path, 10**9),
        "too small": MemoryKvStore(100_000),
    }
    kept = stores[store]
    step = CacheConditioned(BaseReader(FrozenBase(base), kept))
    wanted = CacheConditioned(BaseReader(FrozenBase(base)))
    # What is kept serves every tail.
    for rows, tail in ((EXAMPLES[1:], 0), (EXAMPLES, 16), (EXAMPLES, 0), (EXAMPLES[::-1], 1)):
        assert_same(
            decoder,
            partial(step.losses, decoder, conditioned_batch(rows, tail)),
            partial(wanted.losses, decoder, conditioned_batch(rows, tail)),
        )
    assert kept.hits == {"too small": 2 + 2 + 2}.get(store, 4 + 5 + 5)


def test_lora_decoder_shares_the_bases_weights(base: Any, decoder: Any) -> None:
    """The base under the adapter is the base: same losses and gradients as with two models."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    weights = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules="all-linear")).train()
    for name, value in weights.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    step = CacheConditioned(BaseReader(AdaptedBase(weights)))
    apart = CacheConditioned(BaseReader(FrozenBase(base)))
    assert_same(
        weights,
        lambda: step.losses(weights, conditioned_batch(EXAMPLES)),
        lambda: apart.losses(weights, conditioned_batch(EXAMPLES)),
    )
    trained = {name for name, value in weights.named_parameters() if value.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_nothing(base: Any, decoder: Any, lora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    frozen: Any = FrozenBase(base)
    if lora:
        decoder = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules="all-linear"))
        frozen = AdaptedBase(decoder.train())
    step = CacheConditioned(BaseReader(frozen))

    def losses(checkpointing: bool) -> torch.Tensor:
        if checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            decoder.gradient_checkpointing_disable()
        return step.losses(decoder, conditioned_batch(EXAMPLES))

    calls = []
    layer = decoder.get_decoder().layers[0]
    hook = layer.self_attn.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    assert_same(decoder, lambda: losses(True), lambda: losses(False))
    hook.remove()
    # Once without checkpointing, twice with it: it was really on.
    assert calls.count(True) == 3


def test_full_fine_tuning_is_the_ordinary_one(decoder: Any) -> None:
    """One answer at a time, on the whole of its prompt and itself, every token's logits."""

    def reference() -> torch.Tensor:
        decoder.set_attn_implementation("sdpa")
        rows = []
        for one in EXAMPLES:
            losses = []
            for answer in one.answers:
                ids = torch.tensor([one.prompt[: answer.start] + answer.ids])
                scores = decoder(ids).logits[0, answer.start - 1 : -1].log_softmax(-1)
                losses.append(-scores.gather(1, torch.tensor(answer.ids)[:, None]).sum())
            rows.append(torch.stack(losses).sum())
        decoder.set_attn_implementation(ATTENTION)
        return torch.stack(rows)

    assert_same(decoder, lambda: Full().losses(decoder, full_batch(EXAMPLES)), reference)


def test_own_kv_would_be_told_apart(base: Any, decoder: Any) -> None:
    """Otherwise the tests above could not fail."""
    step = CacheConditioned(BaseReader(FrozenBase(base)))
    own = Full().losses(decoder, full_batch(EXAMPLES))
    shared = step.losses(decoder, conditioned_batch(EXAMPLES))
    assert (own - shared)[[0, 1, 3]].abs().min() > 0.1
    # A prompt of one token has no base prefix: both are one.
    torch.testing.assert_close(own[2], shared[2])
