"""Hooks of the scheduler: a request that fails there ends by itself, with its reason.

What reaches the scheduler has been checked (`ps_sglang.engine.guard.admission`). This is for
what that did not foresee, and for what only shows while a request runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from http import HTTPStatus
from typing import Any, Final

from ps_sglang.engine.compat.srt import (
    FINISH_ABORT,
    FINISHED_MATCHED_REGEX,
    AbortReq,
    DisaggregationMode,
    InvalidGrammarObject,
)
from ps_sglang.engine.guard.patterns import Budget, TooSlowError
from ps_sglang.engine.hooking import after, around

log = logging.getLogger(__name__)

_COMPILE_SECONDS: Final = 20.0
_GRAMMAR_ALLOWANCE_S: Final = 2.0
_GRAMMAR_PER_TOKEN_S: Final = 0.02
_MOST_GRAMMARS: Final = 256
_LOW_PRIORITY: Final = 10
"""Niceness of the threads that compile grammars."""


@around(
    "managers.scheduler.Scheduler.handle_generate_request", "self", "recv_req", "mm_input_error"
)
def handle_generate_request(
    original: Any, scheduler: Any, recv_req: Any, *, mm_input_error: str | None = None
) -> None:
    """Around `Scheduler.handle_generate_request`: let an exception end this request only."""
    try:
        original(scheduler, recv_req, mm_input_error=mm_input_error)
    except Exception as error:  # whatever it is, the other requests go on
        log.exception("request %s cannot be prepared", recv_req.rid)
        reason = f"the request cannot be prepared ({type(error).__name__}: {error})"
        _end(scheduler, recv_req, reason)


def _end(scheduler: Any, recv_req: Any, reason: str) -> None:
    """Tell the client, and the other worker if it can be told."""
    rid = recv_req.rid
    mode = scheduler.disaggregation_mode
    # In a queue already: its handshake is given up there, and SGLang ends what has lost its peer.
    if mode is DisaggregationMode.DECODE:
        for entry in scheduler.disagg_decode_prealloc_queue.queue:
            if entry.req.rid == rid:
                entry.kv_receiver.abort()
                return
    elif mode is DisaggregationMode.PREFILL:
        for req in scheduler.disagg_prefill_bootstrap_queue.queue:
            if req.rid == rid:
                req.disagg_kv_sender.abort()
                return
        lender = getattr(scheduler.disagg_prefill_bootstrap_queue.kv_manager, "lender", None)
        if lender is not None and recv_req.bootstrap_room is not None:
            lender.refuse(recv_req.bootstrap_room, reason)
    scheduler.waiting_queue = [req for req in scheduler.waiting_queue if req.rid != rid]
    grammars = scheduler.grammar_manager
    grammars.grammar_queue = [req for req in grammars.grammar_queue if req.rid != rid]
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    finished = {
        "type": "abort", "message": reason, "status_code": status, "err_type": status.phrase,
    }  # fmt: skip
    scheduler.send_abort_output(AbortReq(rid=rid, finished_reason=finished), recv_req)


@around("managers.schedule_batch.Req._check_str_based_finish", "self", "new_accepted_len")
def check_str_based_finish(original: Any, req: Any, new_accepted_len: int = 1) -> bool:
    """Around `Req._check_str_based_finish`: match stop patterns in bounded time.

    SGLang looks for the stop texts, and the patterns are matched here.
    """
    params = req.sampling_params
    patterns = params.stop_regex_strs
    if not patterns:
        return bool(original(req, new_accepted_len))
    tail = req.tail_str(new_accepted_len)
    params.stop_regex_strs = []
    try:
        if params.stop_strs and original(req, new_accepted_len):
            return True
    finally:
        params.stop_regex_strs = patterns
    budget = req.__dict__.setdefault("pattern_budget", Budget())
    try:
        matched = next((p for p in patterns if budget.search(p, tail, len(req.output_ids))), None)
    except TooSlowError as error:
        req.finished_reason = FINISH_ABORT(str(error), HTTPStatus.BAD_REQUEST, "BadRequestError")
        return True
    if matched is None:
        return False
    req.finished_reason = FINISHED_MATCHED_REGEX(matched=matched)
    req.finished_len = len(req.output_ids)
    return True


@around(
    "constrained.base_grammar_backend.BaseGrammarBackend._init_value_dispatch",
    "self",
    "key",
    "require_reasoning",
)
def compile_grammar(original: Any, backend: Any, key: Any, require_reasoning: bool) -> Any:
    """Around `BaseGrammarBackend._init_value_dispatch` (in a thread): compile at a low priority.

    A grammar that allows no token at all is not compiled, in effect: it has no answer.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
    grammar = original(backend, key, require_reasoning)
    vocabulary = getattr(grammar, "vocab_size", None)
    if vocabulary is None:  # it does not compile, or is another backend's
        return grammar
    mask = grammar.allocate_vocab_mask(vocabulary, 1, "cpu")
    grammar.fill_vocab_mask(mask, 0)
    if not mask.any():
        return InvalidGrammarObject("it allows no text at all")
    return grammar


