"""What cannot be evaluated is refused with one clear error, before a model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks.tiny import make_tiny
from ps_sglang.errors import ContractError, ModelNotFoundError, UsageError
from ps_sglang.training.evaluate.__main__ import main
from ps_sglang.training.evaluate.run import evaluate_task
from tests.support.standin_gateway import serving
from tests.training.evaluate.small_task import SmallTask, settings
from tests.training.evaluate.yes_gateway import YesGateway


def refusal(tiny: dict[str, Path], kind: type[Exception] = UsageError, **changes: Any) -> str:
    said: list[str] = []
    with pytest.raises(kind) as caught:
        evaluate_task(SmallTask(), settings(tiny, **changes), said.append)
    assert said == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": (1.5,)}, "--share 1.5: must be 0 to 1"),
        ({"share": (float("nan"),)}, "--share nan: must be 0 to 1"),
        ({"share": (0.5, 0.5)}, "--share 0.5 0.5: one of them twice"),
        ({"share": ()}, "--share without a value: needs --through"),
        ({"share": (0.5,), "record": True}, "--record: needs --share 1"),
        ({"tail": -1}, "--tail -1: must be at least 0"),
        ({"tail": 4, "record": True}, "--record: records the score at the decoder's own tail"),
        ({"tail": 4, "through": "u"}, "--tail 4: no cluster serves a tail yet"),
        ({"count": -1}, "--count -1: must be at least 0"),
        ({"at_once": 0}, "--at-once 0: must be at least 1"),
        ({"split": "train"}, "--split train: one of dev, test"),
        ({"share": (), "figure": Path("x.svg"), "through": "u"}, "needs a value of --share"),
    ],
)
def test_settings(tiny: dict[str, Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(tiny, **changes)
    assert message in str(caught.value)


def test_several_wrong_settings_at_once(tiny: dict[str, Path]) -> None:
    with pytest.raises(UsageError) as caught:
        settings(tiny, share=(-1.0,), few_shot=-2)
    assert "--share -1" in str(caught.value)
    assert "--few-shot -2" in str(caught.value)


def test_a_decoder_of_another_base(tiny: dict[str, Path], tmp_path: Path) -> None:
    other = make_tiny("llama", tmp_path, seed=5)
    assert "base fingerprint" in refusal(tiny, ContractError, decoder=str(other["a"]))


def test_a_decoder_of_another_shape(tiny: dict[str, Path], tmp_path: Path) -> None:
    other = make_tiny("qwen3", tmp_path)
    message = refusal(tiny, ContractError, decoder=str(other["a"]), allow_unverified=True)
    assert "architecture: base LlamaForCausalLM, decoder Qwen3ForCausalLM" in message


def test_a_decoder_with_another_tokenizer(tiny: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny["a"], tmp_path / "a")
    file = copy / "chat_template.jinja"
    template = file.read_text() if file.is_file() else ""
    file.write_text(template + "Now:")
    assert "chat template" in refusal(tiny, ContractError, decoder=str(copy))


def test_a_decoder_without_manifest(tiny: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny["a"], tmp_path / "a")
    (copy / "prefillshare.json").unlink()
    assert "no such file" in refusal(tiny, ContractError, decoder=str(copy))
    message = refusal(tiny, decoder=str(copy), allow_unverified=True, record=True)
    assert "has no manifest to record a score in" in message


def test_a_decoder_with_a_tail_through_a_cluster(tiny: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny["a"], tmp_path / "a")
    manifest = json.loads((copy / "prefillshare.json").read_text()) | {"tail": 4}
    (copy / "prefillshare.json").write_text(json.dumps(manifest))
    message = refusal(tiny, ContractError, decoder=str(copy), through="http://127.0.0.1:9")
    assert "tail: served 0, decoder 4" in message


def test_a_folder_that_is_not_there(tiny: dict[str, Path]) -> None:
    assert "/nowhere/a" in refusal(tiny, ModelNotFoundError, decoder="/nowhere/a")


def test_a_prompt_over_the_context(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallTask, "max_new_tokens", 2000)
    message = refusal(tiny)
    assert "prompts of small are too long, the first of them test-" in message
    assert "the context of 2048 leaves 48 beside an answer of 2000" in message


@pytest.mark.parametrize("flag", ["out", "answers", "figure"])
def test_files_that_cannot_be_written(tiny: dict[str, Path], tmp_path: Path, flag: str) -> None:
    nowhere: dict[str, Any] = {flag: Path("/nowhere/x")}
    folder: dict[str, Any] = {flag: tmp_path}
    assert f"--{flag} /nowhere/x: there is no folder" in refusal(tiny, **nowhere)
    assert "is a folder" in refusal(tiny, **folder)


def test_no_gateway(tiny: dict[str, Path]) -> None:
    message = refusal(tiny, through="http://127.0.0.1:9")
    assert "no ps_sglang gateway answers at http://127.0.0.1:9" in message


def test_a_gateway_without_room(tiny: dict[str, Path]) -> None:
    stand_in = YesGateway(AutoTokenizer.from_pretrained(tiny["a"]), room=60)
    with serving(stand_in) as url:
        message = refusal(tiny, through=url)
    assert "has room for 60 tokens a request" in message
    assert stand_in.asked == []


def test_the_command_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "chess", "--base", "base", "--decoder", "base"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("ps-sglang: error: no task 'chess'; the tasks are: code, ")
    assert said.count("\n") == 1
    assert main(["--task", "code"]) == 2
    assert "required: --base, --decoder" in capsys.readouterr().err
    assert main([*arguments, "--share", "2"]) == 2
    assert "--share 2: must be 0 to 1" in capsys.readouterr().err
