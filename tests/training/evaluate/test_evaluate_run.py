"""A whole evaluation: rows, files, few-shot prompts, the manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ps_sglang.contract import adapter_digest, base_fingerprint, read_manifest
from ps_sglang.errors import EvaluationError
from ps_sglang.models.adapter import write_adapted
from ps_sglang.training.evaluate.prompts import questions
from ps_sglang.training.evaluate.run import evaluate_task
from ps_sglang.training.evaluate.scores import wilson
from ps_sglang.training.tasks import Item
from tests.support.adapters import make_adapter
from tests.support.standin_gateway import serving
from tests.training.evaluate.small_task import SmallTask, right, settings
from tests.training.evaluate.yes_gateway import YesGateway


def ignore(line: str) -> None: ...


@torch.no_grad()
def answer(folders: list[Path], text: str, tail: int = 0) -> str:
    """What the second model says on the first one's KV, one token after the other."""
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    base, decoder = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    shared = ids.shape[1] - 1 - tail
    past = base(ids[:, :shared], use_cache=True).past_key_values
    token, said = ids[:, shared:], []
    for _ in range(SmallTask.max_new_tokens):
        output = decoder(token, past_key_values=past, use_cache=True)
        past, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        said.append(int(token))
    return str(tokenizer.decode(said))


def prompt_of(item: Item) -> str:
    system, user = (message["content"] for message in item.messages)
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_rows_and_answers_are_those_of_the_items(tiny: dict[str, Path], tmp_path: Path) -> None:
    out, log = tmp_path / "rows.json", tmp_path / "answers.jsonl"
    # A batch of a few items each, so that several of them make one result.
    wanted = settings(tiny, share=(0.0, 1.0), out=out, answers=log, batch_tokens=300)
    found = evaluate_task(SmallTask(), wanted, ignore)
    items = SmallTask().items("test")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for share, row in zip((0.0, 1.0), found.rows, strict=True):
        mine = {line["id"]: line for line in lines if line["share"] == share}
        assert len(mine) == len(items)
        reader = tiny["base"] if share else tiny["a"]
        for item in items:
            assert mine[item.id]["text"] == answer([reader, tiny["a"]], prompt_of(item))
        scores = [right(line["text"]) for line in mine.values()]
        assert [line["passed"] for line in mine.values()] == scores
        assert (row.n, row.score) == (10, sum(scores) / 10)
        assert (row.low, row.high) == wilson(row.score, 10)
        assert (row.task, row.system, row.share, row.served) == ("small", "a", share, False)
        assert row.base_fingerprint == base_fingerprint(tiny["base"])
        assert row.decoder_fingerprint == base_fingerprint(tiny["a"])
    written = json.loads(out.read_text())
    assert written["rows"] == [asdict(row) for row in found.rows]
    assert written["environment"]["packages"]["torch"]


def test_the_base_alone_needs_no_manifest_and_is_one_at_every_share(tiny: dict[str, Path]) -> None:
    wanted = settings(tiny, decoder=str(tiny["base"]), share=(0.0, 0.5, 1.0), system="alone")
    none, half, whole = evaluate_task(SmallTask(), wanted, ignore).rows
    assert none.score == half.score == whole.score
    assert whole.system == "alone"
    assert whole.decoder_fingerprint == whole.base_fingerprint


def test_few_shot_prompts_hold_training_items_as_turns(tiny: dict[str, Path]) -> None:
    asked = questions(SmallTask(), settings(tiny, few_shot=2, count=3))
    shots = SmallTask().items("train", 2)
    assert [question.item.id for question in asked] == ["test-0", "test-1", "test-2"]
    for question in asked:
        assert question.messages == (
            question.item.messages[0],
            shots[0].messages[1],
            {"role": "assistant", "content": "word 0"},
            shots[1].messages[1],
            {"role": "assistant", "content": "word 1"},
            question.item.messages[1],
        )


def test_few_shot_and_split_change_what_was_asked(tiny: dict[str, Path]) -> None:
    changes: tuple[dict[str, object], ...] = ({}, {"few_shot": 2}, {"split": "dev"}, {"count": 4})
    rows = [
        evaluate_task(SmallTask(), settings(tiny, **change), ignore).rows[0] for change in changes
    ]
    assert [row.n for row in rows] == [10, 10, 4, 4]
    assert len({row.data_digest for row in rows}) == 4
    assert (rows[1].few_shot, rows[2].split) == (2, "dev")


def test_seed_is_the_manifests_unless_given(tiny: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny["a"], tmp_path / "a")
    manifest = json.loads((copy / "prefillshare.json").read_text())
    manifest["training"]["settings"]["seed"] = 7
    (copy / "prefillshare.json").write_text(json.dumps(manifest))
    seeds = [
        evaluate_task(SmallTask(), settings(tiny, decoder=str(copy), count=1, seed=seed), ignore)
        .rows[0]
        .seed
        for seed in (None, 3)
    ]
    assert seeds == [7, 3]


def test_the_tail_is_the_manifests_unless_given(tiny: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny["a"], tmp_path / "a")
    manifest = json.loads((copy / "prefillshare.json").read_text()) | {"tail": 4}
    (copy / "prefillshare.json").write_text(json.dumps(manifest))
    log = tmp_path / "answers.jsonl"
    prompts = [prompt_of(item) for item in SmallTask().items("test", 3)]
    said = {}
    for given, tail in ((None, 4), (0, 0), (9, 9)):
        wanted = settings(tiny, decoder=str(copy), count=3, tail=given, answers=log)
        (row,) = evaluate_task(SmallTask(), wanted, ignore).rows
        assert (row.share, row.tail) == (1.0, tail)
        said[tail] = [json.loads(line)["text"] for line in log.read_text().splitlines()]
        assert sorted(said[tail]) == sorted(
            answer([tiny["base"], tiny["a"]], prompt, tail) for prompt in prompts
        )
    assert said[0] != said[4] != said[9]


