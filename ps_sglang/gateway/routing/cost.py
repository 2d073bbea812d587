"""What it costs to send a prompt to a pair of workers, in tokens of prefill work.

    cost = new                      prompt tokens that the prefill worker would compute
         + queue                    QUEUE_WEIGHT * (new tokens queued there
                                                    + REQUEST_TOKENS for each unfinished prefill)
         + balance                  LEVEL_WEIGHT * its recent work, and
                                    EXCESS_WEIGHT * what of it is above TOLERANCE times the mean
         + move                     prompt tokens whose pages the decode worker lacks, times
                                    MOVE_SAME_HOST or MOVE_OTHER_HOST
         + load                     DECODE_REQUEST_TOKENS for each unfinished request there, and
                                    the pages that are still on their way to it
         + leaves                   LEAVE_TOKENS if the conversation leaves its prefill worker,
                                    as many moved tokens if it leaves its decode worker

A decode worker that holds the whole base prefix needs neither a prefill nor pages: `new` and
`move` are 0 for its pairs. Equal costs go to the worker chosen least often, then to the older one.

An aggregated worker stands for both: `move` is 0, `queue` are the new tokens queued there, and
there is no `balance`.

Why these weights:

- A queued token only delays, whereas a token computed twice delays and takes capacity from all.
  So it weighs half, which makes the *load window*: a worker that saves a prompt S new tokens keeps
  it while its queue is at most 2 S longer than another's. What saves nothing goes by load alone.
- REQUEST_TOKENS is what a prefill costs whatever its length: scheduling, handshake, first pages.
- Recent work, computed tokens that halve in RECENT_HALF_LIFE seconds, spreads prompts although no
  queue is seen, as when conversations come slowly but long. A worker with events says itself what
  it computed: where its pool is full, that may be many times what was expected, since pages go
  while a request waits for its turn, and such a worker must not look idle. Within the tolerance
  recent work only settles near ties. Above it, it is worth a second copy of a shared prompt: the
  worker that has it is left for another when its excess is four times as long as that prompt.
- Pages against prefill: a token's pages of an 8B model take about 0.1 MB, some 5 us over the
  memory of one host and 10 to 20 us over a network of 100 Gbit/s, where computing them takes 50 to
  100 us on a GPU. On a CPU computing is dearer still.
- An unfinished request makes each decode step a little longer. DECODE_REQUEST_TOKENS weighs that
  against pages: a conversation of 4,000 tokens stays while its decode worker has at most three
  requests more than another on the same host.
- A conversation that goes on saves what neither events nor estimates show yet, and what its
  next turns will share: LEAVE_TOKENS widens its load window to 2 * (S + LEAVE_TOKENS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ps_sglang.gateway.routing.worker_state import AnyWorkerState, Decode

QUEUE_WEIGHT = 0.5
REQUEST_TOKENS = 128
LEVEL_WEIGHT = 0.01
EXCESS_WEIGHT = 0.25
TOLERANCE = 1.1
RECENT_HALF_LIFE = 30.0
MOVE_SAME_HOST = 0.05
MOVE_OTHER_HOST = 0.2
DECODE_REQUEST_TOKENS = 64
LEAVE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class PrefillTerms:
    """The part of the cost of who prefills; `cached_tokens` of the prompt it holds."""

    worker_state: AnyWorkerState
    cached_tokens: float
    new: float
    queue: float
    balance: float
    leaves: float

    @property
    def cost(self) -> float:
        """All terms but `new`, which depends on the decode worker as well."""
        return self.queue + self.balance + self.leaves


@dataclass(frozen=True, slots=True)
class DecodeTerms:
    """A decode worker's part of the cost; `moved` is how many tokens' pages it lacks."""

    worker_state: Decode
    cached_tokens: float
    moved: float
    load: float
    leaves: float

    @property
    def cost(self) -> float:
        """All terms but that of moving, which depends on the prefill worker as well."""
        return self.load + self.leaves


Pair = tuple[PrefillTerms, DecodeTerms]
"""A prefill and a decode worker, or an aggregated worker twice."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a pair was chosen. `tokens` is the prompt's length, estimated unless given as ids."""

    tokens: float
    pairs: Sequence[Pair]
    chosen: Pair

    @property
    def new(self) -> float:
        """Prompt tokens that the chosen pair has to compute."""
        return _pair_terms(*self.chosen)[0]

    @property
    def moved(self) -> float:
        """Prompt tokens whose pages have to go to the chosen decode worker."""
        return 0.0 if _is_aggregated(*self.chosen) else self.chosen[1].moved

    def explain(self) -> dict[str, Any]:
        """The decision as JSON: every pair with its terms, the cheapest first."""
        pairs = [_explain(*pair) for pair in self.pairs]
        pairs.sort(key=lambda pair: float(pair["cost"]))
        return {
            "prompt_tokens": round(self.tokens),
            "chosen": _names(*self.chosen),
            "candidates": pairs,
        }


def decide(tokens: float, pairs: Sequence[Pair]) -> Decision:
    """The cheapest pair; there must be one."""
    return Decision(tokens, pairs, min(pairs, key=_order))


def _order(pair: Pair) -> tuple[float, int, int]:
    # `min` keeps the first of equal ones, and the pairs are in the order of joining.
    prefill, decode = pair
    return (
        _pair_cost(prefill, decode),
        prefill.worker_state.load.chosen,
        decode.worker_state.load.chosen,
    )


def _pair_cost(prefill: PrefillTerms, decode: DecodeTerms) -> float:
    return sum(_pair_terms(prefill, decode)) + prefill.cost + decode.cost


def _pair_terms(prefill: PrefillTerms, decode: DecodeTerms) -> tuple[float, float]:
    """What to compute, and the cost of moving, where both workers have a say."""
    if _is_aggregated(prefill, decode):
        return prefill.new, 0.0
    if decode.moved < 1:  # the estimate of a length may be off by a fraction
        return 0.0, 0.0
    same = prefill.worker_state.host == decode.worker_state.host
    return prefill.new, decode.moved * (MOVE_SAME_HOST if same else MOVE_OTHER_HOST)


def _is_aggregated(prefill: PrefillTerms, decode: DecodeTerms) -> bool:
    return prefill.worker_state is decode.worker_state


def _names(prefill: PrefillTerms, decode: DecodeTerms) -> dict[str, str | None]:
    return {
        "prefill": None if _is_aggregated(prefill, decode) else prefill.worker_state.name,
        "decode": decode.worker_state.name,
    }


def _explain(prefill: PrefillTerms, decode: DecodeTerms) -> dict[str, Any]:
    new, move = _pair_terms(prefill, decode)
    terms = {
        "new": new,
        "queue": prefill.queue,
        "balance": prefill.balance,
        "move": move,
        "load": decode.load,
        "leaves": prefill.leaves + decode.leaves,
    }
    return {
        **_names(prefill, decode),
        "held": {"prefill": round(prefill.cached_tokens), "decode": round(decode.cached_tokens)},
        "terms": {name: round(value, 1) for name, value in terms.items()},
        "cost": round(sum(terms.values()), 1),
    }
