"""`ps-sglang evaluate` on a real task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from transformers import AutoTokenizer

from ps_sglang.training.evaluate.__main__ import main
from tests.support.standin_gateway import serving
from tests.training.evaluate.yes_gateway import YesGateway


def arguments(tiny: dict[str, Path], *more: str) -> list[str]:
    models = ["--base", str(tiny["base"]), "--decoder", str(tiny["a"])]
    return ["--task", "code", *models, "--count", "3", *more]


def test_rows_are_printed_written_and_drawn(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figure = tmp_path / "rows.json", tmp_path / "figure.svg"
    files = ["--out", str(out), "--figure", str(figure)]
    assert main(arguments(tiny, "--share", "0", "0.5", *files)) == 0
    # Random weights write no Python.
    wanted = "of 3 (95 % interval 0.0% to 56.1%)"
    assert capsys.readouterr().out.splitlines() == [
        f"code, a, share 0: 0.0% {wanted}",
        f"code, a, share 0.5: 0.0% {wanted}",
    ]
    assert [row["share"] for row in json.loads(out.read_text())["rows"]] == [0, 0.5]
    ElementTree.fromstring(figure.read_text())


def test_a_cluster_that_says_something_else_is_exit_status_3(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(YesGateway(AutoTokenizer.from_pretrained(tiny["a"]))) as url:
        assert main(arguments(tiny, "--through", url)) == 3
    *rows, first, _, _, last = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    assert " differs in token 0, where the two best logits are " in first
    assert last == "served = offline on 0/3 items"


def test_a_cluster_that_fails_is_exit_status_1(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = YesGateway(AutoTokenizer.from_pretrained(tiny["a"]), refuse_after=1)
    with serving(stand_in) as url:
        assert main(arguments(tiny, "--through", url, "--share", "--at-once", "1")) == 1
    assert "worker decode-a is gone" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    program = (
        "import sys\nfrom ps_sglang.cli import main\n"
        "try:\n    main(['evaluate', '--help'])\n"
        "finally:\n    assert not {'torch', 'transformers', 'sglang'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--share" in done.stdout
