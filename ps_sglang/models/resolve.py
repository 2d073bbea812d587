"""From what a user writes to the folder of a model: a checkpoint, or a LoRA adapter.

name=SPEC          any of the below under another name
base               the demo models' base (also smollm2-135m)
code, tools, math  the demo decoders, LoRA adapters trained on its cache
smollm2-135m-code  one of them merged into the base, a whole model (also -tools, -math)
a, b, c            stand-ins: the base plus noise (also standin-a, standin-b, standin-c)
PATH               a local folder; `./code` for one that is called like a demo model
org/model          a hub id, downloaded through huggingface_hub
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ps_sglang.contract.adapter_files import is_adapter, read_adapter_config
from ps_sglang.contract.shape import read_shape
from ps_sglang.contract.tensors import weight_files
from ps_sglang.contract.tokenizer import tokenizer_digest
from ps_sglang.errors import CheckpointError, ModelNotFoundError, UsageError
from ps_sglang.models.demo import ALIASES, DECODERS, MERGED, demo_folder

# It becomes part of a URL path, a log file's name and a metrics label.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DEMO = (*ALIASES, *ALIASES.values(), *DECODERS, *MERGED)
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt")


@dataclass(frozen=True)
class NamedModel:
    """The folder of a checkpoint or an adapter, and the name that clients use for it."""

    name: str
    path: Path


def resolve(spec: str) -> NamedModel:
    """The model that `spec` means; a demo model is prepared, a hub model downloaded.

    Raises ModelNotFoundError, CheckpointError, MissingPackageError, or UsageError for a bad name.
    """
    name, source = _split(spec)
    return NamedModel(name, _folder(source))


def model_name(spec: str) -> str:
    """The name that clients use for what `spec` means; raises UsageError for a bad one."""
    return _split(spec)[0]


def resolve_all(specs: Sequence[str]) -> list[NamedModel]:
    """`resolve` each; two specifications of one name are refused before anything is prepared."""
    by_name: dict[str, str] = {}
    for spec in specs:
        name, _ = _split(spec)
        if name in by_name:
            raise UsageError(
                f"two models are called {name}: {by_name[name]} and {spec}; "
                f"rename one, for instance {name}-2={_split(spec)[1]}"
            )
        by_name[name] = spec
    return [resolve(spec) for spec in specs]


def _split(spec: str) -> tuple[str, str]:
    name, equals, source = spec.partition("=")
    if not equals:
        name, source = _default_name(spec), spec
    if not source:
        raise UsageError(f"model {spec!r} has no path; write name=path")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"model name {name!r} must be 1 to 64 letters, digits, '.', '_' or '-', the first a "
            f"letter or digit; give another with name={source or 'path'}"
        )
    return name, source


def _default_name(source: str) -> str:
    return source if source in _DEMO else _absolute(source).name


def _folder(source: str) -> Path:
    if source in _DEMO:
        return demo_folder(ALIASES.get(source, source))
    path = _absolute(source)
    if path.exists():
        return _checked(path)
    if _HUB_ID.fullmatch(source):
        return _checked(_download(source))
    raise ModelNotFoundError(
        f"no folder {source}; give a folder of a checkpoint or an adapter, a hub id (org/model) "
        f"or a demo model ({', '.join((*ALIASES, *DECODERS))})"
    )


def _absolute(source: str) -> Path:
    """Without following links: a link's own name is the one that the user chose."""
    return Path(os.path.abspath(Path(source).expanduser()))


def _checked(folder: Path) -> Path:
    """`folder` if an engine can load it: config, safetensors weights, tokenizer. An adapter needs
    no tokenizer, it is used with its base's."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give the folder of a checkpoint")
    if is_adapter(folder):
        read_adapter_config(folder)
        return folder
    read_shape(folder)
    weight_files(folder)
    tokenizer_digest(folder)
    return folder


def _download(hub_id: str) -> Path:
    # Imported late: most launches read local folders.
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    # Its "no connection and not in the local cache" is a FileNotFoundError.
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelNotFoundError(
            f"no folder {hub_id}, and it could not be fetched from the hub ({reason}); "
            "give the path of a local checkpoint instead"
        ) from error
