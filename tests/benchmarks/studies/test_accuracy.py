"""The accuracy study: its data, its resumable run on a tiny model, and what it reports."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks.report import REPOSITORY
from benchmarks.studies.accuracy.__main__ import main
from benchmarks.studies.accuracy.adapters import publish
from benchmarks.studies.accuracy.data import in_contexts, write_data
from benchmarks.studies.accuracy.jobs import JobError, Runner, flags
from benchmarks.studies.accuracy.plan import RECIPES, Recipe, Study
from benchmarks.studies.accuracy.report import PAGE, rows, save_results, table, with_saved
from benchmarks.studies.accuracy.trainings import Training, train
from benchmarks.studies.accuracy.units import Unit, run_all, units
from benchmarks.tiny import make_tiny
from ps_sglang.contract import read_manifest
from ps_sglang.errors import UsageError
from ps_sglang.training.tasks import task

pytestmark = pytest.mark.timeout(600)  # a study trains and evaluates a dozen times

TINY = Recipe("code", 16, 1, 8, 4, 1, "humaneval", (1e-4, 1e-3), batch_size=4)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of a tiny model, run from its start to its end."""
    folder = tmp_path_factory.mktemp("study")
    study = Study(
        (TINY,),
        seeds=(1,),
        work=folder / "work",
        base=str(make_tiny("llama", folder / "models")["base"]),
        shares=(0.0, 1.0),
        count=3,
        report_only=False,
        keep_kv_gb=0.01,
    )
    run(study)
    return study


class InThisProcess(Runner):
    """The same commands without a process for each, which would import torch a dozen times."""

    def run(self, name: str, module: str, *arguments: str) -> None:
        torch.set_num_threads(self.threads)
        main = importlib.import_module(f"{module}.__main__").main
        if status := main(list(arguments)):
            raise JobError(f"{name} failed ({status})")


def run(study: Study) -> None:
    write_data(study, TINY)
    run_all(list(units(study, InThisProcess(study.work / "logs", threads=1))), at_once=1)


def files(folder: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in folder.rglob("*") if "/data/" not in str(f)}


def test_a_study_has_every_row_of_its_systems(study: Study) -> None:
    found = [(r["task"], r["system"], r["share"], r["seed"], r["n"]) for r in rows(study.work)]
    assert found == [
        ("code", "base", 0.0, 0, 3),
        ("code", "base-fewshot", 0.0, 0, 3),
        ("code", "full-ft", 0.0, 1, 3),
        ("code", "naive-share", 1.0, 1, 3),
        ("code", "cache-conditioned", 0.0, 1, 3),
        ("code", "cache-conditioned", 1.0, 1, 3),
    ]


def test_both_trainings_had_the_same_data_steps_and_rates(study: Study) -> None:
    manifests = [
        read_manifest(study.work / "runs" / f"code-{method}-seed1")
        for method in ("full", "cache-conditioned")
    ]
    full, conditioned = (m.training for m in manifests if m is not None)
    assert full.data_digest == conditioned.data_digest
    assert full.settings["steps"] == conditioned.settings["steps"] == 4
    differing = {key for key, value in full.settings.items() if conditioned.settings[key] != value}
    assert differing <= {"method", "learning_rate"}
    for method in ("full", "cache-conditioned"):
        found = json.loads((study.work / "search" / f"code-{method}.json").read_text())
        losses = found["dev_loss"]
        assert losses.keys() == {"0.0001", "0.001"}
        assert losses[f"{found['rate']:g}"] == min(losses.values())


def test_a_study_that_is_complete_does_nothing_again(study: Study) -> None:
    before = files(study.work)
    run(study)
    after = files(study.work)
    # What is only written down from what is there.
    written = [*(study.work / "search").glob("*.json"), *(study.work / "adapters").rglob("*.*")]
    assert {name for name in after if after[name] != before.get(name)} <= set(map(str, written))


