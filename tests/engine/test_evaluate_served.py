"""A task's answers through a real cluster are those of the evaluator itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.training.evaluate.run import evaluate
from ps_sglang.training.evaluate.settings import EvaluateSettings
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import assert_conserved

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

# Tokens that tiny models say now and then, so that answers end in many places.
STOPS = [2, *range(40, 480, 40)]
ITEMS = 60


@pytest.fixture(scope="module")
def stopping(llama: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The tiny models with a longer list of stop tokens in their generation_config.json."""
    folder = tmp_path_factory.mktemp("stopping")
    copies = {
        name: shutil.copytree(path, folder / name)
        for name, path in {"base": llama.base, "a": llama.decoders["a"]}.items()
    }
    for copy in copies.values():
        (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": STOPS}))
    return Models(copies["base"], {"a": copies["a"]})


@pytest.fixture(scope="module")
def cluster(stopping: Models, launch: Launch) -> Served:
    return launch(stopping, "a")


def settings(cluster: Served, out: Path, **changes: Any) -> EvaluateSettings:
    common: dict[str, Any] = {
        "task": "code",
        "base": str(cluster.models.base),
        "decoder": f"a={cluster.models.decoders['a']}",
        "through": cluster.cluster.url,
        "out": out / "rows.json",
        "answers": out / "answers.jsonl",
    }
    return EvaluateSettings(**common | changes)


def test_served_answers_are_the_offline_ones_on_each_item(cluster: Served, tmp_path: Path) -> None:
    lines: list[str] = []
    report = evaluate(settings(cluster, tmp_path, share=(0.0, 1.0), count=ITEMS), lines.append)
    assert report.comparison is not None
    assert report.comparison.n == ITEMS
    assert report.comparison.differing == ()
    own_kv, shared, served = report.rows
    assert (own_kv.served, shared.served, served.served) == (False, False, True)
    assert shared.score == served.score
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    texts = {
        (share, through): {
            one["id"]: one["text"]
            for one in answers
            if (one["share"], one["served"]) == (share, through)
        }
        for share, through in ((0.0, False), (1.0, False), (1.0, True))
    }
    assert texts[1.0, False] == texts[1.0, True]
    # Or the comparison could not tell whose KV it was, or whether answers end where they should.
    assert (
        sum(texts[0.0, False][item] != text for item, text in texts[1.0, True].items()) > ITEMS // 2
    )
    assert len({one["tokens"] for one in answers}) > 10
    assert_conserved(cluster.cluster)


def test_another_decoder_under_the_name_is_told(cluster: Served, tmp_path: Path) -> None:
    """The comparison is one: the base offline is not the decoder that is served as `a`."""
    base = f"a={cluster.models.base}"
    report = evaluate(settings(cluster, tmp_path, decoder=base, count=8), lambda _line: None)
    assert report.comparison is not None
    assert report.comparison.equal < 8
    assert all(one.gap is not None for one in report.comparison.differing)
    written = json.loads((tmp_path / "rows.json").read_text())["served_equals_offline"]
    assert written["differing"][0]["id"] == report.comparison.differing[0].id


def test_a_name_that_is_not_served(cluster: Served, tmp_path: Path) -> None:
    other = f"math={cluster.models.decoders['a']}"
    with pytest.raises(UsageError, match="does not serve math; it serves a: name the decoder"):
        evaluate(settings(cluster, tmp_path, decoder=other))
