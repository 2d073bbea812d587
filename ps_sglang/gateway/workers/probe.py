"""A probe of a worker: one question, and what its outcome says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import aiohttp

from ps_sglang.cluster_key import (
    CHALLENGE_HEADER,
    PROOF_HEADER,
    VARIABLE,
    ClusterKey,
    new_challenge,
)
from ps_sglang.gateway.errors import is_own
from ps_sglang.worker_info import ENGINE_SILENCE_S, HEADER


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
    engine_deadline: float = 25.0
    engine_silence: float = ENGINE_SILENCE_S


DEFAULT_TIMING: Final = ProbeTiming()
_NONE: Final[Mapping[str, str]] = {}


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


NO_PROOF: Final = (
    "it does not show that it has the cluster's key: start it with PS_SGLANG_ENABLE=1, and "
    f"{VARIABLE}=FILE with a copy of the cluster's key file"
)


class ProbeResult(NamedTuple):
    """`problem` is None if the answer was 200; `incarnation` is the process that answered.

    `is_proven` is false if something answered that does not show that it has the cluster's key.
    """

    problem: Problem | None
    incarnation: str | None = None
    is_proven: bool = True


async def probe(
    http: aiohttp.ClientSession,
    url: str,
    path: str,
    deadline: float,
    key: ClusterKey | None,
    headers: Mapping[str, str] = _NONE,
) -> ProbeResult:
    """GET a path of the worker at `url`; it has `deadline` seconds to answer.

    With a `key` it is asked to show that it has it.
    """
    timeout = aiohttp.ClientTimeout(total=deadline)
    challenge = new_challenge()
    if key is not None:
        headers = {**headers, CHALLENGE_HEADER: challenge}
    try:
        async with http.get(url + path, headers=headers, timeout=timeout) as response:
            incarnation = response.headers.get(HEADER)
            is_proven = key is None or key.is_proof(
                response.headers.get(PROOF_HEADER), challenge, incarnation
            )
            problem = None
            if response.status != 200:
                problem = Problem(f"it answers {path} with status {response.status}")
            return ProbeResult(problem, incarnation, is_proven)
    except TimeoutError:
        problem = Problem(f"it did not answer {path} within {deadline:g} s", silent=True)
    except (aiohttp.ClientError, OSError) as error:
        text = str(error) or type(error).__name__
        problem = Problem(text, is_own=True) if is_own(error) else Problem(text, refused=True)
    return ProbeResult(problem)
