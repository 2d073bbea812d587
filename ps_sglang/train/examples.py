"""From records to token sequences, cut where a server would cut them.

A server tokenises a prompt alone, and the answer's tokens come one by one. So prompt and answer are
tokenised apart; tokenising them together could merge the last characters of one with the first of
the other, and the decoder would learn to go on from a boundary token that no server ever gives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ps_sglang.errors import DataError
from ps_sglang.train.batches import Answer, Example, Tokens
from ps_sglang.train.records import ChatRecord, DataSet, Problems, Record


@dataclass(frozen=True)
class _Turn:
    """One answer and the prompt before it. `name` says which of its record."""

    name: str
    prompt: Tokens
    answer: Tokens


@dataclass(frozen=True)
class Encoded:
    """A data set as token sequences. `cut` answers lost their end, `skipped` were left out."""

    source: str
    records: int
    examples: list[Example]
    cut: int
    skipped: int

    @property
    def answers(self) -> int:
        return sum(len(example.answers) for example in self.examples)


class Encoder:
    """Tokenises as a server does, up to `max_length` tokens for prompt and answer together.

    `stops` are the tokens that end an answer; an answer whose text has none gets the first.
    """

    def __init__(
        self, tokenizer: Any, stops: Sequence[int], max_length: int, *, skip_long: bool
    ) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._max_length, self._skip_long = max_length, skip_long

    def encode(self, data: DataSet) -> Encoded:
        """Raises DataError naming the rows whose prompt is over `max_length`, or that the chat
        template cannot render."""
        problems = Problems(data.source)
        examples: list[Example] = []
        cut = skipped = 0
        for record in data.records:
            fitting = []
            for turn in self._turns(record, problems):
                room = self._max_length - len(turn.prompt)
                if len(turn.answer) > room and self._skip_long:
                    skipped += 1
                elif room < 1:
                    problems.add(record.where, self._too_long(turn))
                else:
                    cut += len(turn.answer) > room
                    fitting.append(replace(turn, answer=turn.answer[:room]))
            examples += _conversations(fitting)
        problems.raise_any()
        if not examples:
            raise DataError(f"{data.source}: no answer fits into {self._max_length} tokens")
        return Encoded(data.source, len(data.records), examples, cut, skipped)

    def _too_long(self, turn: _Turn) -> str:
        return (
            f"the prompt of {turn.name} has {len(turn.prompt)} tokens; with at least one token "
            f"of the answer at most {self._max_length} fit; shorten it, or give --skip-long"
        )

    def _turns(self, record: Record, problems: Problems) -> Iterator[_Turn]:
        if isinstance(record, ChatRecord):
            yield from self._chat(record, problems)
            return
        prompt = self._tokens(record.prompt, special=True)
        if not prompt:
            problems.add(record.where, "prompt has no tokens")
            return
        yield _Turn("completion", prompt, self._ended(self._tokens(record.completion)))

    def _chat(self, record: ChatRecord, problems: Problems) -> Iterator[_Turn]:
        for index, message in enumerate(record.messages):
            # A first message has nothing before it that it could answer.
            if message["role"] != "assistant" or index == 0:
                continue
            name = f"messages[{index}]"
            try:
                prompt = self._rendered(record, index, generate=True)
                whole = self._rendered(record, index + 1, generate=False)
            # Templates raise what they like; Jinja's own errors are of many kinds.
            except Exception as error:
                problems.add(record.where, f"the chat template refuses {name}: {error}")
                return
            if not whole.startswith(prompt):
                problems.add(
                    record.where,
                    f"the chat template renders {name} in another way than it asks for an answer",
                )
                return
            answer = self._ended(self._tokens(whole[len(prompt) :]))
            yield _Turn(name, self._tokens(prompt), answer)

    def _rendered(self, record: ChatRecord, messages: int, *, generate: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            record.messages[:messages],
            tools=record.tools,
            tokenize=False,
            add_generation_prompt=generate,
        )
        return text

    def _ended(self, answer: Tokens) -> Tokens:
        """`answer` up to its last stop token: what a template writes after it is never said."""
        ends = [index for index, token in enumerate(answer) if token in self._stops]
        return answer[: ends[-1] + 1] if ends else (*answer, self._stops[0])

    def _tokens(self, text: str, *, special: bool = False) -> Tokens:
        # A rendered chat has its special tokens already.
        return tuple(self._tokenizer(text, add_special_tokens=special)["input_ids"])


def _conversations(turns: Sequence[_Turn]) -> Iterator[Example]:
    """As few examples as hold all turns, each after exactly its own prompt.

    A turn joins the one before if its prompt begins with that one's: then one prefill serves both.
    """
    answers: list[Answer] = []
    prompt: Tokens = ()
    for turn in turns:
        if answers and turn.prompt[: len(prompt)] != prompt:
            yield Example(prompt, tuple(answers))
            answers = []
        prompt = turn.prompt
        answers.append(Answer(len(prompt), turn.answer))
    if answers:
        yield Example(prompt, tuple(answers))
