"""Programs, and the example, on real engines."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sglang as sgl
from transformers import AutoTokenizer

from ps_sglang.frontend import PrefillShareBackend, by
from ps_sglang.launch import Cluster, ClusterSpec
from ps_sglang.verify.reference import Reference

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "react_sglang.py"
NAMES = ("a", "b")
OPENING = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def url(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    spec = ClusterSpec(
        prefill=f"base={tiny['base']}",
        decoders=tuple(f"{name}={tiny[name]}" for name in NAMES),
        port=0,
        log_dir=tmp_path_factory.mktemp("logs"),
    )
    with Cluster.start(spec) as cluster:
        yield cluster.url


@sgl.function
def debate(s: Any, topic: str) -> None:
    """Six turns, each by the other decoder."""
    s += sgl.system("Two people talk about a topic.") + sgl.user(topic)
    for turn in range(6):
        s += sgl.assistant(
            by(NAMES[turn % 2], sgl.gen(f"turn {turn}", max_tokens=12, return_logprob=True))
        )
        s += sgl.user("Go on.")


def said(state: Any, turn: int) -> tuple[int, ...]:
    logprobs = state.get_meta_info(f"turn {turn}")["output_token_logprobs"]
    return tuple(token for _, token, _ in logprobs)


def test_each_turn_is_its_decoders_on_the_bases_kv(url: str, tiny: dict[str, Path]) -> None:
    state = debate.run("cats", temperature=0, backend=PrefillShareBackend(url))
    assert state.error() is None
    tokenizer = AutoTokenizer.from_pretrained(tiny["base"])
    reference = Reference(tiny["base"], {name: tiny[name] for name in NAMES})
    parts = state.text().split(OPENING)
    for turn in range(6):
        prompt = tuple(tokenizer(OPENING.join([*parts[: turn + 1], ""])).input_ids)
        answer = said(state, turn)
        assert state.get_meta_info(f"turn {turn}")["prompt_tokens"] == len(prompt)
        assert reference.shared(NAMES[turn % 2], prompt, answer).best == answer
        assert reference.own(NAMES[turn % 2], prompt, answer).best != answer


def test_a_turn_finds_what_the_other_decoders_turn_paid_for(url: str) -> None:
    state = debate.run("a topic of its own", temperature=0, backend=PrefillShareBackend(url))
    for turn in range(1, 6):
        before = state.get_meta_info(f"turn {turn - 1}")
        meta = state.get_meta_info(f"turn {turn}")
        # All but the boundary token of the last turn's prompt, and what tokens both turns share.
        assert meta["cached_tokens"] >= before["prompt_tokens"] - 1
        assert meta["cached_tokens_details"]["host"] > 0


@sgl.function
def everything(s: Any, name: str) -> None:
    """Streams, choices, constraints and forks of one program, in roles."""
    s += sgl.user(f"Hello, I am {name}.")
    s += sgl.assistant(by("b", sgl.select("choice", ["yes", "yes, sir", "c++ (1.5)?", "d\ne"])))
    s += sgl.user("A code?")
    s += sgl.assistant(by("a", sgl.gen("code", regex="[a-c]{3}[0-9]{2}", max_tokens=12)))
    s += sgl.user("How many?")
    s += sgl.assistant(by("b", sgl.gen_int("count", max_tokens=6)))
    forks = s.fork(2)
    for fork, decoder in zip(forks, NAMES, strict=True):
        fork += sgl.user("And?") + sgl.assistant(by(decoder, sgl.gen("end", max_tokens=5)))
    forks.join()


def test_choices_constraints_and_forks(url: str) -> None:
    backend = PrefillShareBackend(url)
    names = ["Ada", "Bo", "Cy", "Di"]
    states = everything.run_batch([{"name": name} for name in names], backend=backend)
    for state, name in zip(states, names, strict=True):
        assert state.error() is None
        assert name in state.text()
        assert state["choice"] in ["yes", "yes, sir", "c++ (1.5)?", "d\ne"]
        assert re.fullmatch("[a-c]{3}[0-9]{2}", state["code"])
        assert re.fullmatch(r"[-+]?[0-9]*\s*", state["count"])
        assert len(state["end"]) == 2


def test_a_stream_is_what_the_whole_answer_is(url: str) -> None:
    backend = PrefillShareBackend(url)
    whole = debate.run("dogs", temperature=0, backend=backend).text()
    streamed = debate.run("dogs", temperature=0, backend=backend, stream=True)
    assert "".join(streamed.text_iter()) == whole


def test_a_program_for_one_decoder_needs_only_sglang(url: str) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Once upon " + sgl.gen("x", max_tokens=8) + sgl.gen("y", regex="[0-9]{4}")

    backends = [sgl.RuntimeEndpoint(f"{url}/models/b"), PrefillShareBackend(url, "b")]
    texts = [program.run(temperature=0, backend=backend).text() for backend in backends]
    assert texts[0] == texts[1]


def test_the_example_shows_what_the_base_had_for_another_decoder(url: str) -> None:
    command = [sys.executable, str(EXAMPLE), "--url", url, "--planner", "a", "--actor", "b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line[:1] in NAMES]
    turns = [(row[0], [int(number) for number in row[1:5]]) for row in rows if row[1].isdigit()]
    assert {decoder for decoder, _ in turns} == set(NAMES)
    for _, (prompt, held, found, computed) in turns:
        assert prompt == held + found + computed
    actor_found = next(found for decoder, (_, _, found, _) in turns if decoder == "b")
    assert actor_found > 0
