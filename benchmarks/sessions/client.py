"""Asks for a turn over SGLang's own `/generate`, streamed, and takes times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from benchmarks.sessions.running import Endpoint
from ps_sglang.errors import PsSglangError
from ps_sglang.gateway.telemetry.trace import HEADER

_TURN_S: Final = 900.0
_DONE: Final = b"[DONE]"
_TIMELINE: Final = b'{"timeline":'


class TurnFailed(PsSglangError):
    """A turn got an error, or not what it had asked for."""


@dataclass(frozen=True)
class Answer:
    """What a turn said, and when (perf_counter): asked, first token, all of it.

    `stages`: seconds on its workers, and `tokens` of its base prefix by where they came from, as
    our gateway tells them (see `Timeline` there); of stock systems none.
    """

    ids: list[int]
    asked: float
    first: float
    done: float
    stages: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


class Client:
    """Asks the decoders of a running system."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_TURN_S),
            headers={HEADER: "1"},
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

        Raises TurnFailed on any error, or another number of tokens.
        """
        endpoint = self._endpoints[decoder]
        body = {
            "input_ids": list(prompt),
            "stream": True,
            "sampling_params": {"max_new_tokens": output, "temperature": 0, "ignore_eos": True},
        }
        if endpoint.adapter is not None:
            body["lora_path"] = endpoint.adapter
        first, done, last, stages_event = 0.0, 0.0, b"", b""
        asked = perf_counter()
        try:
            async with self._http.post(endpoint.url, json=body) as response:
                if response.status != 200:
                    raise TurnFailed(f"{response.status}: {await response.text()}")
                # Every event repeats what was said before, so the last one has it all.
                async for line in response.content:
                    event = line.removeprefix(b"data:").strip()
                    if event.startswith(_TIMELINE):
                        stages_event = event
                    elif event and event != _DONE:
                        done, last = perf_counter(), event
                        first = first or done
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TurnFailed(f"{type(error).__name__}: {error}") from error
        return Answer(_said(last, output), asked, first, done, *_timeline(stages_event))


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


def _timeline(event: bytes) -> tuple[dict[str, float], dict[str, int]]:
    """Stages and tokens."""
    if not event:
        return {}, {}
    (timeline,) = json.loads(event)["timeline"]
    stages = {name: s for name, s in timeline["seconds"].items() if name != "total"}
    return stages, timeline["tokens"]
