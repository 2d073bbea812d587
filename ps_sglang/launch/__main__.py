"""`ps-sglang launch`: start a cluster, serve until Ctrl-C, stop it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ps_sglang.launch.args import parse_args
from ps_sglang.launch.serve import serve

if TYPE_CHECKING:
    from ps_sglang.launch.prepare import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: see `serve.STATUSES`."""

    def plan() -> Plan:
        spec = parse_args(sys.argv[1:] if argv is None else argv)
        from ps_sglang.launch.prepare import prepare

        return prepare(spec)

    return serve(plan)


if __name__ == "__main__":
    sys.exit(main())
