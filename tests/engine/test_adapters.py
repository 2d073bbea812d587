"""Decoders that are adapters: one tree, changes at run time, more of them than have room."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from ps_sglang.decoders.client import DecodersClient
from ps_sglang.errors import UsageError
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import (
    RefusedError,
    assert_conserved,
    counters,
    generate,
    growth,
    in_work,
    together,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
DECODERS = tuple("abcdefgh")
# Two adapters beside the base in a batch, three in memory: there are eight.
FEW = ("--max-loras-per-batch", "3", "--max-loaded-loras", "3")


@pytest.fixture(scope="module", params=["two workers", "one worker"])
def served(request: pytest.FixtureRequest, adapted: Models, launch: Launch) -> Served:
    return launch(adapted, *DECODERS, one_worker=request.param == "one worker", engine_args=FEW)


def tokens(served: Served, name: str, ids: list[int], count: int = 16) -> list[int]:
    """What the reference says."""
    models = served.models
    said: list[int] = expected(models.base, models.decoders[name], ids, count).tokens
    return said


def _running(client: DecodersClient, name: str) -> int:
    """Unfinished requests of a decoder, as the gateway counts them."""
    (entry,) = [one for one in client.list() if one["name"] == name]
    return int(entry["requests"])


def test_conversation_over_six_decoders(served: Served, prompts: Prompts) -> None:
    """Each token is prefilled once and pulled once, whichever decoder's turn it is (I3)."""
    prefill, decode = served.cluster.workers[0].name, served.cluster.workers[-1].name
    (conversation,) = prompts(1, 80)
    seen = 0
    for name in "abcdef":
        before = counters(served.cluster)
        answer = generate(served.cluster, name, conversation, 12)
        after = counters(served.cluster)
        assert answer["output_ids"] == tokens(served, name, conversation, 12)
        prefix = len(conversation) - 1
        assert growth(before, after, prefill, "prefill_tokens.computed") == prefix - seen
        if decode != prefill:
            assert growth(before, after, decode, "handoff_tokens.pulled") == prefix - seen
            assert growth(before, after, decode, "handoff_tokens.tree") == seen
        assert answer["meta_info"]["cached_tokens"] == seen
        seen = prefix
        conversation = conversation + answer["output_ids"] + prompts(1, 9)[0]
    assert_conserved(served.cluster)


def test_base_is_a_decoder_like_any_other(served: Served, prompts: Prompts) -> None:
    (ids,) = prompts(1, 50)
    for name in ("base", "a", "base"):
        assert generate(served.cluster, name, ids)["output_ids"] == tokens(served, name, ids)


def test_more_adapters_than_have_room(served: Served, prompts: Prompts) -> None:
    """They wait, are put out of memory and read again; no answer is another adapter's."""
    inputs = prompts(2, 40)
    requests = [(name, ids) for ids in inputs for name in DECODERS]
    want = [tokens(served, name, ids, 24) for name, ids in requests]
    for _ in range(3):
        answers = together([partial(generate, served.cluster, n, ids, 24) for n, ids in requests])
        assert [answer["output_ids"] for answer in answers] == want
    assert_conserved(served.cluster)


def test_an_adapter_is_read_once_for_all_that_wait_for_it(served: Served, prompts: Prompts) -> None:
    """Each reading waits for a step of the engine, so that many in a row would delay them all."""
    inputs = prompts(6, 20)
    for name in "bcdef":  # which puts `a` out of memory
        generate(served.cluster, name, inputs[0])
    log = served.cluster.workers[-1].log

    def readings() -> int:
        return log.read_text().count("Start load Lora adapter. Lora name=a@1")

    before = readings()
    answers = together([partial(generate, served.cluster, "a", ids) for ids in inputs])
    assert [one["output_ids"] for one in answers] == [tokens(served, "a", ids) for ids in inputs]
    assert readings() == before + 1


def test_no_adapter_starves(served: Served, prompts: Prompts) -> None:
    """Two adapters keep both slots busy without a gap; a third one gets its turn all the same."""
    (ids,) = prompts(1, 20)
    lengths = (100, 130, 170, 210)  # so that those of one decoder never end all at once
    want = {name: tokens(served, name, ids, max(lengths)) for name in "abc"}
    ended = Event()

    def keep_asking(name: str, length: int) -> None:
        while not ended.is_set():
            answer = generate(served.cluster, name, ids, length)
            assert answer["output_ids"] == want[name][:length]

    worker = served.cluster.workers[-1].url
    with ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(keep_asking, name, length) for name in "ab" for length in lengths]
        try:
            while in_work(worker).get("num_running_reqs", 0) < 6:
                assert not any(one.done() for one in busy)
            assert generate(served.cluster, "c", ids, 64)["output_ids"] == want["c"][:64]
        finally:
            ended.set()
        for one in busy:
            one.result()
    assert_conserved(served.cluster)