def test_the_score_is_recorded_once(tiny: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny["a"], tmp_path / "a")
    before = read_manifest(copy)
    for count in (3, 10):
        wanted = settings(tiny, decoder=str(copy), share=(0.0, 1.0), count=count, record=True)
        row = evaluate_task(SmallTask(), wanted, ignore).rows[1]
    after = read_manifest(copy)
    assert before is not None
    assert after is not None
    *others, score = after.scores
    assert others == before.scores
    assert (score.benchmark, score.metric) == ("small test", "passed")
    assert (score.value, score.examples) == (row.score, 10)
    assert f"small test: passed {row.score:.4g}, n=10" in after.summary


def test_served_answers_are_scored_and_compared(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The stand-in says `yes` to everything, which the decoder does not."""
    stand_in = YesGateway(AutoTokenizer.from_pretrained(tiny["a"]))
    with serving(stand_in) as url:
        wanted = settings(tiny, share=(1.0,), through=url, out=tmp_path / "rows.json")
        found = evaluate_task(SmallTask(), wanted, ignore)
    offline, served = found.rows
    assert (offline.served, served.served) == (False, True)
    assert served.score == float(right("yes"))
    assert found.comparison is not None
    assert (found.comparison.n, found.comparison.equal) == (10, 0)
    assert {one.served for one in found.comparison.differing} == {"yes"}
    assert all(one.gap is not None and one.gap > 1e-3 for one in found.comparison.differing)
    assert {(body["model"], body["temperature"]) for _, body in stand_in.asked} == {("a", 0)}
    assert len(stand_in.asked) == 10


def test_served_alone_loads_no_model(tiny: dict[str, Path]) -> None:
    with serving(YesGateway(AutoTokenizer.from_pretrained(tiny["a"]))) as url:
        found = evaluate_task(SmallTask(), settings(tiny, share=(), through=url), ignore)
    (row,) = found.rows
    assert row.served
    assert found.comparison is None


def test_a_cluster_that_fails_half_way(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The offline rows and the answers that came are kept, and nothing is asked on and on."""
    out, log = tmp_path / "rows.json", tmp_path / "answers.jsonl"
    stand_in = YesGateway(AutoTokenizer.from_pretrained(tiny["a"]), refuse_after=4)
    with serving(stand_in) as url:
        wanted = settings(tiny, through=url, out=out, answers=log, at_once=1)
        with pytest.raises(EvaluationError, match=r"item test-4: status 503: worker decode-a"):
            evaluate_task(SmallTask(), wanted, ignore)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["id"] for line in lines if line["served"]] == [f"test-{i}" for i in range(4)]
    assert sum(not line["served"] for line in lines) == 10
    assert [row["served"] for row in json.loads(out.read_text())["rows"]] == [False]


def test_a_cluster_that_reads_other_tokens(tiny: dict[str, Path]) -> None:
    stand_in = YesGateway(AutoTokenizer.from_pretrained(tiny["a"]), read_as=(1,))
    with serving(stand_in) as url, pytest.raises(EvaluationError, match="this very checkpoint"):
        evaluate_task(SmallTask(), settings(tiny, share=(), through=url), ignore)


def test_a_full_disk_is_told(tiny: dict[str, Path]) -> None:
    with pytest.raises(EvaluationError, match="could not write /dev/full: No space left"):
        evaluate_task(SmallTask(), settings(tiny, answers=Path("/dev/full")), ignore)


def test_progress_ends_with_a_rate(tiny: dict[str, Path]) -> None:
    said: list[str] = []
    evaluate_task(SmallTask(), settings(tiny, share=(0.0, 1.0)), said.append)
    assert said[-1].startswith("small, a offline: 20 answers, ")


def test_an_adapter_scores_as_the_model_that_it_makes(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny["base"], tmp_path / "d")
    write_adapted(tiny["base"], adapter, tmp_path / "whole")
    logs = {}
    for name in ("d", "whole"):
        logs[name] = tmp_path / f"{name}.jsonl"
        wanted = settings(
            tiny, decoder=str(tmp_path / name), share=(0.0, 1.0), answers=logs[name], record=True
        )
        rows = evaluate_task(SmallTask(), wanted, ignore).rows
        if name == "d":
            assert {row.decoder_fingerprint for row in rows} == {adapter_digest(adapter)}
    adapted, merged = (
        [json.loads(line)["text"] for line in log.read_text().splitlines()] for log in logs.values()
    )
    assert adapted == merged
    recorded = read_manifest(adapter)
    assert recorded is not None
    assert [score.benchmark for score in recorded.scores] == ["small test"]


def test_a_served_adapter_is_compared_with_it(tiny: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tiny["base"], tmp_path / "a")
    with serving(YesGateway(AutoTokenizer.from_pretrained(tiny["base"]))) as url:
        wanted = settings(tiny, decoder=str(adapter), share=(1.0,), through=url, count=2)
        found = evaluate_task(SmallTask(), wanted, ignore)
    assert found.comparison is not None
    assert (found.comparison.n, found.comparison.equal) == (2, 0)
    assert all(one.gap is not None and one.gap > 1e-3 for one in found.comparison.differing)
