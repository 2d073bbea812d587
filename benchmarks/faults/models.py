"""What the cluster serves, and what it must say: the Hugging Face reference's greedy answers.

The reference runs in a process of its own, which ends before the cluster starts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from benchmarks.tiny import make_tiny
from ps_sglang.models import resolve

Tokens = tuple[int, ...]

KINDS: Final = ("tiny", "demo")
_CONVERSATIONS: Final = 6
_TURNS: Final = 3
_ANSWER: Final = 24
_SHORTEST: Final = 8
_TALK: Final = 256
_LONG: Final = 1100
# Where the reference's two best logits are closer than this, rounding could decide.
_SURE: Final = 1e-3


@dataclass(frozen=True)
class Served:
    """`prefill` and `decoders` as the launcher takes them, and where their models are by name.

    A decode worker of another host serves `elsewhere`. `ids`: the token ids that prompts are made
    of. A prefill worker's pool has `pool` tokens, which can be filled, and a decode worker's has
    half of it. Over a `narrow_link`, in bytes a second, the pages of a long prompt take seconds.
    """

    kind: str
    prefill: str
    decoders: tuple[str, ...]
    elsewhere: str
    base: Path
    models: dict[str, Path]
    ids: range
    pool: int
    narrow_link: int


@dataclass(frozen=True)
class Turn:
    """A prompt for a decoder, and how its greedy answer begins."""

    decoder: str
    prompt: Tokens
    answer: Tokens


@dataclass(frozen=True)
class Script:
    """`conversations` of agents, whose turns share a growing context; and of each decoder one turn
    with a `long` prompt, and one that has much to `talk`."""

    conversations: tuple[tuple[Turn, ...], ...]
    long: tuple[Turn, ...]
    talk: tuple[Turn, ...]


def served(kind: str, folder: Path) -> Served:
    """Models of one of KINDS; those that are made go to `folder`.

    Two workers serve each decoder, but one that `tiny` has alone.
    """
    if kind == "tiny":
        made = make_tiny("llama", folder)
        return Served(
            kind,
            f"base={made['base']}",
            (f"a={made['a']}*2", f"b={made['b']}"),
            f"a={made['a']}",
            made["base"],
            {name: made[name] for name in "ab"},
            range(10, 480),
            4096,
            500_000,
        )
    names = ("code", "tools", "math")
    return Served(
        kind,
        "base",
        names,
        ",".join(names),
        resolve("base").path,
        {name: resolve(name).path for name in names},
        range(1000, 40000),
        8192,
        20_000_000,
    )


def script(what: Served, seed: int) -> Script:
    """All that is ever asked, the same for each `seed`."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_write, what, seed).result()


def _write(what: Served, seed: int) -> Script:
    answer, source = _reference(what), random.Random(f"script {seed}")

    def turn(decoder: str, context: Sequence[int], added: int, longest: int) -> Turn:
        """The first of many draws of which the reference is sure for long enough."""
        while True:
            prompt = (*context, *source.choices(what.ids, k=added))
            said = answer(decoder, prompt, longest)
            if len(said) >= max(_SHORTEST, longest // 3):
                return Turn(decoder, prompt, said)

    system = source.choices(what.ids, k=96)
    conversations = []
    for first in range(_CONVERSATIONS):
        names = islice(cycle(what.models), first, first + _TURNS)
        context, turns = list(system), []
        for decoder in names:
            turns.append(turn(decoder, context, source.randint(24, 120), _ANSWER))
            context = [*turns[-1].prompt, *turns[-1].answer]
        conversations.append(tuple(turns))
    return Script(
        tuple(conversations),
        tuple(turn(decoder, (), _LONG, _ANSWER) for decoder in what.models),
        tuple(turn(decoder, (), 32, _TALK) for decoder in what.models),
    )


def _reference(what: Served) -> Callable[[str, Tokens, int], Tokens]:
    """Greedy answers by invariant I1, cut before the first token that rounding could change."""
    import torch

    from ps_sglang.contract import is_adapter
    from ps_sglang.models.adapted import Adapted
    from ps_sglang.verify.reference import Prefixes, load

    base = load(what.base)
    prefixes = Prefixes(base)
    decoders: dict[str, Any] = {
        name: Adapted(base, path) if is_adapter(path) else load(path)
        for name, path in what.models.items()
    }

    def answer(decoder: str, prompt: Tokens, longest: int) -> Tokens:
        cache, read = prefixes.cache(prompt[:-1]), torch.tensor([prompt[-1:]])
        said: list[int] = []
        while len(said) < longest:
            with torch.inference_mode():
                logits = decoders[decoder](read, past_key_values=cache, use_cache=True).logits
            best = logits[0, -1].topk(2)
            if float(best.values[0] - best.values[1]) < _SURE:
                break
            said.append(int(best.indices[0]))
            read = torch.tensor([said[-1:]])
        return tuple(said)

    return answer
