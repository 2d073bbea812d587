"""Chooses a pair of workers for a prompt, and counts what is on its way to each worker.

A choice counts as load at once, and its prefill worker as a holder of the prompt, so that a burst
neither herds (all on the worker that was idle) nor scatters (each on another, computing the same
prefix).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, cast

from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.lookup import NO_MATCH, PrefixMatch
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.routing import cost, terms
from ps_sglang.gateway.routing.cost import Decision
from ps_sglang.gateway.routing.decoder_state import DecoderState
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.sessions import Session
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, Decode, Prefill


class PlacedSample(Protocol):
    """What is on its way to workers: `Route` has the words, another process may have chosen it."""

    prefill: Prefill | None
    prefills: AnyWorkerState
    decode: Decode
    new_tokens: int
    moved_tokens: int
    is_prefilled: bool
    prompt: Prompt


class RouteListener(Protocol):
    """Called with what becomes of each route that is chosen here."""

    def chosen(self, route: Route, session: Session | None) -> None:
        """A sample is about to go there."""
        ...

    def settled(self, route: Route, arrived: bool) -> None:
        """See `Router.settle`."""
        ...

    def ended(self, route: Route) -> None:
        """Neither worker works on it any more."""
        ...


class Route:
    """A chosen pair, or aggregated worker. Its holder calls `release` when the request has ended.

    `prefill` is None where the decode worker is aggregated; `prefills` is who computes the prompt
    in any case. `lora_name` is the decode worker's name for the decoder's adapter, None for a whole
    model; `decoder` is the decoder's. `cached_tokens`: how much of the prompt is held by the one
    that prefills, `shared_tokens`: how much of what the two hold another decoder's turn brought in.
    """

    def __init__(
        self,
        router: Router,
        prompt: Prompt,
        served: DecoderState,
        decision: Decision,
        shared_tokens: int,
    ) -> None:
        prefill, decode = decision.chosen
        self.prefills: AnyWorkerState = prefill.worker_state
        self.decode: Decode = decode.worker_state
        # The pairs of other decode workers are made with prefill workers, see `Router.decide`.
        self.prefill = None if self.prefills is self.decode else cast("Prefill", self.prefills)
        self.lora_name = served.lora_names.get(self.decode)
        self.decoder = served.name
        self.decision = decision
        # Whole numbers, which leave nothing behind when they are subtracted again.
        self.new_tokens = round(decision.new)
        self.moved_tokens = round(decision.moved)
        self.cached_tokens = int(prefill.cached_tokens)
        self.shared_tokens = shared_tokens
        # Else the one that prefills has nothing to do with the prompt.
        self.is_prefilled = bool(self.moved_tokens or self.new_tokens)
        self._router = router
        self.prompt = prompt
        self._moving = True
        self._decoding = True

    @property
    def workers(self) -> tuple[AnyWorkerState, ...]:
        """All of them: one or two."""
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    @property
    def is_handed_over(self) -> bool:
        """Whether the decode worker needs nothing of the prefill worker any more."""
        return not self._moving

    def needs(self, worker_state: AnyWorkerState) -> bool:
        """Whether the worker still has something to do for this request."""
        return (worker_state is self.prefill and self._moving) or (
            worker_state is self.decode and self._decoding
        )

    def handed_over(self) -> None:
        """The prompt is prefilled and its pages have moved. May be called more than once."""
        self._settle(arrived=True)

    def release(self) -> None:
        """Neither worker works on this request any more. May be called more than once."""
        self._settle(arrived=False)
        if self._decoding:
            self._decoding = False
            self.decode.end()
            for listener in self._router.listeners:
                listener.ended(self)

    def _settle(self, arrived: bool) -> None:
        if self._moving:
            self._moving = False
            self._router.settle(self, arrived)
            for listener in self._router.listeners:
                listener.settled(self, arrived)


class Router:
    """Chooses workers by cost, see `cost`; for the thread of the event loop."""

    def __init__(
        self,
        pool: WorkerPool,
        cache_index: CacheIndex,
        *,
        is_aggregated: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._cache_index = cache_index
        self._is_aggregated = is_aggregated
        self._clock = clock
        self.listeners: list[RouteListener] = []
        cache_index.computed.append(self._computed)

    def choose(
        self,
        prompt: Prompt,
        decoder: DecoderState,
        tried: Collection[str] = (),
        session: Session | None = None,
    ) -> Route:
        """Choose a pair for `prompt`, leaving out the workers named in `tried`.

        Raises NoWorker if no worker of a role is left.
        """
        matches = self._cache_index.match(prompt)
        decision = self._decide(prompt, matches, decoder, tried, session)
        # What the decode worker's own tree holds is not computed again either.
        prefill, decode = decision.chosen
        longest = max(
            matches.get(prefill.worker_state.name, NO_MATCH),
            matches.get(decode.worker_state.name, NO_MATCH),
        )
        shared = self._cache_index.turn(prompt, decoder.name, longest)
        route = Route(self, prompt, decoder, decision, min(shared, int(decision.tokens)))
        self.begin(route)
        if session is not None:
            session.goes_to(decoder.name, route.prefills, route.decode)
        for listener in self.listeners:
            listener.chosen(route, session)
        return route

    def begin(self, route: PlacedSample) -> None:
        """A prompt is on its way; `settle` must follow, and the end on its decode worker."""
        if route.prefill is not None:
            route.prefill.begin()
        route.decode.begin()
        route.prefills.load.queued_tokens += route.new_tokens
        route.decode.load.moving_tokens += route.moved_tokens
        if route.is_prefilled:
            self._cache_index.sent(route.prefills.name, route.prompt)

    def decide(
        self,
        prompt: Prompt,
        decoder: DecoderState,
        tried: Collection[str] = (),
        session: Session | None = None,
    ) -> Decision:
        """The decision that `choose` would make; changes nothing. Raises NoWorker."""
        return self._decide(prompt, self._cache_index.match(prompt), decoder, tried, session)

    def _decide(
        self,
        prompt: Prompt,
        matches: Mapping[str, PrefixMatch],
        decoder: DecoderState,
        tried: Collection[str],
        session: Session | None,
    ) -> Decision:
        tokens = self._base_prefix(prompt, matches)
        session_prefill = session.prefill if session is not None else None
        session_decode = session.decode.get(decoder.name) if session is not None else None
        prefill = () if self._is_aggregated else self._pool.prefill_candidates(tried)
        decode = terms.decode_terms(
            self._pool.decode_candidates(decoder, tried), matches, tokens, session_decode
        )
        if self._is_aggregated:
            both = [terms.aggregated_terms(one, session_prefill) for one in decode]
            return cost.decide_aggregated(tokens, both, decode)
        left = terms.prefill_terms(prefill, matches, tokens, session_prefill, self._clock())
        return cost.decide(tokens, left, decode)

    def _base_prefix(self, prompt: Prompt, matches: Mapping[str, PrefixMatch]) -> float:
        """Tokens of the prompt but the boundary token, which the decoder alone reads."""
        tokens = max(self._cache_index.tokens(prompt, matches) - 1, 0.0)
        if prompt.tokens is not None:
            return tokens
        best = max(matches.values(), default=NO_MATCH)
        # Of a text whose length is estimated, what is held and does not reach its end is sure.
        return max(tokens, best.tokens) if best.bytes < len(prompt.text) else tokens

    def can_choose(self, decoder: DecoderState, tried: Collection[str]) -> bool:
        """Whether a pair is left for `decoder` without the workers named in `tried`."""
        roles: list[Sequence[AnyWorkerState]] = [decoder.workers]
        if not self._is_aggregated:
            roles.append(self._pool.prefill)
        return all(
            any(
                worker_state.name not in tried and not worker_state.draining
                for worker_state in worker_states
            )
            for worker_states in roles
        )

    def lost(self, worker_state: AnyWorkerState) -> None:
        """The worker could not be reached: it may have restarted, with an empty cache."""
        self._cache_index.forget(worker_state.name)

    def settle(self, route: PlacedSample, arrived: bool) -> None:
        """A route's prompt has been prefilled and moved (`arrived`), or never will be."""
        prompt = route.prompt
        if route.prefill is not None:
            route.prefill.end()
        route.prefills.load.queued_tokens -= route.new_tokens
        route.decode.load.moving_tokens -= route.moved_tokens
        if route.is_prefilled:
            self._cache_index.settled(route.prefills.name, prompt, arrived)
        if not arrived:
            return
        # One with live events tells what it computed.
        if route.prefill is not None and not self._cache_index.is_live(route.prefill.name):
            terms.add_recent(route.prefill.load, route.new_tokens, self._clock())
        if route.prefill is not None or not route.is_prefilled:
            # Not before: a second request for it would pull the same pages again.
            self._cache_index.arrived(route.decode.name, prompt)

    def _computed(self, worker: str, tokens: int) -> None:
        worker_state = self._pool.get(worker)
        if worker_state is not None:
            terms.add_recent(worker_state.load, tokens, self._clock())
