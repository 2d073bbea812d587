"""Programs of others, as they are installed, on a cluster of tiny models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import sglang as sgl

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Run = Callable[..., str]


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_every_answer_has_the_types_of_todays_openai_sdk(run: Run) -> None:
    assert run("strict_answers.py") == "checked\n"


def test_versions_of_weights_stand_where_sglangs_clients_look(url: str) -> None:
    _, answer = post(url, "/generate", {"model": "a", "text": "Hello"})
    (span,) = answer["meta_info"]["weight_versions"]
    assert span["version"] == answer["meta_info"]["weight_version"]


def test_pydantic_ai_runs_whole_and_streamed(url: str, run: Run) -> None:
    said = json.loads(run("pydantic_agent.py", "a", "Tell me"))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="a",
        messages=[{"role": "user", "content": "Tell me"}],
        temperature=0,
        max_tokens=8,
    )
    text = answer.choices[0].message.content
    assert text
    assert answer.usage is not None
    assert said == {"texts": [text, text], "output_tokens": answer.usage.completion_tokens}


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai", "sglang-oai-chat"])
def test_sglangs_benchmark_counts_every_request_as_done(
    url: str, tiny: dict[str, Path], tmp_path: Path, backend: str
) -> None:
    """By the decoder's own URL, as the backend `sglang` names no model that the gateway serves."""
    result = tmp_path / "result.jsonl"
    command = [
        sys.executable, "-m", "sglang.bench_serving", "--backend", backend,
        "--base-url", f"{url}/models/a", "--model", "a", "--tokenizer", str(tiny["base"]),
        "--dataset-name", "random-ids", "--random-input-len", "24", "--random-output-len", "8",
        "--random-range-ratio", "1", "--num-prompts", "6", "--warmup-requests", "1",
        "--disable-tqdm", "--output-file", str(result),
    ]  # fmt: skip
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # it asks the hub for the model's name
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=offline)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(result.read_text())
    assert (measured["completed"], measured["total_output_tokens"]) == (6, 48), done.stdout


@sgl.function
def story(s: Any) -> None:
    s += "Once upon " + sgl.gen("start", max_tokens=8)
    forks = s.fork(2)
    forks += " then " + sgl.gen("end", max_tokens=4)
    forks.join()
    s += sgl.gen("year", regex="[0-9]{4}", max_tokens=8)


def test_a_runtime_endpoints_program_forks_streams_and_keeps_to_a_regex(url: str) -> None:
    backend = sgl.RuntimeEndpoint(f"{url}/models/a")
    whole = story.run(temperature=0, backend=backend)
    assert whole.error() is None
    assert re.fullmatch("[0-9]{4}", whole["year"])
    streamed = story.run(temperature=0, backend=backend, stream=True)
    assert "".join(streamed.text_iter()) == whole.text()
    assert whole["start"]
    assert len(set(whole["end"])) == 1


@sgl.function
def choose(s: Any) -> None:
    s += "Is it so? " + sgl.gen("answer", choices=["yes", "no"])


def test_a_runtime_endpoints_choice_is_refused_with_the_reason(url: str) -> None:
    # The language runs a program in a thread, and warns of what ends it.
    backend = sgl.RuntimeEndpoint(f"{url}/models/a")
    with pytest.warns(UserWarning, match="logprobs of the prompt"):
        reason = str(choose.run(backend=backend).error())
    assert "logprobs of the prompt" in reason
    assert "ps_sglang.frontend.PrefillShareBackend" in reason


def test_the_base_answers_as_its_own_decoder(url: str) -> None:
    assert post(url, "/generate", {"model": "own", "text": "Hello"})[0] == 200


TOO_LONG = "word " * 3000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prompt", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TOO_LONG}]}, "messages"),
        ("/v1/completions", {"prompt": TOO_LONG}, "prompt"),
        ("/v1/completions", {"prompt": [5] * 3000}, "prompt"),
        ("/generate", {"text": TOO_LONG}, "text"),
    ],
)
def test_a_text_over_the_context_is_told_as_openai_does(
    url: str, path: str, prompt: dict[str, Any], param: str, stream: bool
) -> None:
    status, answer = post(url, path, {"model": "a", "stream": stream, **prompt})
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", param)


@pytest.mark.parametrize(
    ("message", "place", "reason"),
    [
        ({"role": "user", "content": 5}, "messages[1].content", "should be a valid string"),
        ({"role": "banana", "content": "x"}, "messages[1].role", "must be one of 'system'"),
        ({"content": "x"}, "messages[1].role", "Field required"),
        ({"role": "user"}, "messages[1].content", "Field required"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text", "Field"),
        ({"role": "assistant", "tool_calls": 5}, "messages[1].tool_calls", "valid list, not 5"),
    ],
)
def test_a_wrong_message_is_told_with_place_and_reason(
    url: str, message: dict[str, Any], place: str, reason: str
) -> None:
    messages = [{"role": "user", "content": "hi"}, message]
    status, answer = post(url, "/v1/chat/completions", {"model": "a", "messages": messages})
    error = answer["error"]
    assert (status, error["param"]) == (400, place)
    assert error["message"].startswith(f"`{place}`: ")
    assert reason in error["message"]
    assert len(error["message"]) < 300
