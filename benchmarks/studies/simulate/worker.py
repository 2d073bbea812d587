"""One GPU: a KV tree, a queue, chunked batches of prefill, and decode steps.

Prefill goes before decode where a worker does both, as in SGLang without mixed chunks. Decode
steps between two changes of the batch are taken together: their sum has a closed form.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.gateway.tree import PageTree
from benchmarks.studies.simulate.cores import Clock, Cores, Job
from benchmarks.studies.simulate.hardware import Steps
from benchmarks.studies.simulate.request import Request, pages
from ps_sglang.errors import UsageError

# SGLang's managers/schedule_policy.py, WAITING_QUEUE_PREFIX_MATCH_MAX.
_MOST_SORTED: Final = 128

OnChange = Callable[[Sequence[int], Sequence[int], int | None], None]
"""Takes the pages that went, those that came, and the page before these."""


class Worker:
    """See the module. `prefilled` and `decoded` are called when a request's part has ended.

    `whole`: both parts run here; what is generated then stays in the tree as well. `samples`: it
    is stock SGLang's, whose prefill gives the first token, so the decode steps are one fewer.
    `busy` and `link_busy` are seconds at full speed.
    """

    def __init__(
        self,
        clock: Clock,
        cores: Cores,
        steps: Steps,
        pool_tokens: int,
        page: int,
        on_change: OnChange,
        prefilled: Callable[[Request], None],
        decoded: Callable[[Request], None],
        *,
        whole: bool = False,
        samples: bool = False,
        host_pages: int = 0,
    ) -> None:
        self.tree = PageTree(pool_tokens // page)
        self.busy = self.link_free = self.link_busy = 0.0
        self.peak = 0
        self._clock, self._cores, self._steps, self._on_change = clock, cores, steps, on_change
        self._page = page
        self._prefilled, self._decoded = prefilled, decoded
        self._whole, self._samples = whole, samples
        self._host: OrderedDict[int, None] = OrderedDict()
        self._host_pages = host_pages
        self._reserved = 0
        self._full = False  # until something is let go, asking for room again is of no use
        self._waiting: deque[Request] = deque()
        self._begun: list[Request] = []
        self._coming: set[int] = set()
        self._room_wanted: deque[tuple[Request, Callable[[], None]]] = deque()
        self._decoding: list[Request] = []
        self._step = 0
        self._segment: tuple[float, int, float, float] | None = None
        self._job: Job | None = None

    # -- the pool --------------------------------------------------------------------------------

    def _make_room(self, count: int) -> bool:
        try:
            gone = self.tree.make_room(self._reserved + count)
        except MemoryError:
            if not self._reserved and not self._begun and not self._decoding:
                raise UsageError(
                    f"a request needs {count * self._page} tokens of a pool that has "
                    f"{self.tree.capacity * self._page}: take a larger pool or shorter sessions"
                ) from None
            self._full = True
            return False
        self._reserved += count
        self.peak = max(self.peak, len(self.tree) + self._reserved)
        if gone:
            self._on_change(gone, (), None)
            if self._host_pages:
                for page in gone:
                    self._host[page] = None
                    self._host.move_to_end(page)
                while len(self._host) > self._host_pages:
                    self._host.popitem(last=False)
        return True

    def _keep(self, names: Sequence[int], locked: int) -> None:
        """Hold all pages of a prompt, of which the first `locked` are held and locked already."""
        there = self.tree.match(names)
        self.tree.lock(names[locked:there])
        self.tree.add(names[there:])
        if there < len(names):
            self._on_change((), names[there:], names[there - 1] if there else None)

    # -- prefill ---------------------------------------------------------------------------------

    def prefill(self, request: Request) -> None:
        """Compute a request's base prefix, as far as the tree lacks it."""
        self._waiting.append(request)
        self._wake()

    def _admit(self) -> float:
        """Begin what waits, as far as there is room; returns the seconds of loading pages."""
        self._sort()
        loading, later = 0.0, []
        budget = self._steps.chunk - sum(begun.base - begun.done for begun in self._begun)
        while self._waiting and budget > 0 and not self._full:
            request = self._waiting[0]
            names = request.names
            cached = self.tree.match(names)
            if cached < len(names) and names[cached] in self._coming:
                later.append(self._waiting.popleft())  # another request is computing it
                continue
            self.tree.lock(names[:cached])
            output = request.turn.output if self._whole else 0
            needed = -(-(request.base + 1 + output) // self._page) - cached
            if not self._make_room(needed):
                self.tree.unlock(names[:cached])
                break
            self._waiting.popleft()
            there = cached
            while there < len(names) and names[there] in self._host:
                self._host.move_to_end(names[there])
                there += 1
            request.prefill_held, request.reserved = cached, needed
            request.loaded = (there - cached) * self._page
            loading += self._steps.load(request.loaded) if request.loaded else 0.0
            request.done = there * self._page
            request.computed = request.base - request.done
            self._coming.update(names[cached:])
            self._begun.append(request)
            budget -= request.computed
        self._waiting.extendleft(reversed(later))
        return loading

    def _sort(self) -> None:
        """The longest held prefix first, as SGLang's policy lpm.

        Of a long queue each request is looked up once; in stock SGLang it goes by arrival.
        """
        is_long = len(self._waiting) > _MOST_SORTED
        if is_long and self._samples:
            return
        for request in self._waiting:
            if request.held is None or not is_long:
                request.held = self.tree.match(request.names)
                self.tree.touch(request.names[: request.held])
        self._waiting = deque(sorted(self._waiting, key=lambda waiting: -(waiting.held or 0)))

    def _prefill_batch(self) -> bool:
        loading = self._admit()
        if not self._begun:
            return False
        left, products, ended, work = self._steps.chunk, 0.0, [], 0
        for request in self._begun:
            new = min(left, request.base - request.done)
            products += new * request.done + new * new / 2
            request.done += new
            left -= new
            work += new
            if request.done == request.base:
                ended.append(request)
        seconds = loading + (self._steps.prefill(work, products) if work else 0.0)

        def end() -> None:
            for request in ended:
                self._begun.remove(request)
                names = request.names
                self._coming.difference_update(names[request.prefill_held :])
                new = len(names) - request.prefill_held
                self._reserved -= new
                request.reserved -= new
                self._keep(names, request.prefill_held)
                request.prefill_held = len(names)
                self._prefilled(request)
            self._job = None
            self._wake()

        self._run(seconds, end, self._steps.prefill_cores)
        return True

    def release(self, request: Request) -> None:
        """The pages of a prefill have moved."""
        self.tree.unlock(request.names)
        self._reserved -= request.reserved
        self._full = False
        self._wake()

    # -- decode ----------------------------------------------------------------------------------

    def reserve(self, request: Request, ready: Callable[[], None]) -> None:
        """Call `ready` when there is room for the request's prompt and answer.

        Where several wait, the one of which most was held when it was routed goes first; in stock
        SGLang the first to come.
        """
        self._room_wanted.append((request, ready))
        self._give_room()

    def _give_room(self) -> None:
        if not self._samples and len(self._room_wanted) > 1 and not self._full:
            self._room_wanted = deque(
                sorted(self._room_wanted, key=lambda entry: -entry[0].expected)
            )
        while self._room_wanted and not self._full:
            request, ready = self._room_wanted[0]
            cached = self.tree.match(request.names)
            self.tree.lock(request.names[:cached])
            needed = -(-(request.prompt + request.turn.output) // self._page) - cached
            if not self._make_room(needed):
                self.tree.unlock(request.names[:cached])
                return
            self._room_wanted.popleft()
            request.decode_held, request.decode_reserved = cached, needed
            request.moved = request.base - cached * self._page if cached < len(request.names) else 0
            ready()

    def land(self, request: Request) -> None:
        """The request's pages have arrived: it decodes from the next step on."""
        names = request.names
        new = len(names) - request.decode_held
        self._reserved -= new
        request.decode_reserved -= new
        self._keep(names, request.decode_held)
        self.start(request)

    def start(self, request: Request) -> None:
        """Decode from the next step on."""
        request.last_step = 0
        if self._samples:
            request.first = self._clock.now
            if request.turn.output == 1:
                # Not at once, as the caller is in the middle of its own work.
                self._clock.at(self._clock.now, lambda: self._end_at_once(request))
                return
        self._decoding.append(request)
        self._wake()

    def _end_at_once(self, request: Request) -> None:
        self._end([request])
        self._wake()

    def _decode_steps(self) -> bool:
        if not self._decoding:
            return False
        batch, context = len(self._decoding), 0.0
        first = self._steps.decode(batch, 0.0)
        slope = self._steps.decode(batch, 1.0) - first
        count = self._decoding[0].turn.output
        for request in self._decoding:
            if not request.last_step:
                request.last_step = self._step + request.turn.output - self._samples
            left = request.last_step - self._step
            context += request.prompt + request.turn.output - left
            # A first token's time is that of a step's end.
            count = min(count, left if request.first else 1)
        first += slope * context
        self._segment = (self._cores.work, count, first, slope * batch)
        seconds = _steps_take(count, first, slope * batch)
        self._run(seconds, self._segment_end, self._steps.decode_cores)
        return True

    def _interrupt(self) -> None:
        """End the steps that run at the next boundary."""
        if self._segment is None:
            return
        start, count, first, more = self._segment
        now = self._cores.work
        low, high = 1, count
        while low < high:
            middle = (low + high) // 2
            if start + _steps_take(middle, first, more) >= now:
                high = middle
            else:
                low = middle + 1
        if low < count:
            assert self._job is not None
            seconds = _steps_take(low, first, more)
            self.busy += seconds - _steps_take(count, first, more)
            self._segment = (start, low, first, more)
            self._cores.end_at(self._job, start + seconds)

    def _segment_end(self) -> None:
        assert self._segment is not None
        self._step += self._segment[1]
        self._segment = None
        for request in self._decoding:
            request.first = request.first or self._clock.now
        ended = [decoding for decoding in self._decoding if decoding.last_step == self._step]
        self._decoding = [
            decoding for decoding in self._decoding if decoding.last_step != self._step
        ]
        self._end(ended)
        self._job = None
        self._wake()

    def _end(self, ended: Sequence[Request]) -> None:
        """Answers are complete."""
        for request in ended:
            self._full = False
            if self._whole:
                tokens = request.prompt + request.turn.output - 1
                everything = pages(request.session, tokens, self._page)
                self._reserved -= request.reserved
                request.reserved = 0
                self._keep(everything, len(request.names))
                self.tree.unlock(everything)
            else:
                self._reserved -= request.decode_reserved
                self.tree.unlock(request.names)
            self._decoded(request)

    # -- one thing at a time ---------------------------------------------------------------------

    def _run(self, seconds: float, end: Callable[[], None], wants: float) -> None:
        self.busy += seconds
        self._job = self._cores.run(seconds, end, wants)

    def _wake(self) -> None:
        self._give_room()
        if self._job is not None:
            self._interrupt()
        elif not self._prefill_batch():
            self._decode_steps()


def _steps_take(count: int, first: float, more: float) -> float:
    return count * first + more * count * (count - 1) / 2
