from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.tiny import make_tiny
from ps_sglang.contract import is_adapter
from ps_sglang.errors import CheckpointError, ModelNotFoundError, UsageError
from ps_sglang.models import NamedModel, demo, resolve, resolve_all


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path / "home"))
    return make_tiny("llama", tmp_path / "tiny")


def test_local_folder_is_called_like_itself(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve(str(tiny["b"])) == NamedModel("b", tiny["b"])
    assert resolve(f"{tiny['b']}/") == NamedModel("b", tiny["b"])
    monkeypatch.chdir(tiny["a"])
    assert resolve("../b") == NamedModel("b", tiny["b"])
    assert resolve(".") == NamedModel("a", tiny["a"])


def test_link_keeps_its_own_name(tiny: dict[str, Path]) -> None:
    link = tiny["b"].with_name("planner")
    link.symlink_to(tiny["b"])
    assert resolve(str(link)).name == "planner"


def test_name_is_given(tiny: dict[str, Path]) -> None:
    assert resolve(f"planner={tiny['b']}") == NamedModel("planner", tiny["b"])


def test_home_folder_is_expanded(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny["a"].parent))
    assert resolve("x=~/a") == NamedModel("x", tiny["a"])


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "-a", "é", "a?b", "x" * 65])
def test_name_must_be_safe_in_a_url(tiny: dict[str, Path], name: str) -> None:
    with pytest.raises(UsageError, match="must be 1 to 64 letters"):
        resolve(f"{name}={tiny['a']}")


def test_folder_whose_name_cannot_be_used(tiny: dict[str, Path]) -> None:
    odd = tiny["a"].rename(tiny["a"].with_name("my model"))
    with pytest.raises(UsageError, match="give another with name="):
        resolve(str(odd))
    assert resolve(f"mine={odd}").path == odd


def test_path_is_empty() -> None:
    with pytest.raises(UsageError, match="'x=' has no path"):
        resolve("x=")


@pytest.mark.parametrize("spec", ["/nowhere/model", "./model", "model", "x=a/b/c"])
def test_missing_folder(spec: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no folder {spec.removeprefix('x=')};"):
        resolve(spec)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", r"no config\.json"),
        ("model.safetensors", r"no \.safetensors file"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_incomplete_folder(tiny: dict[str, Path], missing: str, said: str) -> None:
    (tiny["a"] / missing).unlink()
    with pytest.raises(CheckpointError, match=said) as caught:
        resolve(str(tiny["a"]))
    assert str(tiny["a"]) in str(caught.value)


def test_file_instead_of_folder(tiny: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        resolve(f"x={tiny['a'] / 'config.json'}")


@pytest.mark.parametrize("spec", ["org/model", "org/mo--del"])
def test_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, spec: str, tmp_path: Path) -> None:
    # Port 9 (discard) of this machine: refused at once, on any network.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelNotFoundError, match=f"no folder {spec}, and .* local checkpoint instead"
    ):
        resolve(spec)


def test_all_keep_their_order(tiny: dict[str, Path]) -> None:
    models = resolve_all([str(tiny["b"]), f"x={tiny['a']}", str(tiny["a"])])
    assert [model.name for model in models] == ["b", "x", "a"]


def test_two_of_one_name_are_refused_before_any_is_looked_at() -> None:
    """The folders do not exist: the name is what is wrong first."""
    with pytest.raises(
        UsageError, match=r"two models are called m: /one/m and /two/m; .*m-2=/two/m"
    ):
        resolve_all(["/one/m", "other=/x", "/two/m"])


def test_dot_slash_means_the_folder_not_the_demo_model(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny["a"].parent)
    assert resolve("./a") == NamedModel("a", tiny["a"])
    with pytest.raises(UsageError, match="two models are called a"):
        resolve_all(["a", "./a"])


def test_an_adapter_resolves_like_a_checkpoint(tmp_path: Path) -> None:
    folder = shutil.copytree(demo.ADAPTERS / "math", tmp_path / "mine")
    assert resolve(str(folder)) == NamedModel("mine", folder)
    assert resolve(f"m={folder}") == NamedModel("m", folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the weight file adapter_model\.safe"):
        resolve(str(folder))


@pytest.mark.parametrize("name", demo.DECODERS)
def test_the_demos_decoders_are_the_adapters_in_the_package(name: str) -> None:
    assert resolve(name) == NamedModel(name, demo.ADAPTERS / name)
    assert is_adapter(demo.ADAPTERS / name)


def test_every_demo_model_is_described() -> None:
    assert demo.DESCRIPTIONS.keys() == {*demo.ALIASES, *demo.DECODERS, *demo.MERGED}
