"""Sessions of agents in the background: turns over a growing context, by turns of the decoders."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from benchmarks.faults.client import Client, Ending, Outcome
from benchmarks.faults.models import Turn

BY: Final = "agent"
"""Who asked first; one that asks again does so as AGAIN."""
AGAIN: Final = "agent again"
_PAUSE_S: Final = (0.05, 0.3)
_RETRY_S: Final = 0.2
_AGAIN_ON: Final = frozenset((Ending.FAILED, Ending.LIMITED, Ending.CUT, Ending.UNREACHED))
_POISONOUS: Final = 422


class Agents:
    """`many` sessions at a time, each through one conversation after the other, until `stop`.

    As agents do, they ask again if a turn fails for a while. Half of the conversations have a new
    tenant, for whom nothing is cached; the others meet what was cached before.
    """

    def __init__(
        self, client: Client, conversations: Sequence[Sequence[Turn]], many: int, seed: int
    ) -> None:
        self._client = client
        self._conversations = conversations
        self._may_ask = asyncio.Event()
        self._asking = 0
        self._quiet = asyncio.Condition()
        self._number = 0
        self._tasks = [
            asyncio.create_task(self._session(random.Random(f"agent {seed} {number}")))
            for number in range(many)
        ]

    def resume(self) -> None:
        """Go on."""
        self._may_ask.set()

    async def pause(self) -> None:
        """Ask nothing more; returns when all that was asked has ended."""
        self._may_ask.clear()
        async with self._quiet:
            await self._quiet.wait_for(lambda: self._asking == 0)

    async def stop(self) -> None:
        """End for good. Raises what ended a session, which nothing should."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _session(self, source: random.Random) -> None:
        while True:
            self._number += 1
            salt = f"tenant {self._number}" if source.random() < 0.5 else None
            for turn in source.choice(self._conversations):
                await asyncio.sleep(source.uniform(*_PAUSE_S))
                if not await self._turn(turn, source, salt):
                    break

    async def _turn(self, turn: Turn, source: random.Random, salt: str | None) -> bool:
        """Whether it got its answer in the end."""
        tokens = source.randint(len(turn.answer) // 2, len(turn.answer))
        stream, by = source.random() < 0.5, BY
        while True:
            outcome = await self._ask(turn, by, tokens, stream, salt)
            if outcome.ending is Ending.EXACT:
                return True
            if outcome.ending not in _AGAIN_ON or outcome.status == _POISONOUS:
                return False
            by = AGAIN
            await asyncio.sleep(_RETRY_S)

    async def _ask(
        self, turn: Turn, by: str, tokens: int, stream: bool, salt: str | None
    ) -> Outcome:
        await self._may_ask.wait()
        self._asking += 1
        try:
            return await self._client.ask(turn, by, tokens=tokens, stream=stream, salt=salt)
        finally:
            self._asking -= 1
            async with self._quiet:
                self._quiet.notify_all()
