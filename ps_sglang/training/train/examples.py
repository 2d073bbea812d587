"""From records to token sequences, cut where a server would cut them.

A server tokenises a prompt alone, and the answer's tokens come one by one. So prompt and answer are
tokenised apart; tokenising them together could merge the last characters of one with the first of
the other, and the decoder would learn to go on from a boundary token that no server ever gives it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ps_sglang.errors import DataError
from ps_sglang.training.train.batches import AnswerTokens, Example, Tokens
from ps_sglang.training.train.records import ChatRecord, DataSet, Problems, Record
from ps_sglang.training.train.rendering import nothing_shown, shown_name, unrendered


@dataclass(frozen=True)
class _Turn:
    """One answer and the prompt before it. `name` says which of its record."""

    name: str
    prompt: Tokens
    answer: Tokens


@dataclass(frozen=True)
class Encoded:
    """A data set as token sequences.

    `cut` answers lost their end, `skipped` did not fit, `unlearned` were marked, `empty` show
    nothing. `dropped`: field -> how many records hold something there that no token shows.
    """

    source: str
    records: int
    examples: list[Example]
    cut: int
    skipped: int
    unlearned: int = 0
    empty: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    columns: tuple[str, ...] = ()

    @property
    def answers(self) -> int:
        return sum(len(example.answers) for example in self.examples)


class Encoder:
    """Tokenises as a server does, up to `max_length` tokens for prompt and answer together.

    `stops` are the tokens that end an answer; an answer whose text has none gets the first.
    `drop_unrendered`: what the text of a record does not show is counted instead of refused.
    """

    def __init__(
        self,
        tokenizer: Any,
        stops: Sequence[int],
        max_length: int,
        *,
        skip_long: bool,
        drop_unrendered: bool = False,
    ) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._max_length, self._skip_long = max_length, skip_long
        self._drop_unrendered = drop_unrendered

    def encode(self, data: DataSet) -> Encoded:
        """Raises DataError naming the rows whose prompt is over `max_length`, that the chat
        template cannot render or does not show whole, or whose answer goes on after its end."""
        problems = Problems(data.source)
        examples: list[Example] = []
        cut = skipped = 0
        encoded = Encoded(data.source, len(data.records), examples, 0, 0, columns=data.columns)
        counts: Counter[str] = Counter()
        for record in data.records:
            fitting = []
            for turn in self._turns(record, problems, encoded.dropped, counts):
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
        if not examples and not skipped:
            raise DataError(f"{data.source}: no answer is left to learn")
        if not examples:
            raise DataError(f"{data.source}: no answer fits into {self._max_length} tokens")
        return replace(
            encoded, cut=cut, skipped=skipped, unlearned=counts["unlearned"], empty=counts["empty"]
        )

    def _too_long(self, turn: _Turn) -> str:
        return (
            f"the prompt of {turn.name} has {len(turn.prompt)} tokens; with at least one token "
            f"of the answer at most {self._max_length} fit; shorten it, or give --skip-long"
        )

    def _turns(
        self, record: Record, problems: Problems, dropped: Counter[str], counts: Counter[str]
    ) -> Iterator[_Turn]:
        for name in record.unread:
            self._not_shown(record, name, f"{name} is read by nothing", problems, dropped)
        if isinstance(record, ChatRecord):
            yield from self._chat(record, problems, dropped, counts)
            return
        prompt = self._tokens(record.prompt, special=True)
        if not prompt:
            problems.add(record.where, "prompt has no tokens")
        elif not record.learned:
            counts["unlearned"] += 1
        else:
            answer = self._ended(self._tokens(record.completion), record, "completion", problems)
            yield _Turn("completion", prompt, answer)

    def _chat(
        self, record: ChatRecord, problems: Problems, dropped: Counter[str], counts: Counter[str]
    ) -> Iterator[_Turn]:
        texts: dict[int, tuple[str, str]] = {}
        for index, message in enumerate(record.messages):
            # A first message has nothing before it that it could answer.
            if message["role"] != "assistant" or index == 0:
                continue
            name = f"messages[{index}]"
            try:
                prompt, whole = self._around(record, index)
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
            texts[index] = prompt, whole
        missing = unrendered(record, texts, self._around)
        for name in dict.fromkeys(
            shown_name(path, every=self._drop_unrendered) for path in missing
        ):
            what = f"{name} is not, or not whole, in what the chat template of {self._name} renders"
            self._not_shown(record, name, what, problems, dropped)
        for index, (prompt, whole) in texts.items():
            if index in record.unlearned:
                counts["unlearned"] += 1
            elif missing and nothing_shown(record, index, missing):
                counts["empty"] += 1
            else:
                name = f"messages[{index}]"
                answer = self._tokens(whole[len(prompt) :])
                ended = self._ended(answer, record, name, problems)
                yield _Turn(name, self._tokens(prompt), ended)

    @property
    def _name(self) -> str:
        return str(getattr(self._tokenizer, "name_or_path", "") or "the base")

    def _not_shown(
        self, record: Record, name: str, what: str, problems: Problems, dropped: Counter[str]
    ) -> None:
        if self._drop_unrendered:
            dropped[name] += 1
        else:
            problems.add(
                record.where,
                f"{what}; take it out, or give --drop-unrendered to train without it",
            )

    def _around(self, record: ChatRecord, answer: int) -> tuple[str, str]:
        """The prompt before the message of index `answer`, and all up to its end."""
        return (
            self._rendered(record, answer, generate=True),
            self._rendered(record, answer + 1, generate=False),
        )

    def _rendered(self, record: ChatRecord, messages: int, *, generate: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            record.messages[:messages],
            tools=record.tools,
            tokenize=False,
            add_generation_prompt=generate,
            **record.variables,
        )
        return text

    def _ended(self, answer: Tokens, record: Record, name: str, problems: Problems) -> Tokens:
        """`answer` up to its first stop token: a server says nothing after it."""
        end = next((i for i, token in enumerate(answer) if token in self._stops), None)
        if end is None:
            return (*answer, self._stops[0])
        # Templates write a line end, or more stop tokens, after an answer.
        rest = [token for token in answer[end + 1 :] if token not in self._stops]
        if self._tokenizer.decode(rest).strip():
            problems.add(
                record.where,
                f"{name} goes on after the stop token {self._tokenizer.decode([answer[end]])}, at "
                "which a server ends an answer; take that token out of its text",
            )
        return answer[: end + 1]

    def _tokens(self, text: str, *, special: bool = False) -> Tokens:
        # A rendered chat has its special tokens already.
        return tuple(self._tokenizer(text, add_special_tokens=special)["input_ids"])


def _conversations(turns: Sequence[_Turn]) -> Iterator[Example]:
    """As few examples as hold all turns, each after exactly its own prompt.

    A turn joins the one before if its prompt begins with that one's: then one prefill serves both.
    """
    answers: list[AnswerTokens] = []
    prompt: Tokens = ()
    for turn in turns:
        if answers and turn.prompt[: len(prompt)] != prompt:
            yield Example(prompt, tuple(answers))
            answers = []
        prompt = turn.prompt
        answers.append(AnswerTokens(len(prompt), turn.answer))
    if answers:
        yield Example(prompt, tuple(answers))
