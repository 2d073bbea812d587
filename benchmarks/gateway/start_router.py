"""Starts `sglang-router` as its launcher does, which first imports all of SGLang for seconds.

python -m benchmarks.gateway.start_router ARGUMENTS...
"""

from __future__ import annotations

import argparse

from sglang_router.router import Router
from sglang_router.router_args import RouterArgs


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    RouterArgs.add_cli_args(parser, use_router_prefix=False)
    arguments = RouterArgs.from_cli_args(parser.parse_args(), use_router_prefix=False)
    arguments._validate_router_args()
    Router.from_args(arguments).start()


if __name__ == "__main__":
    main()
