"""Asks for a turn over SGLang's own `/generate`, streamed, and takes times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from ps_sglang.errors import PsSglangError

_TURN_S: Final = 900.0
_DONE: Final = b"[DONE]"


class TurnFailed(PsSglangError):
    """A turn got an error, or not what it had asked for."""


@dataclass(frozen=True)
class Answer:
    """What a turn said, and when (perf_counter): asked, first token, all of it."""

    ids: list[int]
    asked: float
    first: float
    done: float


class Client:
    """Asks the decoders of a running system."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = endpoints

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_TURN_S),
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

    async def ask(self, decoder: int, prompt: Sequence[int], output: int) -> Answer:
        """Exactly `output` tokens after `prompt`.

        Raises:
            TurnFailed: an error, of whatever kind, or another number of tokens.
        """
        body = {
            "input_ids": list(prompt),
            "stream": True,
            "sampling_params": {"max_new_tokens": output, "temperature": 0, "ignore_eos": True},
        }
        first, last = 0.0, b""
        asked = perf_counter()
        try:
            async with self._http.post(self._endpoints[decoder], json=body) as response:
                if response.status != 200:
                    raise TurnFailed(f"{response.status}: {await response.text()}")
                # Every event repeats what was said before, so the last one has it all.
                async for line in response.content:
                    event = line.removeprefix(b"data:").strip()
                    if event and event != _DONE:
                        first, last = first or perf_counter(), event
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TurnFailed(f"{type(error).__name__}: {error}") from error
        return Answer(_said(last, output), asked, first, perf_counter())


def _said(event: bytes, output: int) -> list[int]:
    try:
        answer: dict[str, Any] = json.loads(event)
        ids: list[int] = answer["output_ids"]
    except (ValueError, KeyError) as error:
        raise TurnFailed(f"no answer: {event[:200]!r}") from error
    if len(ids) != output:
        reason = answer.get("meta_info", {}).get("finish_reason")
        raise TurnFailed(f"{len(ids)} tokens, not {output}: {reason}")
    return ids
