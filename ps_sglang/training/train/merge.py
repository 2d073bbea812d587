"""`ps-sglang merge`: what no worker of adapters can serve becomes a whole model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ps_sglang.contract import Manifest, base_fingerprint, is_adapter, read_manifest
from ps_sglang.contract.shape import read_shape
from ps_sglang.errors import TrainingError, UsageError
from ps_sglang.extras import require_extra
from ps_sglang.models import NamedModel, resolve
from ps_sglang.parser import user_path
from ps_sglang.progress import progress

_DESCRIPTION: Final = """\
Add a LoRA adapter to the weights of its base, and write the sum as a whole model, with the base's
tokenizer and the adapter's prefillshare.json. A plain adapter needs no merging: launch its folder
as a decoder, and all adapters share one worker. DoRA, rsLoRA, other ranks for some modules, trained
embeddings and whatever else SGLang cannot serve as an adapter is served merged, on a worker of its
own. peft reads the adapter; it takes 4 bytes a weight of the base in memory."""

_EPILOG: Final = """\
exit status: 0 merged, 1 the folder could not be written, 2 refused before anything was written

examples:
  ps-sglang merge ./math --base ./base --to ./math-merged
  ps-sglang merge code --base base --to ./code-merged
  ps-sglang launch --prefill ./base --decoders math=./math-merged"""


def main(argv: Sequence[str] | None = None) -> int:
    """Merge; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        _merge(args.adapter, args.base, args.to, args.allow_unverified)
    except TrainingError as error:
        progress(f"error: {error}")
        return 1
    return 0


def _merge(adapter_spec: str, base_spec: str, out: Path, allow_unverified: bool) -> None:
    require_extra("train", "ps-sglang merge")
    if out.exists():
        raise UsageError(f"--to {out}: exists already; give the name of a new folder")
    adapter, base = resolve(adapter_spec), resolve(base_spec)
    if not is_adapter(adapter.path):
        raise UsageError(f"{adapter.path} is a whole model, no adapter; it needs no merging")
    read_shape(base.path)  # refuses an adapter
    manifest = _manifest(adapter.path, base, allow_unverified)
    progress(f"merging {adapter.path} into {base.path}")
    # Imported late: torch and transformers take seconds, and `--help` needs neither.
    from ps_sglang.training.train.export import merge_adapter

    merge_adapter(base, adapter.path, out, manifest)
    unverified = "" if manifest else " --allow-unverified"
    progress(
        f"done: whole model in {out}; serve it: ps-sglang launch --prefill {base_spec} "
        f"--decoders {adapter.name}={out}{unverified}"
    )


def _manifest(adapter: Path, base: NamedModel, allow_unverified: bool) -> Manifest | None:
    """That of the adapter, which must have been trained on `base`."""
    manifest = read_manifest(adapter)
    if manifest is None:
        if allow_unverified:
            return None
        raise UsageError(
            f"{adapter} has no prefillshare.json, which says what it was trained on; give "
            "--allow-unverified if it was trained on this base"
        )
    if manifest.base.fingerprint != (fingerprint := base_fingerprint(base.path)):
        raise UsageError(
            f"{adapter} was trained on {manifest.base.name} ({manifest.base.fingerprint}), not on "
            f"{base.name} ({fingerprint}); give that base"
        )
    return manifest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ps-sglang merge",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder, demo model or hub id")
    parser.add_argument(
        "--base", metavar="MODEL", required=True, help="the base that it was trained on"
    )
    parser.add_argument(
        "--to", metavar="DIR", type=user_path, required=True, help="a new folder for the model"
    )
    parser.add_argument(
        "--allow-unverified", action="store_true", help="merge an adapter without a manifest"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
