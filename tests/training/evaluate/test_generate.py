"""Batched answers at a share ratio against an unbatched, unpadded loop."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.tiny import make_tiny
from ps_sglang.models import NamedModel
from ps_sglang.training.evaluate.generate import Generator, Tokens, batches, shared_tokens
from ps_sglang.training.evaluate.subject import load

CPU = torch.device("cpu")
MOST = 24
SHARES = (0.0, 0.25, 0.5, 0.9, 1.0)
LENGTHS = (1, 2, 3, 17, 40, 41, 90, 5)
LONGER_THAN_ALL = 100


@dataclass(frozen=True)
class Pair:
    """The evaluator's two models, and the same two as transformers loads them."""

    base: Any
    decoder: Any
    plain_base: Any
    plain_decoder: Any


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folders = make_tiny(request.param, tmp_path_factory.mktemp(request.param))
    named = [NamedModel(name, folders[name]) for name in ("base", "a")]
    ours = [load(model, torch.float32, CPU) for model in named]
    plain = [AutoModelForCausalLM.from_pretrained(model.path).eval() for model in named]
    return Pair(*ours, *plain)


@pytest.fixture(scope="module")
def prompts() -> list[Tokens]:
    dice = random.Random(5)
    return [tuple(dice.randrange(10, 480) for _ in range(length)) for length in LENGTHS]


@torch.no_grad()
def plain(
    models: Pair, prompt: Tokens, share: float, stops: tuple[int, ...], tail: int = 0
) -> Tokens:
    """One prompt, no padding, no mask: the definition."""
    ids, taken, past = torch.tensor([prompt]), shared_tokens(len(prompt), share, tail), None
    if taken:
        past = models.plain_base(ids[:, :taken], use_cache=True).past_key_values
    current = ids[:, taken:]
    said: list[int] = []
    while len(said) < MOST:
        output = models.plain_decoder(current, past_key_values=past, use_cache=True)
        past, token = output.past_key_values, int(output.logits[0, -1].argmax())
        if token in stops:
            break
        said.append(token)
        current = torch.tensor([[token]])
    return tuple(said)


def generate(
    models: Pair,
    prompts: list[Tokens],
    shares: tuple[float, ...],
    stops: tuple[int, ...] = (),
    tail: int = 0,
) -> dict[float, list[Tokens]]:
    generator = Generator(models.base, models.decoder, stops, MOST, CPU, tail)
    return dict(generator.answers(prompts, shares))


def test_a_batch_says_what_each_row_says_alone(models: Pair, prompts: list[Tokens]) -> None:
    found = generate(models, prompts, SHARES)
    for share in SHARES:
        assert found[share] == [plain(models, prompt, share, ()) for prompt in prompts], share
    # Or a wrong share could not be told from a right one.
    assert found[0.0] != found[0.5] != found[1.0]


@pytest.mark.parametrize("tail", [1, 16, LONGER_THAN_ALL])
def test_a_tail_is_read_by_the_decoder(models: Pair, prompts: list[Tokens], tail: int) -> None:
    """Also by prompts that are shorter, which have nothing of the base then."""
    found = generate(models, prompts, (0.5, 1.0), tail=tail)
    for share in (0.5, 1.0):
        wanted = [plain(models, prompt, share, (), tail) for prompt in prompts]
        assert found[share] == wanted, share
    assert found[1.0] != generate(models, prompts, (1.0,))[1.0]
    own = generate(models, prompts, (0.0,))[0.0]
    assert (found[1.0] == own) == (tail == LONGER_THAN_ALL)


def test_rows_that_end_leave_the_others_as_they_were(models: Pair, prompts: list[Tokens]) -> None:
    """Stop tokens that some rows say early, some late and some never."""
    free = generate(models, prompts, (0.5,))[0.5]
    stops = (free[3][0], free[4][4], free[6][11])
    wanted = [plain(models, prompt, 0.5, stops) for prompt in prompts]
    assert generate(models, prompts, (0.5,), stops)[0.5] == wanted
    lengths = {len(tokens) for tokens in wanted}
    assert 0 in lengths
    assert len(lengths) > 3


def test_a_batch_of_one_token_prompts_reads_no_base(models: Pair) -> None:
    prompts: list[Tokens] = [(17,), (230,)]
    found = generate(models, prompts, (1.0,))[1.0]
    assert found == [plain(models, prompt, 0.0, ()) for prompt in prompts]


def test_one_share_alone_is_the_same_as_among_others(models: Pair, prompts: list[Tokens]) -> None:
    among = generate(models, prompts, SHARES)
    assert generate(models, prompts, (0.25,))[0.25] == among[0.25]


@pytest.mark.parametrize(
    ("prompt", "share", "tail", "taken"),
    [
        *((1, 1.0, 0, 0), (2, 1.0, 0, 1), (101, 1.0, 0, 100), (101, 0.0, 0, 0)),
        *((101, 0.25, 0, 25), (12, 0.5, 0, 6)),
        *((101, 1.0, 1, 99), (101, 0.5, 16, 42), (17, 1.0, 16, 0), (3, 1.0, 16, 0)),
    ],
)
def test_boundary_token_and_tail_are_never_shared(
    prompt: int, share: float, tail: int, taken: int
) -> None:
    assert shared_tokens(prompt, share, tail) == taken


def test_batches_are_bounded_and_hold_every_row_once() -> None:
    lengths = [random.Random(3).randrange(1, 300) for _ in range(200)]
    found = batches(lengths, 1000)
    assert sorted(index for batch in found for index in batch) == list(range(200))
    for batch in found:
        assert len(batch) * max(lengths[index] for index in batch) <= 1000
    assert lengths[found[0][0]] == max(lengths)


def test_a_row_longer_than_a_batch_is_one() -> None:
    assert batches([5, 50, 5], 20) == [[1], [0, 2]]
