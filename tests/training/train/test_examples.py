from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ps_sglang.demo import TOOLS
from ps_sglang.errors import DataError
from ps_sglang.models.demo import CHAT_TEMPLATE
from ps_sglang.training.train.batches import (
    AnswerTokens,
    Example,
    conditioned_batch,
    full_batch,
)
from ps_sglang.training.train.data_report import report
from ps_sglang.training.train.decoder import load_tokenizer
from ps_sglang.training.train.examples import Encoded, Encoder
from ps_sglang.training.train.records import ChatRecord, DataSet, Record, TextRecord
from tests.training.train.train_setup import conversations

END = 2  # <|im_end|>


@pytest.fixture
def tokenizer(tiny: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny["base"])


def encode(
    tokenizer: Any, *records: Record, max_length: int = 2048, skip_long: bool = False
) -> Encoded:
    encoder = Encoder(tokenizer, (END,), max_length, skip_long=skip_long)
    return encoder.encode(DataSet("d", list(records), "data1:0"))


def chat(*contents: str) -> ChatRecord:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return ChatRecord("d:1", messages, None)


def served(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)[
        "input_ids"
    ]
    return ids


def test_prompts_are_what_a_server_would_read(tokenizer: Any) -> None:
    """One sequence for all turns, each answer after exactly the prompt that a server makes."""
    for row in conversations(20, seed=5):
        [example] = encode(tokenizer, ChatRecord("d:1", row["messages"], None)).examples
        turns = [i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"]
        assert len(example.answers) == len(turns)
        for turn, answer in zip(turns, example.answers, strict=True):
            prompt = list(example.prompt[: answer.start])
            assert prompt == served(tokenizer, row["messages"][:turn])
            text = row["messages"][turn]["content"]
            assert tokenizer.decode(answer.ids) == f"{text}<|im_end|>"
        assert len(list(example.sequences())) == 1


def test_tools_and_calls_are_rendered_by_the_demos_template(tokenizer: Any) -> None:
    """Arguments as the records have them: `records` makes objects of texts."""
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    arguments = {"city": "Lisbon", "days": 5}
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "What will the weather be?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    tools: list[dict[str, Any]] = [dict(tool) for tool in TOOLS]
    [example] = encode(tokenizer, ChatRecord("d:1", messages, tools)).examples
    prompt = tokenizer.apply_chat_template(messages[:1], tools=TOOLS, add_generation_prompt=True)
    assert list(example.prompt) == prompt["input_ids"]
    assert '{"name":"convert_currency","description":' in tokenizer.decode(example.prompt)
    assert tokenizer.decode(example.answers[0].ids) == (
        '<tool_call>{"name":"get_weather","arguments":{"city":"Lisbon","days":5}}</tool_call>'
        "<|im_end|>"
    )


def test_prompt_and_completion_are_tokenised_apart(tokenizer: Any) -> None:
    """Together they would make other tokens across the border."""
    [example] = encode(tokenizer, TextRecord("d:1", "the sys", "tem asks")).examples
    prompt, answer = tokenizer("the sys")["input_ids"], tokenizer("tem asks")["input_ids"]
    assert example == Example(tuple(prompt), (AnswerTokens(len(prompt), (*answer, END)),))
    assert tokenizer("the system asks")["input_ids"] != prompt + answer


def test_a_prompt_that_merges_with_its_answer_makes_an_example_of_its_own(tokenizer: Any) -> None:
    """Without marks between messages the second prompt does not begin with the first one's tokens,
    so no prefill serves both."""
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    messages = chat("the sys", "tem asks", "?", "y").messages
    encoded = encode(tokenizer, ChatRecord("d:1", messages, None))
    assert [len(example.answers) for example in encoded.examples] == [1, 1]
    for example, text in zip(encoded.examples, ("the sys", "the system asks?"), strict=True):
        assert list(example.prompt) == tokenizer(text)["input_ids"]


def test_template_that_rewrites_earlier_turns(tokenizer: Any) -> None:
    """As models do that drop earlier thoughts. The prefill still serves all answers; only plain
    fine-tuning needs a sequence for each."""
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}:"
        "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    messages = chat("one", "hm</think>first", "two", "well</think>second").messages
    encoded = encode(tokenizer, ChatRecord("d:1", messages, None))
    [example] = encoded.examples
    texts = [tokenizer.decode(answer.ids) for answer in example.answers]
    assert texts == ["hm</think>first<|im_end|>", "well</think>second<|im_end|>"]
    assert "hm" not in tokenizer.decode(example.prompt)
    assert [tokenizer.decode(ids).count("hm") for ids, _ in example.sequences()] == [1, 0]


