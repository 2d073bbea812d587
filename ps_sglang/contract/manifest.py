"""`prefillshare.json`: which base a decoder was trained on, and how."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ps_sglang import sglang_names
from ps_sglang.errors import ManifestError

MANIFEST_FILE = "prefillshare.json"
SCHEMA = 1

Setting = str | int | float | bool | None

# Unknown fields are forbidden: a misspelt field is an error, not a default.


class BaseReference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base whose cache the decoder reads; `name` is for people, `fingerprint` decides."""

    name: str
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^ps1:[0-9a-f]{64}$")]


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the decoder was made, enough to make it again."""

    recipe: str
    data_digest: str | None = None
    settings: dict[str, Setting] = {}


class Score(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured result of the decoder on the base's cache."""

    benchmark: str
    metric: str
    value: float
    examples: Annotated[int, msgspec.Meta(ge=1)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contract of one decoder. Digests are those of `contract.tokenizer`.

    `kv_cache_dtype` is the cache's dtype in training or in the check that followed, for instance
    `float32` or `bfloat16`. `share_ratio` is the part of the prompt whose KV came from the base in
    training, 0 to 1. `tail` is how many tokens before the boundary token are not among them: the
    decoder reads them itself. `tool_call_parser` and `reasoning_parser` are SGLang's names of what
    takes the decoder's answers apart, for workers that no flag tells another. `stand_in` marks a
    decoder that nobody trained.
    """

    schema: int = SCHEMA
    base: BaseReference
    tokenizer: str
    chat_template: str | None
    kv_cache_dtype: str
    share_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)]
    tail: Annotated[int, msgspec.Meta(ge=0)] = 0
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    training: Training
    scores: list[Score] = []
    stand_in: bool = False

    @property
    def summary(self) -> str:
        """One line for a person: how the decoder was made, and what was measured."""
        scores = [f"{s.benchmark}: {s.metric} {s.value:.4g}, n={s.examples}" for s in self.scores]
        return "; ".join([self.training.recipe, *(scores or ["no scores"])])


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write `folder/prefillshare.json` and return its path."""
    path = folder / MANIFEST_FILE
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return path


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest beside a decoder, None if there is none.

    Raises ManifestError, naming the field and its value, for one that cannot be read, or that
    names a parser that SGLang does not have.
    """
    path = folder / MANIFEST_FILE
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ManifestError(f"cannot read {path}: {error}") from error
    _refuse_other_schema(path, data)
    try:
        manifest = msgspec.convert(data, Manifest)
    except msgspec.ValidationError as error:
        raise ManifestError(f"{path}: {_explain(error, data)}") from error
    if problem := parser_problem(manifest.tool_call_parser, manifest.reasoning_parser):
        raise ManifestError(f"{path}: {problem}")
    return manifest


def parser_problem(tool_call_parser: str | None, reasoning_parser: str | None) -> str | None:
    """What is wrong with the names of a decoder's parsers; None if SGLang has them."""
    for field, name, parser_names in (
        ("tool_call_parser", tool_call_parser, sglang_names.tool_call_parsers),
        ("reasoning_parser", reasoning_parser, sglang_names.reasoning_parsers),
    ):
        if name is not None and name not in parser_names():
            names = ", ".join(parser_names())
            return f"{field} is {name!r}, which SGLang does not have; one of {names}"
    return None


def _refuse_other_schema(path: Path, data: Any) -> None:
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ManifestError(
            f"{path}: schema is {schema!r}, but this ps-sglang reads schema {SCHEMA}; "
            "use the ps-sglang version that wrote the file, or write the manifest again"
        )


def _explain(error: msgspec.ValidationError, data: Any) -> str:
    """msgspec's message with the offending value, which it leaves out.

    Its messages end in "- at `$.base.name`"; keys that are not identifiers end the walk early.
    """
    message = str(error)
    match = re.search(r" - at `\$([^`]*)`$", message)
    if match is None:
        return message
    value = data
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", match[1]):
        value = value[key] if key else value[int(index)]
    field = match[1].removeprefix(".")
    text = json.dumps(value)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return f"{field}: {message[: match.start()]}, value {shown}"
