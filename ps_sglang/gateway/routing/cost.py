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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

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


class PrefillTerms(NamedTuple):
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


class DecodeTerms(NamedTuple):
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
    """Why a pair was chosen. `tokens` is the prompt's length, estimated unless given as ids.

    `prefill` and `decode` are the candidates, in the order of joining.
    """

    tokens: float
    prefill: Sequence[PrefillTerms]
    decode: Sequence[DecodeTerms]
    chosen: Pair

    @property
    def pairs(self) -> Iterator[Pair]:
        """All pairs that could have been chosen."""
        if _is_aggregated(*self.chosen):
            return zip(self.prefill, self.decode, strict=True)
        return product(self.prefill, self.decode)

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


def decide(
    tokens: float, prefill: Sequence[PrefillTerms], decode: Sequence[DecodeTerms]
) -> Decision:
    """The cheapest pair of a prefill and a decode worker; there must be one of each.

    Not every pair is looked at. A pair's cost is the sum of two workers' own, once it is known
    whether pages move, and how far; so the best of each side make the best pair. A pair on one
    host that is taken for one on two only looks dearer than it is.
    """
    idle, computing, computing_on = _best_prefill(prefill)
    held, far, near_on = _best_decode(decode)
    sides = [(computing_on[host], near) for host, near in near_on.items() if host in computing_on]
    if held is not None:
        sides.append((idle, held))
    if far is not None:
        sides.append((computing, far))
    *_, left, right = min((p[0] + d[0], p[1], d[1], p[2], d[2]) for p, d in sides)
    return Decision(tokens, prefill, decode, (prefill[left], decode[right]))


_Best = tuple[float, int, int]
"""A worker's own cost, how often it was chosen, and its place among the candidates."""


def _best_prefill(terms: Sequence[PrefillTerms]) -> tuple[_Best, _Best, dict[str, _Best]]:
    """Who is best where nothing is to compute, where something is, and that on each host."""
    idle: _Best | None = None
    computing: _Best | None = None
    computing_on: dict[str, _Best] = {}
    for place, one in enumerate(terms):
        state, own = one.worker_state, one.queue + one.balance + one.leaves
        chosen, host = state.load.chosen, state.host
        found = own, chosen, place
        if idle is None or found < idle:
            idle = found
        found = own + one.new, chosen, place
        if computing is None or found < computing:
            computing = found
        if host not in computing_on or found < computing_on[host]:
            computing_on[host] = found
    assert idle is not None, "there is a prefill worker"
    assert computing is not None, "there is a prefill worker"
    return idle, computing, computing_on


def _best_decode(
    terms: Sequence[DecodeTerms],
) -> tuple[_Best | None, _Best | None, dict[str, _Best]]:
    """Who is best of those that hold all, of the others for another host, and on each host."""
    held: _Best | None = None
    far: _Best | None = None
    near_on: dict[str, _Best] = {}
    for place, one in enumerate(terms):
        state, own, moved = one.worker_state, one.load + one.leaves, one.moved
        chosen = state.load.chosen
        if not _is_moved(moved):
            found = own, chosen, place
            if held is None or found < held:
                held = found
            continue
        found = own + moved * MOVE_OTHER_HOST, chosen, place
        if far is None or found < far:
            far = found
        found = own + moved * MOVE_SAME_HOST, chosen, place
        if state.host not in near_on or found < near_on[state.host]:
            near_on[state.host] = found
    return held, far, near_on


def decide_aggregated(
    tokens: float, prefill: Sequence[PrefillTerms], decode: Sequence[DecodeTerms]
) -> Decision:
    """The cheapest of aggregated workers, each with both its parts at one place."""
    return Decision(tokens, prefill, decode, min(zip(prefill, decode, strict=True), key=_order))


def _order(pair: Pair) -> tuple[float, int, int]:
    # `min` keeps the first of equal ones, and the candidates are in the order of joining.
    prefill, decode = pair
    return (
        _pair_cost(prefill, decode),
        prefill.worker_state.load.chosen,
        decode.worker_state.load.chosen,
    )


def _pair_cost(prefill: PrefillTerms, decode: DecodeTerms) -> float:
    return sum(_pair_terms(prefill, decode)) + prefill.cost + decode.cost


def _is_moved(tokens: float) -> bool:
    """Whether any page must go; the estimate of a length may be off by a fraction."""
    return tokens >= 1


def _pair_terms(prefill: PrefillTerms, decode: DecodeTerms) -> tuple[float, float]:
    """What to compute, and the cost of moving, where both workers have a say."""
    if _is_aggregated(prefill, decode):
        return prefill.new, 0.0
    if not _is_moved(decode.moved):
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
