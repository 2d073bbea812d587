"""Everything a request can ask of a decoder, as one plain SGLang server would answer it.

The decoder `twin` has the base's own weights, so base prefill plus twin decode is that server's
computation split in two, and every answer must be the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import openai
import pytest
import torch
from transformers import AutoTokenizer

from tests.engine.plain_server import sglang_server, wait_until_healthy
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import (
    RefusedError,
    assert_conserved,
    gathered,
    generate,
    post,
    stream,
    together,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]

OBJECT = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "one token": {"sampling": {"max_new_tokens": 1}},
    "seed": {"sampling": {"temperature": 1.0, "sampling_seed": 7}},
    "seed, top-k, top-p, min-p": {
        "sampling": {
            "temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.02, "sampling_seed": 9,
        }
    },
    "frequency penalty": {"tokens": 40, "sampling": {"frequency_penalty": 1.5}},
    "presence penalty": {"tokens": 40, "sampling": {"presence_penalty": 2.0}},
    "repetition penalty": {"tokens": 40, "sampling": {"repetition_penalty": 1.8}},
    "logit bias": {"sampling": {"logit_bias": {"77": 4.0, "33": -5.0}}},
    "top logprobs": {"return_logprob": True, "top_logprobs_num": 5},
    "logprobs of tokens": {"return_logprob": True, "token_ids_logprob": [3, 4, 5]},
    "JSON schema": {"tokens": 60, "sampling": {"json_schema": OBJECT}},
    "regex": {"tokens": 30, "sampling": {"regex": "[a-c]{5,9}"}},
    "EBNF": {"tokens": 30, "sampling": {"ebnf": 'root ::= "yes" | "no" [0-9]+ "."'}},
}  # fmt: skip
SALTS = count()
SAME_META = (
    "prompt_tokens", "completion_tokens", "finish_reason", "output_token_logprobs",
    "output_top_logprobs", "output_token_ids_logprobs",
)  # fmt: skip


@pytest.fixture(scope="module", params=["overlap off", "overlap on the decode workers"])
def served(request: pytest.FixtureRequest, llama: Models, launch: Launch) -> Served:
    overlap = () if request.param == "overlap off" else ("--no-disable-overlap-schedule",)
    return launch(
        llama, "twin", "a",
        engine_args=("--chunked-prefill-size", "128"),
        decode_engine_args=overlap,
    )  # fmt: skip


@pytest.fixture(scope="module")
def late(served: Served) -> bool:
    """Whether the decode workers overlap scheduling with decoding."""
    return "--disable-overlap-schedule" not in served.cluster.plan.workers[-1].argv


@pytest.fixture(scope="module")
def plain(llama: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("plain") / "plain.log"
    with sglang_server(llama.base, log) as url:
        wait_until_healthy(url)
        yield url


def on_plain(url: str, ids: list[int], tokens: int = 16, **options: Any) -> Any:
    sampling = {"max_new_tokens": tokens, "temperature": 0, **options.pop("sampling", {})}
    return post(f"{url}/generate", {"input_ids": ids, "sampling_params": sampling, **options})


def assert_same(answer: Any, plain: Any) -> None:
    assert answer["output_ids"] == plain["output_ids"]
    assert answer["text"] == plain["text"]
    for name in SAME_META:
        got, want = answer["meta_info"].get(name), plain["meta_info"].get(name)
        assert rounded(got) == rounded(want), name


def rounded(value: Any) -> Any:
    """Floats to 1e-3 through lists and objects."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("length", [1, 2, 50, 300])
def test_as_a_plain_server(
    served: Served, plain: str, late: bool, name: str, length: int, prompts: Prompts
) -> None:
    if late and "penalty" in name:
        pytest.skip("see test_penalties")
    (ids,) = prompts(1, length)
    want = on_plain(plain, ids, **OPTIONS[name])
    assert_same(generate(served.cluster, "twin", ids, **OPTIONS[name]), want)


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("length", [1, 2, 50])
def test_penalties(served: Served, late: bool, penalty: str, length: int, prompts: Prompts) -> None:
    """Each output token counts once, from the next one on; under SGLang's overlap scheduling,
    which prepares a step before it knows the last token, from the one after that."""
    (ids,) = prompts(1, length)

    def penalised(logits: torch.Tensor, output: list[int]) -> torch.Tensor:
        counted = torch.tensor(output[:-1] if late else output, dtype=torch.int64)
        counts = torch.bincount(counted, minlength=logits.shape[0])
        return logits - 1.5 * (counts.clamp(max=1) if penalty == "presence_penalty" else counts)

    want = expected(served.models.base, served.models.decoders["a"], ids, 40, penalised)
    answer = generate(served.cluster, "a", ids, 40, sampling={penalty: 1.5})
    assert answer["output_ids"] == want.tokens


