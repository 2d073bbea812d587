"""`ps-sglang decoders`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

from ps_sglang.decoders.client import DecodersClient
from ps_sglang.errors import UsageError
from ps_sglang.gateway_admin import add_gateway, exit_status, path_on_worker, print_table
from ps_sglang.gateway_http import Json

_DESCRIPTION: Final = """\
See and change which decoders a running cluster serves. Adapters come, go and are replaced while
requests run: those that have begun end with the adapter that they began with."""

_EPILOG: Final = """\
An adapter is a folder of peft's with a prefillshare.json. Each worker compares it with the base
before it loads anything, and serves it on a model that it has already: it takes no process and no
start. Decoders that are whole models have workers of their own, see `ps-sglang workers`.

examples:
  ps-sglang decoders list
  ps-sglang decoders add math=./math
  ps-sglang decoders replace math=./math-v2
  ps-sglang decoders remove math"""

_COLUMNS: Final = ("NAME", "KIND", "REQUESTS", "WORKERS", "PATH")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 the gateway refused it, 2 wrong arguments."""
    args = _parser().parse_args(argv)
    run: Callable[[DecodersClient, argparse.Namespace], None] = args.run
    return exit_status(lambda: run(DecodersClient(args.gateway), args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ps-sglang decoders",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_gateway(parser)
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(
        name: str, run: Callable[[DecodersClient, argparse.Namespace], None], help_text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text, description=help_text)
        added.set_defaults(run=run)
        return added

    command("list", _list, "list the decoders")
    for name, run, help_text in (
        ("add", _add, "serve an adapter under a new name"),
        ("replace", _replace, "serve another adapter under a name"),
    ):
        subparser = command(name, run, help_text)
        subparser.add_argument(
            "decoder", metavar="NAME=PATH", help="its name for clients, and the adapter's folder"
        )
        subparser.add_argument(
            "--allow-unverified", action="store_true", help="admit an adapter without a manifest"
        )
    remove = command("remove", _remove, "serve an adapter no more, when its requests have ended")
    remove.add_argument("name", metavar="NAME", help="a decoder")
    return parser


def _list(client: DecodersClient, args: argparse.Namespace) -> None:
    print_table([_COLUMNS, *map(_row, client.list())])


def _row(decoder: Json) -> tuple[str, ...]:
    workers = ", ".join(
        worker["name"] + (f" ({worker['problem']})" if worker["problem"] else "")
        for worker in decoder["workers"]
    )
    requests, path = str(decoder["requests"]), decoder["path"] or "-"
    return decoder["name"], decoder["kind"], requests, workers, path


def _add(client: DecodersClient, args: argparse.Namespace) -> None:
    name, path = _name_and_path(args.decoder)
    client.add(name, path, allow_unverified=args.allow_unverified)
    print(f"{name} serves {path}")


def _replace(client: DecodersClient, args: argparse.Namespace) -> None:
    name, path = _name_and_path(args.decoder)
    client.replace(name, path, allow_unverified=args.allow_unverified)
    print(f"{name} serves {path}")


def _remove(client: DecodersClient, args: argparse.Namespace) -> None:
    client.remove(args.name)
    print(f"{args.name} is gone")


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(f"{text!r} must be NAME=PATH, such as math=./math")
    return name, path_on_worker(path)


if __name__ == "__main__":
    sys.exit(main())