def test_a_training_that_two_units_want_is_run_once(study: Study) -> None:
    """The report-only tasks want decoders that may be in training still."""
    started = []
    both_asked = threading.Barrier(2, timeout=60)

    class Counting(InThisProcess):
        def run(self, name: str, module: str, *arguments: str) -> None:
            started.append(name)
            super().run(name, module, *arguments)

    again = replace(study, work=study.work.with_name("twice"))
    write_data(again, TINY)
    runner = Counting(again.work / "logs", threads=1)

    def wanted() -> None:
        both_asked.wait()
        train(again, Training(TINY, "full"), 1e-4, 1, runner)

    run_all([Unit("one", wanted), Unit("other", wanted)], at_once=2)
    assert started == ["train-code-full-seed1"]


def test_a_cell_that_is_missing_is_evaluated_again(study: Study) -> None:
    cell = study.work / "cells" / "code-base-seed0.json"
    before, content = files(study.work), json.loads(cell.read_text())["rows"]
    cell.unlink()
    run(study)
    assert json.loads(cell.read_text())["rows"] == content
    weights = [name for name in before if name.endswith("model.safetensors")]
    assert weights
    assert all(files(study.work)[name] == before[name] for name in weights)


def test_an_adapter_has_a_card_with_its_score(study: Study, tmp_path: Path) -> None:
    publish(study, tmp_path)
    assert sorted(file.name for file in (tmp_path / "code").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "prefillshare.json",
    ]
    manifest = read_manifest(tmp_path / "code")
    assert manifest is not None
    assert manifest.share_ratio == 1.0
    (score,) = (score for score in manifest.scores if score.benchmark == "code test")
    assert (
        f"{100 * score.value:.1f} % of 3 unseen items pass"
        in (tmp_path / "code" / "README.md").read_text()
    )


def test_every_second_adapter_row_has_another_context_in_front() -> None:
    items = task("code").items("train", 6)
    found = list(in_contexts(items))
    assert [row["messages"][0]["role"] for row in found] == ["user", "system"] * 3
    plain = [item.to_row() for item in items]
    assert [row["messages"][-2:] for row in found] == [row["messages"] for row in plain]
    contexts = {row["messages"][0]["content"] for row in found[1::2]}
    assert len(contexts) == 3
    assert all(text.startswith("You can call these functions:\n{") for text in contexts)


def test_a_task_with_contexts_keeps_them() -> None:
    items = task("tools").items("train", 4)
    assert list(in_contexts(items)) == [item.to_row() for item in items]


def test_the_plan_is_of_whole_steps_and_within_the_data() -> None:
    for name, recipe in RECIPES.items():
        assert name == recipe.task
        assert recipe.steps % 2 == 0
        assert len(task(name).items("train", recipe.examples)) == recipe.examples
        assert len(task(name).items("test")) >= 200


def test_examples_that_are_no_whole_steps_are_found_out() -> None:
    with pytest.raises(AssertionError, match="code: 20 examples are no whole steps"):
        _ = replace(TINY, examples=20).steps


def row(system: str, share: float, score: float, **others: Any) -> dict[str, Any]:
    rest = {"task": "math", "seed": 1, "n": 200, "low": 0, "high": 1, "few_shot": 0, "dtype": "f"}
    return {**rest, "system": system, "share": share, "score": score, **others}


