"""Where benchmarks write, and what the repository keeps of it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import index, report
from benchmarks.gateway.__main__ import without_runs
from benchmarks.plain import generate, wait_until_ok
from ps_sglang.errors import LaunchError, UsageError

BENCHMARKS = (
    "startup", "warm_prompt", "handoff", "gateway", "index", "train_cost", "lora",
)  # fmt: skip
PAGES = [
    report.REPOSITORY / "README.md",
    *(report.REPOSITORY / "docs").glob("*.md"),
    *(report.REPOSITORY / "benchmarks" / "studies").glob("*/README.md"),
]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "OUT", tmp_path / "out")
    monkeypatch.setattr(report, "REFERENCE", tmp_path / "reference")
    return tmp_path


def written(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_a_quick_run_replaces_neither_the_reference_nor_a_whole_run(folders: Path) -> None:
    report.save("try", {"runs": [1], "median": 1}, publish=True, summary={"median": 1})
    before = {name: (folders / name).read_text() for name in written(folders)}
    assert list(before) == ["out/try.json", "reference/try.json"]
    for name, keys in (("out/try.json", {"runs", "median"}), ("reference/try.json", {"median"})):
        assert json.loads(before[name]).keys() == {"environment", *keys}
    report.save("try", {"median": 2}, quick=True)
    report.save("other", {"median": 3})
    assert written(folders) == ["out/other.json", "out/try-quick.json", *before]
    assert {name: (folders / name).read_text() for name in before} == before


@pytest.mark.parametrize(
    "value", [{}, [], 3, {"a": None}, [[], {}], {"a": {}, "b": [{"c": [1, 2]}, "d"], 'e"': [[1.5]]}]
)
def test_json_for_people_is_the_same_json(value: Any) -> None:
    assert json.loads(report.to_json(value)) == value


def test_what_holds_plain_values_takes_one_line() -> None:
    rows = [{"low": 1, "high": [2]}, {"low": 3}]
    assert report.to_json({"rows": rows, "n": 2}) == (
        '{\n  "rows": [\n    {\n      "low": 1,\n      "high": [2]\n    },\n    {"low": 3}\n  ],\n'
        '  "n": 2\n}\n'
    )


def test_a_run_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    path = tmp_path / "agents.json"
    with pytest.raises(UsageError, match=r"agents\.json is missing; this makes it: make it$"):
        report.saved(path, "runs", "make it")
    path.write_text("{")
    with pytest.raises(UsageError, match=r"agents\.json has no runs: Expecting"):
        report.saved(path, "runs", "make it")


def test_errors_are_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> Callable[[], int]:
        def run() -> int:
            raise error

        return run

    statuses = {UsageError("wrong"): 2, LaunchError("no start"): 1, KeyboardInterrupt(): 130}
    for error, status in statuses.items():
        assert report.run("try", fails(error)) == status
    assert capsys.readouterr().err == "try: error: wrong\ntry: error: no start\n"


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quick", "--publish"], "not allowed with"),
        (["--repeats", "0"], "0"),  # of those that repeat
    ],
)
def test_what_cannot_be_is_refused(
    name: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    package = "" if (report.REPOSITORY / "benchmarks" / f"{name}.py").exists() else ".__main__"
    if name == "train_cost":
        arguments = [word.replace("--repeats", "--rounds") for word in arguments]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}{package}").main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: python -m benchmarks.{name} ")
    assert said in told


def test_the_index_is_measured(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_QUICK_BLOCKS", 20_000)
    assert index.main(["--quick"]) == 0
    assert written(folders) == ["out/index-quick.json"]
    found = json.loads((folders / "out" / "index-quick.json").read_text())
    assert found["blocks"] >= 20_000
    assert found["lookup_ms"]["mostly new"]["median"] > 0


def test_the_gateways_reference_has_medians_and_no_runs() -> None:
    figures: dict[str, Any] = {"latency": {"a": 1}, "trace": {"runs": [1, 2], "medians": [1.5]}}
    assert without_runs(figures) == {"latency": {"a": 1}, "trace": {"medians": [1.5]}}
    assert figures["trace"]["runs"] == [1, 2]


def test_files_that_pages_link_are_there() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page} links {link}"


def test_every_figure_and_table_that_is_kept_is_linked() -> None:
    links = "".join(page.read_text() for page in PAGES)
    kept = sorted(path.name for path in report.REFERENCE.iterdir() if path.suffix != ".json")
    assert kept
    assert [name for name in kept if f"results/{name})" not in links] == []


def test_what_runs_in_minutes_knows_no_study() -> None:
    folder = report.REPOSITORY / "benchmarks"
    for path in folder.rglob("*.py"):
        if folder / "studies" not in path.parents:
            assert "benchmarks.studies" not in path.read_text(), path


def test_a_server_that_ends_or_is_gone_is_told(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(["sh", "-c", "echo no memory; exit 1"], stdout=output)
        with pytest.raises(LaunchError, match=r"no answer from .*its log ends:\nno memory"):
            wait_until_ok("http://127.0.0.1:9", server, 3600.0, log)
        server.wait()
    with pytest.raises(LaunchError, match=r"no answer from http://127\.0\.0\.1:9/generate: "):
        generate("http://127.0.0.1:9", [1], {})
