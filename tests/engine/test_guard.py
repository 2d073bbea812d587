"""Ranges of a request's fields, stop patterns and grammars, without an engine."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from ps_sglang.engine.compat.srt import DisaggregationMode, GenerateReqInput, SamplingParams
from ps_sglang.engine.guard import (
    admission,
    grammars,
    patterns,
    requests,
    sampling,
    scheduling,
)


def test_every_field_of_sglangs_request_has_its_check() -> None:
    fields = {field.name for field in dataclasses.fields(GenerateReqInput)}
    checked = {*requests.NOT_SERVED, *requests.CHECKS, *requests.OF_THE_MODEL}
    assert fields == checked


def test_every_sampling_parameter_has_its_check() -> None:
    """What SGLang fills in itself is refused by its name."""
    inner = {"stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len",
             "is_normalized"}  # fmt: skip
    for name in SamplingParams.__struct_fields__:
        is_parameter = True
        try:
            sampling.check({name: object()}, 512)
        except ValueError as error:
            is_parameter = "is no sampling parameter" not in str(error)
        assert is_parameter is (name not in inner), name


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": 2**31}, "`top_k` must be an integer from 1 to 1073741824, not 2147483648."),
        ({"top_k": True}, "`top_k` must be an integer"),
        ({"temperature": float("nan")}, "`temperature` must be a number from 0 to .*, not nan."),
        ({"temperature": 10**400}, "`temperature` must be a number"),
        ({"top_p": 0}, "`top_p` must be a number above 0 to 1, not 0."),
        (
            {"stop_token_ids": [3, 512]},
            "`stop_token_ids` must be .* from 0 to 511, not 512",
        ),
        ({"logit_bias": {"512": 1}}, "`logit_bias` must be an integer from 0 to 511, not 512."),
        ({"logit_bias": {"5": float("inf")}}, r"`logit_bias\[5\]` must be a number"),
        ({"stop": "\ud800"}, r"`stop` has U\+D800 at character 0"),
        ({"is_normalized": True}, "`is_normalized` is no sampling parameter"),
        ({"custom_params": {"a": {"b": {}}}}, r"custom_params\['a'\]"),
    ],
)
def test_message_names_field_range_and_value(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling.check(params, 512)


def test_what_sglang_documents_is_taken() -> None:
    sampling.check(
        {
            "top_k": -1, "top_p": 1, "temperature": 0, "stop": ["a", ""], "n": 3,
            "logit_bias": {"511": -100}, "stop_token_ids": [0, 511], "max_new_tokens": None,
            "stop_regex": None, "custom_params": {"a": [1, "b", None], "c": {"d": True}},
            "regex": r"\(\[[({]+",
            "json_schema": '{"type": "object"}',
        },
        512,
    )  # fmt: skip


@pytest.mark.parametrize("pattern", ["(a+)+b", "a{60}c", "(?<=a)b|^x$", "(?P<n>x)(?P=n)", ""])
def test_patterns_that_python_takes(pattern: str) -> None:
    patterns.check("stop_regex", pattern)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "is not a regular expression: missing"),
        ("a{99999999999999}", "is not a regular expression"),
        ("(((((a{1000}){1000}){1000}){1000}){1000})", "10000 at most"),
        ("(?:(?:x{0,60000}){0,60000})", "10000 at most"),
        ("x" * 257, "256 characters"),
        (5, "must be a text"),
    ],
)
def test_patterns_that_do_not_compile(pattern: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        patterns.check("stop_regex", pattern)


def test_time_of_one_search_is_bounded() -> None:
    budget = patterns.Budget()
    assert budget.search("b+", "abba", 1)
    assert not budget.search("c", "abba", 1)
    # Far below what all searches of so many tokens may take.
    with pytest.raises(patterns.TooSlowError, match="takes too long to match"):
        budget.search("(a|aa)+$", "a" * 5000 + "b", 1_000_000)
    assert budget.search("b", "abba", 1_000_000)


def test_time_of_all_searches_is_bounded() -> None:
    """No single one of them is slow."""
    budget = patterns.Budget()

    def search_for_ever() -> NoReturn:
        while True:
            budget.search("(a+)+b", "a" * 200, 1)

    with pytest.raises(patterns.TooSlowError):
        search_for_ever()


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (grammars.regex, "(" * 65 + "a" + ")" * 65),
        (grammars.regex, "|".join(f"[a-z]{{{n}}}x" for n in range(300))),
        (grammars.regex, "a" * 65_537),
        (grammars.ebnf, "root ::= " + "(" * 65 + '"a"' + ")" * 65),
        (grammars.json_schema, "{"),
        (grammars.json_schema, "[]"),
        (grammars.json_schema, '{"items":' * 200 + "{}" + "}" * 200),
        (grammars.json_schema, '{"items":' * 100_000 + "{}" + "}" * 100_000),
        (grammars.json_schema, '{"type":"string","pattern":"a{20001}"}'),
    ],
)
def test_grammars_out_of_bounds(check: Any, source: str) -> None:
    with pytest.raises(ValueError, match="`grammar`"):
        check("grammar", source)


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (grammars.regex, r"\(\(" * 100 + "[({]" * 100 + "a{1,2000}"),
        (grammars.ebnf, 'root ::= "[" x\n' * 100 + 'x ::= "a"'),
        (grammars.json_schema, '{"items":' * 30 + '{"maxLength": 100000}' + "}" * 30),
        (grammars.json_schema, "$$ANY$$"),
    ],
)
def test_grammars_within_bounds(check: Any, source: str) -> None:
    check("grammar", source)


def test_other_exceptions_are_the_requests() -> None:
    with (
        pytest.raises(ValueError, match=r"^the thing cannot be read \(KeyError: 'a'\)$"),
        admission.of_the_request("the thing cannot be read"),
    ):
        raise KeyError("a")


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("mode", list(DisaggregationMode))
def test_an_exception_in_the_scheduler_ends_one_request(
    mode: DisaggregationMode, queued: bool
) -> None:
    """The client is told once, the request is in no queue, and its peer learns of it."""
    sent: list[Any] = []
    given_up: list[Any] = []
    peer = SimpleNamespace(abort=lambda: given_up.append("bad"))
    bad = SimpleNamespace(rid="bad", bootstrap_room=7, disagg_kv_sender=peer)
    good = SimpleNamespace(rid="good")
    lender = SimpleNamespace(refuse=lambda room, _reason: given_up.append(room))

    def queue(entry: Any) -> Any:
        manager = SimpleNamespace(lender=lender)
        return SimpleNamespace(queue=[entry] if queued else [], kv_manager=manager)

    scheduler = SimpleNamespace(
        disaggregation_mode=mode,
        waiting_queue=[good, bad],
        grammar_manager=SimpleNamespace(grammar_queue=[bad, good]),
        disagg_decode_prealloc_queue=queue(SimpleNamespace(req=bad, kv_receiver=peer)),
        disagg_prefill_bootstrap_queue=queue(bad),
        send_abort_output=lambda output, req: sent.append((output.rid, output.finished_reason)),
    )

    def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise KeyError("x")

    scheduling.handle_generate_request(fail, scheduler, bad)
    if queued and mode is not DisaggregationMode.NULL:
        # SGLang ends what has lost its peer, with a reason and its resources.
        assert (sent, given_up) == ([], ["bad"])
        return
    ((rid, reason),) = sent
    assert (rid, reason["status_code"]) == ("bad", 500)
    assert "cannot be prepared (KeyError: 'x')" in reason["message"]
    assert scheduler.waiting_queue == scheduler.grammar_manager.grammar_queue == [good]
    assert given_up == ([7] if mode is DisaggregationMode.PREFILL else [])
