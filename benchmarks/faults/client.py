"""Asks for answers, and says how each request ended: nothing is left open, and nothing is guessed.

All is asked over SGLang's own `/generate`, whose answers have token ids.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from benchmarks.faults.models import Turn

DEADLINE_S: Final = 150.0
"""So long a request may take; the gateway's own deadline (`system.REQUEST_S`) is shorter."""
TRUE_REFUSALS: Final = frozenset((422, 429, 502, 503, 504))
"""Poisonous, too much, a worker's fault, none there, too late: what a fault may end in."""
_LIMIT: Final = 429
_DONE: Final = b"[DONE]"


class Ending(StrEnum):
    """How a request ended for its client."""

    EXACT = "exact"
    """With all tokens, and each the reference's."""
    LIMITED = "limited"
    """Refused with 429: it was too much."""
    FAILED = "failed"
    """An error with a reason, as a status or as the stream's last event."""
    CUT = "cut"
    """The connection broke without a word: true only if who should speak has died."""
    UNREACHED = "unreached"
    """There was nobody to connect to, so there was no request."""
    WRONG = "wrong"
    """A token that the reference does not say."""
    UNTOLD = "untold"
    """Anything else: no reason, an unknown status, or less than was asked for."""
    HUNG = "hung"
    """Nothing within DEADLINE_S."""


@dataclass(frozen=True)
class Outcome:
    """A request that has ended; times by `time.monotonic`. `by` says who asked, `rid` is its id.

    `first` is when its first tokens came, None if none did.
    """

    by: str
    decoder: str
    streamed: bool
    ending: Ending
    asked: float
    first: float | None
    done: float
    status: int | None = None
    reason: str = ""
    retractions: int = 0
    rid: str = ""


@dataclass
class _Answer:
    """What came so far."""

    status: int | None = None
    ids: Sequence[int] = ()
    first: float | None = None
    whole: bool = False
    error: Any = None
    text: str = ""
    retractions: int = 0

    def event(self, data: bytes) -> None:
        """One event of a stream; every one has all tokens so far."""
        if data == _DONE:
            self.whole = True
            return
        self.take(json.loads(data))

    def take(self, payload: Any) -> None:
        """An answer, or an event of one."""
        if "error" in payload:
            self.error = payload["error"]
            return
        self.ids = payload["output_ids"]
        self.retractions = payload["meta_info"].get("num_retractions", 0)
        if self.first is None and self.ids:
            self.first = time.monotonic()


class Client:
    """Asks the cluster behind the gateway at `url`; `outcomes` has all that have ended."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url
        self._api_key = api_key
        self.outcomes: list[Outcome] = []
        self._asked = 0
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            # A kept connection may be closed by the gateway just when the next request is sent.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
            headers=authorization(self._api_key),
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.close()

    async def ask(
        self,
        turn: Turn,
        by: str,
        *,
        tokens: int | None = None,
        stream: bool = False,
        salt: str | None = None,
        rid: str | None = None,
    ) -> Outcome:
        """Ask for the first `tokens` of a turn's answer, or for all that the reference knows.

        Caches are shared with those that ask with the same `salt`. Its id is `rid`, or one that no
        other request has.
        """
        self._asked += 1
        rid = rid or f"{by} {self._asked}"
        wanted = turn.answer if tokens is None else turn.answer[:tokens]
        body = request(turn, len(wanted), stream=stream, salt=salt, rid=rid)
        answer, cut = _Answer(), ""
        asked = time.monotonic()
        ending: Ending | None = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._read(turn.decoder, body, answer, stream)
        except TimeoutError:
            ending = Ending.HUNG
        except aiohttp.ClientConnectorError:
            ending = Ending.UNREACHED
        except (aiohttp.ClientError, OSError) as error:
            ending, cut = Ending.CUT, repr(error)
        except (ValueError, KeyError, TypeError) as error:
            ending, cut = Ending.UNTOLD, f"{error!r} in {answer.text[:200]!r}"
        found, reason = judge(answer, wanted)
        outcome = Outcome(
            by,
            turn.decoder,
            stream,
            found if ending is None or found is Ending.WRONG else ending,
            asked,
            answer.first,
            time.monotonic(),
            answer.status,
            cut or reason,
            answer.retractions,
            rid,
        )
        self.outcomes.append(outcome)
        return outcome

    async def _read(
        self, decoder: str, body: dict[str, Any], answer: _Answer, stream: bool
    ) -> None:
        url = f"{self.url}/models/{decoder}/generate"
        async with self._http.post(url, json=body) as response:
            answer.status = response.status
            if not stream or response.status != 200:
                answer.text = await response.text()
                answer.take(json.loads(answer.text))
                answer.whole = True
                return
            async for line in response.content:
                if line.startswith(b"data:"):
                    answer.event(line.removeprefix(b"data:").strip())


def authorization(api_key: str | None) -> dict[str, str]:
    """The headers of a client with this key."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def request(
    turn: Turn, tokens: int, *, stream: bool, salt: str | None = None, rid: str | None = None
) -> dict[str, Any]:
    """The body that asks for exactly `tokens`."""
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body: dict[str, Any] = {
        "input_ids": list(turn.prompt),
        "sampling_params": sampling,
        "stream": stream,
    }
    named = {"cache_salt": salt, "rid": rid}
    return body | {name: value for name, value in named.items() if value is not None}


