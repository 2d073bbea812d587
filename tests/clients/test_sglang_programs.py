"""An SGLang program that forks for all decoders of the demo, and one of them judges."""

from __future__ import annotations

from typing import Any

import pytest
import sglang as sgl

from ps_sglang.frontend import PrefillShareBackend, by
from tests.support.engine_client import post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

DECODERS = ("code", "tools", "math")


@sgl.function
def contest(s: Any, prompts: dict[str, str]) -> None:
    """Each decoder answers in a fork of one context; `base` chooses."""
    s += sgl.system("Answer the question.") + sgl.user("What is 12 + 30?")
    forks = s.fork(len(DECODERS))
    for fork, decoder in zip(forks, DECODERS, strict=True):
        fork += sgl.assistant_begin()
        prompts[decoder] = fork.text()
        fork += by(decoder, sgl.gen(decoder, max_tokens=6))
    forks.join()
    said = "\n".join(f"{decoder}: {s[decoder][0]}" for decoder in DECODERS)
    s += sgl.user(f"{said}\nWho is right?")
    s += sgl.assistant(by("base", sgl.select("right", list(DECODERS))))


def test_forks_speak_by_their_decoders_and_a_judge_chooses(demo: str) -> None:
    prompts: dict[str, str] = {}
    state = contest.run(prompts, backend=PrefillShareBackend(demo), temperature=0)
    assert state.error() is None
    assert len(set(prompts.values())) == 1, "one context"
    for decoder, prompt in prompts.items():
        body = {"model": decoder, "prompt": prompt, "max_tokens": 6, "temperature": 0}
        (choice,) = post(f"{demo}/v1/completions", body)["choices"]
        assert state[decoder] == [choice["text"]]
    assert state["right"] in DECODERS
    assert state.get_meta_info("right")["cached_tokens"] > 0
