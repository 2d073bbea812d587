"""A request's two legs, sent to the workers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

from ps_sglang.launch import Cluster
from tests.support.engine_client import post, together

_ROOMS = count(10_000)


def ask(
    cluster: Cluster, decoder: str, ids: Sequence[int], tokens: int = 8, **options: Any
) -> tuple[str, Any]:
    """The request's id and the decoder's answer."""
    prefill, *decode = cluster.plan.workers
    (worker,) = [spec for spec in decode if spec.model_name == decoder]
    room = next(_ROOMS)
    body = {
        "input_ids": list(ids),
        "rid": f"request-{room}",
        "sampling_params": {"max_new_tokens": tokens, "temperature": 0},
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": room,
        **options,
    }
    _, answer = together([partial(post, f"{leg.url}/generate", body) for leg in (prefill, worker)])
    return str(body["rid"]), answer
