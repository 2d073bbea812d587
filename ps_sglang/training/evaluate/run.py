"""One evaluation from settings to rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from transformers.utils import logging

from ps_sglang.progress import OnProgress, progress
from ps_sglang.training.evaluate.compare import compare
from ps_sglang.training.evaluate.figure import draw
from ps_sglang.training.evaluate.generate import Tokens, batches
from ps_sglang.training.evaluate.progress import EvaluationProgress
from ps_sglang.training.evaluate.prompts import Question, data_digest, encode, questions
from ps_sglang.training.evaluate.record import record
from ps_sglang.training.evaluate.results import (
    Answered,
    AnswerLog,
    Evaluation,
    check_writable,
    writing,
)
from ps_sglang.training.evaluate.scores import Row, wilson
from ps_sglang.training.evaluate.served import ServedDecoder
from ps_sglang.training.evaluate.settings import EvaluateSettings
from ps_sglang.training.evaluate.subject import Subject
from ps_sglang.training.tasks import Task, task


def evaluate(settings: EvaluateSettings, on_progress: OnProgress = progress) -> Evaluation:
    """Answer the items of a task, offline at each share and through a cluster, and score them.

    Raises UsageError before any work for what cannot be run, and EvaluationError for a run that
    stopped; what was written before stays.
    """
    return evaluate_task(task(settings.task), settings, on_progress)


def evaluate_task(chosen: Task, settings: EvaluateSettings, on_progress: OnProgress) -> Evaluation:
    """`evaluate` for a task that is given itself; `settings.task` is not looked at."""
    for flag in ("out", "answers", "figure"):
        check_writable(f"--{flag}", getattr(settings, flag))
    asked = questions(chosen, settings)
    subject = Subject.find(settings)
    prompts = encode(asked, subject.tokenizing, chosen)
    served = _served(chosen, settings, subject, prompts) if settings.through else None
    logging.disable_progress_bar()
    system = settings.system or subject.decoder.name
    facts = {"task": chosen.name, "system": system, "seed": subject.seed(settings)}
    log = AnswerLog(settings.answers, facts)
    run = _Run(chosen, settings, subject, asked, prompts, log, on_progress)
    offline = run.offline() if settings.share else {}
    evaluation = Evaluation(tuple(run.row(answers) for answers in offline.values()))
    _finish(evaluation, settings, subject)
    if served is not None:
        answers = run.served(served)
        evaluation = replace(evaluation, rows=(*evaluation.rows, run.row(answers)))
        if 1.0 in offline:
            models = subject.base.path, subject.decoder.path
            evaluation = replace(
                evaluation, comparison=compare(*models, prompts, offline[1.0], answers)
            )
        _finish(evaluation, settings, subject)
    return evaluation


def _served(
    chosen: Task, settings: EvaluateSettings, subject: Subject, prompts: Sequence[Tokens]
) -> ServedDecoder:
    name, stops = subject.decoder.name, subject.tokenizing.stops
    served = ServedDecoder(settings.through, name, stops, chosen.max_new_tokens, settings.at_once)
    served.check(prompts)
    return served


def _finish(evaluation: Evaluation, settings: EvaluateSettings, subject: Subject) -> None:
    """Write what is there; called again when there is more."""
    if settings.out:
        evaluation.write(settings.out)
    if settings.figure and settings.share:
        with writing(settings.figure):
            settings.figure.write_text(draw([asdict(row) for row in evaluation.rows]))
    if settings.record:
        record(evaluation.rows, subject.decoder.path)


@dataclass(frozen=True)
class _Run:
    """The questions and their prompts, in one order; answers are in that order, too."""

    task: Task
    settings: EvaluateSettings
    subject: Subject
    asked: Sequence[Question]
    prompts: Sequence[Tokens]
    log: AnswerLog
    on_progress: OnProgress

    def offline(self) -> dict[float, list[Answered]]:
        """Share -> answers. Each batch is answered at every share, so that the base's prefill
        serves them all."""
        shares, most = self.settings.share, self.task.max_new_tokens
        generator = self.subject.generator(self.settings, most)
        lengths = [len(prompt) + most for prompt in self.prompts]
        seen = self._progress("offline", len(shares), sum(lengths) * len(shares))
        answered: dict[float, dict[int, Answered]] = {share: {} for share in shares}
        for batch in batches(lengths, self.settings.batch_tokens):
            prompts = [self.prompts[index] for index in batch]
            for share, outputs in generator.answers(prompts, shares):
                texts = [self._text(tokens) for tokens in outputs]
                scored = self._scored(batch, share, False, outputs, texts)
                answered[share] |= dict(zip(batch, scored, strict=True))
                seen.add(len(batch), sum(lengths[index] for index in batch))
        seen.finish()
        return {share: _in_order(answers) for share, answers in answered.items()}

    def served(self, decoder: ServedDecoder) -> list[Answered]:
        most = self.task.max_new_tokens
        seen = self._progress("served", 1, sum(len(prompt) + most for prompt in self.prompts))
        answered: dict[int, Answered] = {}
        for index, reply in decoder.answers(self.asked, self.prompts):
            (answered[index],) = self._scored([index], 1.0, True, [reply.tokens], [reply.text])
            seen.add(1, len(self.prompts[index]) + most)
        seen.finish()
        return _in_order(answered)

    def _progress(self, how: str, shares: int, tokens: int) -> EvaluationProgress:
        what = f"{self.task.name}, {self.subject.decoder.name} {how}"
        return EvaluationProgress(what, len(self.asked) * shares, tokens, self.on_progress)

    def _text(self, tokens: Tokens) -> str:
        text: str = self.subject.tokenizing.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _scored(
        self,
        indices: Sequence[int],
        share: float,
        served: bool,
        outputs: Sequence[Tokens],
        texts: Sequence[str],
    ) -> list[Answered]:
        items = [self.asked[index].item for index in indices]
        answers = [
            Answered(item.id, share, served, tokens, text, passed)
            for item, tokens, text, passed in zip(
                items, outputs, texts, self.task.passed(items, texts), strict=True
            )
        ]
        self.log.write(answers)
        return answers

    def row(self, answers: Sequence[Answered]) -> Row:
        score = sum(answer.passed for answer in answers) / len(answers)
        low, high = wilson(score, len(answers))
        return Row(
            task=self.task.name,
            system=self.settings.system or self.subject.decoder.name,
            share=answers[0].share,
            tail=self.subject.tail(self.settings),
            seed=self.subject.seed(self.settings),
            n=len(answers),
            score=score,
            low=low,
            high=high,
            served=answers[0].served,
            split=self.settings.split,
            few_shot=self.settings.few_shot,
            dtype=None if answers[0].served else self.settings.dtype,
            decoder=str(self.subject.decoder.path),
            decoder_fingerprint=self.subject.decoder_fingerprint,
            base_fingerprint=self.subject.base_fingerprint,
            data_digest=data_digest(self.asked),
        )


def _in_order(answers: dict[int, Answered]) -> list[Answered]:
    return [answers[index] for index in sorted(answers)]
