"""The product's own router before simulated workers: pool, index, cost and conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, cast

from benchmarks.studies.simulate.cores import Clock, Cores
from benchmarks.studies.simulate.hardware import Steps
from benchmarks.studies.simulate.request import Request, pages
from benchmarks.studies.simulate.worker import Worker
from ps_sglang.events.messages import BlockRemoved, BlockStored, Span
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.index.texts import TokenTexts
from ps_sglang.gateway.index.worker_cache import WorkerCache
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Route, Router
from ps_sglang.gateway.routing.sessions import Sessions

_NAME: Final = 8
_TOKEN: Final = 4
"""Bytes of a token's text, as in English."""


class _Pages:
    """Texts and tokens of pages, whose tokens are never spelled out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._names = -(-_TOKEN * size // _NAME)

    def text(self, page: int) -> bytes:
        return page.to_bytes(_NAME, "big") * self._names

    def prompt(self, request: Request) -> Prompt:
        names = pages(request.session, request.base // self.size * self.size, self.size)
        # A prompt's last page has a text of its own, as nobody can hold a part of a page.
        rest = b"" if request.base % self.size == 0 else self.text(-1 & (1 << 63) - 1)
        text = b"".join(map(self.text, names)) + rest
        return Prompt(text, tokens=request.prompt, kind="tokens")


class _Texts(TokenTexts):
    """What the index asks for when a worker stores pages."""

    def __init__(self, pages: _Pages) -> None:
        super().__init__(())
        self._pages = pages

    def of(self, token_ids: Sequence[int], block: int = 1) -> list[bytes]:
        return [self._pages.text(page) for page in cast(_Tokens, token_ids).names]


class _Tokens:
    """As many tokens as some pages have; cut where pages end."""

    def __init__(self, names: Sequence[int], size: int) -> None:
        self.names, self._size = names, size

    def __len__(self) -> int:
        return len(self.names) * self._size

    def __getitem__(self, part: slice) -> _Tokens:
        assert part.start % self._size == 0
        assert part.stop is None
        return _Tokens(self.names[part.start // self._size :], self._size)


class _Prompts(Prompts):
    def __init__(self, pages: _Pages) -> None:
        super().__init__()
        self.texts = _Texts(pages)


def _tell(
    worker_cache: WorkerCache, size: int
) -> Callable[[Sequence[int], Sequence[int], int | None], None]:
    """What a worker's tree takes in and lets go, told at once."""

    def told(gone: Sequence[int], new: Sequence[int], parent: int | None) -> None:
        if gone:
            worker_cache.kv(BlockRemoved(list(gone)))
        if new:
            tokens: Any = _Tokens(new, size)
            worker_cache.kv(BlockStored(list(new), parent, tokens, size))

    return told


@dataclass(frozen=True)
class Group:
    """Workers of one kind: how many (decode workers: of each decoder), with how large a pool."""

    count: int
    pool_tokens: int