def test_decoders_come_and_go_under_load(served: Served, prompts: Prompts) -> None:
    """Added, replaced and removed while the others answer; what runs ends as it began."""
    client = DecodersClient(served.cluster.url)
    models = served.models
    (ids,) = prompts(1, 30)
    others = {name: tokens(served, name, ids) for name in "ab"}
    ended = Event()

    def keep_asking(name: str) -> None:
        while not ended.is_set():
            assert generate(served.cluster, name, ids)["output_ids"] == others[name]

    with ThreadPoolExecutor(3) as pool:
        load = [pool.submit(keep_asking, name) for name in others]
        try:
            client.add("new", str(models.adapters["g"]), allow_unverified=False)
            assert generate(served.cluster, "new", ids)["output_ids"] == tokens(served, "g", ids)
            long = pool.submit(generate, served.cluster, "new", ids, 600)
            while not _running(client, "new"):
                assert not long.done()
            client.replace("new", str(models.adapters["h"]), allow_unverified=False)
            assert generate(served.cluster, "new", ids)["output_ids"] == tokens(served, "h", ids)
            assert long.result()["output_ids"] == tokens(served, "g", ids, 600)
            client.remove("new")
            with pytest.raises(RefusedError) as refused:
                generate(served.cluster, "new", ids)
            assert refused.value.body["error"]["code"] == "model_not_found"
        finally:
            ended.set()
        for one in load:
            one.result()
    assert_conserved(served.cluster)


def test_what_does_not_fit_is_refused_before_it_is_loaded(
    served: Served, qwen3: Models, tmp_path: Path
) -> None:
    client = DecodersClient(served.cluster.url)
    a = served.models.adapters["a"]
    no_weights = shutil.copytree(a, tmp_path / "no-weights")
    (no_weights / "adapter_model.safetensors").unlink()
    no_manifest = shutil.copytree(a, tmp_path / "no-manifest")
    (no_manifest / "prefillshare.json").unlink()
    for folder, reason in (
        (tmp_path / "nowhere", "nowhere"),
        (no_weights, "adapter_model.safetensors"),
        (no_manifest, "prefillshare.json"),
        (qwen3.decoders["a"], "is a whole model, where a LoRA adapter is needed"),
    ):
        with pytest.raises(UsageError, match=reason):
            client.add("misfit", str(folder), allow_unverified=False)
    with pytest.raises(UsageError, match="taken"):
        client.add("a", str(a), allow_unverified=False)
    client.add("unverified", str(no_manifest), allow_unverified=True)
    client.remove("unverified")
    names = [one["name"] for one in client.list()]
    assert sorted(names) == ["a", "b", "base", *"cdefgh"]


def test_changed_files_are_not_read_again(served: Served, prompts: Prompts, tmp_path: Path) -> None:
    """What was put out of memory must come back as it was, or by name not at all."""
    client = DecodersClient(served.cluster.url)
    folder = shutil.copytree(served.models.adapters["a"], tmp_path / "mine")
    client.add("mine", str(folder), allow_unverified=False)
    (ids,) = prompts(1, 30)
    assert generate(served.cluster, "mine", ids)["output_ids"] == tokens(served, "a", ids)
    shutil.copy(served.models.adapters["d"] / "adapter_model.safetensors", folder)
    for name in "bcdef":  # which takes its place in memory
        generate(served.cluster, name, ids)
    with pytest.raises(RefusedError, match="is not the one that was added"):
        generate(served.cluster, "mine", ids)
    client.remove("mine")


def test_worker_names_its_adapters(served: Served) -> None:
    """As the gateway compares them after a restart: loaded or not, by digest."""
    url = f"{served.cluster.workers[-1].url}/server_info"
    with urllib.request.urlopen(url, timeout=60) as response:
        adapters = json.load(response)["ps_sglang"]["adapters"]
    assert sorted(adapters) == [f"{name}@1" for name in DECODERS]
    assert len(set(adapters.values())) == len(DECODERS)