@around("constrained.base_grammar_backend.BaseGrammarBackend.set_cache", "self", "key", "value")
def keep_grammar(original: Any, backend: Any, key: Any, value: Any) -> None:
    """Around `BaseGrammarBackend.set_cache`: keep the most recent grammars only."""
    while len(backend.cache) >= _MOST_GRAMMARS:
        del backend.cache[next(iter(backend.cache))]
    original(backend, key, value)


@around("constrained.grammar_manager.GrammarManager.get_ready_grammar_requests", "self")
def get_ready_grammar_requests(original: Any, manager: Any) -> list[Any]:
    """Around `GrammarManager.get_ready_grammar_requests`: limit the time of a compilation.

    SGLang counts passes of the scheduler's loop, each of which may take long.
    """
    now = time.monotonic()
    for req in manager.grammar_queue:
        since = req.__dict__.setdefault("grammar_since", now)
        if now - since > _COMPILE_SECONDS:
            req.grammar_wait_ct = manager.SGLANG_GRAMMAR_MAX_POLL_ITERATIONS
    ready: list[Any] = original(manager)
    return ready


@around("constrained.xgrammar_backend.XGrammarGrammar.fill_vocab_mask", "self", "vocab_mask", "idx")
def fill_vocab_mask(original: Any, grammar: Any, vocab_mask: Any, idx: int) -> None:
    """Around `XGrammarGrammar.fill_vocab_mask`: count the time that a request's grammar takes."""
    start = time.thread_time()
    original(grammar, vocab_mask, idx)
    grammar.spent = getattr(grammar, "spent", 0.0) + time.thread_time() - start


@around("constrained.xgrammar_backend.XGrammarGrammar.accept_token", "self", "token")
def accept_token(original: Any, grammar: Any, token: int) -> None:
    """Around `XGrammarGrammar.accept_token`: end a request whose grammar takes too long.

    Raises ValueError if it does, or if `token` is not allowed; SGLang ends the request with this
    reason.
    """
    start = time.thread_time()
    try:
        original(grammar, token)
    except ValueError:
        raise ValueError(
            "the grammar allows none of the tokens that the other parameters allow"
        ) from None
    grammar.spent = getattr(grammar, "spent", 0.0) + time.thread_time() - start
    tokens = len(grammar.accepted_tokens)
    if grammar.spent > _GRAMMAR_ALLOWANCE_S + _GRAMMAR_PER_TOKEN_S * tokens:
        raise ValueError(
            f"matching the grammar took {grammar.spent:.1f} s for {tokens} tokens; a request has "
            f"{_GRAMMAR_ALLOWANCE_S:g} s and {_GRAMMAR_PER_TOKEN_S * 1000:g} ms a token. Write it "
            "without ambiguous repeats"
        )


@after(
    "managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor._accept_grammar_tokens",
    "self",
    "req",
    "tokens",
)
def accept_grammar_tokens(result: list[int], _processor: Any, req: Any, tokens: Any) -> list[int]:
    """After `SchedulerBatchResultProcessor._accept_grammar_tokens`: a failed grammar is a 400."""
    ended = req.to_finish
    if ended is not None and ended.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        ended.status_code, ended.err_type = HTTPStatus.BAD_REQUEST, "BadRequestError"
    return result
