"""Leaving out the model files that a cluster does not need."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.launch.architectures import sglang_models_folder, unneeded_model_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "llama": "class LlamaForCausalLM(Module): ...",
        "mistral": "class MistralForCausalLM(LlamaForCausalLM): ...",
        "registry": "",
        "__init__": "",
        "transformers": "class TransformersForCausalLM: ...",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_only_the_file_that_defines_the_architecture_stays(folder: Path) -> None:
    assert unneeded_model_files({"LlamaForCausalLM"}, folder) == ("mistral",)


def test_an_unknown_architecture_keeps_all(folder: Path) -> None:
    assert unneeded_model_files({"LlamaForCausalLM", "Other"}, folder) == ()
    assert unneeded_model_files({"LlamaFor"}, folder) == ()


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_sglang_keeps_its_models_where_we_look(architecture: str) -> None:
    assert len(unneeded_model_files({architecture}, sglang_models_folder())) > 100
