"""A running decode worker gets other weights: exact answers, a warm cache, a kept contract (I5)."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ps_sglang.contract import base_fingerprint, model_facts
from ps_sglang.contract.manifest import MANIFEST_FILE
from ps_sglang.engine.settings import BASE_FINGERPRINT
from ps_sglang.engine.swap import update_weights_from_disk
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import (
    RefusedError,
    assert_conserved,
    counters,
    generate,
    growth,
    in_work,
    post,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Served:
    return launch(llama, "a")


def swap(served: Served, folder: Path) -> Any:
    """Ask decoder a's worker itself for other weights."""
    return post(
        f"{served.cluster.workers[1].url}/update_weights_from_disk", {"model_path": str(folder)}
    )


def test_new_weights_on_a_warm_cache(served: Served, prompts: Prompts) -> None:
    """No prefix is computed or pulled again for them, and each answer is that of its weights."""
    inputs = prompts(3, 60)
    models = served.models
    for ids in inputs:
        want = expected(models.base, models.decoders["a"], ids)
        assert generate(served.cluster, "a", ids)["output_ids"] == want.tokens
    before = counters(served.cluster)
    for name in ("b", "a", "b"):
        assert swap(served, models.decoders[name])["success"]
        for ids in inputs:
            want = expected(models.base, models.decoders[name], ids)
            assert generate(served.cluster, "a", ids)["output_ids"] == want.tokens
    after = counters(served.cluster)
    assert growth(before, after, "prefill-0", "prefill_tokens.computed") == 0
    assert growth(before, after, "decode-a", "handoff_tokens.pulled") == 0
    assert growth(before, after, "decode-a", "handoff_tokens.tree") == 9 * 59
    assert_conserved(served.cluster)


def test_requests_end_before_the_weights_change(served: Served, prompts: Prompts) -> None:
    (ids,) = prompts(1, 30)
    models, decode = served.models, served.cluster.workers[1]
    swap(served, models.decoders["a"])
    want = expected(models.base, models.decoders["a"], ids, 200)
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(generate, served.cluster, "a", ids, 200)
        while "num_running_reqs" not in in_work(decode.url):
            assert not request.done()
        swap(served, models.decoders["b"])
        assert request.result()["output_ids"] == want.tokens
    want = expected(models.base, models.decoders["b"], ids)
    assert generate(served.cluster, "a", ids)["output_ids"] == want.tokens


def test_the_decoder_keeps_its_name(served: Served) -> None:
    swap(served, served.models.decoders["b"])
    with urllib.request.urlopen(f"{served.cluster.workers[1].url}/model_info") as response:
        info = json.load(response)
    assert info["served_model_name"] == "a"
    assert info["model_path"] == str(served.models.decoders["b"])


def test_an_incompatible_checkpoint_is_refused_before_it_is_loaded(
    served: Served, qwen3: Models, prompts: Prompts, tmp_path: Path
) -> None:
    (ids,) = prompts(1, 30)
    models = served.models
    swap(served, models.decoders["a"])
    with pytest.raises(RefusedError, match=r"(?s)400.*architecture.*tensors.*base fingerprint"):
        swap(served, qwen3.decoders["a"])
    unsigned = shutil.copytree(models.decoders["b"], tmp_path / "unsigned")
    (unsigned / MANIFEST_FILE).unlink()
    with pytest.raises(RefusedError, match=r"400.*prefillshare\.json.*no such file"):
        swap(served, unsigned)
    with pytest.raises(RefusedError, match=r"400.*not a usable checkpoint"):
        swap(served, tmp_path / "nowhere")
    want = expected(models.base, models.decoders["a"], ids)
    assert generate(served.cluster, "a", ids)["output_ids"] == want.tokens


def test_a_prefill_worker_keeps_the_base(served: Served) -> None:
    url = served.cluster.workers[0].url
    with pytest.raises(RefusedError, match=r"400.*weights are the base's"):
        post(f"{url}/update_weights_from_disk", {"model_path": str(served.models.base)})


def test_facts_of_workers_agree(served: Served) -> None:
    facts = []
    for worker in served.cluster.workers:
        with urllib.request.urlopen(f"{worker.url}/server_info") as response:
            facts.append(json.load(response)["ps_sglang"])
    prefill, decode = facts
    fingerprint = base_fingerprint(served.models.base)
    assert prefill["common"] == decode["common"]
    assert prefill["common"]["base fingerprint"] == decode["trained_on"] == fingerprint
    assert prefill["common"]["page_size"] == 1
    assert prefill["common"].items() >= model_facts(served.models.base).items()


def test_a_file_that_would_break_off_is_refused_before_it_is_loaded(
    served: Served, prompts: Prompts, tmp_path: Path
) -> None:
    """Its header is readable, but SGLang would stop in the middle, with half the weights new."""
    (ids,) = prompts(1, 30)
    models = served.models
    swap(served, models.decoders["a"])
    holed = shutil.copytree(models.decoders["b"], tmp_path / "holed") / "model.safetensors"
    content = holed.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    last = max((one for name, one in header.items() if name != "__metadata__"), key=end_of)
    last["data_offsets"] = [offset + 8 for offset in last["data_offsets"]]
    changed = json.dumps(header).encode()
    holed.write_bytes(
        len(changed).to_bytes(8, "little") + changed + content[8 + length :] + bytes(8)
    )
    with pytest.raises(RefusedError, match=r"400.*model\.safetensors"):
        swap(served, holed.parent)
    want = expected(models.base, models.decoders["a"], ids)
    assert generate(served.cluster, "a", ids)["output_ids"] == want.tokens


def end_of(entry: dict[str, Any]) -> int:
    return int(entry["data_offsets"][1])


def test_a_worker_with_unknown_weights_ends(llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's answer after a roll-back that it makes from the very checkpoint that failed."""
    ended = []
    before = signal.signal(signal.SIGQUIT, lambda number, _frame: ended.append(number))
    monkeypatch.setenv(BASE_FINGERPRINT, base_fingerprint(llama.base))
    started = SimpleNamespace(model_path=str(llama.decoders["a"]))
    monkeypatch.setattr("ps_sglang.engine.swap.get_model", lambda: started)
    manager = SimpleNamespace(model_path=started.model_path, config_value=lambda name: "decode")
    message = "Failed to update weights: a disk error.\nRolling back to original weights."

    async def original(*_: object) -> tuple[bool, str, int]:
        return False, message, 0

    request = SimpleNamespace(model_path=str(llama.decoders["b"]), flush_cache=True)
    try:
        answer = asyncio.run(update_weights_from_disk(original, manager, request))
    finally:
        signal.signal(signal.SIGQUIT, before)
    assert answer == (False, message, 0)
    assert ended == [signal.SIGQUIT]
