"""Request-local state of the handoff: where the base's part of a prompt ends.

A prompt x[0..n-1] has the *base prefix* x[0..n-2], whose KV the base computes, and the
*boundary token* x[n-1], the first one a decoder reads.

On the prefill worker a request's prompt is the base prefix: the boundary token is cut off when
the request is created, so matching, chunking, sending and caching need no special case. On the
decode worker the prompt stays whole and `seqlen - 1` tokens are committed, which is the state
SGLang keeps for any decoding request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ps_sglang.engine.compat.srt import (
    FAKE_BOOTSTRAP_HOST,
    HEALTH_CHECK_RID_PREFIX,
    DisaggregationMode,
    SamplingParams,
)
from ps_sglang.engine.hooking import around
from ps_sglang.engine.request_state import (
    Request,
    awaits_first_output,
    begin_handoff,
    handoff_state,
)
from ps_sglang.engine.settings import is_worker
from ps_sglang.output_ids import PARAM


@around("managers.scheduler.Scheduler._create_generation_req", "self", "recv_req", "args", "kwargs")
def create_generation_req(
    original: Any, scheduler: Any, recv_req: Any, *args: Any, **kwargs: Any
) -> Request:
    """Around `Scheduler._create_generation_req`: give the request its base prefix."""
    mode = scheduler.disaggregation_mode
    if mode is DisaggregationMode.NULL:
        req = original(scheduler, recv_req, *args, **kwargs)
        if not is_worker():
            return _whole_prompt(req)
        if recv_req.rid.startswith(HEALTH_CHECK_RID_PREFIX):
            begin_handoff(req, 0)  # its prompt is nobody's: the tree keeps nothing of it
            return req
        return _for_decoder(req, recv_req, pulls=False)
    if kwargs.get("bootstrap_host") == FAKE_BOOTSTRAP_HOST:
        req = _whole_prompt(original(scheduler, recv_req, *args, **kwargs))
        if mode is DisaggregationMode.DECODE:
            begin_handoff(req, len(req.origin_input_ids) - 1, pulls=True)
            req.skip_radix_cache_insert = True  # a health check's KV is not the base's
        return req
    if mode is DisaggregationMode.PREFILL:
        return _base_prefix_only(original, scheduler, recv_req, args, kwargs)
    return _for_decoder(original(scheduler, recv_req, *args, **kwargs), recv_req, pulls=True)


def _whole_prompt(req: Request) -> Request:
    begin_handoff(req, len(req.origin_input_ids))
    return req


def _base_prefix_only(
    original: Any, scheduler: Any, recv_req: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Request:
    """A prefill worker's request: no boundary token, and nothing asked of the sampler.

    What the client asks of the output (grammar, penalties, logprobs, ...) is the decoder's
    business; the base only fills the cache.
    """
    rid, text, input_ids, _, *rest = args
    params = SamplingParams(max_new_tokens=1, temperature=0.0)
    params.normalize(None)
    kwargs |= {
        "return_logprob": False,
        "top_logprobs_num": 0,
        "token_ids_logprob": None,
        "return_sampling_mask": False,
        "return_hidden_states": False,
        "custom_logit_processor": None,
        "require_reasoning": False,
    }
    recv_req.return_logprob = False
    recv_req.logprob_start_len = -1
    req = original(scheduler, recv_req, rid, text, input_ids[:-1], params, *rest, **kwargs)
    return _whole_prompt(req)


def _for_decoder(req: Request, recv_req: Any, *, pulls: bool) -> Request:
    begin_handoff(req, len(req.origin_input_ids) - 1, pulls=pulls)
    handoff_state(req).forced = (req.sampling_params.custom_params or {}).get(PARAM, ())
    # SGLang adds the adapter's id, as its tree holds what adapters computed. Ours does not (I3).
    req.extra_key = recv_req.extra_key
    if recv_req.return_logprob and 0 <= recv_req.logprob_start_len < len(req.origin_input_ids):
        recv_req.logprob_start_len = -1
        req.set_finish_with_abort(
            "logprobs of prompt tokens are not available: the prompt's KV comes from the base "
            "model, which computes no logits. Leave out logprob_start_len (or echo) to get "
            "logprobs of the output."
        )
    return req


@contextmanager
def as_handed_over(reqs: Iterable[Request]) -> Iterator[None]:
    """Show SGLang's prebuilt path the boundary token as the handed-over output token.

    The stock path expects a prefilled prompt plus one token to decode next. Within this block a
    request that awaits its first output looks like that: prompt x[0..n-2], output [x[n-1]].
    """
    fresh = [
        (req, req.origin_input_ids, req.output_ids) for req in reqs if awaits_first_output(req)
    ]
    for req, prompt, _ in fresh:
        req.origin_input_ids, req.output_ids = prompt[:-1], prompt[-1:]
    try:
        yield
    finally:
        for req, prompt, output in fresh:
            req.origin_input_ids, req.output_ids = prompt, output
