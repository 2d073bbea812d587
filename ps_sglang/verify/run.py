"""One verification from end to end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging

from ps_sglang.errors import UsageError
from ps_sglang.models import NamedModel
from ps_sglang.progress import OnProgress
from ps_sglang.verify.client import GatewayClient, Message
from ps_sglang.verify.collect import Exchange, collect
from ps_sglang.verify.compare import BARS, judge
from ps_sglang.verify.prompts import ANSWER_LENGTH, Tokens, script
from ps_sglang.verify.reference import Reference
from ps_sglang.verify.report import VerifyReport


def verify(
    url: str, base: NamedModel, decoders: Sequence[NamedModel], dtype: str, on_progress: OnProgress
) -> VerifyReport:
    """Ask the cluster at `url`, whose workers compute in `dtype`, then judge its answers.

    Raises UsageError if there is no such cluster, or it does not serve all `decoders`.
    """
    return _judged(_ask(url, base, decoders, on_progress), base, decoders, dtype, on_progress)


def verify_demo(
    base: NamedModel, decoders: Sequence[NamedModel], dtype: str, on_progress: OnProgress
) -> VerifyReport:
    """Launch a cluster on free ports, ask it, stop it, then judge its answers.

    Raises LaunchError if it does not come up.
    """
    from ps_sglang.launch import Cluster, ClusterSpec

    named = [f"{model.name}={model.path}" for model in (base, *decoders)]
    spec = ClusterSpec(named[0], tuple(named[1:]), port=0, engine_args=("--dtype", dtype))
    with Cluster.start(spec, on_progress) as cluster:
        on_progress(f"cluster ready at {cluster.url} after {cluster.ready_s:.1f} s")
        exchanges = _ask(cluster.url, base, decoders, on_progress)
    on_progress("cluster stopped")
    return _judged(exchanges, base, decoders, dtype, on_progress)


def _ask(
    url: str, base: NamedModel, decoders: Sequence[NamedModel], on_progress: OnProgress
) -> list[Exchange]:
    client = GatewayClient(url)
    names = [decoder.name for decoder in decoders]
    longest = _context_length(client, names) // 2 - ANSWER_LENGTH
    tokenizer = AutoTokenizer.from_pretrained(base.path)

    def encode(text: str) -> Tokens:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)

    def render(messages: tuple[Message, ...]) -> Tokens:
        return _render(tokenizer, messages)

    return collect(client, script(names, encode, longest), render, on_progress)


def _context_length(client: GatewayClient, decoders: Sequence[str]) -> int:
    served = client.context_lengths()
    if missing := [name for name in decoders if name not in served]:
        raise UsageError(
            f"the cluster at {client.url} does not serve {', '.join(missing)}; "
            f"it serves {', '.join(served)}: name decoders with --decoder NAME=PATH"
        )
    return min(served[name] for name in decoders)


def _render(tokenizer: Any, messages: Sequence[Message]) -> Tokens:
    encoded = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, return_dict=True
    )
    return tuple(encoded["input_ids"])


def _judged(
    exchanges: Sequence[Exchange],
    base: NamedModel,
    decoders: Sequence[NamedModel],
    dtype: str,
    on_progress: OnProgress,
) -> VerifyReport:
    logging.disable_progress_bar()
    began = time.monotonic()
    reference = Reference(base.path, {decoder.name: decoder.path for decoder in decoders}, dtype)
    report = VerifyReport(list(judge(reference, exchanges, BARS[dtype])), BARS[dtype])
    on_progress(f"reference: {len(exchanges)} answers judged, {time.monotonic() - began:.1f} s")
    return report
