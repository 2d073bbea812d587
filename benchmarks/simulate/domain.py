"""The product's own router before simulated workers: pool, index, cost and conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

from benchmarks.simulate.hardware import Steps
from benchmarks.simulate.request import PAGE, Request, pages
from benchmarks.simulate.worker import Clock, Worker
from ps_sglang.feed.messages import BlockRemoved, BlockStored, TimelineRecord
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.index.holdings import Holdings
from ps_sglang.gateway.index.mirror import Mirror
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.index.texts import TokenTexts
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Route, Router
from ps_sglang.gateway.routing.sessions import Sessions

_BYTES: Final = 4 * PAGE  # of a page's text: four a token, as in English


def _text(page: int) -> bytes:
    return page.to_bytes(8, "big") * (_BYTES // 8)


class _Texts(TokenTexts):
    """Texts of pages, whose tokens are never spelled out."""

    def of(self, token_ids: Sequence[int], block: int = 1) -> list[bytes]:
        return [_text(page) for page in cast(_Tokens, token_ids).names]


class _Tokens:
    """As many tokens as some pages have; cut where pages end."""

    def __init__(self, names: Sequence[int]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names) * PAGE

    def __getitem__(self, part: slice) -> _Tokens:
        assert part.start % PAGE == 0
        assert part.stop is None
        return _Tokens(self.names[part.start // PAGE :])


class _Prompts(Prompts):
    def __init__(self) -> None:
        super().__init__()
        self.texts = _Texts(())


def _prompt(request: Request) -> Prompt:
    names = pages(request.session, request.base // PAGE * PAGE + PAGE)
    text = b"".join(map(_text, names))[: 4 * request.base]
    return Prompt(text, tokens=request.prompt, kind="tokens")


def _tell(mirror: Mirror) -> Callable[[Sequence[int], Sequence[int], int | None], None]:
    """What a worker's tree takes in and lets go, told at once."""

    def told(gone: Sequence[int], new: Sequence[int], parent: int | None) -> None:
        if gone:
            mirror.kv(BlockRemoved(list(gone)))
        if new:
            tokens: Any = _Tokens(new)
            mirror.kv(BlockStored(list(new), parent, tokens, PAGE))

    return told


class Domain:
    """Workers behind one gateway, which serve `decoders`; `ended` is told of each request.

    `whole`: each of the `prefill` workers decodes what it prefills, `decode` is not used, and a
    session stays where its number puts it: the router's weights are for prefill workers only.
    """

    def __init__(
        self,
        clock: Clock,
        steps: Steps,
        decoders: Sequence[int],
        prefill: int,
        decode: int,
        ended: Callable[[Request], None],
        *,
        whole: bool = False,
        host_pages: int = 0,
    ) -> None:
        self._clock, self._steps, self._ended, self._whole = clock, steps, ended, whole
        self._holdings = Holdings(_Prompts(), clock=lambda: clock.now)
        self._pool = WorkerPool()
        self._router = Router(self._pool, self._holdings, clock=lambda: clock.now)
        self._sessions = Sessions(clock=lambda: clock.now, most=1 << 30)
        self.prefill: dict[str, Worker] = {}
        self.decode: dict[str, Worker] = {}
        for number in range(prefill):
            name = f"prefill-{number}"
            self._join(PrefillWorker(name, f"http://{name}:1", name, 1), self.prefill, host_pages)
        for decoder in decoders:
            for number in range(decode):
                name = f"decode-{decoder}-{number}"
                self._join(DecodeWorker(name, f"http://{name}:1", f"{decoder}"), self.decode, 0)

    def _join(
        self, worker: PrefillWorker | DecodeWorker, group: dict[str, Worker], host_pages: int
    ) -> None:
        self._pool.add(worker)
        self._holdings.add(worker)
        mirror = self._holdings.mirror(worker.name)
        group[worker.name] = Worker(
            self._clock,
            self._steps,
            _tell(mirror),
            self._prefilled,
            self._decoded,
            whole=self._whole,
            host_pages=host_pages,
        )
        mirror.live()

    def workers(self) -> Iterator[Worker]:
        """All that serve."""
        yield from (*self.prefill.values(), *self.decode.values())

    def serve(self, request: Request) -> None:
        """Route a request and begin it."""
        request.names = pages(request.session, request.base)
        if self._whole:
            self._whole_worker(request).prefill(request)
            return
        session = self._sessions.use(str(request.session.number))
        request.route = route = self._router.choose(
            _prompt(request), str(request.turn.decoder), session=session
        )
        self.decode[route.decode.name].reserve(request, lambda: self._reserved(request))

    def _whole_worker(self, request: Request) -> Worker:
        return self.prefill[f"prefill-{request.session.number % len(self.prefill)}"]

    def _reserved(self, request: Request) -> None:
        route: Route = request.route
        if request.moved:
            self.prefill[route.prefill.name].prefill(request)
        else:
            route.handed_over()
            # Not before `reserve` has returned, as it may be giving room to others.
            self._clock.at(self._clock.now, lambda: self.decode[route.decode.name].land(request))

    def _prefilled(self, request: Request) -> None:
        if self._whole:
            self._whole_worker(request).start(request)
            return
        route: Route = request.route
        record = TimelineRecord(
            rid="", role="prefill", began=0.0, computed=request.computed, held=0
        )
        self._holdings.mirror(route.prefill.name).timeline(record)
        source = self.prefill[route.prefill.name]
        target = self.decode[route.decode.name]
        # A transfer has the link out of one worker and the link into the other for itself.
        begin = max(self._clock.now, source.link_free, target.link_free)
        end = begin + self._steps.move(request.moved)
        source.link_free = target.link_free = end

        def landed() -> None:
            source.release(request)
            route.handed_over()
            target.land(request)

        self._clock.at(end, landed)

    def _decoded(self, request: Request) -> None:
        if not self._whole:
            request.route.release()
        self._ended(request)
