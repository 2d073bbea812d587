"""Random requests made of a gateway's own OpenAPI document, and what is wrong with its answers.

Half of them are as the document says; the others break it somewhere. The same seed makes the same
requests.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import hypothesis
import requests
import schemathesis
from schemathesis import APIOperation, Case, GenerationMode, Response
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

SECONDS: Final = 60.0
"""An answer that is silent for so long counts as one that never comes."""
# Requests of one kind to one route, before the next has its turn: most to those with a body.
_WITH_BODY, _WITHOUT = 10, 2
_CHECKS: Final = [status_code_conformance, content_type_conformance, response_schema_conformance]
_TRACES: Final = ("Traceback (most recent call last)", 'File "/')
# What ends a stream of events, beside `[DONE]` and an error.
_LAST: Final = ("message_stop", "response.completed", "response.incomplete", "response.failed")
_LENGTH: Final = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/generate": "max_new_tokens",
}


_Operation = APIOperation[Any, Any, Any, Any]
_Case = Case[_Operation]


@dataclass
class Report:
    """What was sent, by the status of the answer (0: none came), and what was wrong.

    `faults` has the first request of each kind of fault.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        by_status = ", ".join(f"{status}: {n}" for status, n in sorted(self.statuses.items()))
        lines = [f"{self.statuses.total()} requests; {by_status}; {len(self.faults)} faults"]
        return "\n\n".join([*lines, *(f"{kind}\n{how}" for kind, how in self.faults.items())])


def drive(url: str, count: int, seed: int, longest: int | None = None) -> Report:
    """Send at least `count` requests to the gateway at `url`.

    Where real models answer, `longest` bounds the tokens of an answer.
    """
    document = schemathesis.openapi.from_url(url + "/openapi.json")
    document.config.max_stream_events = sys.maxsize  # it would hang up after 100
    found = list(document.get_all_operations())
    operations = [one.ok() for one in found if isinstance(one, Ok)]
    assert len(operations) == len(found), "the document is wrong itself"
    served = [one["id"] for one in requests.get(url + "/v1/models", timeout=SECONDS).json()["data"]]
    report, numbers = Report(), random.Random(seed)
    with requests.Session() as session:
        while report.statuses.total() < count:
            for operation in operations:
                for mode in GenerationMode:
                    for case in _cases(operation, mode, numbers.getrandbits(32)):
                        _fill_in(case, mode, numbers, served)
                        if longest is not None:
                            _shorten(case, longest)
                        _send(case, url, session, report)
    return report


def _cases(operation: _Operation, mode: GenerationMode, seed: int) -> list[_Case]:
    """Some requests to one route, as the document has them, or not."""
    found: list[_Case] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=_WITH_BODY if operation.body else _WITHOUT,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def generate(case: _Case) -> None:
        found.append(case)

    # Nothing can be wrong with a request that takes nothing, or any text.
    with suppress(hypothesis.errors.Unsatisfiable):
        generate()
    return found


def _fill_in(
    case: _Case, mode: GenerationMode, numbers: random.Random, served: Sequence[str]
) -> None:
    """Names that are served, and SGLang's own: made up ones would only show that they are not."""
    is_right = mode is GenerationMode.POSITIVE
    known = {
        "model": numbers.choice(served),
        "tool_call_parser": "qwen25",
        "reasoning_parser": "qwen3",
    }
    if isinstance(case.body, dict):
        schema = case.operation.body[0].definition["schema"]
        schema = schema.get("anyOf", [schema])[0]
        for name in known.keys() & schema["properties"].keys():
            if isinstance(case.body.get(name), str) or is_right:
                case.body[name] = known[name]
    if is_right and "model" in (case.query or {}):
        case.query["model"] = known["model"]
    # Whatever changes something goes to names that are not there.
    if is_right and case.path == "/v1/models/{name}":
        case.path_parameters["name"] = known["model"]


def _shorten(case: _Case, longest: int) -> None:
    name, body = _LENGTH.get(case.path), case.body
    if name is None or not isinstance(body, dict):
        return
    if case.path == "/generate":
        if body.get("sampling_params") is None:
            body["sampling_params"] = {}
        body = body["sampling_params"]
        if not isinstance(body, dict):
            return
    for field_, most in ((name, longest), ("n", 2)):
        value = body.get(field_)
        if isinstance(value, int | float) and value > most:
            body[field_] = most
    if body.get(name) is None:
        body[name] = longest


def _send(case: _Case, url: str, session: requests.Session, report: Report) -> None:
    try:
        response = case.call(url, session, timeout=SECONDS)
    except requests.RequestException as error:
        report.statuses[0] += 1
        _note(report, case, f"{type(error).__name__}: {error}")
        return
    status, text = response.status_code, response.text
    report.statuses[status] += 1
    if status >= 500:
        _note(report, case, f"{status}: {text}")
    if any(trace in text for trace in _TRACES):
        _note(report, case, f"a stack trace: {text}")
    if status == 200 and _is_streamed(response) and not _has_an_end(text):
        _note(report, case, f"a stream without an end: {text[-200:]}")
    try:
        case.validate_response(response, checks=_CHECKS)
    except FailureGroup as group:
        for failure in group.exceptions:
            _note(report, case, f"{status}, {failure}: {text}")


def _is_streamed(response: Response) -> bool:
    kinds = response.headers.get("content-type", ())
    return any(kind.startswith("text/event-stream") for kind in kinds)


def _has_an_end(text: str) -> bool:
    """Whether events are framed and end as their API has it."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    if not text.endswith("\n\n") or not lines:
        return False
    events: list[Any] = [json.loads(line) for line in lines if line != "[DONE]"]
    return lines[-1] == "[DONE]" or "error" in events[-1] or events[-1].get("type") in _LAST


def _note(report: Report, case: _Case, fault: str) -> None:
    kind = f"{case.method} {case.path} {fault.splitlines()[0][:60]}"
    report.faults.setdefault(kind, f"{fault[:600]}\n{case.as_curl_command()[:1000]}")