def test_all_options_in_one_batch(served: Served, plain: str, late: bool, prompts: Prompts) -> None:
    """Requests with different wishes share decode steps and do not disturb each other."""
    options = [wish for name, wish in OPTIONS.items() if not (late and "penalty" in name)]
    requests = list(zip(options, prompts(len(options), 30), strict=True))
    want = [on_plain(plain, ids, **options) for options, ids in requests]
    calls = [partial(generate, served.cluster, "twin", ids, **options) for options, ids in requests]
    for answer, plain_answer in zip(together(calls), want, strict=True):
        assert answer["output_ids"] == plain_answer["output_ids"]


@pytest.mark.parametrize(
    "wish",
    [
        {"frequency_penalty": 1.0},
        {"presence_penalty": 2.0},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 4, "stop_token_ids": [77]},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_boundary_token_is_no_output(
    served: Served, plain: str, late: bool, wish: dict[str, Any], prompts: Prompts
) -> None:
    """The prompt ends in the very token that the answer is made to repeat; it must not count."""
    if late and "stop_token_ids" not in wish:
        pytest.skip("a plain server without overlap counts a step earlier, see test_penalties")
    sampling = {"logit_bias": {"77": 8.0}, **wish}
    shown = False
    for ids in prompts(4, 30):
        want = on_plain(plain, [*ids, 77], 24, sampling=sampling)
        assert_same(generate(served.cluster, "twin", [*ids, 77], 24, sampling=sampling), want)
        shown |= 77 in want["output_ids"]
    assert shown, "no answer repeats the token, so the test showed nothing"


@pytest.mark.parametrize("length", [1, 50])
def test_stops(served: Served, plain: str, length: int, prompts: Prompts) -> None:
    (ids,) = prompts(1, length)
    greedy = on_plain(plain, ids, 20)
    first, sixth = greedy["output_ids"][0], greedy["output_ids"][5]
    for sampling in (
        {"stop_token_ids": [sixth]},
        {"stop_token_ids": [first]},
        {"stop_token_ids": [first], "min_new_tokens": 4},
        {"stop": [greedy["text"][8:11]]},
    ):
        want = on_plain(plain, ids, 20, sampling=sampling)
        assert_same(generate(served.cluster, "twin", ids, 20, sampling=sampling), want)


def test_seeds(served: Served, prompts: Prompts) -> None:
    """A seed fixes the answer, alone or in company; requests without one differ."""
    (ids,) = prompts(1, 20)

    def sample(**seed: int) -> list[int]:
        options = {"temperature": 1.0, **seed}
        return list(generate(served.cluster, "a", ids, 20, sampling=options)["output_ids"])

    alone = sample(sampling_seed=5)
    crowd = [partial(sample, sampling_seed=seed) for seed in (5, 6, 5)] + [sample, sample]
    fifth, sixth, again, free, other = together(crowd)
    assert alone == fifth == again
    assert len({tuple(out) for out in (alone, sixth, free, other)}) == 4


def test_several_samples_cost_one_prefill(served: Served, prompts: Prompts) -> None:
    (ids,) = prompts(1, 60)
    sampling = {"temperature": 1.0, "sampling_seed": 40, "n": 3}
    answers = generate(served.cluster, "a", ids, sampling=sampling)
    singles = [
        generate(served.cluster, "a", ids, sampling=sampling | {"n": 1, "sampling_seed": 40 + i})
        for i in range(3)
    ]
    assert [a["output_ids"] for a in answers] == [s["output_ids"] for s in singles]
    assert [a["meta_info"]["cached_tokens"] for a in answers] == [0, 59, 59]


def test_openai_client(served: Served, llama: Models) -> None:
    """Chat, streamed and not: same text, one token a chunk from the first on, true usage."""
    client = openai.OpenAI(base_url=f"{served.cluster.url}/models/a/v1", api_key="none")
    options: dict[str, Any] = {
        "model": "a",
        "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
    }
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(texts) == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert len(whole.choices[0].logprobs.content) == 8
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert whole.usage.prompt_tokens_details.cached_tokens in (0, whole.usage.prompt_tokens - 1)


def test_streamed_tokens_are_the_references(served: Served, prompts: Prompts) -> None:
    """No empty chunk comes before the first token."""
    (ids,) = prompts(1, 30)
    want = expected(served.models.base, served.models.decoders["a"], ids, 6)
    client = openai.OpenAI(base_url=f"{served.cluster.url}/v1", api_key="none")
    stream = client.completions.create(
        model="a", prompt=ids, max_tokens=6, temperature=0, stream=True, logprobs=0
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert chunks[0].logprobs is not None
    logprobs: list[Any] = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    assert logprobs[0].token_logprobs[0] == pytest.approx(want.first_logprob, abs=1e-3)
    assert sum(len(one.tokens) for one in logprobs) == 6


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello there"}]
CHARACTERS = "漢字👩\u200d🚀é"  # of two to four tokens each


def whole_and_streamed(served: Served, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """One request both ways, each with a salt of its own: neither finds the other's prefix."""
    whole, streamed = ({"model": "a", **body, "cache_salt": str(next(SALTS))} for _ in range(2))
    usage = {"stream_options": {"include_usage": True}}
    url = served.cluster.url
    events = stream(url, "a", path, streamed | usage)
    return gathered([post(url + path, whole)]), gathered(events)


def test_a_stream_ends_where_the_whole_answer_does(served: Served, prompts: Prompts) -> None:
    """A text that stops lies across tokens, and none of it is sent before it is known to be none.

    The answer is held to printable tokens, as half a character is shown in more than one way.
    """
    tokenizer = AutoTokenizer.from_pretrained(served.models.base)
    printable = [tokenizer.decode([token]).isprintable() for token in range(len(tokenizer))]
    (ids,) = prompts(1, 20)
    body = {
        "prompt": ids, "temperature": 0, "max_tokens": 24, "ignore_eos": True,
        "logit_bias": {str(token): -100 for token, shows in enumerate(printable) if not shows},
    }  # fmt: skip
    plain, streamed = whole_and_streamed(served, COMPLETIONS, body)
    assert plain == streamed
    text = plain[0]["text"]
    stops = [text[start : start + 6] for start in range(len(text) - 5)]
    asked: list[dict[str, Any]] = [{"stop": [stop]} for stop in stops]
    asked += [{"stop": [stop], "no_stop_trim": True} for stop in stops[::8]]
    asked += [{"stop": [stop], "min_tokens": 12} for stop in stops[::8]]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda one: whole_and_streamed(served, COMPLETIONS, body | one), asked)
        for one, (whole, streamed) in zip(asked, answers, strict=True):
            assert whole == streamed, one
            (stop,) = one["stop"]
            if "min_tokens" not in one:
                assert whole[0]["finish"] == ("stop", stop)
                end = text.find(stop) + len(stop) * ("no_stop_trim" in one)
                assert whole[0]["text"][:end] == text[:end]
                assert "no_stop_trim" in one or len(whole[0]["text"]) == end


def test_a_stream_says_what_the_whole_answer_does(served: Served, prompts: Prompts) -> None:
    """Samples, logprobs, characters of several tokens that a limit cuts, and usage."""
    (ids,) = prompts(1, 20)
    seeded = {"temperature": 1.0, "seed": 3, "max_tokens": 12, "n": 2}
    forced = {"ebnf": f'root ::= "{CHARACTERS}"', "temperature": 0}
    asked: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": MESSAGES, **seeded}),
        (CHAT, {"messages": MESSAGES, **seeded, "logprobs": True, "top_logprobs": 3}),
        (COMPLETIONS, {"prompt": ids, **seeded, "logprobs": 3}),
        *((CHAT, {"messages": MESSAGES, **forced, "max_tokens": cut}) for cut in range(3, 13)),
        (COMPLETIONS, {"prompt": ids, **forced, "max_tokens": 40}),
    ]
    answers = together([partial(whole_and_streamed, served, path, body) for path, body in asked])
    for (path, body), (whole, streamed) in zip(asked, answers, strict=True):
        assert rounded(whole) == rounded(streamed), (path, body)
        details = whole["usage"]["prompt_tokens_details"]
        assert (details or {"cached_tokens": 0}) == {"cached_tokens": 0}
    assert len(answers[1][0][1]["content"][0]["top_logprobs"]) == 3
    assert answers[-1][0][0]["text"] == CHARACTERS


def outcome(ask: Callable[[], Any]) -> Any:
    """What was answered, or the error status."""
    try:
        return ask()["output_ids"]
    except RefusedError as error:
        return error.status


@pytest.mark.parametrize(
    ("length", "fits"),
    [(2040, True), (2041, None), (2042, None), (2043, None), (2044, False), (2048, False)],
)
def test_at_the_context_limit(
    served: Served, plain: str, length: int, fits: bool | None, prompts: Prompts
) -> None:
    """The tiny models' context is 2,048 tokens; what fits on a plain server fits here."""
    (ids,) = prompts(1, length)
    result = outcome(partial(generate, served.cluster, "twin", ids, 4))
    assert result == outcome(partial(on_plain, plain, ids, 4))
    if fits is not None:
        assert isinstance(result, list) if fits else result == 400
    assert_conserved(served.cluster)


def test_over_the_context_limit_says_so(served: Served, prompts: Prompts) -> None:
    for length in (2044, 2047, 3000):
        with pytest.raises(RefusedError, match=r"400.*(context|length)"):
            generate(served.cluster, "a", prompts(1, length)[0], 4)


def test_prompt_logprobs_are_refused_by_name(served: Served, prompts: Prompts) -> None:
    (ids,) = prompts(1, 10)
    decode = next(w for w in served.cluster.workers if w.model == "a")
    prefill = served.cluster.workers[0]
    plan = next(spec for spec in served.cluster.plan.workers if spec.name == prefill.name)
    handshake = {
        "bootstrap_host": "127.0.0.1", "bootstrap_port": plan.bootstrap_port, "bootstrap_room": 99,
    }  # fmt: skip
    body = {"input_ids": ids, "return_logprob": True, "logprob_start_len": 0, **handshake}
    with pytest.raises(RefusedError, match="logprobs of prompt tokens"):
        post(f"{decode.url}/generate", body)
    with pytest.raises(RefusedError, match="logprob"):
        generate(served.cluster, "a", ids, return_logprob=True, logprob_start_len=0)
