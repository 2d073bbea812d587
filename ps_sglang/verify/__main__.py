"""`ps-sglang verify`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ps_sglang.errors import PsSglangError, UsageError
from ps_sglang.models import resolve, resolve_all
from ps_sglang.parser import user_path
from ps_sglang.progress import progress

_DESCRIPTION: Final = """\
Compare what a running cluster answers with the Hugging Face reference: the base's forward pass
over all prompt tokens but the last, the decoder from there on, greedy, in float32 on the CPU.
Sends 64 requests (cold, warm, 8 at once, conversations across decoders, chat API). A cluster of
float32 workers must be exact. One of bfloat16 workers may be off by its rounding; how far is set
such that answers on the decoders' own KV would still be found out."""

_EPILOG: Final = """\
exit status: 0 all exact, 1 something differs (or the check cannot tell), 2 wrong arguments.

examples:
  ps-sglang verify --url http://127.0.0.1:8000 --base base --decoder code --decoder math
  ps-sglang verify --url http://127.0.0.1:8000 --base ./qwen3 --decoder math=./adapter
  ps-sglang verify --demo"""

_DEMO: Final = ("base", ("code", "tools", "math"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    try:
        return _run(argv)
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2


def _run(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    options = (args.url, args.base, args.decoder)
    if any(options) if args.demo else not all(options):
        raise UsageError("give --url, --base and at least one --decoder, or --demo alone")
    base_spec, decoder_specs = _DEMO if args.demo else (args.base, args.decoder)
    _check_writable(args.json)
    base, decoders = resolve(base_spec), resolve_all(decoder_specs)
    # Imported late: torch and transformers take seconds, and `--help` needs neither.
    from ps_sglang.verify.run import verify, verify_demo

    report = (
        verify_demo(base, decoders, args.dtype, _on_progress)
        if args.demo
        else verify(args.url, base, decoders, args.dtype, _on_progress)
    )
    for line in report.details():
        _on_progress(line)
    if args.json:
        args.json.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    print(report.conclusion, flush=True)
    return 0 if report.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ps-sglang verify",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="the gateway, as in the launcher's ready line")
    parser.add_argument("--base", metavar="MODEL", help="the base: path, hub id or demo model")
    parser.add_argument(
        "--decoder",
        metavar="NAME=MODEL",
        action="append",
        default=[],
        help="a decoder that the cluster serves, an adapter or a whole model; may be given again",
    )
    parser.add_argument(
        "--demo", action="store_true", help="launch the demo cluster, verify it, stop it"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="in what the workers compute, as their --dtype says (default float32)",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=user_path, help="write all verdicts there, too"
    )
    return parser


def _check_writable(file: Path | None) -> None:
    """Refuse what could not be written when all the work is done."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise UsageError(f"--json {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise UsageError(f"--json {file}: is a folder, must be a file")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"--json {file}: permission denied")


def _on_progress(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
