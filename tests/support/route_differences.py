"""In what the gateway answers otherwise than one SGLang server, and why.

`tests/engine/test_same_routes.py` finds no other difference, and each of these.
`docs/compatibility.md` shows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The words of the page, and which lines of `differences` they explain in which cases.

    No lines: the test looks at it by itself.
    """

    where: str
    sglang: str
    gateway: str
    reason: str
    cases: str = ""
    lines: str | None = None

    def explains(self, case: str, line: str) -> bool:
        if self.lines is None:
            return False
        return bool(re.search(self.cases, case) and re.fullmatch(self.lines, line))


_REFUSED = "status 200 -> 400"
DIFFERENCES = (
    Difference(
        "errors",
        "several forms",
        "OpenAI's form, or Anthropic's at `/v1/messages`",
        "one form for each client",
    ),
    Difference(
        "an unknown `model`",
        "answered",
        "404 `model_not_found`",
        "`model` chooses the decoder",
        "error: unknown model$",
        "status 200 -> 404",
    ),
    Difference(
        "logprobs of the prompt: `logprob_start_len`, `echo` with `logprobs`",
        "given",
        "400",
        "the base computes no logits",
        "(logprobs of the prompt|echo with logprobs)$",
        _REFUSED,
    ),
    Difference(
        "`best_of` above 1",
        "left out",
        "400",
        "the answer would not be what was asked for",
        " best_of$",
        _REFUSED,
    ),
    Difference(
        "`text` and `input_ids` in one request",
        "takes the ids",
        "400",
        "nobody knows which is meant",
        "^/generate error: both$",
        _REFUSED,
    ),
    Difference(
        "a stream of `/generate` that is refused",
        "200, and the error as an event",
        "the error's status",
        "nothing has been sent yet",
        "^/generate stream error",
        _REFUSED,
    ),
    Difference(
        "`max_tokens: 0` of a chat",
        "as if left out",
        "400, as for completions",
        "an answer has a token",
        "^/v1/chat/completions error: max_tokens$",
        _REFUSED,
    ),
    Difference(
        '`/v1/responses`: `background`, `truncation: "auto"`, tools of OpenAI\'s servers',
        "taken",
        "400",
        "see [Responses](clients.md#responses)",
        "^/v1/responses (background|truncation|web search)$",
        _REFUSED,
    ),
    Difference(
        "`/v1/responses`",
        "without some fields",
        "`background`, `prompt_cache_key`, `safety_identifier`, `service_tier`, `text.format`, "
        "`top_logprobs` as well",
        "OpenAI's clients read them",
        "^/v1/responses ",
        r"with(out)? (response\.)?((background|prompt_cache_key|safety_identifier|service_tier"
        r"|top_logprobs|text|text\.format\.type): \w+)",
    ),
    Difference(
        "`tools` in the answer of `/v1/responses`",
        "with fields that are null",
        "as they came",
        "as OpenAI's",
        "^/v1/responses tool",
        r"without tools\[\]\.(defer_loading|format|strict|tools): \w+",
    ),
    Difference(
        "`GET /v1/responses/ID`, which does not begin with `resp_`",
        "400",
        "404",
        "there is no such response",
        "^/v1/responses/other GET$",
        "status 400 -> 404",
    ),
    Difference(
        "`/v1/messages`",
        "without some fields",
        "`stop_sequence`, `signature`, `cache_read_input_tokens`, `cache_creation_input_tokens`, "
        "usage at a stream's end",
        "as Anthropic's",
        "^/v1/messages ",
        r"with (\w+\.|\w+\[\]\.)*(stop_sequence|stop_reason|signature|input_tokens"
        r"|cache_read_input_tokens|cache_creation_input_tokens): \w+",
    ),
    Difference(
        "`usage.prompt_tokens_details`",
        "null without `--enable-cache-report`",
        "with `cached_tokens`",
        "the launcher sets the flag",
        "^/v1/(chat/)?completions ",
        r"with(out)? usage\.prompt_tokens_details(\.cached_tokens)?: \w+",
    ),
    Difference(
        "`meta_info`",
        "`prefill_finished_time`, `decode_throughput`, `storage_..._wait`",
        "without these",
        "the prompt was prefilled elsewhere",
        "^/generate |meta info$",
        r"without (\[\]\.|choices\[\]\.)?meta_info\.(decode_throughput|prefill_finished_time"
        r"|storage_\w+_wait): number",
    ),
    Difference(
        "token ids beyond the vocabulary at `/detokenize`",
        "an empty text, or 500",
        "400",
        "they stand for no text",
        "/detokenize error: (beyond the vocabulary|negative)$",
        "status (200|500) -> 400",
    ),
    Difference(
        "a chat that is no object, an unknown parser, an unknown part of `/v1/loads`",
        "500",
        "400",
        "the request is at fault",
        "(error: not an object|error: unknown parser|include=nonsense GET)$",
        "status 500 -> 400",
    ),
    Difference(
        "`/abort_request` with `abort_all`, or without `rid`",
        "aborts all requests",
        "400",
        "they are others', too",
        "^/abort_request (all|no id)$",
        _REFUSED,
    ),
    Difference(
        "a body that is not called `application/json`",
        "400",
        "read as JSON",
        "`curl -d` calls it otherwise",
        "error: another content type$",
        "status 400 -> 200",
    ),
    Difference(
        "`PUT /generate`",
        "as `POST`",
        "405",
        "one way is enough",
        "^/generate PUT$",
        "status 200 -> 405",
    ),
    Difference(
        "`/health`, `/health_generate`, `/ready`",
        "without content",
        "JSON that tells of the workers",
        "there are several",
        "^/(health|health_generate|ready) GET$",
        r"type none -> application/json|with (status|(prefill|decoders|workers)\[\](\.\w+)?): \w+",
    ),
    Difference(
        "`/v1/models`",
        "`parent` is null",
        "`parent` is the base",
        "decoders are made of it",
        "^/v1/models",
        r"with(out)? (data\[\]\.)?parent: \w+",
    ),
    Difference(
        "`/v1/loads`",
        "of one server",
        "of all workers, with `worker`, `role`, `decoder`",
        "there are several",
        r"^/v1/loads(\?include=core)? GET$",
        r"with loads\[\]\.\w+: \w+",
    ),
    Difference(
        "`/v1/loads?format=prometheus`",
        "the loads as metrics",
        "400",
        "`/metrics` has them",
        "format=prometheus GET$",
        _REFUSED,
    ),
    Difference(
        "`/flush_cache`",
        "a text without a content type",
        "`text/plain`",
        "it is a text",
        "^/flush_cache ",
        "type none -> text/plain",
    ),
    Difference(
        "`/model_info`, `/server_info`",
        "of the server",
        "of a decode worker, with `ps_sglang`",
        "several decoders need `?model=`",
    ),
)


def table() -> Iterator[str]:
    """The lines of the page."""
    yield "| what | SGLang's server | the gateway | why |"
    yield "|---|---|---|---|"
    for one in DIFFERENCES:
        yield f"| {one.where} | {one.sglang} | {one.gateway} | {one.reason} |"