class Domain:
    """Workers behind one gateway, which serve `decoders`; `ended` is told of each request.

    `samples`: stock prefill workers give the first token. `whole`: each of the `prefill` workers
    decodes what it prefills, `decode` is not used, and a session stays where its number puts it:
    the router's weights are for prefill workers only.
    """

    def __init__(
        self,
        clock: Clock,
        cores: Cores,
        steps: Steps,
        page: int,
        decoders: Sequence[int],
        prefill: Group,
        decode: Group,
        ended: Callable[[Request], None],
        *,
        samples: bool = False,
        whole: bool = False,
        host_pages: int = 0,
    ) -> None:
        self._clock, self._cores, self._steps, self._page = clock, cores, steps, page
        self._ended, self._samples, self._whole = ended, samples, whole
        self._pages = _Pages(page)
        self._cache_index = CacheIndex(_Prompts(self._pages), clock=lambda: clock.now)
        self._pool = WorkerPool()
        self._router = Router(self._pool, self._cache_index, clock=lambda: clock.now)
        self._sessions = Sessions(clock=lambda: clock.now)
        self.routing_s = 0.0
        """Time of this machine that the router's decisions have taken."""
        self.prefill: dict[str, Worker] = {}
        self.decode: dict[str, Worker] = {}
        for number in range(prefill.count):
            name = f"prefill-{number}"
            worker = PrefillWorker(name, f"http://{name}:1", name, 1)
            self._join(worker, self.prefill, prefill.pool_tokens, host_pages)
        for decoder in decoders:
            for number in range(decode.count):
                name = f"decode-{decoder}-{number}"
                decode_worker = DecodeWorker(name, f"http://{name}:1", f"{decoder}")
                self._join(decode_worker, self.decode, decode.pool_tokens)

    def _join(
        self,
        worker: PrefillWorker | DecodeWorker,
        group: dict[str, Worker],
        pool_tokens: int,
        host_pages: int = 0,
    ) -> None:
        self._pool.add(worker)
        self._cache_index.add(worker)
        worker_cache = self._cache_index.worker_cache(worker.name)
        group[worker.name] = Worker(
            self._clock,
            self._cores,
            self._steps,
            pool_tokens,
            self._page,
            _tell(worker_cache, self._page),
            self._prefilled,
            self._decoded,
            whole=self._whole,
            samples=self._samples,
            host_pages=host_pages,
        )
        worker_cache.live()

    def workers(self) -> Iterator[Worker]:
        """All that serve."""
        yield from (*self.prefill.values(), *self.decode.values())

    @property
    def blocks(self) -> int:
        """Pages that the gateway's index has."""
        return self._cache_index.blocks

    def serve(self, request: Request) -> None:
        """Route a request and begin it, after what it costs besides its steps."""
        if self._steps.request:
            self._cores.run(self._steps.request, lambda: self._serve(request))
        else:
            self._serve(request)

    def _serve(self, request: Request) -> None:
        request.names = pages(request.session, request.base, self._page)
        if self._whole:
            self._whole_worker(request).prefill(request)
            return
        session = self._sessions.use(str(request.session.number))
        prompt = self._pages.prompt(request)
        began = perf_counter()
        request.route = route = self._router.choose(
            prompt, self._pool.served(str(request.turn.decoder)), session=session
        )
        self.routing_s += perf_counter() - began
        request.expected = route.cached_tokens
        self.decode[route.decode.name].reserve(request, lambda: self._reserved(request))

    def _whole_worker(self, request: Request) -> Worker:
        return self.prefill[f"prefill-{request.session.number % len(self.prefill)}"]

    def _reserved(self, request: Request) -> None:
        route: Route = request.route
        if request.moved:
            self.prefill[route.prefills.name].prefill(request)
        else:
            route.handed_over()
            # Not before `reserve` has returned, as it may be giving room to others.
            self._clock.at(self._clock.now, lambda: self.decode[route.decode.name].land(request))

    def _prefilled(self, request: Request) -> None:
        if self._whole:
            self._whole_worker(request).start(request)
            return
        route: Route = request.route
        record = Span(rid="", role="prefill", began=0.0, computed=request.computed, held=0)
        self._cache_index.worker_cache(route.prefills.name).span(record)
        source = self.prefill[route.prefills.name]
        target = self.decode[route.decode.name]
        # A transfer has the link out of one worker and the link into the other for itself.
        begin = max(self._clock.now, source.link_free, target.link_free)
        seconds = self._steps.move(request.moved)
        end = begin + seconds
        source.link_free = target.link_free = end
        source.link_busy += seconds
        target.link_busy += seconds

        def landed() -> None:
            source.release(request)
            route.handed_over()
            target.land(request)

        self._clock.at(end, landed)

    def _decoded(self, request: Request) -> None:
        if not self._whole:
            request.route.release()
        self._ended(request)
