"""The examples, run as a user runs them, on the demo."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
# Example -> who speaks in it, and how often at least.
TURNS = {
    "react": {"math": 1},
    "reflexion": {"math": 1, "base": 1},
    "judge": {"base": 1, "code": 2, "math": 1},
}


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_every_example_is_run() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"sharing"}
    assert names == {f"{name}_{client}" for name in TURNS for client in ("openai", "sglang")}


@pytest.mark.parametrize("client", ["openai", "sglang"])
@pytest.mark.parametrize("name", TURNS)
def test_an_example_shows_what_was_shared(demo: str, name: str, client: str) -> None:
    done = run(f"{name}_{client}", "--url", demo)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+) +(\d+)  \w", done.stdout, re.MULTILINE)
    decoders = [decoder for decoder, *_ in rows]
    for decoder, turns in TURNS[name].items():
        assert decoders.count(decoder) >= turns, done.stdout
    sums = [0, 0]
    for _, *numbers in rows:
        prompt, held, found, computed = map(int, numbers)
        assert prompt == held + found + computed
        sums = [sums[0] + computed, sums[1] + prompt]
    assert f"\n{sums[0]} of {sums[1]} prompt tokens were computed.\n" in done.stdout
    # The second speaker is new to the talk, and all but the last token before it was there.
    first = int(rows[0][1])
    _, _, held, found, _ = next(row for row in rows if row[0] != decoders[0])
    assert int(held) + int(found) >= first - 1


@pytest.mark.parametrize("client", ["openai", "sglang"])
def test_an_example_names_what_is_wrong(demo: str, client: str) -> None:
    done = run(f"judge_{client}", "--url", demo, "--judge", "z")
    assert done.returncode == 1
    assert done.stderr == "error: --judge z: the cluster serves base, code, tools, math\n"
    done = run(f"judge_{client}", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "no models from http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