def judge(answer: _Answer, wanted: Sequence[int]) -> tuple[Ending, str]:
    """How an answer that has ended compares with the `wanted` tokens; and the reason it gives.

    What was said before an error must be right as well.
    """
    said = list(answer.ids)
    if said != list(wanted[: len(said)]):
        return Ending.WRONG, f"said {said}, not {list(wanted)}"
    if answer.error is not None:
        reason = answer.error.get("message") if isinstance(answer.error, dict) else None
        if not isinstance(reason, str) or not reason:
            return Ending.UNTOLD, f"an error without a message: {answer.error!r}"
        if answer.status == _LIMIT:
            return Ending.LIMITED, reason
        true = answer.status in TRUE_REFUSALS or answer.status == 200
        return (Ending.FAILED if true else Ending.UNTOLD), f"{answer.status}: {reason}"
    if answer.status != 200 or not answer.whole or len(said) != len(wanted):
        return Ending.UNTOLD, f"{answer.status}, {len(said)} of {len(wanted)} tokens"
    return Ending.EXACT, ""


@dataclass
class Count:
    """What became of some requests. `lost` ended in an error or were cut; one that was `limited`
    was refused before it began."""

    requests: int = 0
    lost: int = 0
    limited: int = 0
    wrong: int = 0
    unaccounted: int = 0
    notes: list[str] = field(default_factory=list)


def count(outcomes: Sequence[Outcome], *, may_cut: bool) -> Count:
    """Count outcomes. `may_cut`: they may end without a word, as the gateway itself dies."""
    told = {Ending.EXACT, Ending.LIMITED, Ending.FAILED, *([Ending.CUT] if may_cut else [])}
    sent = [one for one in outcomes if one.ending is not Ending.UNREACHED]
    wrong = [one for one in sent if one.ending is Ending.WRONG]
    unaccounted = [one for one in sent if one.ending not in told and one not in wrong]
    return Count(
        len(sent),
        sum(one.ending in (Ending.FAILED, Ending.CUT) for one in sent),
        sum(one.ending is Ending.LIMITED for one in sent),
        len(wrong),
        len(unaccounted),
        [f"{one.ending} ({one.by}, {one.decoder}): {one.reason}" for one in (*wrong, *unaccounted)],
    )


def streams(outcomes: Sequence[Outcome], begun: Set[str], at: float) -> tuple[int, int]:
    """How many streams were `begun` (their ids), and not over, when a worker was struck `at` then.

    And how many of those ended as if nothing had happened.
    """
    mine = [one for one in outcomes if one.streamed and one.rid in begun and one.done > at]
    return len(mine), sum(one.ending is Ending.EXACT for one in mine)
