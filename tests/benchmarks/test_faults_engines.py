"""A few rows of the faults benchmark, once, on real engines that a real launcher runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.faults import __main__ as faults

ROWS = ("kill-decode", "kill-gateway", "clients-gone")


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_rows_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faults, "OUT", tmp_path / "out")
    monkeypatch.setattr(report, "OUT", tmp_path / "out")
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path / "home"))
    status = faults.main(["--quick", "--rows", *ROWS])
    told = capsys.readouterr().out
    last = told.splitlines()[-1]
    assert last.startswith("faults: 3/3 rows, 0 wrong tokens, 0 unaccounted, worst recovery "), told
    assert status == 0
    found = json.loads((tmp_path / "out" / "faults-quick.json").read_text())
    assert found.keys() == set(ROWS)
    for row in found.values():
        assert row["requests"] > 0
        assert row["recovery_s"]["max"] > 0
