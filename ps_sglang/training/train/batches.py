"""From token sequences to padded batches, and the order in which they come.

Rows are padded on the right. Under causal attention a real token never sees what comes after it,
so the frozen base and full fine-tuning need no mask at all and keep SDPA's causal kernel; the
decoder's mask hides the padding of the base's KV. Packing several conversations into one row would
save the padding, which sorting by length saves as well, and cost attention between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.utils.data import Sampler

IGNORED = -100
# No answer: padding sees itself, so that no row of the softmax is empty.
_PADDING = -1

Batch = dict[str, torch.Tensor]
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class AnswerTokens:
    """An answer's tokens and how many prompt tokens stand before it; the last is its boundary."""

    start: int
    ids: Tokens


@dataclass(frozen=True)
class Example:
    """A conversation: one prompt, and the answers to it and to beginnings of it, in order.

    The prompt of each answer is `prompt[:start]`; that of the last is `prompt`. An answer need not
    stand in the next one's prompt as it was said: templates drop thoughts, tokenizers merge.
    """

    prompt: Tokens
    answers: tuple[AnswerTokens, ...]

    @property
    def base_ids(self) -> Tokens:
        """What the base prefills: all before the last boundary token.

        Tails too, which no decoder sees there: so one kept KV serves every tail, and an answer's
        tail is the base's for the answers after it.
        """
        return self.prompt[:-1]

    @property
    def answer_tokens(self) -> int:
        return sum(len(answer.ids) for answer in self.answers)

    @property
    def length(self) -> int:
        """Tokens to compute, of prompt and answers together."""
        return len(self.prompt) + self.answer_tokens

    def sequences(self) -> Iterator[tuple[Tokens, list[AnswerTokens]]]:
        """As few plain token sequences as hold every answer right after its prompt, and which."""
        ids: Tokens = ()
        segment: list[AnswerTokens] = []
        for answer in self.answers:
            prompt = self.prompt[: answer.start]
            if segment and prompt[: len(ids)] != ids:
                yield ids, segment
                segment = []
            ids = prompt + answer.ids
            segment.append(answer)
        yield ids, segment


# One token read and none learned: it fills up the last batches of several processes, which must all
# be of one size, and weighs nothing.
FILLER: Final = Example((0,), (AnswerTokens(1, (IGNORED,)),))


def conditioned_batch(examples: Sequence[Example], tail: int = 0) -> Batch:
    """Base tokens, and the segments (tail, boundary token and answer) that the decoder reads.

    An answer's tail is the `tail` tokens before its boundary token, or as many as there are.

    base_ids [rows, L], base_lengths [rows]; input_ids, position_ids, visible, segments and labels
    [rows, Q], see `attention.answer_mask`. An answer's last token is predicted, never read.
    answer_tokens [rows].
    """
    rows = [_segments(example, tail) for example in examples]
    padding = {"segments": _PADDING, "labels": IGNORED}
    batch = {name: _padded([row[name] for row in rows], padding.get(name, 0)) for name in rows[0]}
    base = [example.base_ids for example in examples]
    batch["base_ids"] = _padded(base, 0)
    batch["base_lengths"] = torch.tensor([len(ids) for ids in base])
    batch["answer_tokens"] = torch.tensor([example.answer_tokens for example in examples])
    return batch


def _segments(example: Example, tail: int) -> dict[str, list[int]]:
    row: dict[str, list[int]] = {
        name: [] for name in ("input_ids", "position_ids", "visible", "segments", "labels")
    }
    for index, answer in enumerate(example.answers):
        boundary = answer.start - 1
        first = max(0, boundary - tail)
        end = boundary + len(answer.ids)
        row["input_ids"] += [*example.prompt[first : answer.start], *answer.ids[:-1]]
        row["position_ids"] += range(first, end)
        row["visible"] += [first] * (end - first)
        row["segments"] += [index] * (end - first)
        row["labels"] += [*[IGNORED] * (boundary - first), *answer.ids]
    return row


def full_batch(examples: Sequence[Example]) -> Batch:
    """Plain sequences but for their last token: input_ids and labels, each [sequences, T].

    owners [sequences]: which example each belongs to. answer_tokens [examples].
    """
    ids, labels, owners = [], [], []
    for owner, example in enumerate(examples):
        for sequence, answers in example.sequences():
            row = [IGNORED] * (len(sequence) - 1)
            for answer in answers:
                row[answer.start - 1 : answer.start - 1 + len(answer.ids)] = answer.ids
            ids.append(sequence[:-1])
            labels.append(row)
            owners.append(owner)
    return {
        "input_ids": _padded(ids, 0),
        "labels": _padded(labels, IGNORED),
        "owners": torch.tensor(owners),
        "answer_tokens": torch.tensor([example.answer_tokens for example in examples]),
    }


def _padded(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    """[rows, longest], at least one column."""
    padded = torch.full((len(rows), max(1, *map(len, rows))), padding)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded


class LengthOrder(Sampler[int]):  # type: ignore[misc]  # torch is not followed
    """Another random order each epoch, in groups of `group` examples of about one length.

    `group` is what one optimizer step takes, over all processes and accumulated batches. The order
    depends on it, `seed` and `epoch` alone: it is the same for both methods, however a step is
    divided, and after a resume. It ends with as many fillers, of index `len(lengths)`, as make its
    length a multiple of `multiple`.
    """

    # Groups are cut from so many at a time, sorted: enough for even lengths, few enough for chance.
    _POOL = 50

    def __init__(self, lengths: Sequence[int], group: int, seed: int, multiple: int = 1) -> None:
        self._lengths, self._group, self._seed = lengths, group, seed
        self._fillers = -len(lengths) % multiple
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._lengths) + self._fillers

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        groups: list[list[int]] = []
        for start in range(0, len(order), self._group * self._POOL):
            pool = sorted(
                order[start : start + self._group * self._POOL],
                key=lambda index: -self._lengths[index],
            )
            groups += [pool[i : i + self._group] for i in range(0, len(pool), self._group)]
        # A last group that is not full must stay the last: batches are cut from the whole order.
        whole = len(order) // self._group
        for index in torch.randperm(whole, generator=generator).tolist():
            yield from groups[index]
        for rest in groups[whole:]:
            yield from rest
        yield from [len(self._lengths)] * self._fillers