def test_full_fine_tuning_on_the_bases_cache_is_naive_sharing(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    cell = {"rows": [row("full", 0.5, 0.4), row("full", 0.0, 0.9)]}
    (tmp_path / "cells" / "one.json").write_text(json.dumps(cell))
    assert rows(tmp_path) == [row("full-ft", 0.0, 0.9), row("naive-share", 0.5, 0.4)]


def test_the_table_has_the_mean_over_seeds_and_the_interval_on_the_items_of_one() -> None:
    seeds = [row("cache-conditioned", 1.0, 0.5), row("cache-conditioned", 1.0, 0.7, seed=2)]
    lines = table([row("base", 0.0, 0.0), *seeds]).splitlines()
    assert lines[0] == "| task | system | 0% | 100% | n | seeds |"
    assert lines[2:] == [
        "| math | base | 0.0 (0.0 to 1.9) |  | 200 | 1 |",
        "| math | cache-conditioned |  | 60.0 (53.1 to 66.5) | 200 | 2 |",
    ]


def test_the_page_gets_the_table_between_its_marks_and_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OUT", "REFERENCE"):
        monkeypatch.setattr(f"benchmarks.report.{name}", tmp_path / name)
        monkeypatch.setattr(f"benchmarks.studies.accuracy.report.{name}", tmp_path / name)
    monkeypatch.setattr("benchmarks.studies.accuracy.report.PAGE", page := tmp_path / "page.md")
    page.write_text("before\n<!-- table -->\nold\n<!-- end of the table -->\nafter\n")
    study = Study((), (), tmp_path)
    with pytest.raises(UsageError, match="has no rows; this makes them"):
        save_results(study, publish=True)
    (tmp_path / "cells").mkdir()
    found = [row("full-ft", 0.0, 0.9), row("naive-share", 1.0, 0.4)]
    (tmp_path / "cells" / "one.json").write_text(json.dumps({"rows": found}))
    save_results(study, publish=False)
    assert "old" in page.read_text()
    assert not (tmp_path / "REFERENCE").exists()
    for _ in range(2):
        save_results(study, publish=True)
    assert page.read_text() == (
        f"before\n<!-- table -->\n{table(found)}<!-- end of the table -->\nafter\n"
    )
    for folder in ("OUT", "REFERENCE"):
        assert json.loads((tmp_path / folder / "accuracy.json").read_text())["rows"] == found
        figure = (tmp_path / folder / "accuracy.svg").read_text()
        assert "naive-share" in figure
        assert "full-ft" in figure


def test_an_adapter_that_is_not_finished_is_not_published(tmp_path: Path) -> None:
    (before := tmp_path / "package" / "code").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"adapters/code is missing .* --tasks code$"):
        publish(Study((TINY,), (1,), tmp_path), tmp_path / "package")
    assert before.is_dir()


def test_what_was_saved_and_is_not_measured_again_stays() -> None:
    saved = [row("full-ft", 0.0, 0.8), row("naive-share", 1.0, 0.4)]
    new = [row("naive-share", 0.5, 0.6), row("naive-share", 1.0, 0.5)]
    assert with_saved(new, saved) == [saved[0], *new]


def test_the_page_in_the_repository_has_the_marks() -> None:
    page = PAGE.read_text()
    assert page.index("<!-- table -->") < page.index("<!-- end of the table -->")


def test_a_failed_job_says_how_its_log_ends(tmp_path: Path) -> None:
    runner = Runner(tmp_path, threads=1)
    with pytest.raises(JobError) as failed:
        runner.run("x", "ps_sglang.training.tasks", "sing", *flags(out=tmp_path))
    head, *end = str(failed.value).splitlines()
    assert head == f"x failed (2); {tmp_path}/x.log ends:"
    assert any("sing" in line for line in end)


def test_the_first_failure_ends_the_study(tmp_path: Path) -> None:
    done: list[str] = []

    def fail() -> None:
        raise JobError("it failed")

    found = [Unit("one", lambda: done.append("one")), Unit("two", fail)]
    found.append(Unit("three", lambda: done.append("three")))
    with pytest.raises(JobError, match="it failed"):
        run_all(found, at_once=1)
    assert done == ["one"]


def test_flags_leave_out_what_is_not_given() -> None:
    assert flags(learning_rate=0.1, share=(0, 1), seed=None) == [
        *("--learning-rate", "0.1"),
        *("--share", "0", "1"),
    ]


def test_help_is_light(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--quick" in capsys.readouterr().out


@pytest.mark.timeout(60)
def test_a_study_that_is_ended_leaves_no_job_behind(tmp_path: Path) -> None:
    job = "Runner(Path('logs'), 1).run('job', 'http.server', '0')"
    study = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from pathlib import Path\nfrom {Runner.__module__} import Runner\n{job}",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    while not (jobs := psutil.Process(study.pid).children()):
        assert study.poll() is None
    study.terminate()
    study.wait()
    psutil.wait_procs(jobs)  # or the test's time is over