def test_tools_reach_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ tools[0].name }}" + tokenizer.chat_template
    messages = chat("x", "y").messages
    [example] = encode(tokenizer, ChatRecord("d:1", messages, [{"name": "adder"}])).examples
    assert tokenizer.decode(example.prompt).startswith("adder")


def test_template_that_fails(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(DataError, match=r"d:1: the chat template refuses messages\[1\]: no system"):
        encode(tokenizer, chat("x", "y"))


def test_template_that_renders_answers_otherwise(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% if add_generation_prompt %}a{% else %}b{% endif %}"
    with pytest.raises(DataError, match=r"renders messages\[1\] in another way than it asks"):
        encode(tokenizer, chat("x", "y"))


def test_prompt_over_the_context(tokenizer: Any) -> None:
    long, short = chat("word " * 50, "y"), chat("x", "y")
    with pytest.raises(
        DataError,
        match=r"d:1: the prompt of messages\[1\] has \d+ tokens; .* at most 40 fit; .*--skip-long",
    ):
        encode(tokenizer, short, long, max_length=40)
    encoded = encode(tokenizer, short, long, max_length=40, skip_long=True)
    assert (len(encoded.examples), encoded.skipped, encoded.cut) == (1, 1, 0)
    with pytest.raises(DataError, match="no answer fits into 40 tokens"):
        encode(tokenizer, long, max_length=40, skip_long=True)


def test_answer_over_the_context_is_cut_and_told(tokenizer: Any) -> None:
    encoded = encode(tokenizer, chat("x", "y"), chat("x", "word " * 50), max_length=40)
    long = encoded.examples[1]
    assert long.length == 40
    assert long.answers[0].ids[-1] != END
    lines = list(report(encoded, 40))
    assert lines[0] == "d: 2 records, 2 answers, 2 examples"
    assert lines[1].startswith("  prompt tokens: median ")
    assert lines[-1] == "  truncated: 1 answer cut at the limit, without their end"
    skipped = encode(
        tokenizer, chat("x", "y"), chat("x", "word " * 50), max_length=40, skip_long=True
    )
    assert list(report(skipped, 40))[-1] == "  left out: 1 answer that did not fit"


def test_padding_takes_no_token_from_an_answer(tokenizer: Any) -> None:
    """Not where a model pads with its end token, and not the id that batches are padded with."""
    tokenizer.pad_token = tokenizer.eos_token
    zero = tokenizer.convert_ids_to_tokens(0)
    records = [chat("x", f"y{zero}z"), chat("one", "two three four five six", "seven", zero)]
    examples = encode(tokenizer, *records).examples
    answers = [[token for answer in e.answers for token in answer.ids] for e in examples]
    assert all(0 in ids for ids in answers)
    assert {answer.ids[-1] for e in examples for answer in e.answers} == {tokenizer.pad_token_id}
    batches = (conditioned_batch(examples), conditioned_batch(examples, tail=3))
    for batch in (*batches, full_batch(examples)):
        rows = batch["labels"].tolist()
        assert [[label for label in row if label != -100] for row in rows] == answers
        assert rows[0][-1] == -100  # padded


def test_stops_are_those_of_the_server(tiny: dict[str, Path]) -> None:
    tokenizing = load_tokenizer(tiny["base"])
    assert (tokenizing.stops, tokenizing.context) == ((END,), 2048)
