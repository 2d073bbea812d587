"""A probe of a worker: one question, and what its outcome says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import aiohttp

from ps_sglang.gateway.config import Worker
from ps_sglang.gateway.errors import is_own
from ps_sglang.worker_info import HEADER


@dataclass(frozen=True)
class ProbeTiming:
    """How often workers are asked, and how long they may take, in seconds.

    `silence` without an answer from the server, or `engine_silence` without one from the engine,
    takes a worker's unfinished requests away. The second must be longer than any forward pass:
    between the chunks of a long prompt the engine answers, inside one it does not.
    """

    every: float = 1.0
    starting_every: float = 0.1  # before it has been heard for the first time
    deadline: float = 2.0
    silence: float = 15.0
    engine_every: float = 15.0
    engine_deadline: float = 25.0  # SGLang itself gives up after 20
    engine_silence: float = 120.0


DEFAULT_TIMING: Final = ProbeTiming()


@dataclass(frozen=True)
class Problem:
    """Why a probe failed.

    `silent`: no answer before the deadline. `refused`: no connection, or it was lost. `is_own`: the
    gateway could not send the probe, which says nothing of the worker.
    """

    text: str
    silent: bool = False
    refused: bool = False
    is_own: bool = False


class ProbeResult(NamedTuple):
    """`problem` is None if the answer was 200; `incarnation` is the process that answered."""

    problem: Problem | None
    incarnation: str | None = None


async def probe(
    http: aiohttp.ClientSession, worker: Worker, path: str, deadline: float
) -> ProbeResult:
    """GET a path of the worker; it has `deadline` seconds to answer."""
    timeout = aiohttp.ClientTimeout(total=deadline)
    try:
        async with http.get(worker.url + path, timeout=timeout) as response:
            incarnation = response.headers.get(HEADER)
            if response.status == 200:
                return ProbeResult(None, incarnation)
            problem = Problem(f"it answers {path} with status {response.status}")
            return ProbeResult(problem, incarnation)
    except TimeoutError:
        problem = Problem(f"it did not answer {path} within {deadline:g} s", silent=True)
    except (aiohttp.ClientError, OSError) as error:
        text = str(error) or type(error).__name__
        problem = Problem(text, is_own=True) if is_own(error) else Problem(text, refused=True)
    return ProbeResult(problem)
