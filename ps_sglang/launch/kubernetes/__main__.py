"""`ps-sglang manifest`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.launch.kubernetes import text
from ps_sglang.launch.kubernetes.chart import write_chart
from ps_sglang.launch.kubernetes.objects import objects
from ps_sglang.launch.kubernetes.values import read_values
from ps_sglang.parser import SettingsParser, user_path
from ps_sglang.progress import progress

_DESCRIPTION: Final = """\
Write a cluster's Kubernetes manifests: a Deployment for the gateway, for the base and for each
decoder, with their Services, probes and budgets.

The specification is that of `ps-sglang launch`, with the key `kubernetes` besides. No cluster and
no model is looked at."""
_EPILOG: Final = """\
examples:
  ps-sglang manifest --spec cluster.yaml | kubectl apply -f -
  ps-sglang manifest --spec cluster.yaml --chart ./chart && helm install llm ./chart"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write them; raises UsageError."""
    parser = SettingsParser(
        "ps-sglang manifest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        usage="ps-sglang manifest --spec FILE [--chart FOLDER]",
    )
    parser.add_argument("--spec", type=Path, metavar="FILE", help="the specification, in YAML")
    parser.add_argument(
        "--chart",
        type=user_path,
        metavar="FOLDER",
        help="write a Helm chart of the same objects there instead",
    )
    options = vars(parser.parse_args(argv))
    if "spec" not in options:
        raise UsageError("--spec is missing (see ps-sglang manifest --help)")
    values = read_values(options["spec"], progress)
    if "chart" in options:
        for file in write_chart(options["chart"], values):
            progress(str(file))
    else:
        sys.stdout.write(text.every(objects(values)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
