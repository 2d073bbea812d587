"""A LoRA adapter against its base: may a worker of adapters serve it, and serve it exactly?

SGLang 0.5.23 loads more than it applies: what its LoRA code does not know (another scale, biases,
weights beside A and B) is left out without an error, and a wrong shape ends the worker at the first
request. Everything that it cannot serve exactly is refused here by name. The way out is to merge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ps_sglang.contract.adapter_files import (
    ADAPTER_WEIGHTS,
    AdapterConfig,
    AdapterFiles,
    read_adapter_config,
)
from ps_sglang.contract.compare import (
    Checkpoint,
    manifest_differences,
    no_manifest,
    text_differences,
    unreadable,
)
from ps_sglang.contract.differences import Difference, report, some
from ps_sglang.contract.manifest import Manifest, read_manifest
from ps_sglang.contract.tensors import Tensor
from ps_sglang.contract.tokenizer import chat_template_digest, tokenizer_digest
from ps_sglang.contract.vocabulary import tokens_beyond
from ps_sglang.errors import CheckpointError, ContractError, ManifestError

_ATTENTION: Final = ("q_proj", "k_proj", "v_proj")
_FUSED: Final = {
    **dict.fromkeys(_ATTENTION, "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
"""Which modules are one in SGLang."""
SERVED_MODULES: Final = frozenset((*_FUSED, *_FUSED.values(), "o_proj", "down_proj"))
"""What an adapter may change, by the last parts of the modules' names."""
_PARENTS: Final = ("self_attn", "mlp")
_ALL_MODULES: Final = ("all", "all-linear")
_ANY: Final = "any"
_DTYPES: Final = ("F16", "BF16", "F32", "F64")
_SERVED: Final = ("served", "adapter")
_NEEDED: Final = ("needed", "adapter")
_CONFIG: Final = ("config", "weights")
_WORKER: Final = ("worker", "adapter")
# What changes what an adapter computes. SGLang looks at `use_dora` only; every other `use_...` is
# refused as well, so that kinds which are yet to come are, too.
_EMPTY: Final = (
    *("modules_to_save", "trainable_token_indices", "target_parameters"),
    *("rank_pattern", "alpha_pattern", "layer_replication"),
    *("lora_bias", "fan_in_fan_out"),
    *("arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)
# The others take a part out of the base's weights, which must then be changed, too.
_INITS_THAT_KEEP_THE_BASE: Final = (None, True, False, "gaussian", "eva", "orthogonal")
_TRAIN_AGAIN: Final = "train it again as a plain LoRA adapter"
_SAVE_AGAIN: Final = "save the adapter again from the model that was trained"
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class AdapterLimits:
    """What a running worker can take, from its own flags.

    `target_modules` as `--lora-target-modules` has them. A parser is None where it has none.
    """

    max_rank: int
    target_modules: Collection[str]
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None


def check_adapter(
    base: Path,
    adapter: Path,
    fingerprint: str,
    *,
    allow_unverified: bool,
    limits: AdapterLimits,
) -> AdapterConfig:
    """Whether a running worker of the model in `base` may load `adapter`.

    `fingerprint` is that of the base whose cache the worker holds. Raises ContractError listing
    every difference, and CheckpointError if `base` cannot be read.
    """
    checkpoint = Checkpoint.read(base)
    rows, manifest = compare_adapter(checkpoint, fingerprint, adapter, allow_unverified)
    config = None
    if not any(row.what == "files" for row in rows):
        config = read_adapter_config(adapter)
        rows += _beyond_limits(config, manifest, limits, _merge(checkpoint, adapter))
    if rows or config is None:
        name = adapter.name
        raise ContractError(*report(base, {name: adapter}, {name: rows}))
    return config


def compare_adapter(
    base: Checkpoint, fingerprint: str, folder: Path, allow_unverified: bool
) -> tuple[list[Difference], Manifest | None]:
    """Every reason why the adapter in `folder` cannot be served with `base`, and its manifest.

    `fingerprint` is that of the base on which it must have been trained.
    """
    try:
        manifest = read_manifest(folder)
        adapter = AdapterFiles.read(folder)
        tokenizer, template = _own_texts(folder)
        beyond = tokens_beyond(folder, base.shape.vocabulary)
    except (CheckpointError, ManifestError) as error:
        return [unreadable(error)], None
    merge = _merge(base, folder)
    rows = [*_config_differences(adapter, merge), *_tensor_differences(base, adapter, merge)]
    rows += text_differences(
        base, folder, tokenizer or base.tokenizer, template or base.chat_template
    )
    if beyond:
        tokens = some([f"{beyond[token_id]!r} = {token_id}" for token_id in sorted(beyond)])
        rows.append(Difference("vocabulary", base.shape.vocabulary, f"adds {tokens}", _TRAIN_AGAIN))
    if manifest is not None:
        rows += manifest_differences(base, fingerprint, manifest, [tokenizer, template])
    elif not allow_unverified:
        rows.append(no_manifest(fingerprint))
    return rows, manifest


def _merge(base: Checkpoint, adapter: Path) -> str:
    return (
        "merge it, and serve the new folder as a whole model: "
        f"ps-sglang merge {adapter} --base {base.folder} --to {adapter.name}-merged"
    )


def _own_texts(folder: Path) -> tuple[str | None, str | None]:
    """Digests of the tokenizer and the chat template beside the adapter, None where there is none:
    the worker has the base's."""
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
    return tokenizer_digest(folder) if has_tokenizer else None, chat_template_digest(folder)


def _config_differences(adapter: AdapterFiles, merge: str) -> Iterator[Difference]:
    """What its config asks for and SGLang does not do."""
    items = adapter.items
    kind = str(items.get("peft_type"))
    if kind.upper() != "LORA":
        yield Difference("peft_type", "LORA", kind, merge, _SERVED)
    unserved = [key for key in items if key.startswith("use_") and items[key]]
    for key in (*_EMPTY, *unserved):
        if value := items.get(key):
            nothing = "false" if value is True else "none"
            yield Difference(key, nothing, _shown(value), merge, _SERVED)
    if items.get("bias", "none") != "none":
        yield Difference("bias", "none", _shown(items["bias"]), merge, _SERVED)
    if tokens := items.get("alora_invocation_tokens"):
        yield Difference("alora_invocation_tokens", "none", _shown(tokens), _TRAIN_AGAIN, _SERVED)
    if (start := items.get("init_lora_weights")) not in _INITS_THAT_KEEP_THE_BASE:
        mend = f"let peft convert it (path_initial_model_for_weight_conversion), or {merge}"
        kept = "one that keeps the base's weights"
        yield Difference("init_lora_weights", kept, _shown(start), mend, _SERVED)
    yield from _target_differences(adapter, merge)


def _target_differences(adapter: AdapterFiles, merge: str) -> Iterator[Difference]:
    """SGLang asks the config which modules there are, peft as well; the tensors must agree."""
    targets = adapter.items.get("target_modules")
    found = adapter.config.target_modules
    in_config = f"write it as a list into adapter_config.json: {list(found)}"
    if isinstance(targets, str) or not targets:
        if targets not in _ALL_MODULES:
            yield Difference("target_modules", "a list", repr(targets), in_config, _SERVED)
        return
    named = {str(target).rpartition(".")[2] for target in targets}
    if others := sorted(named - SERVED_MODULES):
        mend = merge if found else in_config
        yield Difference("target_modules", "attention and MLP", some(others), mend, _SERVED)
    if absent := sorted(named & SERVED_MODULES - set(found)):
        yield Difference("tensors of target_modules", some(absent), "none", in_config, _CONFIG)
    if unnamed := sorted(set(found) & SERVED_MODULES - named):
        yield Difference(
            "target_modules", "without " + some(unnamed), "tensors of it", in_config, _CONFIG
        )


def _tensor_differences(
    base: Checkpoint, adapter: AdapterFiles, merge: str
) -> Iterator[Difference]:
    """At most one row for each way in which tensors are not what the base and the config need."""
    if not adapter.factors:
        yield Difference("weights", "pairs of lora_A and lora_B", "none", _SAVE_AGAIN, _SERVED)
    if adapter.others:
        yield Difference("other tensors", "none", some(sorted(adapter.others)), merge, _SERVED)
    if files := sorted(
        file.name for file in adapter.folder.glob("*.safetensors") if file.name != ADAPTER_WEIGHTS
    ):
        mend = "remove them from the adapter's folder: SGLang would load them, too"
        yield Difference("weight files", ADAPTER_WEIGHTS, some(files), mend, _SERVED)
    modules = {name.rpartition(".")[0] for name in base.tensors}
    known = {
        module: factors
        for module, factors in adapter.factors.items()
        if _is_served(module) and module in modules
    }
    if unserved := sorted(module for module in adapter.factors if not _is_served(module)):
        yield Difference("modules", "attention and MLP", some(unserved), merge, _SERVED)
    if missing := sorted({m for m in adapter.factors if _is_served(m)} - known.keys()):
        other = "train it on this base, or serve it with the base that it was trained on"
        sides = ("base", "adapter")
        yield Difference("modules", "has none such", some(missing), other, sides)
    if halves := sorted(module for module, factors in known.items() if len(factors) < 2):
        yield Difference(
            "lora_A or lora_B", "both", "lacks one of " + some(halves), _SAVE_AGAIN, _SERVED
        )
    yield from _shape_differences(base, adapter.config.rank, known)
    yield from _partner_differences(known, merge)


def _is_served(module: str) -> bool:
    parent, _, name = module.rpartition(".")
    return name in SERVED_MODULES and parent.rpartition(".")[2] in _PARENTS


def _shape_differences(
    base: Checkpoint, rank: int, known: dict[str, dict[str, Tensor]]
) -> Iterator[Difference]:
    """A is [rank, in], B is [out, rank], where the base's weight is [out, in]."""
    wrong: dict[str, tuple[str, str]] = {}
    dtypes: dict[str, str] = {}
    for module, factors in sorted(known.items()):
        weight = base.tensors.get(f"{module}.weight")
        # A quantised weight's own shape says nothing.
        out, width = (_ANY, _ANY) if base.quantized or weight is None else map(str, weight.shape)
        for half, tensor in sorted(factors.items()):
            needed = (str(rank), width) if half == "A" else (out, str(rank))
            shape = tuple(map(str, tensor.shape))
            fits = len(shape) == 2 and all(
                need in (_ANY, size) for need, size in zip(needed, shape, strict=True)
            )
            if not fits:
                wrong[tensor.name] = f"[{', '.join(needed)}]", f"[{', '.join(shape)}]"
            if tensor.dtype not in _DTYPES:
                dtypes[tensor.name] = tensor.dtype
    if wrong:
        first = next(iter(wrong.values()))
        yield Difference(f"shape of {some(list(wrong))}", *first, _SAVE_AGAIN, _NEEDED)
    if dtypes:
        types = ", ".join(_DTYPES), next(iter(dtypes.values()))
        yield Difference(f"type of {some(list(dtypes))}", *types, _SAVE_AGAIN, _SERVED)


def _partner_differences(known: Collection[str], merge: str) -> Iterator[Difference]:
    """What SGLang fuses it finds by q_proj and gate_proj, and it needs v_proj beside q_proj."""
    parents: dict[str, set[str]] = {}
    for module in known:
        parent, _, name = module.rpartition(".")
        parents.setdefault(parent, set()).add(name)
    attention = [
        f"{parent} has only {', '.join(sorted(names))}"
        for parent, names in sorted(parents.items())
        if names.intersection(_ATTENTION) and not {"q_proj", "v_proj"} <= names
    ]
    if attention:
        yield Difference(
            "attention", "q_proj and v_proj, or none of it", some(attention), merge, _SERVED
        )
    mlp = [
        parent
        for parent, names in sorted(parents.items())
        if "up_proj" in names and "gate_proj" not in names
    ]
    if mlp:
        yield Difference("up_proj", "with gate_proj", f"without it in {some(mlp)}", merge, _SERVED)


def beyond_targets(config: AdapterConfig, target_modules: Collection[str]) -> list[str]:
    """The modules of an adapter that a worker with these `--lora-target-modules` lacks."""
    served = {_FUSED.get(name, name) for name in target_modules}
    if served.intersection(_ALL_MODULES):
        return []
    return [name for name in config.target_modules if _FUSED.get(name, name) not in served]


def _beyond_limits(
    config: AdapterConfig, manifest: Manifest | None, limits: AdapterLimits, merge: str
) -> list[Difference]:
    """What the worker's flags do not allow; one mend has all that must change."""
    beyond: list[tuple[str, object, object]] = []
    flags = []
    if config.rank > limits.max_rank:
        beyond.append(("rank", f"at most {limits.max_rank}", config.rank))
        flags.append(f"--max-lora-rank {config.rank}")
    if others := beyond_targets(config, limits.target_modules):
        ours = ", ".join(sorted(limits.target_modules))
        beyond.append(("target modules", ours, ", ".join(others)))
        needed = sorted({*limits.target_modules, *config.target_modules})
        flags.append(f"--lora-target-modules {' '.join(needed)}")
    for kind in ("tool_call_parser", "reasoning_parser"):
        named = manifest and getattr(manifest, kind)
        if named and named != (parser := getattr(limits, kind)):
            beyond.append((kind.replace("_", " "), parser or "none", named))
            flags.append(f"--{kind.replace('_', '-')} {named}")
    mend = f"start the worker again with {' '.join(flags)}, or {merge}"
    return [Difference(what, ours, theirs, mend, _WORKER) for what, ours, theirs in beyond]


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
